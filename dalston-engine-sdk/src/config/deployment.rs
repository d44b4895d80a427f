//! How a worker finds a live deployment.

use std::path::PathBuf;
use std::time::Duration;

use dalston_telemetry::cloud::Cloud;
use dalston_telemetry::settings::{DALSTON_DEPLOY_ENV, DALSTON_METRICS_PORT, HOSTNAME, REDIS_URL};
use dalston_telemetry::{Env, EnvError};

use super::choices::{ClientSpans, SpotDrain};
use super::models::ModelConfig;
#[cfg(feature = "realtime")]
use super::realtime::RealtimeConfig;
use super::settings::{
    AWS_CREDENTIALS, DALSTON_CLIENT_SPANS, DALSTON_HOST_HOSTNAME, DALSTON_HTTP_CORS_ORIGINS,
    DALSTON_HTTP_MAX_REQUESTS, DALSTON_HTTP_MAX_UPLOAD_MB, DALSTON_HTTP_QUEUE_TIMEOUT_SECONDS,
    DALSTON_S3_ATTEMPT_TIMEOUT_SECONDS, DALSTON_S3_BUCKET, DALSTON_S3_ENDPOINT_URL, DALSTON_S3_REGION,
    DALSTON_S3_RETRY_BUDGET_SECONDS, DALSTON_SPOT_DRAIN, DALSTON_STORAGE_DIR,
};
use crate::protocol::{NodeIdentity, RECORD_TTL_SECONDS};
use crate::redis::parse_url;
use crate::store::{S3Config, Store, StoreError};

/// The configuration of a worker that takes its tasks from a live deployment.
///
/// Each field names its environment variable. The page of [`settings`](crate::settings) has the
/// defaults and the accepted values.
///
/// `Debug` shows no passwords.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct DeploymentConfig {
    /// The Redis server with queues, events and registry. `REDIS_URL`.
    pub redis_url: String,
    /// Where the files of tasks are. `DALSTON_S3_…`, and `AWS_…` for credentials.
    pub s3: S3Config,
    /// A directory of this machine that takes the place of S3. `DALSTON_STORAGE_DIR`.
    pub storage_dir: Option<PathBuf>,
    /// The port of the worker's own HTTP server, on all addresses. 0 is any free one.
    /// `DALSTON_METRICS_PORT`.
    pub http_port: u16,
    /// Whether that server answers at `/metrics`. `DALSTON_METRICS_ENABLED`.
    pub metrics_enabled: bool,
    /// How many recordings that server receives or processes at the same time. Further senders are
    /// told to come back. 0 turns its routes for transcription and its status page off.
    /// `DALSTON_HTTP_MAX_REQUESTS`.
    pub http_max_requests: usize,
    /// The size of a recording that is sent to that server or that it is told to fetch, in bytes.
    /// `DALSTON_HTTP_MAX_UPLOAD_MB`.
    pub http_max_upload: u64,
    /// How long such a recording may wait for a free inference thread before its sender is told to
    /// come back. `DALSTON_HTTP_QUEUE_TIMEOUT_SECONDS`.
    pub http_queue_timeout: Duration,
    /// The origins whose pages may read the responses of that server. `*` is every origin. Default:
    /// none. `DALSTON_HTTP_CORS_ORIGINS`.
    pub http_cors_origins: Vec<String>,
    /// Where models that are not on this machine come from.
    pub models: ModelConfig,
    /// How long an instance may be silent before its tasks go to others: the lease of a task and
    /// the lifetime of the registry record. There is no variable for it, because the platform
    /// counts on 60 s and all instances must agree.
    pub lease: Duration,
    /// The machine, as the registry shows it. `DALSTON_DEPLOY_ENV`, `DALSTON_HOST_HOSTNAME`.
    pub node: NodeIdentity,
    /// The notices of EC2 that start the drain. `DALSTON_SPOT_DRAIN`.
    pub spot_drain: SpotDrain,
    /// The requests that have client spans in the traces of tasks. `DALSTON_CLIENT_SPANS`.
    pub client_spans: ClientSpans,
    /// Realtime sessions, of an engine that has them.
    #[cfg(feature = "realtime")]
    pub realtime: RealtimeConfig,
    pub(crate) cloud: Cloud,
}

