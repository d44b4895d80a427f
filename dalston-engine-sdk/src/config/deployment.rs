//! How a worker finds a live deployment.

use std::str::FromStr;
use std::time::Duration;

use dalston_telemetry::cloud::Cloud;
use dalston_telemetry::{Env, EnvError};

use super::ModelSettings;
use crate::protocol::{NodeIdentity, RECORD_TTL_SECONDS};
use crate::store::S3Settings;

/// The settings of a worker that takes its tasks from a live deployment.
///
/// | Field | Variable | Default |
/// |---|---|---|
/// | `redis_url` | `REDIS_URL` | `redis://localhost:6379` |
/// | `s3.bucket` | `DALSTON_S3_BUCKET` | `dalston-artifacts` |
/// | `s3.region` | `DALSTON_S3_REGION` | `eu-west-2` |
/// | `s3.endpoint` | `DALSTON_S3_ENDPOINT_URL` | Amazon's |
/// | `s3.credentials` | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, … ([all](S3Settings::CREDENTIALS)) | those of the machine |
/// | `http_port` | `DALSTON_METRICS_PORT` | 9100 |
/// | `metrics_enabled` | `DALSTON_METRICS_ENABLED`, else `METRICS_ENABLED` | `true` |
/// | `http_max_requests` | `DALSTON_HTTP_MAX_REQUESTS` | 16 |
/// | `http_max_upload` | `DALSTON_HTTP_MAX_UPLOAD_MB` | 1024 MB |
/// | `http_queue_timeout` | `DALSTON_HTTP_QUEUE_TIMEOUT_SECONDS` | 60 s |
/// | `models` | [`ModelSettings`] | the same bucket |
/// | `lease` | – | 60 s |
/// | `node.deploy_env` | `DALSTON_DEPLOY_ENV` | `local`; `aws` where [`cloud`](Self::cloud) says so |
/// | `node.node_id` | `DALSTON_HOST_HOSTNAME` | the host name; on EC2 the instance id |
/// | `spot_drain` | `DALSTON_SPOT_DRAIN` | `all` |
///
/// `Debug` shows no passwords.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct DeploymentConfig {
    /// The Redis server with queues, events and registry.
    pub redis_url: String,
    /// Where the files are.
    pub s3: S3Settings,
    /// The port of the worker's own HTTP server, on all addresses. 0 is any free one.
    pub http_port: u16,
    /// Whether that server answers at `/metrics`.
    pub metrics_enabled: bool,
    /// How many recordings may be sent to that server, or be worked on for it, at the same time; who comes later is told to
    /// come back. 0 turns its routes for transcription off.
    pub http_max_requests: usize,
    /// How large a recording may be, in bytes, that is sent to that server or that it is told to fetch.
    pub http_max_upload: u64,
    /// How long such a recording may wait for its turn before its sender is told to come back.
    pub http_queue_timeout: Duration,
    /// Where models come from that are not on this machine.
    pub models: ModelSettings,
    /// How long an instance may be silent before its tasks go to others: the lease of a task and the lifetime of the registry
    /// record. There is no variable for it, because the platform counts on 60 s and all instances must agree.
    pub lease: Duration,
    /// The machine, as the registry shows it.
    pub node: NodeIdentity,
    /// Which notices of EC2 start the drain.
    pub spot_drain: SpotDrain,
    pub(crate) cloud: Cloud,
}

/// Which notices about a spot instance start the drain of its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SpotDrain {
    /// That it will be interrupted, and that this has become likely, which Amazon calls a rebalance recommendation. One that
    /// was there already when the worker started is left aside.
    #[default]
    All,
    /// That it will be interrupted.
    Interruption,
    /// None; nobody looks for them.
    Off,
}

