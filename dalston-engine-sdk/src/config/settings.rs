//! The environment variables of this crate, beside those of [`dalston_telemetry::settings`].
//!
#![doc = include_str!("../../docs/environment.md")]

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use dalston_telemetry::services::SpanNames;
use dalston_telemetry::settings::{
    Accepts, Group, Milliseconds, Number, OneOf, Parsed, Seconds, Text, Variable, WholeNumber,
};
use dalston_telemetry::variables;
use serde_json::{Map, Value};
use url::Url;

use super::choices::{ClientSpans, DeviceChoice, ModelSource, PrecisionChoice, SpotDrain};
use crate::batch::MAX_TASKS as MAX_BATCH;
use crate::model_id::ModelId;
use crate::store::{DEFAULT_BUCKET, key};

/// All variables that this crate declares.
pub static VARIABLES: &[&Group] = &[&ENGINES, &WORKERS, &REALTIME, &LOCAL];

/// More inference threads than any machine has use for.
pub(crate) const MAX_SLOTS: usize = 1024;

/// A year.
const ANY_TIME: Seconds = Seconds(0.0, 365.0 * 86_400.0);

variables! {
    /// Of every engine, whether its tasks come from a deployment or from the command line.
    pub group ENGINES = "Engines";

    /// Where to compute.
    pub(crate) static DALSTON_DEVICE: Variable<DeviceChoice> =
        Variable::new(&["DALSTON_DEVICE"], &Parsed(DeviceChoice::ACCEPTED)).default("auto");

    /// The number format to compute in.
    pub(crate) static DALSTON_PRECISION: Variable<PrecisionChoice> =
        Variable::new(&["DALSTON_PRECISION"], &Parsed(PrecisionChoice::ACCEPTED)).default("auto");

    /// The model for tasks that name none.
    pub(crate) static DALSTON_DEFAULT_MODEL: Variable<ModelId> =
        Variable::new(&["DALSTON_DEFAULT_MODEL"], &Text("a directory or a name that the engine knows"))
            .default_described("the engine's");

    /// The directory in which models are looked up by name, before any download.
    pub(crate) static DALSTON_MODEL_DIR: Variable<PathBuf> =
        Variable::new(&["DALSTON_MODEL_DIR"], &Text("a directory"));

    /// The TorchScript file of Silero's voice detector, in place of the engine's own detector. Only
    /// for engines on libtorch.
    pub(crate) static DALSTON_VAD_MODEL: Variable<PathBuf> =
        Variable::new(&["DALSTON_VAD_MODEL"], &Text("a file")).default_described("the engine's detector");

    /// Models to load before the first task. `true` stands for the default model.
    pub(crate) static DALSTON_MODEL_PRELOAD: Variable<Vec<ModelId>> =
        Variable::new(&["DALSTON_MODEL_PRELOAD"], &ModelNames);

    /// How many models an inference thread keeps.
    pub(crate) static DALSTON_MAX_LOADED_MODELS: Variable<usize> =
        Variable::new(&["DALSTON_MAX_LOADED_MODELS"], &WholeNumber(1, u64::MAX)).default("2");

    /// How long an inference thread keeps a model that no task asks for.
    pub(crate) static DALSTON_MODEL_TTL_SECONDS: Variable<Duration> =
        Variable::new(&["DALSTON_MODEL_TTL_SECONDS"], &ANY_TIME).default("3600");

    /// Inference threads, each with models of its own.
    pub(crate) static DALSTON_SLOTS: Variable<usize> =
        Variable::new(&["DALSTON_SLOTS"], &WholeNumber(1, MAX_SLOTS as u64)).default("1");

    /// The most tasks that the engine gets at once, if it takes batches.
    pub(crate) static DALSTON_MAX_BATCH: Variable<usize> =
        Variable::new(&["DALSTON_MAX_BATCH"], &WholeNumber(1, MAX_BATCH as u64))
            .default_described("the engine's");

    /// How long an idle inference thread waits for a full batch, if the engine takes batches.
    pub(crate) static DALSTON_BATCH_WAIT_SECONDS: Variable<Duration> =
        Variable::new(&["DALSTON_BATCH_WAIT_SECONDS"], &Seconds(0.0, 60.0)).default_described("the engine's");

    /// The settings of an engine with settings of its own (`main_with`). `--set` wins over them,
    /// key by key.
    pub(crate) static DALSTON_ENGINE_SETTINGS: Variable<Map<String, Value>> =
        Variable::new(&["DALSTON_ENGINE_SETTINGS"], &JsonObject);

    /// An engine id that replaces the engine's own: another queue for the same program.
    pub(crate) static DALSTON_ENGINE_ID: Variable<String> =
        Variable::new(&["DALSTON_ENGINE_ID"], &Text("a name")).default_described("the engine's");

    /// Makes the name of this process unique. A random text takes its place if a live process has
    /// the name.
    pub(crate) static DALSTON_WORKER_ID: Variable<String> =
        Variable::new(&["DALSTON_WORKER_ID", "DALSTON_INSTANCE"], &Text("a text, of which the first 12 characters count"))
            .default_described("random");

    /// How long a task may take if its queue entry gives no deadline.
    pub(crate) static DALSTON_DEFAULT_TASK_TIMEOUT_S: Variable<Duration> =
        Variable::new(&["DALSTON_DEFAULT_TASK_TIMEOUT_S"], &ANY_TIME).default("3600");

    /// How long tasks may go on after the worker was told to stop. Kubernetes kills a pod after 30
    /// seconds.
    pub(crate) static DALSTON_DRAIN_TIMEOUT_SECONDS: Variable<Duration> =
        Variable::new(&["DALSTON_DRAIN_TIMEOUT_SECONDS"], &ANY_TIME).default("25");

    /// How often inference of a task may begin on workers that do not survive it. Then the task
    /// fails.
    pub(crate) static DALSTON_MAX_DELIVERIES: Variable<u32> =
        Variable::new(&["DALSTON_MAX_DELIVERIES"], &WholeNumber(1, u64::MAX)).default("3");

    /// Inference threads stuck in calls that never return before the worker gives up.
    pub(crate) static DALSTON_MAX_STUCK_THREADS: Variable<usize> =
        Variable::new(&["DALSTON_MAX_STUCK_THREADS"], &WholeNumber(0, u64::MAX)).default("2");

    /// Where the directories of tasks are made.
    pub(crate) static TMPDIR: Variable<PathBuf> = Variable::new(&["TMPDIR"], &Text("a directory")).default("/tmp");

    /// How old a directory of a task there gets before it is removed, at the start and every hour:
    /// a process that was killed leaves its directories. The default is 30 days.
    pub(crate) static DALSTON_TEMP_PURGE_MAX_AGE_S: Variable<Duration> =
        Variable::new(&["DALSTON_TEMP_PURGE_MAX_AGE_S"], &ANY_TIME).default("2592000");
}

