//! Models of the Hugging Face hub, or of a mirror of it.

use std::collections::HashSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode};
use ring::digest::{self, SHA256, SHA256_OUTPUT_LEN};
use serde::Deserialize;
use tokio::fs::{self, File, OpenOptions};
use tokio::io::AsyncWriteExt;
use tokio::time::sleep;
use url::Url;

use super::bucket::local_path;
use super::cache::{COMPLETE, LAST_ACCESSED};
use super::error::{Kind, ModelError};
use super::{FILES_AT_ONCE, MOST_FILES, sync};
use crate::config::ModelSettings;
use crate::error::chain;
use crate::model_id::ModelId;

const CONNECT: Duration = Duration::from_secs(10);
/// Of each read, not of the whole file: models are large.
const READ: Duration = Duration::from_secs(30);
const MOST_REDIRECTS: usize = 5;
const TRIES: u32 = 3;
/// The description of a model with ten thousand files has a few megabytes.
const LARGEST_DESCRIPTION: usize = 16 * 1024 * 1024;
/// Programs, and formats that can hide some. The platform's own engines leave them out, too.
const UNWANTED: [&str; 8] = ["py", "pkl", "pickle", "sh", "bat", "exe", "so", "dll"];

/// A client of the hub.
#[derive(Debug)]
pub(super) struct Hub {
    client: Client,
    endpoint: Url,
    token: Option<Token>,
}

/// The key to the hub. `Debug` does not show it.
struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// A model on the hub, at one commit.
#[derive(Debug)]
pub(super) struct Found {
    commit: String,
    files: Vec<RemoteFile>,
}

#[derive(Debug)]
struct RemoteFile {
    name: String,
    path: PathBuf,
    size: u64,
    /// SHA-256 in hexadecimal digits. The hub has none of the small files, which lie in the repository itself.
    checksum: Option<String>,
}

impl Found {
    pub(super) fn bytes(&self) -> u64 {
        let sizes = self.files.iter().map(|file| file.size);
        sizes.fold(0, u64::saturating_add)
    }
}

/// What the hub says about a model.
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

/// What only files outside of the repository have.
#[derive(Debug, Deserialize)]
struct Large {
    sha256: Option<String>,
}

