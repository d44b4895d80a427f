//! What the platform sees of an instance.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dalston_engine_sdk::protocol::{Heartbeat, InstanceStatus, NodeIdentity, RegistryRecord};
use dalston_engine_sdk::redis::{RedisRegistry, RedisServer};
use dalston_engine_sdk::registry::{self, Membership, Registry, RegistryError, Renewal};
use dalston_engine_sdk::{EngineInfo, Stage};
use dalston_telemetry::testing::TestTelemetry;
use serde_json::{Value, json};
use testbed::TestRedis;

const KEY: &str = "dalston:engine:instance:faster-whisper-0f37d5acd7e8";
const SETS: [&str; 3] = [
    "dalston:engine:instances",
    "dalston:engine:engine_id:faster-whisper",
    "dalston:engine:stage:transcribe",
];

/// A lifetime with a heartbeat each minute and 40 seconds.
const RARE: Duration = Duration::from_secs(600);

/// An instance and the registry of its deployment.
struct Instance {
    registry: RedisRegistry,
    record: RegistryRecord,
}

impl Instance {
    async fn renew(&self, heartbeat: &Heartbeat) -> Renewal {
        self.registry.renew(&self.record, heartbeat).await.unwrap()
    }

    async fn join(self, state: impl Fn() -> Heartbeat + Send + Sync + 'static) -> Membership {
        registry::join(Arc::new(self.registry), self.record, state).await
    }

    fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.registry = self.registry.with_lifetime(lifetime);
        self
    }
}

fn instance(server: &TestRedis) -> Instance {
    named(server, "faster-whisper-0f37d5acd7e8")
}

fn named(server: &TestRedis, instance: &str) -> Instance {
    let info = EngineInfo::new("faster-whisper", "1.2.3")
        .stage(Stage::Transcribe)
        .word_timestamps(true);
    let node = NodeIdentity::local("box-7", "node-7");
    let mut capabilities = info.capabilities();
    capabilities.max_concurrency = Some(2);
    Instance {
        registry: RedisRegistry::new(RedisServer::new(&server.url()).unwrap()),
        record: RegistryRecord::new(instance, capabilities, 2, node),
    }
}

async fn record(server: &TestRedis) -> BTreeMap<String, String> {
    server.send(&["HGETALL", KEY]).await
}

async fn memberships(server: &TestRedis) -> Vec<bool> {
    let mut found = Vec::new();
    for set in SETS {
        found.push(
            server
                .send(&["SISMEMBER", set, "faster-whisper-0f37d5acd7e8"])
                .await,
        );
    }
    found
}