variables! {
    /// Of the command `run`.
    ///
    /// `rediss://` and `https://` trust the certificate authorities of the system. For one of your
    /// own, set `SSL_CERT_FILE` to a file of PEM certificates (or `SSL_CERT_DIR` to a directory):
    /// they take the place of the system's.
    pub group WORKERS = "Workers of a live deployment";

    /// The bucket with the files of tasks.
    pub(crate) static DALSTON_S3_BUCKET: Variable<String> =
        Variable::new(&["DALSTON_S3_BUCKET"], &BucketName).default(DEFAULT_BUCKET);

    /// The region of the bucket.
    pub(crate) static DALSTON_S3_REGION: Variable<String> =
        Variable::new(&["DALSTON_S3_REGION"], &Text("a region")).default("eu-west-2");

    /// A server that speaks S3's protocol.
    pub(crate) static DALSTON_S3_ENDPOINT_URL: Variable<String> =
        Variable::new(&["DALSTON_S3_ENDPOINT_URL"], &HttpUrl("http://minio:9000")).default_described("Amazon's");

    /// A directory of this machine instead of S3, for a deployment on one machine: all its
    /// processes name the same one. Locators stay those of S3.
    pub(crate) static DALSTON_STORAGE_DIR: Variable<PathBuf> =
        Variable::new(&["DALSTON_STORAGE_DIR"], &Text("a directory")).default_described("S3");

    /// How long the storage may be silent within one attempt of a request.
    pub(crate) static DALSTON_S3_ATTEMPT_TIMEOUT_SECONDS: Variable<Duration> =
        Variable::new(&["DALSTON_S3_ATTEMPT_TIMEOUT_SECONDS"], &Seconds(1.0, 3600.0)).default("60");

    /// How long after its start a request to the storage may be tried again, at most three times.
    /// Larger than the time of an attempt, or a silent storage is asked only once.
    pub(crate) static DALSTON_S3_RETRY_BUDGET_SECONDS: Variable<Duration> =
        Variable::new(&["DALSTON_S3_RETRY_BUDGET_SECONDS"], &Seconds(0.0, 3600.0)).default("180");

    /// Credentials and where to get them. The client of S3 gets each of them as it is, and asks the
    /// container or the EC2 instance where none is set.
    pub(crate) static AWS_CREDENTIALS: Variable<String> = Variable::new(
        &[
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_ROLE_ARN",
            "AWS_ROLE_SESSION_NAME",
            "AWS_ENDPOINT_URL_STS",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            "AWS_METADATA_ENDPOINT",
        ],
        &Text("as Amazon's own clients read them"),
    )
    .default_described("those of the machine")
    .secret();

    /// Where to look for a model that is not on this machine, in this order: `s3`
    /// (`models/{model_id}/` in the bucket), `hf` (the Hugging Face hub), or `auto` for both.
    pub(crate) static DALSTON_MODEL_SOURCE: Variable<Vec<ModelSource>> =
        Variable::new(&["DALSTON_MODEL_SOURCE"], &ModelSources).default("s3");

    /// Where downloaded models are kept. Processes may share it, also with the platform's own
    /// engines.
    pub(crate) static DALSTON_MODEL_CACHE_DIR: Variable<PathBuf> =
        Variable::new(&["DALSTON_MODEL_CACHE_DIR"], &Text("a directory")).default_described(
            "`s3-cache` under `DALSTON_MODEL_DIR`, else under `/models` if that is a directory, else under \
             `~/.cache/dalston/models`",
        );

    /// GiB that the models there may take. Those that were not used for longest go first. 0: no
    /// limit.
    pub(crate) static DALSTON_MODEL_CACHE_MAX_GB: Variable<f64> = Variable::new(
        &["DALSTON_MODEL_CACHE_MAX_GB"],
        &Number { what: "a number of GiB", least: 0.0, most: Number::UNBOUNDED },
    )
    .default("0");

    /// Hours after which a model that is not used is removed from there. 0: never.
    pub(crate) static DALSTON_MODEL_CACHE_TTL_HOURS: Variable<f64> = Variable::new(
        &["DALSTON_MODEL_CACHE_TTL_HOURS"],
        &Number { what: "a number of hours", least: 0.0, most: Number::UNBOUNDED },
    )
    .default("0");

    /// Seconds between two checks of these limits.
    pub(crate) static DALSTON_MODEL_CACHE_SCAN_INTERVAL: Variable<Duration> =
        Variable::new(&["DALSTON_MODEL_CACHE_SCAN_INTERVAL"], &Seconds(1.0, Number::UNBOUNDED)).default("600");

    /// The key to models of the hub that are not public.
    pub(crate) static HF_TOKEN: Variable<String> = Variable::new(&["HF_TOKEN"], &Text("a token")).secret();

    /// The hub, or a mirror of it.
    pub(crate) static HF_ENDPOINT: Variable<String> =
        Variable::new(&["HF_ENDPOINT"], &HttpUrl("http://hub-mirror:8080")).default("https://huggingface.co");

    /// The parent of the default cache of models, where `/models` is not a directory.
    pub(crate) static XDG_CACHE_HOME: Variable<PathBuf> =
        Variable::new(&["XDG_CACHE_HOME"], &Text("a directory")).default_described("`.cache` under `HOME`");

    /// The directory of the user.
    pub(crate) static HOME: Variable<PathBuf> = Variable::new(&["HOME"], &Text("a directory"));

    /// Recordings that the routes for transcription receive or process at the same time. 0 turns
    /// these routes off, and with them `/v1/models` and the status page at `/`.
    pub(crate) static DALSTON_HTTP_MAX_REQUESTS: Variable<usize> =
        Variable::new(&["DALSTON_HTTP_MAX_REQUESTS"], &WholeNumber(0, 1024)).default("16");

    /// The size of such a recording, in MiB.
    pub(crate) static DALSTON_HTTP_MAX_UPLOAD_MB: Variable<u64> =
        Variable::new(&["DALSTON_HTTP_MAX_UPLOAD_MB"], &WholeNumber(1, 1 << 20)).default("1024");

    /// How long such a recording may wait for a free inference thread before its sender is told to
    /// come back.
    pub(crate) static DALSTON_HTTP_QUEUE_TIMEOUT_SECONDS: Variable<Duration> =
        Variable::new(&["DALSTON_HTTP_QUEUE_TIMEOUT_SECONDS"], &ANY_TIME).default("60");

    /// The origins whose pages may read the responses of the HTTP server in a browser (CORS), for
    /// example `https://app.example`. `*` is every origin.
    pub(crate) static DALSTON_HTTP_CORS_ORIGINS: Variable<Vec<String>> =
        Variable::new(&["DALSTON_HTTP_CORS_ORIGINS"], &Origins).default_described("none");

    /// The machine's name that the registry shows.
    pub(crate) static DALSTON_HOST_HOSTNAME: Variable<String> =
        Variable::new(&["DALSTON_HOST_HOSTNAME"], &Text("a name"))
            .default_described("the host name; on EC2 the instance id is shown instead");

    /// Which notices about an EC2 spot instance start the drain. `interruption`: no rebalance
    /// recommendations.
    pub(crate) static DALSTON_SPOT_DRAIN: Variable<SpotDrain> = Variable::new(
        &["DALSTON_SPOT_DRAIN"],
        &OneOf(&[("all", SpotDrain::All), ("interruption", SpotDrain::Interruption), ("off", SpotDrain::Off)]),
    )
    .default("all");

    /// The requests that have client spans in the traces of tasks, to look for slow ones.
    pub(crate) static DALSTON_CLIENT_SPANS: Variable<ClientSpans> = Variable::new(
        &["DALSTON_CLIENT_SPANS"],
        &OneOf(&[
            ("off", ClientSpans::Off),
            ("redis", ClientSpans::Redis),
            ("s3", ClientSpans::S3),
            ("all", ClientSpans::All),
        ]),
    )
    .default("off");
}

