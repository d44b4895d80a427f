//! A stand-in for S3: as much of its protocol as a worker speaks, in memory.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::Response;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Objects by bucket and key, with their content types.
pub(crate) type Objects = BTreeMap<String, (String, Bytes)>;

pub(crate) struct TestS3 {
    port: u16,
    objects: Arc<Mutex<Objects>>,
    _serving: JoinSet<()>,
}

impl TestS3 {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let objects = Arc::<Mutex<Objects>>::default();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&objects));
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            port,
            objects,
            _serving: serving,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// `place` is bucket and key.
    pub(crate) fn put(&self, place: &str, content: impl Into<Bytes>) {
        self.objects
            .lock()
            .unwrap()
            .insert(place.to_owned(), (String::new(), content.into()));
    }

    pub(crate) fn get(&self, place: &str) -> Option<(String, Bytes)> {
        self.objects.lock().unwrap().get(place).cloned()
    }
}

async fn answer(
    State(objects): State<Arc<Mutex<Objects>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let signed = text(header::AUTHORIZATION).starts_with("AWS4-HMAC-SHA256 Credential=test-id/");
    let response = Response::builder().header(header::ETAG, "\"1\"");
    let place = uri.path().trim_start_matches('/').replace("%3A", ":");
    let mut objects = objects.lock().unwrap();
    let found = objects.get(&place).cloned();
    let response = match (signed, method, found) {
        (false, ..) => response.status(StatusCode::FORBIDDEN).body(Body::empty()),
        (_, Method::PUT, _) => {
            objects.insert(place, (text(header::CONTENT_TYPE).to_owned(), body));
            response.body(Body::empty())
        }
        (_, Method::GET, Some((_, content))) => response
            .header(header::LAST_MODIFIED, "Fri, 20 Nov 2026 18:17:06 GMT")
            .header(header::CONTENT_LENGTH, content.len())
            .body(Body::from(content)),
        _ => response.status(StatusCode::NOT_FOUND).body(Body::empty()),
    };
    response.unwrap()
}