#[tokio::test]
async fn new_record_has_all_fields_and_memberships() {
    let server = TestRedis::start().await;
    let renewal = instance(&server).renew(&Heartbeat::default()).await;
    assert_eq!(renewal, Renewal::Written);

    let mut record = record(&server).await;
    let (heard, since) = (
        record.remove("last_heartbeat").unwrap(),
        record.remove("registered_at").unwrap(),
    );
    assert!(
        heard.ends_with("+00:00") && since.ends_with("+00:00") && heard >= since,
        "{heard} {since}"
    );
    assert_eq!(record.remove("start_nonce").unwrap().len(), 32);
    let capabilities: Value = record.remove("capabilities").unwrap().parse().unwrap();
    assert_eq!(
        capabilities,
        json!({"engine_id": "faster-whisper", "version": "1.2.3", "stages": ["transcribe"],
            "supports_word_timestamps": true, "supports_native_streaming": false, "model_variants": null,
            "gpu_required": false, "gpu_vram_mb": null, "supports_cpu": true, "min_ram_gb": null, "rtf_gpu": null,
            "rtf_cpu": null, "max_concurrency": 2, "includes_diarization": false, "vocabulary_support": null,
            "supports_language_forcing": true})
    );
    let expected = [
        ("active_batch", "0"),
        ("active_realtime", "0"),
        ("capacity", "2"),
        ("deploy_env", "local"),
        ("engine_id", "faster-whisper"),
        ("execution_profile", "container"),
        ("gpu_memory_total", "0GB"),
        ("gpu_memory_used", "0GB"),
        ("hostname", "box-7"),
        ("includes_diarization", "false"),
        ("instance", "faster-whisper-0f37d5acd7e8"),
        ("interfaces", r#"["batch"]"#),
        ("loaded_model", ""),
        ("node_id", "node-7"),
        ("schema_version", "3"),
        ("stage", "transcribe"),
        ("status", "idle"),
        ("stream_name", "dalston:stream:faster-whisper"),
        ("supports_word_timestamps", "true"),
    ];
    assert_eq!(
        record,
        expected
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    );
    assert_eq!(memberships(&server).await, [true; 3]);
    let lives: i64 = server.send(&["TTL", KEY]).await;
    assert!((40..=60).contains(&lives), "{lives}");
}

#[tokio::test]
async fn heartbeat_renews_record_and_reports_state() {
    let server = TestRedis::start().await;
    let instance = instance(&server);
    instance.renew(&Heartbeat::default()).await;
    let before = record(&server).await;
    let () = server.send(&["EXPIRE", KEY, "30"]).await;

    let renewal = instance.renew(&Heartbeat::new(InstanceStatus::Draining, 2)).await;

    assert_eq!(renewal, Renewal::Renewed);
    let after = record(&server).await;
    assert_eq!((&*after["status"], &*after["active_batch"]), ("draining", "2"));
    assert_eq!(after["registered_at"], before["registered_at"]);
    let lives: i64 = server.send(&["TTL", KEY]).await;
    assert!(lives > 40, "{lives}");
}

#[tokio::test]
async fn evicted_model_leaves_the_record() {
    let server = TestRedis::start().await;
    let instance = instance(&server);
    let mut heartbeat = Heartbeat::default();
    heartbeat.loaded_model = Some("small".to_owned());
    instance.renew(&heartbeat).await;
    assert_eq!(record(&server).await["loaded_model"], "small");

    instance.renew(&Heartbeat::default()).await;
    assert_eq!(record(&server).await["loaded_model"], "");
}

#[tokio::test]
async fn missing_or_incomplete_record_is_written_whole() {
    let server = TestRedis::start().await;
    let instance = instance(&server);
    instance.renew(&Heartbeat::default()).await;
    let whole: Vec<String> = record(&server).await.into_keys().collect();

    let () = server.send(&["FLUSHALL"]).await;
    assert_eq!(instance.renew(&Heartbeat::default()).await, Renewal::Written);
    assert_eq!(record(&server).await.into_keys().collect::<Vec<_>>(), whole);
    assert_eq!(memberships(&server).await, [true; 3]);

    // What a heartbeat of a Python engine leaves.
    let () = server.send(&["DEL", KEY]).await;
    let () = server
        .send(&["HSET", KEY, "status", "idle", "engine_id", "faster-whisper"])
        .await;
    assert_eq!(instance.renew(&Heartbeat::default()).await, Renewal::Written);
    assert_eq!(record(&server).await.into_keys().collect::<Vec<_>>(), whole);
}

#[tokio::test]
async fn short_lifetime_gets_more_heartbeats() {
    let server = TestRedis::start().await;
    let lifetime = Duration::from_secs(3);
    let joined = instance(&server)
        .with_lifetime(lifetime)
        .join(Heartbeat::default)
        .await;
    let begun = record(&server).await["last_heartbeat"].clone();
    let heard = async {
        while record(&server).await["last_heartbeat"] == begun {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), heard)
        .await
        .expect("a heartbeat although nothing changed");
    let left: i64 = server.send(&["PTTL", KEY]).await;
    assert!((1..=3000).contains(&left), "{left}");

    drop(joined);
    let gone = async {
        while !record(&server).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone)
        .await
        .expect("the record ends by itself");
}

#[tokio::test]
async fn leaving_removes_record_and_memberships() {
    let server = TestRedis::start().await;
    let () = server.send(&["SADD", SETS[0], "another"]).await;
    let joined = instance(&server).join(Heartbeat::default).await;
    assert_eq!(memberships(&server).await, [true; 3]);
    joined.leave().await.unwrap();
    assert_eq!(
        (record(&server).await.len(), memberships(&server).await),
        (0, vec![false; 3])
    );
    let others: Vec<String> = server.send(&["SMEMBERS", SETS[0]]).await;
    assert_eq!(others, ["another"]);
}

#[tokio::test]
async fn stale_instance_is_removed_and_can_join_again() {
    let server = TestRedis::start().await;
    let survivor = instance(&server);
    survivor.renew(&Heartbeat::default()).await;
    // Of another kind: it would never join again.
    for set in SETS {
        let () = server
            .send(&["SADD", set, "faster-whisper-of-another-kind"])
            .await;
    }
    let joined = named(&server, "faster-whisper-second")
        .with_lifetime(Duration::from_secs(3))
        .join(Heartbeat::default)
        .await;
    assert_eq!(memberships(&server).await, [true; 3], "it lives");

    let () = server.send(&["DEL", KEY]).await;
    let gone = async {
        while memberships(&server).await != [false; 3] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone)
        .await
        .expect("within its lifetime, with room for a slow machine");
    for set in SETS {
        let mut members: Vec<String> = server.send(&["SMEMBERS", set]).await;
        members.sort();
        assert_eq!(
            members,
            ["faster-whisper-of-another-kind", "faster-whisper-second"]
        );
    }

    survivor.renew(&Heartbeat::default()).await;
    assert_eq!(memberships(&server).await, [true; 3]);
    survivor.registry.remove(&survivor.record).await.unwrap();
    joined.leave().await.unwrap();
    let mut left: Vec<String> = server.send(&["KEYS", "*"]).await;
    left.sort();
    let mut sets = SETS.to_vec();
    sets.sort_unstable();
    assert_eq!(left, sets, "only those of the other kind");
}

#[tokio::test]
async fn change_is_reported_before_the_next_heartbeat() {
    let server = TestRedis::start().await;
    let state = Arc::new(Mutex::new(Heartbeat::default()));
    let shared = Arc::clone(&state);
    let joined = instance(&server)
        .with_lifetime(RARE)
        .join(move || shared.lock().unwrap().clone())
        .await;
    *state.lock().unwrap() = Heartbeat::new(InstanceStatus::Processing, 1);
    let known = async {
        while record(&server).await["status"] != "processing" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(RARE / 12, known)
        .await
        .expect("well before the next heartbeat");
    joined.leave().await.unwrap();
}

#[tokio::test]
async fn registration_waits_for_a_late_server() {
    let server = TestRedis::start().await;
    let password = ["CONFIG", "SET", "requirepass", "x"];
    let () = server.send(&password).await;
    let joined = instance(&server)
        .with_lifetime(RARE)
        .join(Heartbeat::default)
        .await;
    assert_eq!(memberships(&server).await, [false; 3]);
    let () = server.send(&["CONFIG", "SET", "requirepass", ""]).await;
    let known = async {
        while memberships(&server).await != [true; 3] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(RARE / 12, known)
        .await
        .expect("well before the next heartbeat");
    joined.leave().await.unwrap();
}

/// Counts its calls. Fails while it is `away`.
#[derive(Debug, Default)]
struct CountingRegistry {
    away: AtomicBool,
    renewals: AtomicUsize,
    removals: AtomicUsize,
}

#[async_trait]
impl Registry for CountingRegistry {
    fn lifetime(&self) -> Duration {
        Duration::from_secs(60)
    }

    async fn renew(&self, record: &RegistryRecord, _: &Heartbeat) -> Result<Renewal, RegistryError> {
        if self.away.load(Ordering::SeqCst) {
            let operation = format!("renewing the record of {}", record.instance);
            return Err(RegistryError::new(operation, "connection refused"));
        }
        self.renewals.fetch_add(1, Ordering::SeqCst);
        Ok(Renewal::Renewed)
    }

    async fn remove(&self, _: &RegistryRecord) -> Result<(), RegistryError> {
        self.removals.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn any_registry_gets_six_heartbeats_per_lifetime() {
    let registry = Arc::new(CountingRegistry::default());
    let info = EngineInfo::new("my-asr", "1").stage(Stage::Transcribe);
    let node = NodeIdentity::local("box-7", "node-7");
    let record = RegistryRecord::new("my-asr-1", info.capabilities(), 1, node);
    let shared: Arc<dyn Registry> = registry.clone();
    let telemetry = TestTelemetry::new();
    let _scope = dalston_telemetry::tracing::dispatcher::set_default(telemetry.dispatch());
    let membership = registry::join(shared, record, Heartbeat::default).await;
    tokio::time::sleep(Duration::from_millis(60_500)).await;
    assert_eq!(registry.renewals.load(Ordering::SeqCst), 1 + 6);

    registry.away.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let failures = telemetry.logs();
    let numbers: Vec<_> = failures
        .iter()
        .filter(|line| line.event() == "heartbeat_failed")
        .map(|line| line.field("failures").unwrap().as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [1, 2, 4, 8, 16, 32], "not a line each second");
    registry.away.store(false, Ordering::SeqCst);
    let before = registry.renewals.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(registry.renewals.load(Ordering::SeqCst) > before, "soon after");

    membership.leave().await.unwrap();
    assert_eq!(registry.removals.load(Ordering::SeqCst), 1);
}
