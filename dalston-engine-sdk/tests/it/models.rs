//! Models from the storage of a deployment: download, cache, eviction.

mod hub;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use dalston_engine_sdk::broker::{QueuedTask, TaskMetadata};
use dalston_engine_sdk::models::{ModelConfig, ModelStorage};
use dalston_engine_sdk::protocol::Timestamp;
use dalston_engine_sdk::store::{S3Config, Store};
use dalston_engine_sdk::{RunnerBuilder, TaskError};
use dalston_telemetry::Env;
use serde_json::{Value, json};
use tempfile::TempDir;
use testbed::{Fault, TestS3, Trouble};

use crate::rig::{Closures, Rig, answer};

const MODEL: &str = "openai/whisper-made-up";

/// A bucket with models, an empty cache, and a queue.
struct Site {
    rig: Rig,
    s3: TestS3,
    temp: TempDir,
}

impl Site {
    fn new() -> Self {
        Self {
            rig: Rig::new(),
            s3: TestS3::start(),
            temp: tempfile::tempdir().unwrap(),
        }
    }

    fn cache(&self) -> PathBuf {
        self.temp.path().join("cache")
    }

    /// The directory of the model in the cache.
    fn cached(&self, model: &str) -> PathBuf {
        self.cache().join(model.replace('/', "--"))
    }

    /// Everything in the cache except the locks.
    fn cache_entries(&self) -> Vec<String> {
        let entries = fs::read_dir(self.cache()).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        let mut names: Vec<_> = names
            .filter(|name| !name.ends_with(".lock") && !name.ends_with(".used"))
            .collect();
        names.sort();
        names
    }

    fn put(&self, model: &str, file: &str, content: impl Into<Vec<u8>>) {
        let place = format!("{}/models/{model}/{file}", TestS3::BUCKET);
        self.s3.put(&place, content.into());
    }

    /// Puts a small, complete model into the bucket.
    fn put_model(&self, model: &str) {
        self.put(model, "config.json", "{}");
        self.put(model, "model.bin", weights(20_000));
        self.put(model, ".complete", "");
    }

