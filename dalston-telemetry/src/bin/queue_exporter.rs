//! Serves metrics of the platform's queues at `/metrics` until a signal ends it.

use std::process::ExitCode;

use dalston_telemetry::metrics::{MetricsServer, are_enabled};
use dalston_telemetry::queue_exporter::{QueueExporter, QueueExporterConfig};
use dalston_telemetry::services::service_name;
use dalston_telemetry::settings::DALSTON_METRICS_PORT;
use dalston_telemetry::{Env, Telemetry};
use tokio::signal::unix::{SignalKind, signal};

/// The exit status of a program with wrong settings.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match run(&Env::from_process()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { text, status }) => {
            print_error(&text);
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

    fn while_doing(doing: &str) -> impl Fn(std::io::Error) -> Self {
        move |error| Self {
            text: format!("cannot {doing}: {error}"),
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
            "DALSTON_METRICS_ENABLED or METRICS_ENABLED is false, but this program only serves metrics: \
             don't start it, or unset the variable",
        ));
    }
    let telemetry = Telemetry::builder(service_name::QUEUE_EXPORTER)
        .env(env.clone())
        .install();
    let telemetry = telemetry.map_err(Failure::usage)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Failure::while_doing("start the runtime"))?;
    runtime.block_on(async {
        let mut terminate =
            signal(SignalKind::terminate()).map_err(Failure::while_doing("wait for signals"))?;
        let mut interrupt =
            signal(SignalKind::interrupt()).map_err(Failure::while_doing("wait for signals"))?;
        let exporter = QueueExporter::spawn(config, telemetry.metrics());
        let queues = exporter.metrics().clone();
        let health = move || match queues.is_connected() {
            Some(true) => Ok(r#"{"status":"healthy","redis":"connected"}"#.into()),
            // Healthy, so that the platform does not restart the process that reports the failure.
            Some(false) => Ok(r#"{"status":"healthy","redis":"unreachable"}"#.into()),
            None => Err(r#"{"status":"unhealthy"}"#.into()),
        };
        let server = MetricsServer::start_with_health(("0.0.0.0", port), telemetry.metrics().clone(), health)
            .map_err(Failure::while_doing(&format!("listen on port {port}")))?;
        tracing::info!(address = %server.address(), "http_server_listening");
        let signal = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal, "shutdown_signal_received");
        exporter.shutdown().await;
        Ok(())
    })?;
    // Telemetry that could not be sent is no failure of the program.
    if let Err(error) = telemetry.shutdown_blocking() {
        print_error(&error.to_string());
    }
    Ok(())
}

#[expect(
    clippy::print_stderr,
    reason = "the program has no log before telemetry is set up"
)]
fn print_error(text: &str) {
    eprintln!("dalston-queue-exporter: {text}");
}
