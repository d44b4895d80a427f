//! The form of a request: its fields in memory, its file on disk.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::body::{BodyLimits, LimitedBody, RequestBody};
use super::refusal::{Refusal, redacted};
use crate::store::key;

/// The most fields of a form, and the most bytes of each.
const MAX_FIELDS: usize = 64;
const MAX_FIELD_BYTES: usize = 64 * 1024;

/// The content of a request.
#[derive(Debug, Default)]
pub(super) struct Form {
    pub(super) fields: Fields,
    pub(super) file: Option<Recording>,
}

/// A file that should hold audio.
#[derive(Debug)]
pub(super) struct Recording {
    /// The name for error messages. It shows nothing of this machine.
    pub(super) name: String,
    pub(super) path: PathBuf,
}

impl Form {
    /// Reads a form. A file goes to `directory` chunk by chunk and has at most `limit` bytes.
    pub(super) async fn read(
        parts: Parts,
        body: &RequestBody,
        directory: &Path,
        limit: u64,
    ) -> Result<Self, Refusal> {
        let kind = parts.headers.get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        let limits = Arc::new(BodyLimits::new(limit));
        let body = LimitedBody::new(body.clone(), Arc::clone(&limits));
        if kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            return Self::read_urlencoded(body, &limits).await;
        }
        if !kind.eq_ignore_ascii_case("multipart/form-data") {
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            let message = "the request is not a form: expected multipart/form-data";
            return Err(Refusal::new(status, "unsupported_media_type", message));
        }
        let request = Request::from_parts(parts, Body::from_stream(body));
        let mut multipart = Multipart::from_request(request, &())
            .await
            .map_err(|_| Refusal::bad("invalid_request", "the form has no boundary in its content type"))?;
        let mut form = Self::default();
        while let Some(field) = next(multipart.next_field(), &limits).await? {
            form.add(field, directory, &limits).await?;
        }
        Ok(form)
    }

    async fn add(&mut self, field: Field<'_>, directory: &Path, limits: &BodyLimits) -> Result<(), Refusal> {
        let Some(name) = field.name().map(str::to_owned) else {
            return Err(Refusal::bad("invalid_request", "a field of the form has no name"));
        };
        if self.fields.0.len() >= MAX_FIELDS {
            let message = format!("the form has more than {MAX_FIELDS} fields");
            return Err(Refusal::bad("invalid_request", message));
        }
        if name != "file" {
            if field.file_name().is_some() {
                let message = format!(
                    "the form has a file in the field {}: expected it in the field \"file\"",
                    quoted(&name)
                );
                return Err(Refusal::bad("invalid_request", message));
            }
            let text = read_text(&name, field, limits).await?;
            self.fields.0.push((name, text));
            return Ok(());
        }
        if self.file.is_some() {
            return Err(Refusal::field("file", "given twice: expected one recording"));
        }
        let given = field.file_name().unwrap_or_default().to_owned();
        let name = plain_name(&given);
        let path = directory.join(local_name("upload", &name));
        let size = write_file(&path, field, limits).await?;
        // A browser sends an empty file without a name if no file was chosen.
        if size > 0 || !given.is_empty() {
            self.file = Some(Recording { name, path });
        }
        Ok(())
    }

    async fn read_urlencoded(mut body: LimitedBody, limits: &BodyLimits) -> Result<Self, Refusal> {
        let mut text = Vec::new();
        while let Some(bytes) = limits.wait(body.next()).await.ok_or_else(Refusal::too_slow)? {
            let bytes = bytes.map_err(|_| incomplete())?;
            if text.len() + bytes.len() > MAX_FIELD_BYTES {
                return Err(Refusal::too_large(MAX_FIELD_BYTES as u64));
            }
            text.extend_from_slice(&bytes);
        }
        let fields = url::form_urlencoded::parse(&text).into_owned().take(MAX_FIELDS);
        Ok(Self {
            fields: Fields(fields.collect()),
            file: None,
        })
    }
}

