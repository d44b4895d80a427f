//! A small service with telemetry, for every kind of thread of a program.

use std::time::Duration;

use dalston_telemetry::{Env, ExportStats, ShutdownError, Telemetry, TelemetryBuilder};
use tracing::Dispatch;
use tracing_subscriber::layer::SubscriberExt;

/// The kind of thread that calls telemetry.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Caller {
    MultiThread,
    CurrentThread,
    NoRuntime,
}

impl Caller {
    pub(crate) const ALL: [Self; 3] = [Self::MultiThread, Self::CurrentThread, Self::NoRuntime];

    /// Starts telemetry, does some work, and ends telemetry, all on one kind of thread.
    pub(crate) fn live(
        self,
        env: Vec<(String, String)>,
        shutdown_timeout: Duration,
        work: impl FnOnce(&Service) + Send + 'static,
    ) -> (Result<(), ShutdownError>, ExportStats) {
        let start = move || Service::with(env, |builder| builder.shutdown_timeout(shutdown_timeout));
        match self {
            Self::NoRuntime => {
                let service = start();
                work(&service);
                let handle = service.telemetry.handle();
                (service.telemetry.shutdown_blocking(), handle.export_stats())
            }
            Self::CurrentThread => {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(live(start, work))
            }
            Self::MultiThread => {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .build()
                    .unwrap();
                // On a worker thread, which must not be blocked.
                runtime.block_on(async { tokio::spawn(live(start, work)).await.unwrap() })
            }
        }
    }
}

async fn live(
    start: impl FnOnce() -> Service,
    work: impl FnOnce(&Service),
) -> (Result<(), ShutdownError>, ExportStats) {
    let service = start();
    work(&service);
    let handle = service.telemetry.handle();
    (service.telemetry.shutdown().await, handle.export_stats())
}

pub(crate) struct Service {
    pub(crate) telemetry: Telemetry,
    pub(crate) dispatch: Dispatch,
}

impl Service {
    pub(crate) fn start(env: Vec<(String, String)>) -> Self {
        Self::with(env, |builder| builder)
    }

    pub(crate) fn with(
        env: Vec<(String, String)>,
        configure: impl FnOnce(TelemetryBuilder) -> TelemetryBuilder,
    ) -> Self {
        let builder = Telemetry::builder("engine-test")
            .without_logs()
            .env(Env::from_pairs(env));
        let (layer, telemetry) = configure(builder).into_layer().unwrap();
        Self {
            telemetry,
            dispatch: Dispatch::new(tracing_subscriber::registry().with(layer)),
        }
    }

    pub(crate) fn in_scope<R>(&self, work: impl FnOnce() -> R) -> R {
        tracing::dispatcher::with_default(&self.dispatch, work)
    }

    /// Starts and ends this many spans called `work`.
    pub(crate) fn spans(&self, count: usize) {
        self.in_scope(|| {
            for number in 0..count {
                tracing::info_span!("work", number).in_scope(|| {});
            }
        });
    }

    pub(crate) fn stats(&self) -> ExportStats {
        self.telemetry.handle().export_stats()
    }
}
