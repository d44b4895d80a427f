//! S3 and what speaks its protocol.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use super::{Store, StoreError};

/// Where the platform's files are, and how to get at them.
///
/// `Debug` shows no keys.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct S3Settings {
    /// The bucket for everything that this worker writes. Default `dalston-artifacts`.
    pub bucket: String,
    /// Default `eu-west-2`.
    pub region: String,
    /// The URL of a server that speaks the protocol. `None` is Amazon's. A plain `http://` URL is accepted here.
    pub endpoint: Option<String>,
    /// Credentials and where to get them, by the names of the `AWS_*` variables. Without any, those of the machine are
    /// asked for: the container's, or the EC2 instance's.
    pub credentials: Vec<(String, String)>,
}

impl Default for S3Settings {
    fn default() -> Self {
        Self {
            bucket: super::DEFAULT_BUCKET.to_owned(),
            region: "eu-west-2".to_owned(),
            endpoint: None,
            credentials: Vec::new(),
        }
    }
}

impl S3Settings {
    /// The variables that [`credentials`](Self::credentials) may hold.
    pub const CREDENTIALS: [&'static str; 11] = [
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
    ];
}

impl fmt::Debug for S3Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.credentials.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("S3Settings")
            .field("bucket", &self.bucket)
            .field("region", &self.region)
            .field(
                "endpoint",
                &self.endpoint.as_deref().map(dalston_telemetry::redact::text),
            )
            .field("credentials", &names)
            .finish()
    }
}

impl Store {
    /// A store on S3. It writes to the bucket of the settings and follows locators into other buckets, too.
    ///
    /// Nothing is sent yet. There is one client per bucket, which keeps its connections and credentials.
    ///
    /// # Errors
    ///
    /// If the settings make no sense.
    pub fn s3(settings: S3Settings) -> Result<Self, StoreError> {
        crate::tls::use_ring();
        let objects = open(&settings, &settings.bucket)?;
        let bucket = settings.bucket.clone();
        let mut store = Self::new(objects, bucket);
        store.others = Some(Arc::new(OtherBuckets {
            settings,
            known: Mutex::default(),
        }));
        Ok(store)
    }
}

/// Clients of buckets that tasks named.
pub(super) struct OtherBuckets {
    settings: S3Settings,
    known: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
}

/// Names of buckets come from outside, so their clients must not gather for ever.
const BUCKETS_KEPT: usize = 64;

impl OtherBuckets {
    pub(super) fn get(&self, bucket: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(objects) = known.get(bucket) {
            return Ok(Arc::clone(objects));
        }
        let objects = open(&self.settings, bucket)?;
        if known.len() >= BUCKETS_KEPT {
            known.clear();
        }
        known.insert(bucket.to_owned(), Arc::clone(&objects));
        Ok(objects)
    }
}

/// Only what can be the name of a bucket becomes part of a host name or a path.
fn is_bucket(name: &str) -> bool {
    let plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_');
    (3..=63).contains(&name.len())
        && name.bytes().all(plain)
        && !name.starts_with('.')
        && !name.contains("..")
}

fn open(settings: &S3Settings, bucket: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let locator = || format!("s3://{bucket}");
    if !is_bucket(bucket) {
        let problem = "that can't be the name of a bucket".to_owned();
        return Err(StoreError::Locator {
            locator: locator(),
            problem,
        });
    }
    let client = ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(5))
        // Of each read, not of the whole file: recordings may be large.
        .with_timeout_disabled()
        .with_read_timeout(Duration::from_secs(30))
        .with_content_type_for_suffix("json", "application/json")
        .with_content_type_for_suffix("wav", "audio/wav");
    let retry = RetryConfig {
        max_retries: 3,
        retry_timeout: Duration::from_secs(30),
        ..RetryConfig::default()
    };
    let mut builder = AmazonS3Builder::new()
        .with_client_options(client)
        .with_retry(retry);
    for (name, value) in &settings.credentials {
        let key: AmazonS3ConfigKey =
            name.to_ascii_lowercase()
                .parse()
                .map_err(|source| StoreError::Storage {
                    locator: locator(),
                    source: Box::new(source),
                })?;
        builder = builder.with_config(key, value);
    }
    builder = builder.with_bucket_name(bucket).with_region(&settings.region);
    if let Some(endpoint) = &settings.endpoint {
        builder = builder
            .with_endpoint(endpoint.trim_end_matches('/'))
            .with_allow_http(endpoint.starts_with("http://"));
    }
    let objects = builder
        .build()
        .map_err(|source| StoreError::storage(&locator(), source))?;
    Ok(Arc::new(objects))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_keys() {
        let settings = S3Settings {
            endpoint: Some("http://key:hunter2@minio:9000".to_owned()),
            credentials: vec![("AWS_SECRET_ACCESS_KEY".to_owned(), "hunter2".to_owned())],
            ..S3Settings::default()
        };
        let shown = format!("{settings:?}");
        assert!(
            !shown.contains("hunter2") && shown.contains("AWS_SECRET_ACCESS_KEY"),
            "{shown}"
        );
    }

    #[test]
    fn every_variable_for_credentials_is_one_that_the_client_knows() {
        for name in S3Settings::CREDENTIALS {
            name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>().unwrap();
        }
    }

    #[test]
    fn what_is_no_bucket_is_refused() {
        for name in ["", "ab", "../x", "a/b", "Upper", "a..b", "user@host"] {
            let settings = S3Settings {
                bucket: name.to_owned(),
                ..S3Settings::default()
            };
            assert!(Store::s3(settings).is_err(), "{name}");
        }
    }
}