/// The text fields of a form.
#[derive(Debug, Default)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    /// The field with this name, unless it is empty.
    pub(super) fn text(&self, name: &'static str) -> Result<Option<&str>, Refusal> {
        let mut found = self.0.iter().filter(|(field, _)| field == name);
        let (first, second) = (found.next(), found.next());
        if second.is_some() {
            return Err(Refusal::field(name, "given twice: expected one value"));
        }
        Ok(first.map(|(_, text)| text.trim()).filter(|text| !text.is_empty()))
    }

    /// The field as a value of another type.
    pub(super) fn parse<T: FromStr>(&self, name: &'static str, accepted: &str) -> Result<Option<T>, Refusal> {
        self.convert(name, accepted, |text| text.parse().ok())
    }

    /// The field as a truth value, in the words of HTML, Python and JSON.
    pub(super) fn flag(&self, name: &'static str) -> Result<Option<bool>, Refusal> {
        self.convert(name, "true or false", |text| {
            match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Some(true),
                "false" | "0" | "no" | "off" => Some(false),
                _ => None,
            }
        })
    }

    fn convert<T>(
        &self,
        name: &'static str,
        accepted: &str,
        convert: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        let wrong = || Refusal::field(name, format_args!("{}: expected {accepted}", quoted(text)));
        convert(text).map(Some).ok_or_else(wrong)
    }

    /// All values of a field that may be repeated, under one of two names.
    pub(super) fn all(&self, names: [&str; 2]) -> Vec<&str> {
        let named = self.0.iter().filter(|(name, _)| names.contains(&name.as_str()));
        named.map(|(_, text)| text.trim()).collect()
    }

    /// The quoted names of the fields that are not among these.
    pub(super) fn unknown(&self, known: &[&str]) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (name, _) in &self.0 {
            let quoted = quoted(name);
            if !known.contains(&name.as_str()) && !names.contains(&quoted) {
                names.push(quoted);
            }
        }
        names
    }

    /// Whether there is a field with this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(field, _)| field == name)
    }
}

#[cfg(test)]
impl<'a> FromIterator<(&'a str, &'a str)> for Fields {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(fields: I) -> Self {
        let fields = fields.into_iter();
        Self(
            fields
                .map(|(name, text)| (name.to_owned(), text.to_owned()))
                .collect(),
        )
    }
}

/// A value for an error message.
pub(super) fn quoted(text: &str) -> String {
    const LONGEST: usize = 100;
    // Redacted first: the redaction would not recognise half a secret.
    let short: String = redacted(text).chars().take(LONGEST).collect();
    format!("{short:?}")
}

/// A name for a file of this machine, with the suffix of another name.
pub(super) fn local_name(stem: &str, name: &str) -> String {
    match key::suffix(name) {
        Some(suffix) => format!("{stem}.{suffix}"),
        None => stem.to_owned(),
    }
}

/// Waits for the next part of a form, unless it arrives too slowly.
async fn next<T>(
    next: impl Future<Output = Result<Option<T>, MultipartError>>,
    limits: &BodyLimits,
) -> Result<Option<T>, Refusal> {
    match limits.wait(next).await {
        Some(Ok(next)) => Ok(next),
        Some(Err(_)) if limits.is_exceeded() => Err(Refusal::too_large(limits.max_file())),
        Some(Err(_)) => Err(incomplete()),
        None => Err(Refusal::too_slow()),
    }
}

async fn next_chunk(field: &mut Field<'_>, limits: &BodyLimits) -> Result<Option<Bytes>, Refusal> {
    let chunk = next(field.chunk(), limits).await?;
    if let Some(bytes) = &chunk {
        limits.content(bytes);
    }
    Ok(chunk)
}

