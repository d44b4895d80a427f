//! Models of the Hugging Face hub, or of a mirror of it.

use std::collections::HashSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use ring::digest::{self, SHA256, SHA256_OUTPUT_LEN};
use serde::Deserialize;
use tokio::fs::OpenOptions;
use tokio::io::AsyncWriteExt;
use url::Url;

use super::cache::{COMPLETE, LAST_ACCESSED};
use super::error::{Kind, ModelError};
use super::transfer::{check_count, check_size, create, local_path, retry, run_all, sync};
use crate::config::ModelConfig;
use crate::config::settings::{HF_ENDPOINT, http_url};
use crate::error::chain;
use crate::model_id::ModelId;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The limit for each read. Models are large, so there is none for a whole file.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 5;
/// The description of a model with ten thousand files has a few megabytes.
const MAX_DESCRIPTION: usize = 16 * 1024 * 1024;
/// Suffixes of programs, and of formats that can contain code. The platform's own engines also skip
/// them.
const SKIPPED: [&str; 8] = ["py", "pkl", "pickle", "sh", "bat", "exe", "so", "dll"];

/// A client of the hub.
#[derive(Debug)]
struct Hub {
    client: Client,
    endpoint: Url,
    token: Option<Token>,
}

/// The access token of the hub. `Debug` does not show it.
struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// A model on the hub, at one commit.
#[derive(Debug)]
pub(super) struct HubModel {
    hub: Hub,
    model: ModelId,
    commit: String,
    files: Vec<RemoteFile>,
}

#[derive(Debug)]
struct RemoteFile {
    name: String,
    path: PathBuf,
    size: u64,
    /// SHA-256 in hexadecimal digits. The hub has none for small files, which lie in the repository
    /// itself.
    checksum: Option<String>,
}

/// The hub's description of a model.
#[derive(Debug, Deserialize)]
struct Description {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Large>,
}

/// The properties of a file outside the repository.
#[derive(Debug, Deserialize)]
struct Large {
    sha256: Option<String>,
}

pub(super) async fn find(settings: &ModelConfig, model: &ModelId) -> Result<HubModel, ModelError> {
    let hub = Hub::new(settings)?;
    let (commit, files) = hub.files(model).await?;
    Ok(HubModel {
        hub,
        model: model.clone(),
        commit,
        files,
    })
}