impl DeploymentConfig {
    /// Reads the configuration from the environment.
    ///
    /// # Errors
    ///
    /// If a variable has a value that it does not accept. The error names the variable, the value
    /// and the accepted values.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let hostname = hostname(env);
        let node_id = DALSTON_HOST_HOSTNAME.read(env)?;
        let mut node = NodeIdentity::local(hostname.clone(), node_id.unwrap_or(hostname));
        if let Some(deploy_env) = DALSTON_DEPLOY_ENV.read(env)? {
            node.deploy_env = deploy_env;
        }
        Ok(Self {
            redis_url: redis_url(env)?,
            s3: s3(env)?,
            storage_dir: DALSTON_STORAGE_DIR.read(env)?,
            http_port: DALSTON_METRICS_PORT.read_or_default(env)?,
            metrics_enabled: dalston_telemetry::metrics::are_enabled(env)?,
            http_max_requests: DALSTON_HTTP_MAX_REQUESTS.read_or_default(env)?,
            http_max_upload: DALSTON_HTTP_MAX_UPLOAD_MB.read_or_default(env)? << 20,
            http_queue_timeout: DALSTON_HTTP_QUEUE_TIMEOUT_SECONDS.read_or_default(env)?,
            http_cors_origins: DALSTON_HTTP_CORS_ORIGINS.read(env)?.unwrap_or_default(),
            models: ModelConfig::from_env(env)?,
            lease: Duration::from_secs(RECORD_TTL_SECONDS),
            node,
            spot_drain: DALSTON_SPOT_DRAIN.read_or_default(env)?,
            client_spans: DALSTON_CLIENT_SPANS.read_or_default(env)?,
            #[cfg(feature = "realtime")]
            realtime: RealtimeConfig::from_env(env)?,
            cloud: Cloud::unknown(),
        })
    }

    /// The storage that this names. Nothing is sent to it yet.
    ///
    /// # Errors
    ///
    /// If the directory can't be created, or the configuration of S3 is invalid.
    pub fn store(&self) -> Result<Store, StoreError> {
        match &self.storage_dir {
            Some(directory) => Store::directory(directory),
            None => Store::s3(self.s3.clone()),
        }
    }

    /// Sets where the worker runs, as it was detected: the registry then shows EC2's name of the
    /// machine, with zone and type, and the worker looks for notices that a spot instance will be
    /// interrupted.
    ///
    /// Where nothing was found, `DALSTON_DEPLOY_ENV=aws` becomes `local`, as the platform's own
    /// engines do it.
    #[must_use]
    pub fn cloud(mut self, cloud: Cloud) -> Self {
        const AWS: &str = "aws";
        if cloud.platform().is_some() {
            AWS.clone_into(&mut self.node.deploy_env);
        } else if self.node.deploy_env == AWS {
            "local".clone_into(&mut self.node.deploy_env);
        }
        if let Some(instance) = cloud.instance_id() {
            instance.clone_into(&mut self.node.node_id);
        }
        self.node.aws_az = cloud.availability_zone().map(str::to_owned);
        self.node.aws_instance_type = cloud.instance_type().map(str::to_owned);
        self.cloud = cloud;
        self
    }
}

impl std::fmt::Debug for DeploymentConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut f = f.debug_struct("DeploymentConfig");
        #[cfg(feature = "realtime")]
        f.field("realtime", &self.realtime);
        f.field("redis_url", &dalston_telemetry::redact::text(&self.redis_url))
            .field("s3", &self.s3)
            .field("storage_dir", &self.storage_dir)
            .field("http_port", &self.http_port)
            .field("metrics_enabled", &self.metrics_enabled)
            .field("http_max_requests", &self.http_max_requests)
            .field("http_max_upload", &self.http_max_upload)
            .field("http_queue_timeout", &self.http_queue_timeout)
            .field("http_cors_origins", &self.http_cors_origins)
            .field("models", &self.models)
            .field("lease", &self.lease)
            .field("node", &self.node)
            .field("spot_drain", &self.spot_drain)
            .field("client_spans", &self.client_spans)
            .field("cloud", &self.cloud)
            .finish()
    }
}