variables! {
    /// Of an engine with realtime sessions (feature `realtime`), in the command `run`. A client can
    /// set the limits of its lag, the length of utterances and the silence for its session.
    pub group REALTIME = "Realtime sessions";

    /// The port of realtime sessions. 0: any free port.
    pub(crate) static DALSTON_WORKER_PORT: Variable<u16> =
        Variable::new(&["DALSTON_WORKER_PORT"], &Parsed("a port from 0 to 65535")).default("9000");

    /// The URL of that port that the registry shows.
    pub(crate) static DALSTON_WORKER_ENDPOINT: Variable<String> =
        Variable::new(&["DALSTON_WORKER_ENDPOINT"], &Text("a ws or wss URL"))
            .default_described("`ws://{host name}:{port}`");

    /// Realtime sessions at the same time. Further ones are refused.
    pub(crate) static DALSTON_MAX_SESSIONS: Variable<usize> =
        Variable::new(&["DALSTON_MAX_SESSIONS"], &WholeNumber(1, 10_000)).default("2");

    /// How far a session may lag behind its audio before the client gets a warning.
    pub(crate) static DALSTON_REALTIME_LAG_WARNING_SECONDS: Variable<Duration> =
        Variable::new(&["DALSTON_REALTIME_LAG_WARNING_SECONDS"], &Seconds(0.1, 3600.0)).default("3");

    /// How far a session may lag behind its audio for a while.
    pub(crate) static DALSTON_REALTIME_LAG_HARD_SECONDS: Variable<Duration> =
        Variable::new(&["DALSTON_REALTIME_LAG_HARD_SECONDS"], &Seconds(0.1, 3600.0)).default("5");

    /// How long a session may lag that far before it is terminated.
    pub(crate) static DALSTON_REALTIME_LAG_HARD_GRACE_SECONDS: Variable<Duration> =
        Variable::new(&["DALSTON_REALTIME_LAG_HARD_GRACE_SECONDS"], &Seconds(0.0, 3600.0)).default("2");

    /// The length at which an utterance is cut.
    pub(crate) static DALSTON_REALTIME_MAX_UTTERANCE_DURATION: Variable<Duration> =
        Variable::new(&["DALSTON_REALTIME_MAX_UTTERANCE_DURATION"], &Seconds(1.0, 300.0)).default("30");

    /// The silence that ends an utterance, in milliseconds.
    pub(crate) static DALSTON_REALTIME_MIN_SILENCE_DURATION_MS: Variable<Duration> =
        Variable::new(&["DALSTON_REALTIME_MIN_SILENCE_DURATION_MS"], &Milliseconds(50)).default("400");

    /// The audio of a session that may wait for its transcription, in seconds. Then the client is
    /// slowed down.
    pub(crate) static DALSTON_REALTIME_INPUT_SECONDS: Variable<Duration> =
        Variable::new(&["DALSTON_REALTIME_INPUT_SECONDS"], &Seconds(1.0, 600.0)).default("30");

    /// How long a client may send neither audio nor `keepalive`.
    pub(crate) static DALSTON_REALTIME_IDLE_TIMEOUT_SECONDS: Variable<Duration> =
        Variable::new(&["DALSTON_REALTIME_IDLE_TIMEOUT_SECONDS"], &Seconds(1.0, 86_400.0)).default("60");

    /// How long a session may last.
    pub(crate) static DALSTON_REALTIME_MAX_SESSION_SECONDS: Variable<Duration> =
        Variable::new(&["DALSTON_REALTIME_MAX_SESSION_SECONDS"], &Seconds(1.0, 86_400.0)).default("14400");

    /// One chunk of audio in so many has a span. The first one of a session and those that take
    /// longer than their audio have one in any case.
    pub(crate) static DALSTON_RT_SPAN_SAMPLE_RATE: Variable<u32> =
        Variable::new(&["DALSTON_RT_SPAN_SAMPLE_RATE"], &WholeNumber(1, 1_000_000)).default("10");

    /// The names of the spans of a session: those of this guide, or those of the live platform's
    /// own worker.
    pub(crate) static DALSTON_RT_SPAN_NAMES: Variable<SpanNames> = Variable::new(
        &["DALSTON_RT_SPAN_NAMES"],
        &OneOf(&[("guide", SpanNames::Guide), ("live", SpanNames::Live)]),
    ).default("guide");
}

