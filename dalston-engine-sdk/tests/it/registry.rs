//! What the platform sees of an instance.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dalston_engine_sdk::broker::RedisServer;
use dalston_engine_sdk::protocol::{Heartbeat, InstanceStatus, NodeIdentity, RegistryRecord};
use dalston_engine_sdk::registry::{Beat, Registry};
use dalston_engine_sdk::{EngineInfo, Stage};
use serde_json::{Value, json};
use testbed::TestRedis;

const KEY: &str = "dalston:engine:instance:faster-whisper-0f37d5acd7e8";
const SETS: [&str; 3] = [
    "dalston:engine:instances",
    "dalston:engine:engine_id:faster-whisper",
    "dalston:engine:stage:transcribe",
];

fn registry(server: &TestRedis) -> Registry {
    named(server, "faster-whisper-0f37d5acd7e8")
}

fn named(server: &TestRedis, instance: &str) -> Registry {
    let info = EngineInfo::new("faster-whisper", "1.2.3")
        .stage(Stage::Transcribe)
        .word_timestamps(true);
    let node = NodeIdentity::local("box-7", "node-7");
    let mut capabilities = info.capabilities();
    capabilities.max_concurrency = Some(2);
    let record = RegistryRecord::new(instance, capabilities, 2, node);
    Registry::new(RedisServer::new(&server.url()).unwrap(), record)
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
async fn an_instance_registers_with_everything_that_the_platform_wants_to_know() {
    let server = TestRedis::start().await;
    let beat = registry(&server).beat(&Heartbeat::default()).await.unwrap();
    assert_eq!(beat, Beat::Written);

    let mut record = record(&server).await;
    let (heard, since) = (
        record.remove("last_heartbeat").unwrap(),
        record.remove("registered_at").unwrap(),
    );
    assert!(
        heard.ends_with("+00:00") && since.ends_with("+00:00") && heard >= since,
        "{heard} {since}"
    );
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
    assert!((59..=60).contains(&lives), "{lives}");
}

#[tokio::test]
async fn a_heartbeat_renews_the_record_and_says_what_goes_on() {
    let server = TestRedis::start().await;
    let registry = registry(&server);
    registry.beat(&Heartbeat::default()).await.unwrap();
    let before = record(&server).await;
    let () = server.send(&["EXPIRE", KEY, "3"]).await;

    let beat = registry
        .beat(&Heartbeat::new(InstanceStatus::Draining, 2))
        .await
        .unwrap();

    assert_eq!(beat, Beat::Renewed);
    let after = record(&server).await;
    assert_eq!((&*after["status"], &*after["active_batch"]), ("draining", "2"));
    assert_eq!(after["registered_at"], before["registered_at"]);
    let lives: i64 = server.send(&["TTL", KEY]).await;
    assert!(lives > 50, "{lives}");
}

#[tokio::test]
async fn a_model_that_was_let_go_is_not_shown_any_more() {
    let server = TestRedis::start().await;
    let registry = registry(&server);
    let mut heartbeat = Heartbeat::default();
    heartbeat.loaded_model = Some("small".to_owned());
    registry.beat(&heartbeat).await.unwrap();
    assert_eq!(record(&server).await["loaded_model"], "small");

    registry.beat(&Heartbeat::default()).await.unwrap();
    assert_eq!(record(&server).await["loaded_model"], "");
}

#[tokio::test]
async fn a_record_that_lapsed_or_was_cut_short_is_written_whole_again() {
    let server = TestRedis::start().await;
    let registry = registry(&server);
    registry.beat(&Heartbeat::default()).await.unwrap();
    let whole: Vec<String> = record(&server).await.into_keys().collect();

    let () = server.send(&["FLUSHALL"]).await;
    assert_eq!(registry.beat(&Heartbeat::default()).await.unwrap(), Beat::Written);
    assert_eq!(record(&server).await.into_keys().collect::<Vec<_>>(), whole);
    assert_eq!(memberships(&server).await, [true; 3]);

    // What a heartbeat of a Python engine leaves.
    let () = server.send(&["DEL", KEY]).await;
    let () = server
        .send(&["HSET", KEY, "status", "idle", "engine_id", "faster-whisper"])
        .await;
    assert_eq!(registry.beat(&Heartbeat::default()).await.unwrap(), Beat::Written);
    assert_eq!(record(&server).await.into_keys().collect::<Vec<_>>(), whole);
}

#[tokio::test]
async fn a_record_with_a_shorter_life_gets_its_heartbeats_in_time_and_ends_with_its_instance() {
    let server = TestRedis::start().await;
    let lifetime = Duration::from_secs(3);
    let joined = registry(&server)
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
async fn an_instance_that_leaves_is_gone_from_everywhere() {
    let server = TestRedis::start().await;
    let () = server.send(&["SADD", SETS[0], "another"]).await;
    let joined = registry(&server).join(Heartbeat::default).await;
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
async fn a_killed_instance_is_taken_out_of_all_sets_and_joins_them_again_if_it_lives() {
    let server = TestRedis::start().await;
    let survivor = registry(&server);
    survivor.beat(&Heartbeat::default()).await.unwrap();
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

    survivor.beat(&Heartbeat::default()).await.unwrap();
    assert_eq!(memberships(&server).await, [true; 3]);
    survivor.deregister().await.unwrap();
    joined.leave().await.unwrap();
    let mut left: Vec<String> = server.send(&["KEYS", "*"]).await;
    left.sort();
    let mut sets = SETS.to_vec();
    sets.sort_unstable();
    assert_eq!(left, sets, "only those of the other kind");
}

#[tokio::test]
async fn a_change_is_known_within_seconds_and_not_only_at_the_next_heartbeat() {
    let server = TestRedis::start().await;
    let state = Arc::new(Mutex::new(Heartbeat::default()));
    let shared = Arc::clone(&state);
    let joined = registry(&server)
        .join(move || shared.lock().unwrap().clone())
        .await;
    *state.lock().unwrap() = Heartbeat::new(InstanceStatus::Processing, 1);
    let known = async {
        while record(&server).await["status"] != "processing" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), known)
        .await
        .expect("well before the next heartbeat");
    joined.leave().await.unwrap();
}

#[tokio::test]
async fn a_server_that_comes_late_finds_the_instance_waiting() {
    let server = TestRedis::start().await;
    let password = ["CONFIG", "SET", "requirepass", "x"];
    let () = server.send(&password).await;
    let joined = registry(&server).join(Heartbeat::default).await;
    assert_eq!(memberships(&server).await, [false; 3]);
    let () = server.send(&["CONFIG", "SET", "requirepass", ""]).await;
    let known = async {
        while memberships(&server).await != [true; 3] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), known)
        .await
        .expect("well before the next heartbeat");
    joined.leave().await.unwrap();
}