impl DeploymentConfig {
    /// Reads the settings from the environment.
    ///
    /// # Errors
    ///
    /// If a variable has a value that it can't have; the error names the variable, the value and what is accepted.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let text = |name: &str, default: &str| env.get(name).unwrap_or(default).to_owned();
        let mut s3 = S3Settings::default();
        s3.bucket = text("DALSTON_S3_BUCKET", &s3.bucket);
        s3.region = text("DALSTON_S3_REGION", &s3.region);
        s3.endpoint = env.get("DALSTON_S3_ENDPOINT_URL").map(str::to_owned);
        let given = S3Settings::CREDENTIALS.into_iter();
        s3.credentials = given
            .filter_map(|name| Some((name.to_owned(), env.get(name)?.to_owned())))
            .collect();
        let hostname = hostname(env);
        let node_id = text("DALSTON_HOST_HOSTNAME", &hostname);
        let mut node = NodeIdentity::local(hostname, node_id);
        node.deploy_env = text("DALSTON_DEPLOY_ENV", &node.deploy_env);
        Ok(Self {
            redis_url: text("REDIS_URL", "redis://localhost:6379"),
            s3,
            http_port: env
                .parse("DALSTON_METRICS_PORT", "a port from 0 to 65535")?
                .unwrap_or(9100),
            metrics_enabled: dalston_telemetry::metrics::are_enabled(env)?,
            http_max_requests: requests(env)?.unwrap_or(16),
            http_max_upload: megabytes(env)?.unwrap_or(1024) << 20,
            http_queue_timeout: super::seconds(env, "DALSTON_HTTP_QUEUE_TIMEOUT_SECONDS")?
                .unwrap_or(Duration::from_secs(60)),
            models: ModelSettings::from_env(env)?,
            lease: Duration::from_secs(RECORD_TTL_SECONDS),
            node,
            spot_drain: env
                .parse("DALSTON_SPOT_DRAIN", "all, interruption or off")?
                .unwrap_or_default(),
            cloud: Cloud::unknown(),
        })
    }

    /// Sets where the worker runs, as it was detected: the registry then shows EC2's name of the machine, with zone and type, and
    /// the worker looks for notices that a spot instance will be interrupted.
    ///
    /// Where nothing was found, `DALSTON_DEPLOY_ENV=aws` becomes `local`, as the platform's own engines do it.
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

impl FromStr for SpotDrain {
    type Err = UnknownSpotDrain;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name.to_ascii_lowercase().as_str() {
            "all" => Ok(Self::All),
            "interruption" => Ok(Self::Interruption),
            "off" => Ok(Self::Off),
            _ => Err(UnknownSpotDrain),
        }
    }
}

/// The name of a [`SpotDrain`] is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown: expected all, interruption or off")]
#[non_exhaustive]
pub struct UnknownSpotDrain;

impl std::fmt::Debug for DeploymentConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeploymentConfig")
            .field("redis_url", &dalston_telemetry::redact::text(&self.redis_url))
            .field("s3", &self.s3)
            .field("http_port", &self.http_port)
            .field("metrics_enabled", &self.metrics_enabled)
            .field("http_max_requests", &self.http_max_requests)
            .field("http_max_upload", &self.http_max_upload)
            .field("http_queue_timeout", &self.http_queue_timeout)
            .field("models", &self.models)
            .field("lease", &self.lease)
            .field("node", &self.node)
            .field("spot_drain", &self.spot_drain)
            .field("cloud", &self.cloud)
            .finish()
    }
}

fn requests(env: &Env) -> Result<Option<usize>, EnvError> {
    bounded(
        env,
        "DALSTON_HTTP_MAX_REQUESTS",
        0..=1024,
        "a whole number from 0 to 1024",
    )
    .map(|number| number.map(|number| number as usize))
}

fn megabytes(env: &Env) -> Result<Option<u64>, EnvError> {
    const ACCEPTED: &str = "a whole number from 1 to 1048576";
    bounded(env, "DALSTON_HTTP_MAX_UPLOAD_MB", 1..=1 << 20, ACCEPTED)
}