impl Hub {
    fn new(settings: &ModelConfig) -> Result<Self, ModelError> {
        crate::tls::use_ring();
        let shown = dalston_telemetry::redact::text(&settings.hub_endpoint);
        let wrong = |problem: String| {
            let text = format!("HF_ENDPOINT is {shown:?}: {problem}");
            ModelError::new(Kind::Invalid, text)
        };
        let endpoint = http_url(&settings.hub_endpoint)
            .ok_or_else(|| wrong(format!("expected {}", HF_ENDPOINT.accepted())))?;
        let redirects = Policy::custom(|attempt| {
            let was_safe = attempt.previous().iter().any(|url| url.scheme() == "https");
            if attempt.previous().len() > MAX_REDIRECTS {
                attempt.error("too many redirects")
            } else if was_safe && attempt.url().scheme() != "https" {
                attempt.error("a redirect from https to http")
            } else {
                attempt.follow()
            }
        });
        let client = Client::builder()
            .user_agent(concat!("dalston-engine-sdk/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(redirects)
            .build()
            .map_err(|error| {
                let text = format!("building the client of the hub: {}", chain(&error));
                ModelError::new(Kind::Source, text)
            })?;
        Ok(Self {
            client,
            endpoint,
            token: settings.hub_token.clone().map(Token),
        })
    }

    /// The commit of a model and its files.
    async fn files(&self, model: &ModelId) -> Result<(String, Vec<RemoteFile>), ModelError> {
        let host = self.host();
        let place = format!("{host}/{}", model.as_str());
        if model.as_str().split('/').count() > 2 {
            let text = format!("that can't be the name of a model of {host}");
            return Err(ModelError::new(Kind::NotFound, text));
        }
        let mut url = self.url(["api", "models"], model, ["revision", "main"], "");
        url.set_query(Some("blobs=true"));
        let mut response = self.get(url, &place).await?;
        let failed = |problem: String| source_failed(&place, &problem);
        let mut json = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| failed(text_of(error)))? {
            json.extend_from_slice(&chunk);
            if json.len() > MAX_DESCRIPTION {
                return Err(failed(format!(
                    "its description has more than {MAX_DESCRIPTION} bytes"
                )));
            }
        }
        let description: Description = serde_json::from_slice(&json)
            .map_err(|error| failed(format!("its description is invalid: {error}")))?;
        let is_commit = |sha: &String| sha.len() == 40 && sha.bytes().all(|byte| byte.is_ascii_hexdigit());
        let commit = description
            .sha
            .filter(is_commit)
            .unwrap_or_else(|| "main".to_owned());
        let refused = |name: &str, problem: &str| {
            let text = format!("{name:?} at {place} {problem}");
            ModelError::new(Kind::Invalid, text)
        };
        let (mut files, mut paths) = (Vec::new(), HashSet::new());
        for Sibling { rfilename, size, lfs } in description.siblings {
            let suffix = Path::new(&rfilename)
                .extension()
                .and_then(|suffix| suffix.to_str());
            let skipped =
                suffix.is_some_and(|suffix| SKIPPED.contains(&suffix.to_ascii_lowercase().as_str()));
            if skipped || [COMPLETE, LAST_ACCESSED].contains(&rfilename.as_str()) {
                continue;
            }
            let Some(path) = local_path(&rfilename) else {
                return Err(refused(&rfilename, "can't be the name of a file"));
            };
            if !paths.insert(path.clone()) {
                return Err(refused(&rfilename, "is listed twice"));
            }
            // Without a size the download would have no limit.
            let Some(size) = size else {
                return Err(refused(&rfilename, "is listed without a size"));
            };
            let checksum = lfs.and_then(|large| large.sha256);
            if checksum.as_deref().is_some_and(|sum| !is_sha256(sum)) {
                return Err(refused(&rfilename, "is listed with an invalid SHA-256"));
            }
            files.push(RemoteFile {
                name: rfilename,
                path,
                size,
                checksum,
            });
        }
        check_count(files.len(), &place)?;
        if files.is_empty() {
            let text = format!("there are no files at {place}");
            return Err(ModelError::new(Kind::NotFound, text));
        }
        Ok((commit, files))
    }

    async fn get(&self, url: Url, place: &str) -> Result<Response, ModelError> {
        let mut request = self.client.get(url);
        if let Some(Token(token)) = &self.token {
            // The client removes it on a redirect to another host.
            request = request.bearer_auth(token);
        }
        let response = request.send().await;
        let response = response.map_err(|error| source_failed(place, &text_of(error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = match status {
            StatusCode::NOT_FOUND => format!("{place}: there is no such model or file"),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.token.is_some() => {
                format!("{place}: {status}: there is no such model, or HF_TOKEN gives no access to it")
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                format!("{place}: {status}: there is no such model, or it is not public: set HF_TOKEN")
            }
            status => return Err(source_failed(place, &status.to_string())),
        };
        Err(ModelError::new(Kind::NotFound, text))
    }

    fn host(&self) -> &str {
        self.endpoint.host_str().unwrap_or_default()
    }

    fn url<const A: usize, const B: usize>(
        &self,
        before: [&str; A],
        model: &ModelId,
        after: [&str; B],
        file: &str,
    ) -> Url {
        let mut url = self.endpoint.clone();
        // A URL that can be a base has segments.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty();
            path.extend(before);
            path.extend(model.as_str().split('/'));
            path.extend(after);
            path.extend(file.split('/').filter(|part| !part.is_empty()));
        }
        url
    }
}

impl HubModel {
    pub(super) fn bytes(&self) -> u64 {
        let sizes = self.files.iter().map(|file| file.size);
        sizes.fold(0, u64::saturating_add)
    }

    /// Downloads all files to a directory.
    pub(super) async fn download(&self, to: &Path) -> Result<(), ModelError> {
        let mut files = Vec::new();
        for file in &self.files {
            files.push(async move {
                let path = to.join(&file.path);
                create(&path).await?;
                retry(|| self.file(file, &path)).await?;
                sync(&path).await
            });
        }
        run_all(files).await
    }

    async fn file(&self, file: &RemoteFile, path: &Path) -> Result<(), ModelError> {
        let place = format!("{}/{}/{}", self.hub.host(), self.model.as_str(), file.name);
        let failed = |problem: String| source_failed(&place, &problem);
        let disk = |error| ModelError::disk(path, &error);
        let url = self
            .hub
            .url([], &self.model, ["resolve", &self.commit], &file.name);
        let mut response = self.hub.get(url, &place).await?;
        let mut options = OpenOptions::new();
        let local = options.write(true).truncate(true).open(path).await;
        let mut local = local.map_err(disk)?;
        let (mut bytes, mut sum) = (0, digest::Context::new(&SHA256));
        while let Some(chunk) = response.chunk().await.map_err(|error| failed(text_of(error)))? {
            bytes += chunk.len() as u64;
            if bytes > file.size {
                break;
            }
            if file.checksum.is_some() {
                sum.update(&chunk);
            }
            local.write_all(&chunk).await.map_err(disk)?;
        }
        local.flush().await.map_err(disk)?;
        check_size(bytes, file.size, &place)?;
        if let Some(expected) = &file.checksum
            && !expected.eq_ignore_ascii_case(&hex(sum.finish().as_ref()))
        {
            return Err(failed("its SHA-256 differs from the announced one".to_owned()));
        }
        Ok(())
    }
}

fn source_failed(place: &str, problem: &str) -> ModelError {
    ModelError::new(Kind::Source, format!("reading {place}: {problem}"))
}

fn is_sha256(text: &str) -> bool {
    text.len() == 2 * SHA256_OUTPUT_LEN && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The message without the URL: the URL of a redirect holds a signature that grants access.
fn text_of(error: reqwest::Error) -> String {
    chain(&error.without_url())
}