fn s3(env: &Env) -> Result<S3Config, EnvError> {
    let credentials = AWS_CREDENTIALS.all(env);
    Ok(S3Config {
        bucket: DALSTON_S3_BUCKET.read_or_default(env)?,
        region: DALSTON_S3_REGION.read_or_default(env)?,
        endpoint: DALSTON_S3_ENDPOINT_URL.read(env)?,
        credentials: credentials
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        attempt_timeout: DALSTON_S3_ATTEMPT_TIMEOUT_SECONDS.read_or_default(env)?,
        retry_budget: DALSTON_S3_RETRY_BUDGET_SECONDS.read_or_default(env)?,
        client_spans: DALSTON_CLIENT_SPANS.read_or_default(env)?.s3(),
    })
}

/// The file exists on every Linux. Containers and shells set `HOSTNAME`.
fn hostname(env: &Env) -> String {
    let kernel = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = kernel()
        .or_else(|| HOSTNAME.first(env).map(|(_, name)| name.to_owned()))
        .unwrap_or_default();
    match name.trim() {
        "" => "unknown".to_owned(),
        name => name.to_owned(),
    }
}

fn redis_url(env: &Env) -> Result<String, EnvError> {
    let url = REDIS_URL.read_or_default(env)?;
    match parse_url(&url) {
        Ok(_) => Ok(url),
        Err(_) => Err(REDIS_URL.error(REDIS_URL.name(), &url)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_redis_url_names_its_variable() {
        for url in ["foo", "http://:hunter2@cache", "localhost:6379"] {
            let error = DeploymentConfig::from_env(&Env::from_pairs([("REDIS_URL", url)])).unwrap_err();
            assert_eq!(
                error.to_string(),
                "REDIS_URL is not valid (the value is not shown): expected redis://, rediss:// or unix:// and a \
                 host or path"
            );
        }
    }

    #[test]
    fn empty_environment_is_a_local_deployment() {
        let config = DeploymentConfig::from_env(&Env::from_pairs([("REDIS_URL", "")])).unwrap();
        let node = config.node.clone();
        assert_eq!(node.node_id, node.hostname);
        let expected = DeploymentConfig {
            redis_url: "redis://localhost:6379".to_owned(),
            s3: S3Config::default(),
            storage_dir: None,
            http_port: 9100,
            metrics_enabled: true,
            http_max_requests: 16,
            http_max_upload: 1 << 30,
            http_queue_timeout: Duration::from_secs(60),
            http_cors_origins: Vec::new(),
            models: config.models.clone(),
            lease: Duration::from_secs(60),
            node: NodeIdentity::local(&*node.hostname, &*node.node_id),
            spot_drain: SpotDrain::All,
            client_spans: ClientSpans::Off,
            #[cfg(feature = "realtime")]
            realtime: RealtimeConfig::default(),
            cloud: Cloud::unknown(),
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn each_variable_sets_its_field() {
        let env = Env::from_pairs([
            ("REDIS_URL", "rediss://:pw@redis:6380/2"),
            ("DALSTON_S3_BUCKET", "files"),
            ("DALSTON_S3_REGION", "eu-central-1"),
            ("DALSTON_S3_ENDPOINT_URL", "http://minio:9000"),
            ("DALSTON_STORAGE_DIR", "/srv/dalston"),
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"),
            ("DALSTON_S3_ATTEMPT_TIMEOUT_SECONDS", "5"),
            ("DALSTON_S3_RETRY_BUDGET_SECONDS", "12.5"),
            ("DALSTON_METRICS_PORT", "9200"),
            ("DALSTON_METRICS_ENABLED", "false"),
            ("DALSTON_HTTP_MAX_REQUESTS", "3"),
            ("DALSTON_HTTP_MAX_UPLOAD_MB", "25"),
            ("DALSTON_HTTP_QUEUE_TIMEOUT_SECONDS", "1.5"),
            ("DALSTON_DEPLOY_ENV", "staging"),
            ("DALSTON_HOST_HOSTNAME", "node-7"),
            ("DALSTON_SPOT_DRAIN", "interruption"),
            ("DALSTON_CLIENT_SPANS", "s3"),
        ]);
        let config = DeploymentConfig::from_env(&env).unwrap();
        assert_eq!(
            (&*config.redis_url, config.http_port, config.metrics_enabled),
            ("rediss://:pw@redis:6380/2", 9200, false)
        );
        assert_eq!(
            (
                config.http_max_requests,
                config.http_max_upload,
                config.http_queue_timeout
            ),
            (3, 25 << 20, Duration::from_millis(1500))
        );
        let keys = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "hunter2")];
        let s3 = S3Config {
            bucket: "files".to_owned(),
            region: "eu-central-1".to_owned(),
            endpoint: Some("http://minio:9000".to_owned()),
            credentials: keys
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            attempt_timeout: Duration::from_secs(5),
            retry_budget: Duration::from_millis(12_500),
            client_spans: true,
        };
        assert_eq!(config.s3, s3);
        assert_eq!(config.storage_dir, Some("/srv/dalston".into()));
        assert_eq!(
            (&*config.node.deploy_env, &*config.node.node_id),
            ("staging", "node-7")
        );
        assert_eq!(config.spot_drain, SpotDrain::Interruption);
        assert_eq!(config.client_spans, ClientSpans::S3);
        let shown = format!("{config:?}");
        assert!(!shown.contains("hunter2") && !shown.contains(":pw@"), "{shown}");
    }

    #[test]
    fn wrong_values_are_named() {
        for (name, value, accepted) in [
            (
                "DALSTON_HTTP_MAX_REQUESTS",
                "1025",
                "a whole number from 0 to 1024",
            ),
            (
                "DALSTON_HTTP_MAX_UPLOAD_MB",
                "0",
                "a whole number from 1 to 1048576",
            ),
            (
                "DALSTON_HTTP_MAX_UPLOAD_MB",
                "1e9",
                "a whole number from 1 to 1048576",
            ),
            (
                "DALSTON_S3_ENDPOINT_URL",
                "127.0.0.1:9000",
                "an http or https URL, such as http://minio:9000",
            ),
            (
                "DALSTON_HTTP_CORS_ORIGINS",
                "https://app.example/, *",
                "origins with commas between, such as http://localhost:3000, or *",
            ),
            (
                "HF_ENDPOINT",
                "huggingface.co",
                "an http or https URL, such as http://hub-mirror:8080",
            ),
            (
                "DALSTON_S3_BUCKET",
                "s3://files",
                "the name of a bucket: 3 to 63 lower-case letters, digits, dots, dashes and underscores",
            ),
        ] {
            let error = DeploymentConfig::from_env(&Env::from_pairs([(name, value)])).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("{name} is {value:?}: expected {accepted}")
            );
        }
    }

    #[test]
    fn aws_deployment_without_ec2_is_local() {
        for (deploy_env, expected) in [("aws", "local"), ("staging", "staging"), ("", "local")] {
            let config = DeploymentConfig::from_env(&Env::from_pairs([("DALSTON_DEPLOY_ENV", deploy_env)]));
            let config = config.unwrap().cloud(Cloud::unknown());
            assert_eq!(config.node.deploy_env, expected);
        }
    }

    #[test]
    fn wrong_port_is_named() {
        let error =
            DeploymentConfig::from_env(&Env::from_pairs([("DALSTON_METRICS_PORT", "70000")])).unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"DALSTON_METRICS_PORT is "70000": expected a port from 0 to 65535"#
        );
    }
}
