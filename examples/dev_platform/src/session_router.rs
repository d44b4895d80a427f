//! The session router: chooses a realtime worker for a session, and watches the workers.
//!
//! It is a part of the gateway, as on the live platform. Its state is in Redis, so several gateways
//! agree about the places of the workers.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use dalston_engine_sdk::protocol::Timestamp;
use dalston_telemetry::metrics::Metrics;
use dalston_telemetry::services::MessageContext;
use dalston_telemetry::services::session_router::{
    AllocatedWorker, RequestedSession, SessionRouterMetrics, SessionRouterSteps, SessionStatus,
    WorkerSessions,
};
use redis::{RedisError, RedisResult};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};
use uuid::Uuid;

use crate::wire::{Candidate, EngineRecord, Wire};

/// A worker without a heartbeat for this time gets no sessions.
const HEARTBEAT_LIMIT_SECONDS: f64 = 30.0;
/// How often the workers are counted.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Chooses workers. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct SessionRouter {
    wire: Wire,
    steps: SessionRouterSteps,
}

/// A session that a client asks for.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) id: String,
    /// The model, or an engine; empty for any.
    pub(crate) model: String,
    /// Empty if it is detected.
    pub(crate) language: String,
    pub(crate) client_ip: String,
    started_at: String,
}

/// A place for a session at a worker.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) instance: String,
    pub(crate) engine_id: String,
    /// The URL of the worker's port for sessions.
    pub(crate) endpoint: String,
}

/// Why a session gets no worker. The text is for clients.
#[derive(Debug)]
pub(crate) enum NoPlace {
    /// No worker runs.
    NoWorker,
    /// No worker has the model.
    NoModel(String),
    /// All of these workers are full, or could not be reached.
    Full(usize),
    /// Redis could not be read.
    Redis(RedisError),
}

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoWorker => f.write_str("no realtime worker runs: try again later"),
            Self::NoModel(model) => write!(f, "no realtime worker has the model {model:?}"),
            Self::Full(workers) => {
                write!(
                    f,
                    "no free place at {workers} realtime worker(s): try again later"
                )
            }
            Self::Redis(_) => f.write_str("the session router is not available: try again later"),
        }
    }
}

impl Session {
    pub(crate) fn new(model: &str, language: &str, client_ip: String) -> Self {
        let or_any = |text: &str| match text.eq_ignore_ascii_case("auto") {
            true => String::new(),
            false => text.to_owned(),
        };
        Self {
            id: format!("sess_{}", &Uuid::new_v4().simple().to_string()[..16]),
            model: or_any(model),
            language: or_any(language),
            client_ip,
            started_at: Timestamp::now().to_string(),
        }
    }

    /// The fields of its hash, but for the worker.
    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("status", "active".to_owned()),
            ("language", self.language.clone()),
            ("model", self.model.clone()),
            ("client_ip", self.client_ip.clone()),
            ("started_at", self.started_at.clone()),
        ]
    }
}

impl SessionRouter {
    pub(crate) fn new(wire: Wire, metrics: &Metrics) -> Self {
        Self {
            wire,
            steps: SessionRouterSteps::new(SessionRouterMetrics::register(metrics)),
        }
    }

    /// Takes a place for a session, at none of these workers. The request to the worker carries the
    /// context.
    pub(crate) async fn allocate(
        &self,
        session: &Session,
        except: &BTreeSet<String>,
    ) -> Result<(Place, MessageContext), NoPlace> {
        let requested = RequestedSession {
            session_id: &session.id,
            model: &session.model,
            language: &session.language,
        };
        let describe = |place: &Place| AllocatedWorker {
            engine_id: place.engine_id.clone(),
            instance: place.instance.clone(),
        };
        let allocated = self
            .steps
            .allocate(&requested, self.choose(session, except), describe);
        let allocated = allocated.await;
        match &allocated {
            Ok((place, _)) => info!(instance = place.instance, "session_allocated"),
            Err(NoPlace::Redis(error)) => warn!(%error, "session_not_allocated"),
            Err(reason) => info!(%reason, "session_not_allocated"),
        }
        allocated
    }

