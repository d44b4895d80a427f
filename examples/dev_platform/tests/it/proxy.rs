//! A proxy that serves the platform below a path, as an operator may have one.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::rig::Rig;

const PATH: &str = "/tools/dalston";

/// Removes its path from each request. It ends with this value.
pub(crate) struct Proxy {
    url: String,
    serving: JoinHandle<()>,
}

#[derive(Clone)]
struct Target {
    client: Client<HttpConnector, Body>,
    url: String,
}

impl Proxy {
    pub(crate) async fn start(rig: &Rig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}{PATH}", listener.local_addr().unwrap());
        let target = Target {
            client: Client::builder(TokioExecutor::new()).build_http(),
            url: rig.url(""),
        };
        let router = Router::new().fallback(forward).with_state(target);
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, serving }
    }

    /// An address of the platform, as a browser sees it.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }
}

async fn forward(State(target): State<Target>, mut request: Request) -> Response {
    let path = request.uri().path_and_query().unwrap().as_str();
    let Some(path) = path.strip_prefix(PATH).filter(|path| path.starts_with('/')) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let uri: Uri = format!("{}{path}", target.url).parse().unwrap();
    *request.uri_mut() = uri;
    match target.client.request(request).await {
        Ok(response) => response.map(Body::new).into_response(),
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