    fn models(&self, more: &[(&'static str, &str)]) -> ModelStorage {
        storage(&self.s3.url(), &self.cache(), more)
    }

    /// A worker whose engine reads the file `model.bin` of its model.
    fn runner(&self) -> RunnerBuilder<Closures> {
        self.runner_with(self.models(&[]))
    }

    fn runner_with(&self, models: ModelStorage) -> RunnerBuilder<Closures> {
        self.rig.runner(reader()).model_storage(models)
    }

    async fn submit(&self, task: &str, model: &str) {
        let name_model = |_: &mut _, metadata: &mut TaskMetadata, task| {
            metadata.model = Some(model.to_owned());
            task
        };
        self.rig.submit_with(task, name_model).await;
    }

    /// Starts a worker that loads the model for a task.
    async fn load(&self, task: &str, model: &str) -> Result<Value, (String, String)> {
        self.submit(task, model).await;
        let (outcome, run) = self.rig.run(self.runner(), self.rig.outcome(task)).await;
        run.unwrap();
        outcome
    }
}

fn storage(url: &str, cache: &Path, more: &[(&'static str, &str)]) -> ModelStorage {
    let cache = cache.display().to_string();
    let pairs = [("DALSTON_MODEL_CACHE_DIR", cache.as_str())];
    let env = Env::from_pairs(pairs.into_iter().chain(more.iter().copied()));
    let mut s3 = S3Config::default();
    s3.endpoint = Some(url.to_owned());
    s3.credentials = credentials();
    ModelStorage::new(ModelConfig::from_env(&env).unwrap(), Store::s3(s3).unwrap())
}

fn credentials() -> Vec<(String, String)> {
    let keys = [
        ("AWS_ACCESS_KEY_ID", TestS3::ACCESS_KEY_ID),
        ("AWS_SECRET_ACCESS_KEY", TestS3::SECRET_ACCESS_KEY),
    ];
    keys.map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn reader() -> Closures {
    Closures::new(|_, _| answer()).load(|model, cx| {
        let path = cx.model_dir(model)?.join("model.bin");
        if fs::read(&path)? != weights(20_000) {
            return Err(TaskError::permanent("wrong_weights", "these are other weights"));
        }
        Ok(())
    })
}

fn weights(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| ((n * 31) >> 3) as u8).collect()
}

/// Polls until `happened` is true.
async fn until(what: &str, mut happened: impl FnMut() -> bool) {
    for _ in 0..1_500 {
        if happened() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no {what} within half a minute");
}

#[tokio::test]
async fn missing_model_is_downloaded_for_its_task() {
    let site = Site::new();
    site.put_model(MODEL);
    // A file of more than one part, and an empty one.
    let large = weights((40 << 20) + 17);
    site.put(MODEL, "onnx/large.bin", large.clone());
    site.put(MODEL, "empty", "");

    site.load("T1", MODEL).await.unwrap();

    let dir = site.cached(MODEL);
    assert_eq!(site.cache_entries(), ["openai--whisper-made-up"]);
    assert!(fs::read(dir.join("onnx/large.bin")).unwrap() == large);
    assert_eq!(fs::read(dir.join("empty")).unwrap(), b"");
    let mut files: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    files.sort();
    assert_eq!(
        files,
        [
            ".complete",
            ".last_accessed",
            "config.json",
            "empty",
            "model.bin",
            "onnx"
        ]
    );
    let bytes = large.len() + 20_000 + 2;
    site.rig.tree().assert_eq(&format!(
        "
        engine.queue_wait
        engine.test-asr.process
          engine.download_input
          engine.model_acquire
            engine.model_load
              engine.model_download {{dalston.model={MODEL}, dalston.model_source=s3, dalston.download_bytes={bytes}}}
          engine.process
          engine.upload_output
        "
    ));
}

#[tokio::test]
async fn cached_model_needs_no_storage() {
    let site = Site::new();
    site.put_model(MODEL);
    site.load("T1", MODEL).await.unwrap();
    let requests = site.s3.requests();
    site.s3.trouble(Trouble::new(Fault::Hang));

    // Another worker only has the cache.
    site.load("T2", MODEL).await.unwrap();

    assert_eq!(site.s3.requests(), requests);
    let spans = site.rig.telemetry.spans();
    let downloads = spans.iter().filter(|span| span.name == "engine.model_download");
    assert_eq!(downloads.count(), 1);
}

#[tokio::test]
async fn model_in_local_directory_needs_no_storage() {
    let site = Site::new();
    let root = site.temp.path().join("models");
    fs::create_dir_all(root.join(MODEL)).unwrap();
    fs::write(root.join(MODEL).join("model.bin"), weights(20_000)).unwrap();
    let config = dalston_engine_sdk::EngineConfig::new().model_root(root);
    site.submit("T1", MODEL).await;
    let (outcome, _) = site
        .rig
        .run(site.runner().engine_config(config), site.rig.outcome("T1"))
        .await;
    outcome.unwrap();
    assert_eq!(site.s3.requests(), 0);
}

#[tokio::test]
async fn threads_and_processes_share_one_download() {
    let site = Site::new();
    site.put_model(MODEL);
    let slow = Trouble::new(Fault::Delay(Duration::from_millis(500))).path("model.bin");
    site.s3.trouble(slow);
    let tasks = ["T1", "T2", "T3", "T4"];
    for task in tasks {
        site.submit(task, MODEL).await;
    }
    let outcomes = futures_util::future::join_all(tasks.map(|task| site.rig.outcome(task)));
    // Two workers with two threads each, on one cache.
    let (first, second) = (site.runner().slots(2), site.runner().slots(2));
    let (first, second) = (first.build().unwrap(), second.build().unwrap());
    let stop = tokio_util::sync::CancellationToken::new();
    let act = async {
        let outcomes = outcomes.await;
        stop.cancel();
        outcomes
    };
    let (_, _, outcomes) = tokio::join!(
        first.run_until(stop.cancelled()),
        second.run_until(stop.cancelled()),
        act
    );
    for outcome in outcomes {
        outcome.unwrap();
    }
    // Each may list the bucket; only one downloads the two files.
    assert!(site.s3.requests() <= 4, "{} requests", site.s3.requests());
}

#[tokio::test]
async fn unknown_model_is_an_error_that_names_the_source() {
    let site = Site::new();
    let (code, error) = site.load("T1", "openai/nothing").await.unwrap_err();
    assert_eq!(code, "model_not_found");
    assert_eq!(
        error,
        r#"loading model "openai/nothing": model "openai/nothing": there is no such model at s3://dalston-artifacts/models/openai/nothing/"#
    );
    assert_eq!(site.cache_entries(), Vec::<String>::new());
}

#[tokio::test]
async fn incomplete_upload_is_not_downloaded() {
    let site = Site::new();
    site.put_model(MODEL);
    let marker = format!("{}/models/{MODEL}/.complete", TestS3::BUCKET);
    site.s3.remove(&marker);

    let (code, error) = site.load("T1", MODEL).await.unwrap_err();
    assert_eq!(code, "model_incomplete");
    assert!(
        error.contains("s3://dalston-artifacts/models/openai/whisper-made-up/ has no .complete"),
        "{error}"
    );
    assert_eq!(site.cache_entries(), Vec::<String>::new());

    site.put(MODEL, ".complete", "");
    site.load("T2", MODEL).await.unwrap();
}

#[tokio::test]
async fn broken_connection_is_retried() {
    let site = Site::new();
    site.put_model(MODEL);
    let cut = Trouble::new(Fault::Truncate(1_000)).path("model.bin");
    site.s3.trouble(cut.times(2));
    site.load("T1", MODEL).await.unwrap();
}

#[tokio::test]
async fn truncated_file_fails_the_task_and_leaves_no_rest() {
    let site = Site::new();
    site.put_model(MODEL);
    site.s3
        .trouble(Trouble::new(Fault::Truncate(100)).path("model.bin"));

    let (code, error) = site.load("T1", MODEL).await.unwrap_err();
    assert_eq!(code, "model_download_failed");
    assert!(
        error.contains("s3://dalston-artifacts/models/openai/whisper-made-up/model.bin"),
        "{error}"
    );
    until("cleanup", || site.cache_entries().is_empty()).await;

    site.s3.heal();
    site.load("T2", MODEL).await.unwrap();
}

#[tokio::test]
async fn model_replaced_during_download_is_not_mixed() {
    let site = Site::new();
    site.put_model(MODEL);
    let slow = Trouble::new(Fault::Delay(Duration::from_secs(2))).path("model.bin");
    site.s3.trouble(slow);
    site.submit("T1", MODEL).await;
    let act = async {
        let begun = || site.cache_entries() == [".openai--whisper-made-up.partial"];
        until("download", begun).await;
        site.put(MODEL, "model.bin", vec![7; 20_000]);
        site.rig.outcome("T1").await
    };
    let (outcome, _) = site.rig.run(site.runner(), act).await;
    let (code, error) = outcome.unwrap_err();
    assert_eq!(code, "model_download_failed");
    assert!(
        error.contains("model.bin was changed while it was downloaded"),
        "{error}"
    );
}

#[tokio::test]
async fn missing_bucket_is_named_in_the_error() {
    let site = Site::new();
    let mut s3 = S3Config::default();
    s3.bucket = "no-such-bucket".to_owned();
    s3.endpoint = Some(site.s3.url());
    s3.credentials = credentials();
    let mut settings = ModelConfig::default();
    settings.cache_dir = Some(site.cache());
    let models = ModelStorage::new(settings, Store::s3(s3).unwrap());
    site.submit("T1", MODEL).await;
    let (outcome, _) = site
        .rig
        .run(site.runner_with(models), site.rig.outcome("T1"))
        .await;
    let (code, error) = outcome.unwrap_err();
    assert_eq!(code, "model_download_failed");
    assert!(error.contains("NoSuchBucket"), "{error}");
}

#[tokio::test]
async fn refused_request_is_an_error_without_keys() {
    let site = Site::new();
    site.put_model(MODEL);
    site.s3.trouble(Trouble::new(Fault::ACCESS_DENIED));
    let (code, error) = site.load("T1", MODEL).await.unwrap_err();
    assert_eq!(code, "model_download_failed");
    assert!(error.contains("AccessDenied"), "{error}");
    assert!(!error.contains(TestS3::SECRET_ACCESS_KEY), "{error}");
}

#[tokio::test]
async fn deadline_of_the_task_ends_its_download() {
    let site = Site::new();
    site.put_model(MODEL);
    site.s3.trouble(Trouble::new(Fault::Hang).path("model.bin"));
    let in_a_second = |_: &mut _, metadata: &mut TaskMetadata, task: QueuedTask| {
        metadata.model = Some(MODEL.to_owned());
        let soon = SystemTime::now() + Duration::from_secs(1);
        task.timeout_at(Timestamp::from(soon))
    };
    site.rig.submit_with("T1", in_a_second).await;
    let models = site.models(&[]);
    let runner = site.runner_with(models.clone());
    let act = async {
        let (code, _) = site.rig.outcome("T1").await.unwrap_err();
        assert_eq!(code, "deadline_exceeded");
        until("cleanup", || site.cache_entries().is_empty()).await;
        assert!(!models.is_downloading());
        // The next task does not get the error of the aborted download.
        site.s3.heal();
        site.submit("T2", MODEL).await;
        site.rig.outcome("T2").await.unwrap();
    };
    let ((), run) = site.rig.run(runner, act).await;
    run.unwrap();
}

#[tokio::test]
async fn draining_worker_aborts_download_and_releases_task() {
    let site = Site::new();
    site.put_model(MODEL);
    site.s3.trouble(Trouble::new(Fault::Hang).path("model.bin"));
    let models = site.models(&[]);
    site.submit("T1", MODEL).await;
    let begun = Instant::now();
    let runner = site
        .runner_with(models.clone())
        .drain_timeout(Duration::from_secs(300));
    let ((), run) = site
        .rig
        .run(runner, until("download", || models.is_downloading()))
        .await;
    run.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(60));
    assert_eq!(site.rig.events(), ["T1 started"]);
    until("cleanup", || site.cache_entries().is_empty()).await;

    // A peer gets the task at once.
    site.s3.heal();
    let (outcome, _) = site.rig.run(site.runner(), site.rig.outcome("T1")).await;
    outcome.unwrap();
}

#[tokio::test]
async fn shutdown_aborts_preload() {
    let site = Site::new();
    site.put_model(MODEL);
    site.s3.trouble(Trouble::new(Fault::Hang).path("model.bin"));
    let models = site.models(&[]);
    let runner = site.runner_with(models.clone()).preload(MODEL);
    let ((), run) = site
        .rig
        .run(runner, until("download", || models.is_downloading()))
        .await;
    run.unwrap();
    until("end of the download", || !models.is_downloading()).await;
    until("cleanup", || site.cache_entries().is_empty()).await;
}

/// The child process of the test below.
#[tokio::test]
#[ignore = "not a test: the child process of another test"]
async fn download_until_killed() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let rig = Rig::new();
    let models = storage(&variable("TEST_S3"), Path::new(&variable("TEST_CACHE")), &[]);
    let runner = rig.runner(reader()).model_storage(models).preload(MODEL);
    let _ = rig.run(runner, std::future::pending::<()>()).await;
}

#[tokio::test]
async fn killed_process_leaves_no_partial_model_and_no_lock() {
    struct Killed(Child);
    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let site = Site::new();
    site.put_model(MODEL);
    site.s3
        .trouble(Trouble::new(Fault::Hang).path("model.bin").times(1));
    let process = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "models::download_until_killed"])
        .env("TEST_S3", site.s3.url())
        .env("TEST_CACHE", site.cache())
        .stdout(std::process::Stdio::null())
        .spawn();
    let process = Killed(process.unwrap());
    let partial = site.cache().join(".openai--whisper-made-up.partial");
    until("partial model", || {
        fs::read(partial.join("config.json")).is_ok_and(|content| content == b"{}")
    })
    .await;

    // A second process waits while the first one downloads.
    let models = site.models(&[]);
    site.submit("T1", MODEL).await;
    let act = async {
        until("download by the second process", || models.is_downloading()).await;
        let requests = site.s3.requests();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(site.s3.requests() <= requests + 1);
        assert!(!site.cached(MODEL).exists() && partial.exists());
        drop(process);
        site.rig.outcome("T1").await.unwrap();
    };
    let ((), run) = site.rig.run(site.runner_with(models.clone()), act).await;
    run.unwrap();
    assert_eq!(site.cache_entries(), ["openai--whisper-made-up"]);
}

#[tokio::test]
async fn rest_of_killed_process_is_removed_at_next_start() {
    let site = Site::new();
    let left = site.cache().join(".openai--given-up.partial");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("model.bin"), "half").unwrap();
    let foreign = site.cache().join(".not ours.partial");
    fs::create_dir_all(&foreign).unwrap();
    let gone = until("cleanup", || !left.exists());
    let ((), run) = site.rig.run(site.runner(), gone).await;
    run.unwrap();
    assert!(foreign.exists());
}

