//! Clients of S3 and of servers that speak its protocol.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, S3CopyIfNotExists};
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use super::error::StoreError;
use super::key::{DEFAULT_BUCKET, is_bucket_name};
use super::spans::TracedConnector;
use crate::config::settings::{
    DALSTON_S3_ATTEMPT_TIMEOUT_SECONDS, DALSTON_S3_ENDPOINT_URL, DALSTON_S3_REGION,
    DALSTON_S3_RETRY_BUDGET_SECONDS, http_url,
};

/// The bucket with the platform's files, and how to reach it.
///
/// `Debug` shows no keys.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct S3Config {
    /// The bucket that this worker writes to. Default `dalston-artifacts`.
    pub bucket: String,
    /// The region of the bucket. Default `eu-west-2`.
    pub region: String,
    /// The URL of a server that speaks the protocol, `http://` included. Default `None`, which
    /// means Amazon's.
    pub endpoint: Option<String>,
    /// Credentials and their sources, by the names of the `AWS_*` variables. Without any, the
    /// client asks for those of the machine: of the container, or of the EC2 instance.
    pub credentials: Vec<(String, String)>,
    /// How long the storage may be silent within one attempt of a request. Default 60 s.
    pub attempt_timeout: Duration,
    /// How long after its start a request may be tried again, at most three times. Default 180 s.
    pub retry_budget: Duration,
    /// Whether each request of a task has a client span in its trace. Default `false`.
    pub client_spans: bool,
}

impl Default for S3Config {
    fn default() -> Self {
        Self {
            bucket: DEFAULT_BUCKET.to_owned(),
            region: DALSTON_S3_REGION.default_value(),
            endpoint: None,
            credentials: Vec::new(),
            attempt_timeout: DALSTON_S3_ATTEMPT_TIMEOUT_SECONDS.default_value(),
            retry_budget: DALSTON_S3_RETRY_BUDGET_SECONDS.default_value(),
            client_spans: false,
        }
    }
}

impl fmt::Debug for S3Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.credentials.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("S3Config")
            .field("bucket", &self.bucket)
            .field("region", &self.region)
            .field(
                "endpoint",
                &self.endpoint.as_deref().map(dalston_telemetry::redact::text),
            )
            .field("credentials", &names)
            .field("attempt_timeout", &self.attempt_timeout)
            .field("retry_budget", &self.retry_budget)
            .field("client_spans", &self.client_spans)
            .finish()
    }
}

/// Clients for the buckets that tasks name.
pub(super) struct OtherBuckets {
    config: S3Config,
    clients: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
}

/// Names of buckets come from outside, so the number of clients must have a limit.
const MAX_BUCKETS: usize = 64;

impl OtherBuckets {
    pub(super) fn new(config: S3Config) -> Self {
        Self {
            config,
            clients: Mutex::default(),
        }
    }

    /// A client for the bucket of `locator`.
    pub(super) fn open(&self, bucket: &str, locator: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(objects) = clients.get(bucket) {
            return Ok(Arc::clone(objects));
        }
        let objects = open(&self.config, bucket, locator)?;
        if clients.len() >= MAX_BUCKETS {
            clients.clear();
        }
        clients.insert(bucket.to_owned(), objects.clone());
        Ok(objects)
    }
}

/// A client for a bucket. Errors name `locator`.
pub(super) fn open(config: &S3Config, bucket: &str, locator: &str) -> Result<Arc<AmazonS3>, StoreError> {
    if !is_bucket_name(bucket) {
        return Err(StoreError::locator(locator, "that can't be the name of a bucket"));
    }
    let client = ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(5))
        // Recordings may be large, so the time limit is for each read and not for the whole file.
        .with_timeout_disabled()
        .with_read_timeout(config.attempt_timeout)
        .with_content_type_for_suffix("json", "application/json")
        .with_content_type_for_suffix("wav", "audio/wav");
    let retry = RetryConfig {
        max_retries: 3,
        retry_timeout: config.retry_budget,
        ..RetryConfig::default()
    };
    let failed = |source: object_store::Error| StoreError::storage("opening", locator, source);
    let mut builder = AmazonS3Builder::new()
        .with_client_options(client)
        .with_retry(retry)
        // A copy of one part, which S3 completes under a condition.
        .with_copy_if_not_exists(S3CopyIfNotExists::Multipart);
    if config.client_spans {
        builder = builder.with_http_connector(TracedConnector::default());
    }
    for (name, value) in &config.credentials {
        let key = name.to_ascii_lowercase().parse().map_err(failed)?;
        builder = builder.with_config(key, value);
    }
    builder = builder.with_bucket_name(bucket).with_region(&config.region);
    if let Some(endpoint) = &config.endpoint {
        // The client would take it and panic at the first request.
        let url = http_url(endpoint).ok_or_else(|| {
            let shown = dalston_telemetry::redact::text(endpoint);
            let expected = DALSTON_S3_ENDPOINT_URL.accepted();
            StoreError::locator(
                locator,
                format!("the endpoint of S3 is {shown:?}: expected {expected}"),
            )
        })?;
        builder = builder
            .with_endpoint(endpoint.trim_end_matches('/'))
            .with_allow_http(url.scheme() == "http");
    }
    Ok(Arc::new(builder.build().map_err(failed)?))
}

#[cfg(test)]
mod tests {
    use object_store::aws::AmazonS3ConfigKey;

    use super::*;
    use crate::config::settings::AWS_CREDENTIALS;

    #[test]
    fn debug_shows_no_keys() {
        let config = S3Config {
            endpoint: Some("http://key:hunter2@minio:9000".to_owned()),
            credentials: vec![("AWS_SECRET_ACCESS_KEY".to_owned(), "hunter2".to_owned())],
            ..S3Config::default()
        };
        let shown = format!("{config:?}");
        assert!(
            !shown.contains("hunter2") && shown.contains("AWS_SECRET_ACCESS_KEY"),
            "{shown}"
        );
    }

    #[test]
    fn client_knows_every_credential_variable() {
        for name in AWS_CREDENTIALS.names() {
            name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>().unwrap();
        }
    }

    #[test]
    fn invalid_bucket_name_is_refused() {
        for name in ["", "ab", "../x", "a/b", "Upper", "a..b", "user@host"] {
            let config = S3Config::default();
            assert!(open(&config, name, "s3://x").is_err(), "{name}");
        }
    }

    #[test]
    fn endpoint_without_scheme_is_refused() {
        for endpoint in [
            "127.0.0.1:9000",
            "minio:9000",
            "ftp://minio",
            "http://",
            "http:minio",
        ] {
            let config = S3Config {
                endpoint: Some(endpoint.to_owned()),
                ..S3Config::default()
            };
            let error = open(&config, DEFAULT_BUCKET, "s3://dalston-artifacts").unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "the locator \"s3://dalston-artifacts\" can't be used: the endpoint of S3 is \"{endpoint}\": \
                     expected an http or https URL, such as http://minio:9000"
                )
            );
        }
        crate::tls::use_ring();
        for endpoint in [
            "HTTP://minio:9000/",
            "https://s3.example/path",
            "http://[::1]:9000",
        ] {
            let config = S3Config {
                endpoint: Some(endpoint.to_owned()),
                ..S3Config::default()
            };
            assert!(open(&config, DEFAULT_BUCKET, "s3://x").is_ok(), "{endpoint}");
        }
    }
}
