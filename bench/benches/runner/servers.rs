//! Servers in their own processes, so that their processor time is not measured.

use axum::Router;
use axum::routing::post;

/// Prints the address of a server and serves until the process is killed.
pub(crate) fn serve(what: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        match what {
            "collector" => {
                // It discards the spans: the cost of the exporter is measured, not that of the
                // collector.
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