async fn read_text(name: &str, mut field: Field<'_>, limits: &BodyLimits) -> Result<String, Refusal> {
    let wrong = |problem: &str| {
        let message = format!("the field {} {problem}", quoted(name));
        Refusal::bad("invalid_request", message)
    };
    let mut text = Vec::new();
    while let Some(bytes) = next_chunk(&mut field, limits).await? {
        if text.len() + bytes.len() > MAX_FIELD_BYTES {
            return Err(wrong(&format!("has more than {MAX_FIELD_BYTES} bytes")));
        }
        text.extend_from_slice(&bytes);
    }
    String::from_utf8(text).map_err(|_| wrong("is not UTF-8"))
}

async fn write_file(path: &Path, mut field: Field<'_>, limits: &BodyLimits) -> Result<u64, Refusal> {
    let mut file = File::create(path).await?;
    let mut size = 0;
    while let Some(bytes) = next_chunk(&mut field, limits).await? {
        size += bytes.len() as u64;
        if size > limits.max_file() {
            return Err(Refusal::too_large(limits.max_file()));
        }
        file.write_all(&bytes).await?;
    }
    file.flush().await?;
    Ok(size)
}

fn incomplete() -> Refusal {
    Refusal::bad("invalid_request", "the form is damaged or ends too early")
}

/// The last part of a file's name, without control characters, which could confuse a log or a
/// terminal.
fn plain_name(name: &str) -> String {
    const LONGEST: usize = 100;
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let name: String = last.chars().filter(|c| !c.is_control()).take(LONGEST).collect();
    if name.trim().is_empty() {
        "the recording".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use futures_util::stream;
    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    /// A form with one recording of 1 MiB, of which `size` bytes arrive every second.
    async fn upload(size: usize) -> Result<Form, Refusal> {
        const FILE: usize = 1 << 20;
        let (parts, ()) = Request::builder()
            .header(header::CONTENT_TYPE, "multipart/form-data; boundary=b")
            .body(())
            .unwrap()
            .into_parts();
        let mut text = b"--b\r\nContent-Disposition: form-data; name=file; filename=a.wav\r\n\r\n".to_vec();
        text.resize(text.len() + FILE, b'x');
        text.extend_from_slice(b"\r\n--b--\r\n");
        let chunks = stream::unfold(Bytes::from(text), move |mut rest| async move {
            sleep(Duration::from_secs(1)).await;
            let chunk = rest.split_to(size.min(rest.len()));
            (!chunk.is_empty()).then_some((Ok::<_, io::Error>(chunk), rest))
        });
        let body = RequestBody::new(Body::from_stream(chunks));
        let directory = tempfile::tempdir().unwrap();
        let form = Form::read(parts, &body, directory.path(), FILE as u64);
        timeout(Duration::from_secs(600), form).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn upload_below_8_kib_per_second_is_ended() {
        let begun = Instant::now();
        let refusal = upload(8_000).await.unwrap_err();
        assert_eq!(refusal.status, StatusCode::REQUEST_TIMEOUT);
        assert_eq!(begun.elapsed().as_secs(), 30);
        assert!(upload(8_300).await.unwrap().file.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn upload_that_pauses_in_one_field_is_ended() {
        let limits = BodyLimits::new(1);
        let begun = Instant::now();
        let next = next(
            std::future::pending::<Result<Option<()>, MultipartError>>(),
            &limits,
        );
        let next = timeout(Duration::from_secs(600), next).await.unwrap();
        assert_eq!(next.unwrap_err().status, StatusCode::REQUEST_TIMEOUT);
        assert_eq!(begun.elapsed().as_secs(), 30);
    }

    #[test]
    fn quoted_value_is_short_and_shows_no_part_of_a_secret() {
        let text = quoted(&format!("https://user:hunter2{}@host/talk.wav", "x".repeat(200)));
        assert!(!text.contains("hunter2"), "{text}");
        assert_eq!(quoted(&"ä".repeat(200)).chars().count(), 102);
    }
}