impl Hub {
    pub(super) fn new(settings: &ModelSettings) -> Result<Self, ModelError> {
        crate::tls::use_ring();
        let shown = dalston_telemetry::redact::text(&settings.hub_endpoint);
        let wrong = |problem: String| {
            let text = format!("HF_ENDPOINT is {shown:?}: {problem}");
            ModelError::new(Kind::Invalid, text)
        };
        let endpoint = Url::parse(&settings.hub_endpoint).map_err(|error| wrong(error.to_string()))?;
        if !matches!(endpoint.scheme(), "http" | "https") || endpoint.cannot_be_a_base() {
            return Err(wrong("expected an https:// URL".to_owned()));
        }
        let redirects = Policy::custom(|attempt| {
            let was_safe = attempt.previous().iter().any(|url| url.scheme() == "https");
            if attempt.previous().len() > MOST_REDIRECTS {
                attempt.error("too many redirects")
            } else if was_safe && attempt.url().scheme() != "https" {
                attempt.error("a redirect from https to http")
            } else {
                attempt.follow()
            }
        });
        let client = Client::builder()
            .user_agent(concat!("dalston-engine-sdk/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(READ)
            .redirect(redirects)
            .build()
            .map_err(|error| {
                ModelError::new(Kind::Source, format!("the client of the hub: {}", chain(&error)))
            })?;
        Ok(Self {
            client,
            endpoint,
            token: settings.hub_token.clone().map(Token),
        })
    }

    /// Looks the model up.
    pub(super) async fn find(&self, model: &ModelId) -> Result<Found, ModelError> {
        let host = self.endpoint.host_str().unwrap_or_default();
        let place = format!("{host}/{}", model.as_str());
        if model.as_str().split('/').count() > 2 {
            let text = format!("model {:?}: that can't be a model of {host}", model.as_str());
            return Err(ModelError::new(Kind::NotFound, text));
        }
        let mut url = self.url(["api", "models"], model, ["revision", "main"], "");
        url.set_query(Some("blobs=true"));
        let mut response = self.get(model, url, &place).await?;
        let failed = |problem: String| source_failed(model, &place, &problem);
        let mut json = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| failed(text_of(error)))? {
            json.extend_from_slice(&chunk);
            if json.len() > LARGEST_DESCRIPTION {
                return Err(failed(format!(
                    "its description has more than {LARGEST_DESCRIPTION} bytes"
                )));
            }
        }
        let description: Description = serde_json::from_slice(&json)
            .map_err(|error| failed(format!("its description is not understood: {error}")))?;
        let is_commit = |sha: &String| sha.len() == 40 && sha.bytes().all(|byte| byte.is_ascii_hexdigit());
        let commit = description
            .sha
            .filter(is_commit)
            .unwrap_or_else(|| "main".to_owned());
        let refused = |name: &str, problem: &str| {
            let text = format!("model {:?}: {name:?} at {place} {problem}", model.as_str());
            ModelError::new(Kind::Invalid, text)
        };
        let (mut files, mut paths) = (Vec::new(), HashSet::new());
        for Sibling { rfilename, size, lfs } in description.siblings {
            let suffix = Path::new(&rfilename)
                .extension()
                .and_then(|suffix| suffix.to_str());
            let unwanted =
                suffix.is_some_and(|suffix| UNWANTED.contains(&suffix.to_ascii_lowercase().as_str()));
            if unwanted || [COMPLETE, LAST_ACCESSED].contains(&rfilename.as_str()) {
                continue;
            }
            let Some(path) = local_path(&rfilename) else {
                return Err(refused(&rfilename, "can't be the name of a file"));
            };
            if !paths.insert(path.clone()) {
                return Err(refused(&rfilename, "is listed twice"));
            }
            // Without it there would be no end to what may come.
            let Some(size) = size else {
                return Err(refused(&rfilename, "is listed without a size"));
            };
            let checksum = lfs.and_then(|large| large.sha256);
            if checksum.as_deref().is_some_and(|sum| !is_sha256(sum)) {
                return Err(refused(&rfilename, "is listed with a SHA-256 that is none"));
            }
            files.push(RemoteFile {
                name: rfilename,
                path,
                size,
                checksum,
            });
        }
        if files.len() > MOST_FILES {
            return Err(ModelError::too_many_files(model, &place));
        }
        if files.is_empty() {
            let text = format!("model {:?}: there are no files at {place}", model.as_str());
            return Err(ModelError::new(Kind::NotFound, text));
        }
        Ok(Found { commit, files })
    }

    /// Brings all files to a directory.
    pub(super) async fn download(&self, found: &Found, model: &ModelId, to: &Path) -> Result<(), ModelError> {
        let mut files = Vec::new();
        for file in &found.files {
            files.push(self.file(found, model, file, to));
        }
        let mut fetched = stream::iter(files).buffer_unordered(FILES_AT_ONCE);
        while let Some(file) = fetched.next().await {
            file?;
        }
        Ok(())
    }

    async fn file(
        &self,
        found: &Found,
        model: &ModelId,
        file: &RemoteFile,
        to: &Path,
    ) -> Result<(), ModelError> {
        let path = to.join(&file.path);
        if let Some(parent) = path.parent() {
            let made = fs::create_dir_all(parent).await;
            made.map_err(|error| ModelError::disk(&path, &error))?;
        }
        // Not over one that is there: two names may differ only where this file system sees no difference.
        let made = File::create_new(&path).await;
        made.map_err(|error| ModelError::disk(&path, &error))?;
        let mut tries = 1;
        loop {
            match self.try_file(found, model, file, &path).await {
                Err(error) if error.kind() == Kind::Source && tries < TRIES => {
                    sleep(Duration::from_millis(250) * 2_u32.pow(tries)).await;
                    tries += 1;
                }
                Ok(()) => return sync(&path).await,
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_file(
        &self,
        found: &Found,
        model: &ModelId,
        file: &RemoteFile,
        path: &Path,
    ) -> Result<(), ModelError> {
        let place = format!(
            "{}/{}/{}",
            self.endpoint.host_str().unwrap_or_default(),
            model.as_str(),
            file.name
        );
        let failed = |problem: String| source_failed(model, &place, &problem);
        let disk = |error| ModelError::disk(path, &error);
        let url = self.url([], model, ["resolve", &found.commit], &file.name);
        let mut response = self.get(model, url, &place).await?;
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
        if bytes != file.size {
            return Err(failed(format!(
                "it came with {bytes} bytes where {size} were announced",
                size = file.size
            )));
        }
        if let Some(wanted) = &file.checksum
            && !wanted.eq_ignore_ascii_case(&hex(sum.finish().as_ref()))
        {
            let text = "it came with other bytes than were announced: their SHA-256 differs";
            return Err(failed(text.to_owned()));
        }
        Ok(())
    }

    async fn get(&self, model: &ModelId, url: Url, place: &str) -> Result<Response, ModelError> {
        let mut request = self.client.get(url);
        if let Some(Token(token)) = &self.token {
            // The client takes it off when it is sent on to another host.
            request = request.bearer_auth(token);
        }
        let response = request.send().await;
        let response = response.map_err(|error| source_failed(model, place, &text_of(error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = match status {
            StatusCode::NOT_FOUND => "there is no such thing".to_owned(),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.token.is_some() => {
                format!("{status}: there is no such thing, or HF_TOKEN does not open it")
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                format!("{status}: there is no such thing, or it is not open to everybody: set HF_TOKEN")
            }
            status => return Err(source_failed(model, place, &status.to_string())),
        };
        let text = format!("model {:?}: {place}: {text}", model.as_str());
        Err(ModelError::new(Kind::NotFound, text))
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

fn source_failed(model: &ModelId, place: &str, problem: &str) -> ModelError {
    ModelError::new(
        Kind::Source,
        format!("model {:?}: {place}: {problem}", model.as_str()),
    )
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

/// Without the URL: that of a redirect is signed, which makes it a key.
fn text_of(error: reqwest::Error) -> String {
    chain(&error.without_url())
}
