//! Servers in processes of their own, so that what they use is not counted as ours.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use axum::Router;
use axum::routing::post;

/// A child process that serves until this value is gone.
pub(crate) struct Server {
    process: Child,
    pub(crate) url: String,
}

impl Server {
    pub(crate) fn start(what: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--serve", what])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        let output = process.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut url).unwrap();
        let url = url.trim().to_owned();
        Self { process, url }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the child does: it says where it listens, and serves until its standard input is closed.
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