    async fn choose(&self, session: &Session, except: &BTreeSet<String>) -> Result<Place, NoPlace> {
        let mut workers = self.wire.realtime_workers().await.map_err(NoPlace::Redis)?;
        workers.retain(takes_sessions);
        if workers.is_empty() {
            return Err(NoPlace::NoWorker);
        }
        let mut fitting: Vec<(EngineRecord, u8)> = workers
            .into_iter()
            .filter_map(|worker| rank(&worker, &session.model).map(|rank| (worker, rank)))
            .collect();
        if fitting.is_empty() {
            return Err(NoPlace::NoModel(session.model.clone()));
        }
        let count = fitting.len();
        fitting.retain(|(worker, _)| !except.contains(worker.text("instance")));
        let candidates: Vec<Candidate> = fitting
            .iter()
            .map(|(worker, rank)| Candidate {
                instance: worker.text("instance").to_owned(),
                rank: *rank,
                capacity: worker.number("capacity"),
                active: worker.number("active_realtime"),
                last_heartbeat: worker.text("last_heartbeat").to_owned(),
            })
            .collect();
        let fields = session.fields();
        let chosen = self.wire.allocate(&session.id, &fields, &candidates);
        let chosen = chosen.await.map_err(NoPlace::Redis)?;
        let Some((worker, _)) = chosen.and_then(|chosen| fitting.get(chosen)) else {
            return Err(NoPlace::Full(count));
        };
        Ok(Place {
            instance: worker.text("instance").to_owned(),
            engine_id: worker.engine_id().to_owned(),
            endpoint: worker.text("endpoint").to_owned(),
        })
    }

