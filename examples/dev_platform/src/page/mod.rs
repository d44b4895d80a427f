//! The page of the platform: HTML that the server renders, one script and one style sheet.
//!
//! The page reads and never writes: what its buttons do goes through the API. All its links are
//! relative, so it also works behind a proxy that serves it below another path. A read-only page
//! has no buttons and no forms that change anything, and the gateway refuses changes by browsers.
//!
//! | Module | What is in it |
//! |---|---|
//! | `view` | what each page shows, as parts that change one by one |
//! | `live` | sends the parts that have changed to the browser |
//! | `jobs`, `job`, `queues`, `workers`, `sessions`, `dead_letters` | the parts of each page |
//! | `microphone` | the page that transcribes what the browser records |
//! | `trace` | the waterfall of a job |
//! | `layout` | what all pages have, and how times are written |

mod dead_letters;
mod job;
mod jobs;
mod layout;
mod live;
mod microphone;
mod queues;
mod sessions;
mod trace;
mod view;
mod workers;

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use dalston_telemetry::tower::RequestIds;
use tokio::sync::{Semaphore, watch};
use tracing::error;

use self::jobs::JobsQuery;
use self::layout::Place;
use self::view::View;
use crate::platform::Platform;

/// The paths that need no spans: each lasts as long as a browser shows a page.
pub(crate) const UNOBSERVED: [&str; 2] = ["/events/*", "/assets/*"];

/// Scripts and styles of this server only, and no page of another site around this one.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; form-action 'self'; base-uri 'self'; frame-ancestors 'none'";

/// What the handlers share.
#[derive(Debug)]
struct Page {
    platform: Platform,
    streams: Arc<Semaphore>,
    /// Becomes true at the end of the process.
    closed: watch::Receiver<bool>,
}

type Shared = State<Arc<Page>>;

/// The routes of the page. The streams of events end when `closed` becomes true.
pub(crate) fn router<S>(platform: Platform, closed: watch::Receiver<bool>) -> Router<S> {
    let page = Page {
        platform,
        streams: Arc::new(Semaphore::new(live::MAX_STREAMS)),
        closed,
    };
    let views = Router::new()
        .route("/", get(jobs))
        .route("/jobs/{id}", get(job))
        .route(
            "/queues",
            get(async |page: Shared, ids| show(page, ids, View::Queues).await),
        )
        .route(
            "/workers",
            get(async |page: Shared, ids| show(page, ids, View::Workers).await),
        )
        .route(
            "/sessions",
            get(async |page: Shared, ids| show(page, ids, View::Sessions).await),
        )
        .route("/microphone", get(microphone))
        .route(
            "/dead-letters",
            get(async |page: Shared, ids| show(page, ids, View::DeadLetters).await),
        );
    let events = Router::new()
        .route("/events/jobs", get(job_list_events))
        .route("/events/jobs/{id}", get(job_events))
        .route(
            "/events/queues",
            get(async |page| live::follow(page, View::Queues)),
        )
        .route(
            "/events/workers",
            get(async |page| live::follow(page, View::Workers)),
        )
        .route(
            "/events/sessions",
            get(async |page| live::follow(page, View::Sessions)),
        )
        .route(
            "/events/dead-letters",
            get(async |page| live::follow(page, View::DeadLetters)),
        );
    Router::new()
        .merge(views)
        .merge(events)
        .layer(from_fn(not_stored))
        .route(
            "/assets/page.js",
            get(|| asset(layout::SCRIPT, "text/javascript")),
        )
        .route(
            "/assets/microphone.js",
            get(|| asset(layout::MICROPHONE, "text/javascript")),
        )
        .route("/assets/style.css", get(|| asset(layout::STYLE, "text/css")))
        .layer(from_fn(protected))
        .with_state(Arc::new(page))
}

async fn jobs(page: Shared, ids: RequestIds, Query(query): Query<JobsQuery>) -> Response {
    show(page, ids, View::Jobs(query)).await
}

async fn job(page: Shared, ids: RequestIds, Path(id): Path<String>) -> Response {
    show(page, ids, View::Job(id)).await
}

async fn microphone(State(page): Shared) -> Response {
    let place = Place {
        title: "Microphone",
        root: "./",
        events: String::new(),
        config: page.platform.page.clone(),
    };
    match place.config.is_read_only {
        true => problem(StatusCode::FORBIDDEN, &place, "The page is read-only."),
        false => Html(layout::plain(&place, &microphone::content()).into_string()).into_response(),
    }
}

async fn job_list_events(page: Shared, Query(query): Query<JobsQuery>) -> Response {
    live::follow(page, View::Jobs(query))
}

async fn job_events(page: Shared, Path(id): Path<String>) -> Response {
    live::follow(page, View::Job(id))
}

async fn show(State(page): Shared, ids: RequestIds, view: View) -> Response {
    let place = view.place(&page.platform.page);
    match view.render(&page.platform).await {
        Ok(Some(parts)) => Html(layout::page(&place, &parts).into_string()).into_response(),
        Ok(None) => {
            let text = "There is no such job. It may have been deleted.";
            problem(StatusCode::NOT_FOUND, &place, text)
        }
        Err(cause) => {
            error!(error = format!("{cause:#}"), "page_failed");
            let text = format!(
                "The page could not be made. The log says why, with the request id {}.",
                ids.request_id()
            );
            problem(StatusCode::INTERNAL_SERVER_ERROR, &place, &text)
        }
    }
}

fn problem(status: StatusCode, place: &Place, text: &str) -> Response {
    (status, Html(layout::problem(place, text).into_string())).into_response()
}

/// An asset may be kept for ever: its address has its version.
fn asset(text: &'static str, kind: &'static str) -> impl Future<Output = Response> {
    let kind = [(header::CONTENT_TYPE, kind)];
    let keep = [(header::CACHE_CONTROL, "private, max-age=31536000, immutable")];
    std::future::ready((kind, keep, text).into_response())
}

/// Keeps what was shown with a key out of the caches.
async fn not_stored(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let value = HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, value);
    response
}

async fn protected(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}
