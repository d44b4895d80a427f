//! The orchestrator: plans jobs, queues tasks, follows events, and repairs what was lost.
//!
//! An event is handled in two steps. The first is one transaction of the database: it remembers the
//! event and changes states. The second follows from the states alone and may be repeated at any
//! time ([`advance`](Orchestrator::advance)): it queues what is ready and ends jobs. So a process
//! that is killed in between loses nothing, and an event that comes twice changes nothing.
//!
//! | Module | What is in it |
//! |---|---|
//! | `events` | reads the stream of events, and puts unreadable ones to the dead letters |
//! | `handle` | the first step, by the type of the event |
//! | `plan` | the tasks of a job |
//! | `advance` | the second step |
//! | `request` | `request.json` of a task |
//! | `transcript` | the answers of the tasks become the final transcript |
//! | `scan` | looks for deadlines, for jobs whose event was lost, and for tasks that Redis lost |

mod advance;
mod events;
mod handle;
mod plan;
mod request;
mod scan;
mod transcript;

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::Result;
use dalston_engine_sdk::Stage;
use dalston_telemetry::services::audio_pipeline::AudioPipelineMetrics;
use dalston_telemetry::services::orchestrator::{OrchestratorMetrics, OrchestratorSteps, ScanStatus};
use tokio::time::sleep;
use tracing::{info, warn};

use self::events::EventReader;
use crate::config::Config;
use crate::platform::Platform;

/// The time between two scans.
const SCAN_INTERVAL: Duration = Duration::from_secs(2);
/// The pause after an error of Redis.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// What all steps need.
#[derive(Debug)]
struct Orchestrator {
    platform: Platform,
    steps: OrchestratorSteps,
    pipeline: AudioPipelineMetrics,
    task_timeout: Duration,
    engine_wait: Duration,
}

/// Runs until `shutdown` completes. One orchestrator at a time.
pub(crate) async fn run(
    config: &Config,
    platform: Platform,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let metrics = OrchestratorMetrics::register(platform.telemetry.metrics());
    // A counter that is born with its first event shows no increase.
    for stage in [Stage::Prepare, Stage::Transcribe] {
        let _ = metrics.stage(&stage.to_string());
    }
    let orchestrator = Orchestrator {
        steps: OrchestratorSteps::new(metrics),
        pipeline: AudioPipelineMetrics::register(platform.telemetry.metrics()),
        task_timeout: config.task_timeout,
        engine_wait: config.engine_wait,
        platform,
    };
    info!("orchestrator_started");
    tokio::pin!(shutdown);
    // An event is handled to its end: the shutdown waits for it.
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let reader = EventReader::new(orchestrator.platform.wire.blocking()?);
    let work = orchestrator.work(reader, &mut stopped);
    tokio::pin!(work);
    tokio::select! {
        () = &mut work => {}
        () = &mut shutdown => {
            let _ = stop.send(true);
            work.await;
        }
    }
    Ok(())
}

impl Orchestrator {
    async fn work(&self, mut reader: EventReader, stopped: &mut tokio::sync::watch::Receiver<bool>) {
        let mut next_scan = Instant::now();
        while !*stopped.borrow() {
            if Instant::now() >= next_scan {
                next_scan = Instant::now() + SCAN_INTERVAL;
                let status = match self.scan().await {
                    Ok(()) => ScanStatus::Success,
                    Err(error) => {
                        warn!(error = format!("{error:#}"), "scan_failed");
                        ScanStatus::Error
                    }
                };
                self.steps.metrics().scanned(status);
            }
            let read = tokio::select! {
                read = reader.read() => read,
                _ = stopped.changed() => return,
            };
            match read {
                Ok(entries) => {
                    for entry in entries {
                        self.take(&mut reader, &entry).await;
                    }
                }
                Err(error) => {
                    warn!(%error, "events_not_read");
                    reader.reset();
                    tokio::select! {
                        () = sleep(RETRY_PAUSE) => {}
                        _ = stopped.changed() => return,
                    }
                }
            }
        }
    }
}