#[tokio::test]
async fn hostile_name_is_not_a_model() {
    let site = Site::new();
    site.put_model(MODEL);
    let names = [
        "../outside",
        "openai/../../outside",
        "/no/such/place",
        "openai//whisper",
        "openai--whisper-made-up",
        ".hidden",
        "a\\b",
        "a b",
        &"x".repeat(300),
    ];
    for (n, name) in names.into_iter().enumerate() {
        let (code, error) = site.load(&format!("T{n}"), name).await.unwrap_err();
        assert_eq!(code, "model_not_found", "{name:?}: {error}");
    }
    assert_eq!(site.s3.requests(), 0);
    assert_eq!(fs::read_dir(site.temp.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn hostile_key_in_bucket_is_refused() {
    let site = Site::new();
    for (n, key) in ["../../../../evil", "a/../../evil", "back\\slash"]
        .into_iter()
        .enumerate()
    {
        let model = format!("tricky-{n}");
        site.put_model(&model);
        site.put(&model, key, "evil");
        let (code, error) = site.load(&format!("T{n}"), &model).await.unwrap_err();
        assert_eq!(code, "invalid_model", "{key:?}: {error}");
        assert!(
            error.contains(&format!("s3://dalston-artifacts/models/{model}/")),
            "{error}"
        );
    }
    assert_eq!(fs::read_dir(site.temp.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn unwritable_cache_is_named_in_the_error() {
    let site = Site::new();
    site.put_model(MODEL);
    fs::write(site.cache(), "a file").unwrap();
    let (code, error) = site.load("T1", MODEL).await.unwrap_err();
    assert_eq!(code, "model_cache_unusable");
    // The log has the whole path.
    let name = site.cache().file_name().unwrap().to_string_lossy().into_owned();
    assert!(
        error.contains(&format!("writing {name}: ")) && error.contains("DALSTON_MODEL_CACHE_DIR"),
        "{error}"
    );
}

#[tokio::test]
async fn foreign_directory_in_cache_is_not_touched() {
    let site = Site::new();
    site.put_model(MODEL);
    fs::create_dir_all(site.cached(MODEL)).unwrap();
    fs::write(site.cached(MODEL).join("mine"), "").unwrap();
    let (code, error) = site.load("T1", MODEL).await.unwrap_err();
    assert_eq!(code, "model_cache_unusable");
    assert!(error.contains("is in the way of a download"), "{error}");
    assert!(site.cached(MODEL).join("mine").exists());
}

/// A model in the cache that was last used `hours_ago`.
fn cached_model(site: &Site, name: &str, bytes: usize, hours_ago: u64) -> PathBuf {
    let dir = site.cached(name);
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("sub/model.bin"), weights(bytes)).unwrap();
    fs::write(dir.join(".complete"), "").unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let used_at = now.as_secs_f64() - (hours_ago * 3_600) as f64;
    fs::write(dir.join(".last_accessed"), used_at.to_string()).unwrap();
    dir
}

#[tokio::test]
async fn only_idle_models_are_evicted() {
    let site = Site::new();
    let old = cached_model(&site, "a/old", 100, 3);
    let fresh = cached_model(&site, "a/fresh", 100, 1);
    let unmarked = cached_model(&site, "a/unmarked", 100, 9);
    fs::remove_file(unmarked.join(".complete")).unwrap();
    let foreign = cached_model(&site, "my own notes", 100, 9);
    let outside = site.temp.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join(".complete"), "").unwrap();
    fs::write(outside.join(".last_accessed"), "0").unwrap();
    std::os::unix::fs::symlink(&outside, site.cache().join("a--link")).unwrap();

    let models = site.models(&[("DALSTON_MODEL_CACHE_TTL_HOURS", "2")]);
    let evicted = || {
        let lines = site.rig.telemetry.logs();
        lines.into_iter().find(|line| line.event() == "model_evicted")
    };
    let gone = until("eviction", || evicted().is_some());
    let ((), run) = site.rig.run(site.runner_with(models), gone).await;
    run.unwrap();

    assert!(!old.exists());
    for kept in [fresh, unmarked, foreign, outside.join(".complete")] {
        assert!(kept.exists(), "{}", kept.display());
    }
    let evicted = evicted().unwrap();
    assert_eq!(evicted.field("model"), Some(&json!("a/old")));
    assert_eq!(evicted.field("reason"), Some(&json!("ttl")));
}

#[tokio::test]
async fn full_cache_evicts_least_recently_used_models() {
    let site = Site::new();
    let oldest = cached_model(&site, "a/oldest", 60_000, 5);
    let older = cached_model(&site, "a/older", 60_000, 4);
    let newer = cached_model(&site, "a/newer", 60_000, 1);
    let newest = cached_model(&site, "a/newest", 60_000, 0);
    // 150 kB.
    let models = site.models(&[("DALSTON_MODEL_CACHE_MAX_GB", "0.00014")]);
    let gone = until("eviction", || !oldest.exists() && !older.exists());
    let ((), run) = site.rig.run(site.runner_with(models), gone).await;
    run.unwrap();
    assert!(newer.exists() && newest.exists());
}

#[tokio::test]
async fn loaded_model_is_not_evicted() {
    let site = Site::new();
    site.put_model(MODEL);
    let idle = cached_model(&site, "a/idle", 20_000, 0);
    // 22 kB: room for one of them.
    let limit = [("DALSTON_MODEL_CACHE_MAX_GB", "0.00002")];
    let other_worker = site.models(&[("DALSTON_MODEL_CACHE_MAX_GB", "0.000001")]);
    site.submit("T1", MODEL).await;
    let act = async {
        site.rig.outcome("T1").await.unwrap();
        until("eviction of the idle model", || !idle.exists()).await;
        assert!(site.cached(MODEL).exists());

        // Another process with a smaller limit does not remove it either.
        let sentinel = cached_model(&site, "a/sentinel", 10, 0);
        let rig = Rig::new();
        let runner = rig.runner(reader()).model_storage(other_worker);
        let ((), run) = rig
            .run(runner, until("scan by the other process", || !sentinel.exists()))
            .await;
        run.unwrap();
        assert!(site.cached(MODEL).exists());
    };
    let ((), run) = site.rig.run(site.runner_with(site.models(&limit)), act).await;
    run.unwrap();

    // Once it is not loaded any more, it is evicted.
    let models = site.models(&[("DALSTON_MODEL_CACHE_MAX_GB", "0.000001")]);
    let gone = until("eviction", || !site.cached(MODEL).exists());
    let ((), run) = site.rig.run(site.runner_with(models), gone).await;
    run.unwrap();
}

#[tokio::test]
async fn engine_can_fall_back_to_its_own_model() {
    let site = Site::new();
    let engine = Closures::new(|_, _| answer()).load(|model, cx| {
        assert!(cx.model_dir(model).is_err());
        Ok(())
    });
    let loads = engine.loads();
    site.submit("T1", "shipped").await;
    let runner = site.rig.runner(engine).model_storage(site.models(&[]));
    let (outcome, _) = site.rig.run(runner, site.rig.outcome("T1")).await;
    outcome.unwrap();
    assert_eq!(loads.load(Ordering::SeqCst), 1);
}