    /// Keeps a session alive, with what is known about it.
    pub(crate) async fn renew(&self, session: &Session, place: &Place, facts: Vec<(&'static str, String)>) {
        let mut fields = session.fields();
        fields.extend(facts);
        if let Err(error) = self.wire.renew(&session.id, &place.instance, &fields).await {
            warn!(%error, "session_not_renewed");
        }
    }

    /// Gives the place of a session back.
    pub(crate) async fn release(&self, session: &Session, place: &Place) {
        if let Err(error) = self.wire.release(&session.id, &place.instance).await {
            // The next heartbeat of the worker corrects the count.
            warn!(%error, instance = place.instance, "session_not_released");
        }
    }

    /// Keeps sessions from a worker that does not answer, until its next heartbeat.
    pub(crate) async fn lost(&self, place: &Place) {
        warn!(instance = place.instance, "realtime_worker_lost");
        if let Err(error) = self.wire.lost(&place.instance).await {
            warn!(%error, instance = place.instance, "realtime_worker_not_marked");
        }
    }

    /// Counts a session that has ended.
    pub(crate) fn ended(&self, status: SessionStatus) {
        self.steps.metrics().session_ended(status);
    }

    /// Counts the workers and their sessions for the metrics, marks workers without heartbeats as
    /// offline, and frees the sessions of those that are gone. Never ends.
    pub(crate) async fn watch(&self) -> Infallible {
        let mut ticks = interval(WATCH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut gauges = BTreeMap::new();
        let mut is_failing = false;
        loop {
            ticks.tick().await;
            let counted = self.count(&mut gauges).await;
            if let (Err(error), false) = (&counted, is_failing) {
                warn!(%error, "realtime_workers_not_counted");
            }
            is_failing = counted.is_err();
        }
    }

    async fn count(&self, gauges: &mut BTreeMap<String, WorkerSessions>) -> RedisResult<()> {
        let workers = self.wire.realtime_workers().await?;
        let names: BTreeSet<&str> = workers.iter().map(|worker| worker.text("instance")).collect();
        for gone in self.wire.workers_with_sessions().await? {
            if !names.contains(&*gone) {
                info!(instance = gone, "realtime_worker_forgotten");
                self.wire.forget_worker(&gone).await?;
            }
        }
        for worker in workers.iter().filter(|worker| !has_heartbeat(worker)) {
            let (instance, heartbeat) = (worker.text("instance"), worker.text("last_heartbeat"));
            let is_news = worker.text("status") != "offline";
            if is_news && self.wire.mark_offline(instance, heartbeat).await? {
                warn!(instance, "realtime_worker_offline");
            }
        }
        gauges.retain(|name, _| names.contains(&**name));
        for name in names {
            let sessions = self.wire.sessions_of(name).await?;
            let gauge = gauges.entry(name.to_owned());
            let gauge = gauge.or_insert_with(|| self.steps.metrics().worker(name));
            gauge.set(sessions);
        }
        let healthy = workers.iter().filter(|worker| has_heartbeat(worker)).count();
        self.steps.metrics().workers(workers.len(), healthy);
        Ok(())
    }
}

fn has_heartbeat(worker: &EngineRecord) -> bool {
    worker.text("status") != "offline" && worker.heartbeat_age() < HEARTBEAT_LIMIT_SECONDS
}

/// Whether a worker may get sessions. One that says that it is busy may have a free place since.
pub(crate) fn takes_sessions(worker: &EngineRecord) -> bool {
    has_heartbeat(worker) && !matches!(worker.text("status"), "draining" | "loading" | "downloading")
}

/// How well a worker suits a model, 0 being the best; `None` if it can't.
fn rank(worker: &EngineRecord, model: &str) -> Option<u8> {
    let capabilities = worker.capabilities();
    if model.is_empty() {
        let streams = capabilities["supports_native_streaming"] == true;
        return Some(u8::from(!streams));
    }
    let loaded: Vec<String> = serde_json::from_str(worker.text("models_loaded")).unwrap_or_default();
    let has_it = worker.engine_id() == model || worker.text("loaded_model") == model;
    if has_it || loaded.iter().any(|loaded| loaded == model) {
        return Some(0);
    }
    match capabilities["model_variants"].as_array() {
        Some(variants) => variants.iter().any(|variant| variant == model).then_some(1),
        // It loads any model.
        None => Some(2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(fields: &[(&str, &str)]) -> EngineRecord {
        let now = Timestamp::now().to_string();
        let usual = [
            ("engine_id", "asr"),
            ("status", "ready"),
            ("last_heartbeat", &now),
        ];
        EngineRecord::from_fields(usual.iter().chain(fields).copied())
    }

    #[test]
    fn worker_with_the_model_in_memory_comes_first() {
        let variants = r#"{"model_variants":["tiny","large"]}"#;
        let known = worker(&[("capabilities", variants)]);
        let loaded = worker(&[("capabilities", variants), ("models_loaded", r#"["tiny"]"#)]);
        let any = worker(&[("capabilities", r#"{"model_variants":null}"#)]);
        let ranks = |model| [&loaded, &known, &any].map(|worker| rank(worker, model));
        assert_eq!(ranks("tiny"), [Some(0), Some(1), Some(2)]);
        assert_eq!(ranks("large"), [Some(1), Some(1), Some(2)]);
        assert_eq!(ranks("small"), [None, None, Some(2)]);
        // The name of the engine stands for its usual model.
        assert_eq!(ranks("asr"), [Some(0), Some(0), Some(0)]);
    }

    #[test]
    fn native_streaming_comes_first_without_a_model() {
        let streams = worker(&[("capabilities", r#"{"supports_native_streaming":true}"#)]);
        assert_eq!([rank(&streams, ""), rank(&worker(&[]), "")], [Some(0), Some(1)]);
    }

    #[test]
    fn state_and_heartbeat_decide_who_gets_sessions() {
        for (status, takes) in [
            ("ready", true),
            ("busy", true),
            ("draining", false),
            ("offline", false),
            ("loading", false),
        ] {
            assert_eq!(takes_sessions(&worker(&[("status", status)])), takes, "{status}");
        }
        for (heartbeat, takes) in [("2026-01-01T00:00:00+00:00", false), ("", false)] {
            assert_eq!(
                takes_sessions(&worker(&[("last_heartbeat", heartbeat)])),
                takes,
                "{heartbeat}"
            );
        }
    }
}