variables! {
    /// Of the commands `transcribe` and `doctor`.
    pub group LOCAL = "The terminal";

    /// The locale. Without UTF-8, waterfalls are drawn in ASCII.
    pub(crate) static LOCALE: Variable<String> =
        Variable::new(&["LC_ALL", "LC_CTYPE", "LANG"], &Text("a locale")).default_described("UTF-8");
}

/// A JSON object.
#[derive(Debug)]
struct JsonObject;

impl Accepts<Map<String, Value>> for JsonObject {
    fn parse(&self, text: &str) -> Option<Map<String, Value>> {
        serde_json::from_str(text).ok()
    }

    fn expected(&self) -> Cow<'static, str> {
        "a JSON object".into()
    }
}

/// A list of models. `true` stands for the unnamed one.
#[derive(Debug)]
struct ModelNames;

impl Accepts<Vec<ModelId>> for ModelNames {
    fn parse(&self, text: &str) -> Option<Vec<ModelId>> {
        let names = entries(text).map(|name| match name {
            "true" => ModelId::default(),
            name => ModelId::from(name),
        });
        Some(names.collect())
    }

    fn expected(&self) -> Cow<'static, str> {
        "names of models with commas between, or true".into()
    }
}

/// A list of sources without repetitions.
#[derive(Debug)]
struct ModelSources;

