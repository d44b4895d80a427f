//! Servers in processes of their own, so that what they use is not counted as ours.

use axum::Router;
use axum::routing::post;

/// What such a process does: it says where it listens, and serves until it is killed.
pub(crate) fn serve(what: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        match what {
            "collector" => {
                // It takes what it gets: the exporter's work is measured, not the collector's.
                let app = Router::new().route("/v1/traces", post(async |_: axum::body::Bytes| ()));
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                println!("http://{}", listener.local_addr().unwrap());
                axum::serve(listener, app).await.unwrap();
            }
            "s3" => {
                let server = testbed::TestS3::start();
                println!("{}", server.url());
                std::future::pending::<()>().await;
            }
            _ => panic!("no such server: {what}"),
        }
    });
}