fn bounded(
    env: &Env,
    name: &str,
    range: std::ops::RangeInclusive<u64>,
    accepted: &'static str,
) -> Result<Option<u64>, EnvError> {
    match env.parse(name, accepted)? {
        Some(number) if !range.contains(&number) => {
            Err(EnvError::new(name, env.get(name).unwrap_or_default(), accepted))
        }
        number => Ok(number),
    }
}

/// `HOSTNAME` is set in containers and by shells, the file is there on every Linux.
fn hostname(env: &Env) -> String {
    let kernel = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = kernel()
        .or_else(|| env.get("HOSTNAME").map(str::to_owned))
        .unwrap_or_default();
    match name.trim() {
        "" => "unknown".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_environment_means_a_deployment_on_this_machine() {
        let config = DeploymentConfig::from_env(&Env::from_pairs([("REDIS_URL", "")])).unwrap();
        let node = config.node.clone();
        assert_eq!(node.node_id, node.hostname);
        let expected = DeploymentConfig {
            redis_url: "redis://localhost:6379".to_owned(),
            s3: S3Settings::default(),
            http_port: 9100,
            metrics_enabled: true,
            http_max_requests: 16,
            http_max_upload: 1 << 30,
            http_queue_timeout: Duration::from_secs(60),
            models: config.models.clone(),
            lease: Duration::from_secs(60),
            node: NodeIdentity::local(&*node.hostname, &*node.node_id),
            spot_drain: SpotDrain::All,
            cloud: Cloud::unknown(),
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn every_variable_sets_its_field() {
        let env = Env::from_pairs([
            ("REDIS_URL", "rediss://:pw@redis:6380/2"),
            ("DALSTON_S3_BUCKET", "files"),
            ("DALSTON_S3_REGION", "eu-central-1"),
            ("DALSTON_S3_ENDPOINT_URL", "http://minio:9000"),
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"),
            ("DALSTON_METRICS_PORT", "9200"),
            ("DALSTON_METRICS_ENABLED", "false"),
            ("DALSTON_HTTP_MAX_REQUESTS", "3"),
            ("DALSTON_HTTP_MAX_UPLOAD_MB", "25"),
            ("DALSTON_HTTP_QUEUE_TIMEOUT_SECONDS", "1.5"),
            ("DALSTON_DEPLOY_ENV", "staging"),
            ("DALSTON_HOST_HOSTNAME", "node-7"),
            ("DALSTON_SPOT_DRAIN", "interruption"),
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
        let s3 = S3Settings {
            bucket: "files".to_owned(),
            region: "eu-central-1".to_owned(),
            endpoint: Some("http://minio:9000".to_owned()),
            credentials: keys
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        };
        assert_eq!(config.s3, s3);
        assert_eq!(
            (&*config.node.deploy_env, &*config.node.node_id),
            ("staging", "node-7")
        );
        assert_eq!(config.spot_drain, SpotDrain::Interruption);
        let shown = format!("{config:?}");
        assert!(!shown.contains("hunter2") && !shown.contains(":pw@"), "{shown}");
    }

    #[test]
    fn bounds_of_requests_that_make_no_sense_are_named() {
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
        ] {
            let error = DeploymentConfig::from_env(&Env::from_pairs([(name, value)])).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("{name} is {value:?}: expected {accepted}")
            );
        }
    }

    #[test]
    fn a_deployment_on_aws_that_is_not_found_there_is_local() {
        for (deploy_env, expected) in [("aws", "local"), ("staging", "staging"), ("", "local")] {
            let config = DeploymentConfig::from_env(&Env::from_pairs([("DALSTON_DEPLOY_ENV", deploy_env)]));
            let config = config.unwrap().cloud(Cloud::unknown());
            assert_eq!(config.node.deploy_env, expected);
        }
    }

    #[test]
    fn a_wrong_port_is_named() {
        let error =
            DeploymentConfig::from_env(&Env::from_pairs([("DALSTON_METRICS_PORT", "70000")])).unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"DALSTON_METRICS_PORT is "70000": expected a port from 0 to 65535"#
        );
    }
}
