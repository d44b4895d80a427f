//! [`ResponseFuture`].

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Body;
use pin_project_lite::pin_project;
use tracing::instrument::Instrumented;

use super::body::ResponseBody;
use super::exchange::Exchange;
use super::ids::RequestIds;
use super::websocket::UpgradeSpan;
use crate::logs::context::{InLogContext, LogContext};

pin_project! {
    /// The future of a response. Made by [`HttpService`](super::HttpService).
    pub struct ResponseFuture<F> {
        #[pin]
        kind: Kind<F>,
    }
}

pin_project! {
    #[project = KindProjected]
    enum Kind<F> {
        Unobserved { #[pin] handling: F },
        Observed {
            #[pin]
            handling: InLogContext<Instrumented<F>>,
            observed: Option<Observed>,
        },
    }
}

/// What the end of the handling needs.
struct Observed {
    exchange: Exchange,
    ids: RequestIds,
    log: LogContext,
    upgrade: Option<(UpgradeSpan, StatusCode)>,
    has_body: bool,
}

impl<F> ResponseFuture<F> {
    pub(super) fn unobserved(handling: F) -> Self {
        Self {
            kind: Kind::Unobserved { handling },
        }
    }

    pub(super) fn observed(
        handling: InLogContext<Instrumented<F>>,
        exchange: Exchange,
        ids: RequestIds,
        log: LogContext,
        upgrade: Option<(UpgradeSpan, StatusCode)>,
        has_body: bool,
    ) -> Self {
        let observed = Some(Observed {
            exchange,
            ids,
            log,
            upgrade,
            has_body,
        });
        Self {
            kind: Kind::Observed { handling, observed },
        }
    }
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body<Data = Bytes>,
{
    type Output = Result<Response<ResponseBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().kind.project() {
            KindProjected::Unobserved { handling } => {
                let response = ready!(handling.poll(cx))?;
                Poll::Ready(Ok(response.map(ResponseBody::unobserved)))
            }
            KindProjected::Observed { handling, observed } => {
                // After a panic the handling is only dropped.
                let polled = catch_unwind(AssertUnwindSafe(|| handling.poll(cx)));
                let result = match polled {
                    Ok(polled) => Ok(ready!(polled)),
                    Err(panic) => Err(panic),
                };
                let Some(observed) = observed.take() else {
                    unreachable!("a future is not polled after its end");
                };
                Poll::Ready(match result {
                    Ok(Ok(response)) => Ok(observed.response(response)),
                    Ok(Err(error)) => {
                        observed.exchange.fail("service_error");
                        Err(error)
                    }
                    Err(panic) => Ok(observed.panicked(&*panic)),
                })
            }
        }
    }
}

impl Observed {
    fn response<R: Body<Data = Bytes>>(self, response: Response<R>) -> Response<ResponseBody<R>> {
        let (mut parts, body) = response.into_parts();
        let mut exchange = self.exchange;
        exchange.answered(parts.status);
        self.ids.add_headers(&mut parts.headers);
        let body = match self.upgrade {
            Some((upgrade, expected)) if parts.status == expected => {
                exchange.upgraded();
                upgrade.hand_over(exchange, self.log);
                ResponseBody::unobserved(body)
            }
            _ if !self.has_body || body.is_end_stream() => {
                exchange.finish();
                ResponseBody::unobserved(body)
            }
            _ => ResponseBody::new(body, exchange, self.log),
        };
        Response::from_parts(parts, body)
    }

    /// The answer to a request whose handler panicked. The panic hook has logged the panic.
    fn panicked<R>(self, payload: &(dyn Any + Send)) -> Response<ResponseBody<R>> {
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let mut exchange = self.exchange;
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        exchange.panicked(message.unwrap_or("a panic without a text"));
        let text = self.ids.error_body("internal error").to_string();
        let body = ResponseBody::text(text, exchange, self.log);
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.ids.add_headers(headers);
        response
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
