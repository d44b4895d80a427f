//! EC2's instance metadata service, version 2.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use tokio::time::timeout;

use super::config::Imds;
use crate::resource::cloud::error::MetadataError;
use crate::resource::cloud::http::{Endpoint, request};

const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const TOKEN_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
/// The longest that the service accepts. An expired token is answered with 401, and is renewed.
const TTL_SECONDS: u16 = 21_600;
/// The longest time for one item.
const LONGEST_REQUEST: Duration = Duration::from_secs(2);
const MAX_TOKEN: usize = 4 * 1024;
const MAX_DOCUMENT: usize = 16 * 1024;

/// The instance metadata service of the EC2 instance that this process runs on. Cheap to clone.
///
/// Clones share a token, which is renewed when the service no longer takes it.
#[derive(Clone)]
pub struct MetadataService {
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: Endpoint,
    allow_v1: bool,
    access: Mutex<Option<Access>>,
}

#[derive(Clone)]
enum Access {
    Token(HeaderValue),
    /// Version 1: the service knows no tokens.
    Open,
}

impl MetadataService {
    pub(super) fn new(config: &Imds) -> Self {
        Self {
            shared: Arc::new(Shared {
                endpoint: config.endpoint.clone(),
                allow_v1: config.allow_v1,
                access: Mutex::default(),
            }),
        }
    }

    /// Gets the item at a path below `/latest/`, such as `meta-data/spot/instance-action`; `None`
    /// if there is none. Takes 2 s at most and reads 16 KiB at most.
    ///
    /// # Errors
    ///
    /// When the service can't be reached or gives no proper answer in time.
    pub async fn get(&self, path: &str) -> Result<Option<String>, MetadataError> {
        match timeout(LONGEST_REQUEST, self.get_unbounded(path)).await {
            Ok(answer) => answer,
            Err(_) => Err(MetadataError::Timeout),
        }
    }

    async fn get_unbounded(&self, path: &str) -> Result<Option<String>, MetadataError> {
        let path = format!("/latest/{path}");
        let mut is_second_try = false;
        loop {
            let access = match self.access() {
                Some(access) => access,
                None => self.gain_access().await?,
            };
            let header = match access {
                Access::Token(token) => Some((TOKEN, token)),
                Access::Open => None,
            };
            let answer = request(&self.shared.endpoint, Method::GET, &path, header, MAX_DOCUMENT).await?;
            match answer.status {
                StatusCode::OK => return Ok(Some(answer.body)),
                StatusCode::NOT_FOUND => return Ok(None),
                StatusCode::UNAUTHORIZED if !is_second_try => {
                    self.set_access(None);
                    is_second_try = true;
                }
                status => return Err(MetadataError::Status(status.as_u16())),
            }
        }
    }

    async fn gain_access(&self) -> Result<Access, MetadataError> {
        let ttl = Some((TOKEN_TTL, HeaderValue::from(TTL_SECONDS)));
        let answer = request(
            &self.shared.endpoint,
            Method::PUT,
            "/latest/api/token",
            ttl,
            MAX_TOKEN,
        )
        .await?;
        let access = match answer.status {
            StatusCode::OK => Access::Token(token(&answer.body).ok_or(MetadataError::InvalidAnswer)?),
            // Amazon's clients do the same. A missing answer is no reason to use version 1: version
            // 2 looks like that one hop too far away.
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED
                if self.shared.allow_v1 =>
            {
                Access::Open
            }
            status => return Err(MetadataError::Status(status.as_u16())),
        };
        self.set_access(Some(access.clone()));
        Ok(access)
    }

    fn access(&self) -> Option<Access> {
        self.shared
            .access
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_access(&self, access: Option<Access>) {
        *self.shared.access.lock().unwrap_or_else(PoisonError::into_inner) = access;
    }
}

impl fmt::Debug for MetadataService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetadataService")
            .field("endpoint", &self.shared.endpoint.authority)
            .finish_non_exhaustive()
    }
}

/// A token is in Base64. The page of a captive portal is not.
fn token(text: &str) -> Option<HeaderValue> {
    let text = text.trim();
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_' | b'=');
    if text.is_empty() || !text.bytes().all(is_fine) {
        return None;
    }
    let mut token = HeaderValue::from_str(text).ok()?;
    token.set_sensitive(true);
    Some(token)
}
