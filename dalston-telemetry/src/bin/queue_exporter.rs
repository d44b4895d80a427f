//! Serves figures of the platform's queues at `/metrics` until a signal ends it.

use std::process::ExitCode;

use dalston_telemetry::metrics::{MetricsServer, are_enabled};
use dalston_telemetry::queue_exporter::{QueueExporter, QueueExporterConfig};
use dalston_telemetry::settings::DALSTON_METRICS_PORT;
use dalston_telemetry::{Env, Telemetry};
use tokio::signal::unix::{SignalKind, signal};

/// Exit status of a program that was called in a way that makes no sense.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match run(&Env::from_process()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { text, status }) => {
            complain(&text);
            ExitCode::from(status)
        }
    }
}

struct Failure {
    text: String,
    status: u8,
}

impl Failure {
    fn usage(problem: impl ToString) -> Self {
        Self {
            text: problem.to_string(),
            status: USAGE,
        }
    }

    fn at(doing: &str) -> impl Fn(std::io::Error) -> Self {
        move |error| Self {
            text: format!("{doing}: {error}"),
            status: 1,
        }
    }
}

fn run(env: &Env) -> Result<(), Failure> {
    let config = QueueExporterConfig::from_env(env).map_err(Failure::usage)?;
    let port = DALSTON_METRICS_PORT
        .read_or_default(env)
        .map_err(Failure::usage)?;
    if !are_enabled(env).map_err(Failure::usage)? {
        return Err(Failure::usage(
            "DALSTON_METRICS_ENABLED or METRICS_ENABLED is false, and metrics are all that this program has: \
             don't start it, or leave the variable out",
        ));
    }
    let telemetry = Telemetry::builder("queue-exporter").env(env.clone()).install();
    let telemetry = telemetry.map_err(Failure::usage)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Failure::at("starting the runtime"))?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(Failure::at("waiting for signals"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::at("waiting for signals"))?;
        let exporter = QueueExporter::spawn(config, telemetry.metrics());
        let queues = exporter.metrics().clone();
        let health = move || match queues.is_connected() {
            Some(true) => Ok(r#"{"status":"healthy","redis":"connected"}"#.into()),
            // That is what is to be told, so whoever tells it must not be taken away.
            Some(false) => Ok(r#"{"status":"healthy","redis":"unreachable"}"#.into()),
            None => Err(r#"{"status":"unhealthy"}"#.into()),
        };
        let server = MetricsServer::start_with_health(("0.0.0.0", port), telemetry.metrics().clone(), health)
            .map_err(Failure::at(&format!("listening on port {port}")))?;
        tracing::info!(address = %server.address(), "http_server_listening");
        let signal = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal, "shutdown_signal_received");
        exporter.shutdown().await;
        Ok(())
    })?;
    telemetry.shutdown_blocking().map_err(|error| Failure {
        text: error.to_string(),
        status: 1,
    })
}

#[expect(clippy::print_stderr, reason = "nothing else tells why the program ended")]
fn complain(text: &str) {
    eprintln!("dalston-queue-exporter: {text}");
}