impl Accepts<Vec<ModelSource>> for ModelSources {
    fn parse(&self, text: &str) -> Option<Vec<ModelSource>> {
        let mut sources = Vec::new();
        for name in entries(text) {
            let named: &[ModelSource] = match name.to_ascii_lowercase().as_str() {
                "s3" => &[ModelSource::S3],
                "hf" => &[ModelSource::HuggingFace],
                "auto" => &[ModelSource::S3, ModelSource::HuggingFace],
                _ => return None,
            };
            for source in named {
                if !sources.contains(source) {
                    sources.push(*source);
                }
            }
        }
        (!sources.is_empty()).then_some(sources)
    }

    fn expected(&self) -> Cow<'static, str> {
        "s3, hf or auto, or several of them with commas between (models of ngc can't be downloaded)".into()
    }
}

/// A list of origins.
#[derive(Debug)]
struct Origins;

impl Accepts<Vec<String>> for Origins {
    fn parse(&self, text: &str) -> Option<Vec<String>> {
        let origins = entries(text).map(|origin| {
            let url = http_url(origin);
            // A browser sends scheme, host and port alone.
            let is_origin = url.is_some_and(|url| url.origin().ascii_serialization() == origin);
            (is_origin || origin == "*").then(|| origin.to_owned())
        });
        origins.collect()
    }

    fn expected(&self) -> Cow<'static, str> {
        "origins with commas between, such as http://localhost:3000, or *".into()
    }
}

/// The name of a bucket.
#[derive(Debug)]
struct BucketName;

impl Accepts<String> for BucketName {
    fn parse(&self, text: &str) -> Option<String> {
        key::is_bucket_name(text).then(|| text.to_owned())
    }

    fn expected(&self) -> Cow<'static, str> {
        "the name of a bucket: 3 to 63 lower-case letters, digits, dots, dashes and underscores".into()
    }
}

/// An http or https URL. The field is an example.
#[derive(Debug)]
struct HttpUrl(&'static str);

impl Accepts<String> for HttpUrl {
    fn parse(&self, text: &str) -> Option<String> {
        http_url(text).map(|_| text.to_owned())
    }

    fn expected(&self) -> Cow<'static, str> {
        format!("an http or https URL, such as {}", self.0).into()
    }
}

/// Reads an http or https URL with its slashes and a host.
pub(crate) fn http_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    // The parser adds missing slashes. The client of S3 does not.
    let is_complete = matches!(url.scheme(), "http" | "https") && text.contains("://") && url.has_host();
    is_complete.then_some(url)
}

fn entries(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}
