//! The form of a request: its fields in memory, its file on disk.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::multipart::Field;
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::refusal::{Refusal, for_strangers};
use crate::store::key;

/// How long a client may be silent in the middle of its request.
const SILENCE: Duration = Duration::from_secs(30);
/// How many fields a form may have, and how long each may be.
const MOST_FIELDS: usize = 64;
const LONGEST_FIELD: usize = 64 * 1024;
/// What may have arrived without being a part of a field that we have seen: boundaries, headers, and what is between.
const MOST_UNSEEN: u64 = 512 * 1024;
/// How much, and for how long, we read of a request that is refused: a client that is still sending would not see why.
const MOST_DRAINED: usize = 64 * 1024 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// What a request said.
#[derive(Debug)]
pub(super) struct Form {
    pub(super) fields: Fields,
    pub(super) file: Option<Recording>,
}

/// A file with audio, as we hope.
#[derive(Debug)]
pub(super) struct Recording {
    /// What it is called in errors: nothing of this machine.
    pub(super) name: String,
    pub(super) path: PathBuf,
}

impl Form {
    /// Reads a form. A file goes to `directory`, piece by piece; it has at most `limit` bytes.
    pub(super) async fn read(
        parts: Parts,
        incoming: &Incoming,
        directory: &Path,
        limit: u64,
    ) -> Result<Self, Refusal> {
        let kind = parts.headers.get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            return Self::read_urlencoded(incoming).await;
        }
        if !kind.eq_ignore_ascii_case("multipart/form-data") {
            let message = "the request is no form: expected multipart/form-data";
            return Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                message,
            ));
        }
        let meter = Arc::new(Meter::new(limit));
        let paced = Paced {
            incoming: incoming.clone(),
            meter: Arc::clone(&meter),
            pause: false,
        };
        let request = Request::from_parts(parts, Body::from_stream(paced));
        let form = Multipart::from_request(request, &());
        let mut form = form
            .await
            .map_err(|_| Refusal::bad("invalid_request", "the form has no boundary in its content type"))?;
        let mut read = Self {
            fields: Fields::default(),
            file: None,
        };
        while let Some(field) = patiently(form.next_field(), &meter).await? {
            read.add(field, directory, &meter).await?;
        }
        Ok(read)
    }

    async fn add(&mut self, field: Field<'_>, directory: &Path, meter: &Meter) -> Result<(), Refusal> {
        let Some(name) = field.name().map(str::to_owned) else {
            return Err(Refusal::bad("invalid_request", "a field of the form has no name"));
        };
        if self.fields.0.len() >= MOST_FIELDS {
            let message = format!("the form has more than {MOST_FIELDS} fields");
            return Err(Refusal::bad("invalid_request", message));
        }
        if name != "file" {
            let text = read_text(&name, field, meter).await?;
            self.fields.0.push((name, text));
            return Ok(());
        }
        if self.file.is_some() {
            return Err(Refusal::field("file", "given twice: expected one recording"));
        }
        let given = field.file_name().unwrap_or_default().to_owned();
        let name = plain_name(&given);
        let path = directory
            .join(key::suffix(&name).map_or("upload".to_owned(), |suffix| format!("upload.{suffix}")));
        let size = write_file(&path, field, meter).await?;
        // What a browser sends where no file was chosen.
        if size > 0 || !given.is_empty() {
            self.file = Some(Recording { name, path });
        }
        Ok(())
    }

    async fn read_urlencoded(incoming: &Incoming) -> Result<Self, Refusal> {
        let mut incoming = incoming.clone();
        let mut text = Vec::new();
        while let Some(bytes) = timeout(SILENCE, incoming.next())
            .await
            .map_err(|_| Refusal::too_slow())?
        {
            let bytes = bytes.map_err(|_| incomplete())?;
            if text.len() + bytes.len() > LONGEST_FIELD {
                return Err(Refusal::too_large(LONGEST_FIELD as u64));
            }
            text.extend_from_slice(&bytes);
        }
        let fields = url::form_urlencoded::parse(&text).into_owned().take(MOST_FIELDS);
        Ok(Self {
            fields: Fields(fields.collect()),
            file: None,
        })
    }
}

/// The fields of a form that are text.
#[derive(Debug, Default)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    /// The field of that name, if it is there and not empty.
    pub(super) fn text(&self, name: &'static str) -> Result<Option<&str>, Refusal> {
        let mut found = self.0.iter().filter(|(field, _)| field == name);
        let (first, second) = (found.next(), found.next());
        if second.is_some() {
            return Err(Refusal::field(name, "given twice: expected one value"));
        }
        Ok(first.map(|(_, text)| text.trim()).filter(|text| !text.is_empty()))
    }

    /// The same as a value of another type.
    pub(super) fn parse<T: FromStr>(&self, name: &'static str, accepted: &str) -> Result<Option<T>, Refusal> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        text.parse()
            .map(Some)
            .map_err(|_| Refusal::field(name, format_args!("{}: expected {accepted}", shown(text))))
    }

    /// The same as a truth value, in the words of HTML, Python and JSON.
    pub(super) fn flag(&self, name: &'static str) -> Result<Option<bool>, Refusal> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(Some(true)),
            "false" | "0" | "no" | "off" => Ok(Some(false)),
            _ => Err(Refusal::field(
                name,
                format_args!("{}: expected true or false", shown(text)),
            )),
        }
    }

    /// All values of a field that may be given several times, under one of two names.
    pub(super) fn all(&self, names: [&str; 2]) -> Vec<&str> {
        let named = self.0.iter().filter(|(name, _)| names.contains(&name.as_str()));
        named.map(|(_, text)| text.trim()).collect()
    }

    /// Whether any field has this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(field, _)| field == name)
    }
}

/// A value in an error.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 100;
    // A secret that is cut in two would not be known as one.
    let short: String = for_strangers(text).chars().take(LONGEST).collect();
    format!("{short:?}")
}

/// The body of a request, also for whoever reads what is left of it. Clones share it.
#[derive(Clone)]
pub(super) struct Incoming(Arc<Mutex<BodyDataStream>>);

impl Incoming {
    pub(super) fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(body.into_data_stream())))
    }

    /// Reads what is left, within bounds.
    pub(super) async fn drain(mut self) {
        let rest = async {
            let mut left = MOST_DRAINED;
            while let Some(Ok(bytes)) = self.next().await {
                left = left.saturating_sub(bytes.len());
                if left == 0 {
                    break;
                }
            }
        };
        let _ = timeout(DRAIN_TIME, rest).await;
    }
}

impl Stream for Incoming {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_next(cx)
    }
}

/// Hands a body to the parser of forms so that it can't take more memory than is good: the parser takes all that is there,
/// and looks for the end of a header for as long as it takes.
struct Paced {
    incoming: Incoming,
    meter: Arc<Meter>,
    /// Whether it is the parser's turn to look at what it has.
    pause: bool,
}

impl Stream for Paced {
    type Item = Result<Bytes, std::io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.pause) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let next = std::task::ready!(Pin::new(&mut self.incoming).poll_next(cx));
        self.pause = true;
        Poll::Ready(match next {
            None => None,
            Some(Err(error)) => Some(Err(std::io::Error::other(error))),
            Some(Ok(bytes)) => Some(self.meter.arrived(bytes)),
        })
    }
}

/// Counts what arrives and what of it was seen as content.
struct Meter {
    limit: u64,
    arrived: AtomicU64,
    unseen: AtomicU64,
    too_large: AtomicBool,
}

impl Meter {
    fn new(limit: u64) -> Self {
        Self {
            limit,
            arrived: AtomicU64::new(0),
            unseen: AtomicU64::new(0),
            too_large: AtomicBool::new(false),
        }
    }

    fn arrived(&self, bytes: Bytes) -> std::io::Result<Bytes> {
        let size = bytes.len() as u64;
        let arrived = self.arrived.fetch_add(size, Ordering::Relaxed) + size;
        let unseen = self.unseen.fetch_add(size, Ordering::Relaxed) + size;
        // Fields are small beside what may be a file.
        if arrived > self.limit.saturating_add(MOST_UNSEEN) {
            self.too_large.store(true, Ordering::Relaxed);
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        if unseen > MOST_UNSEEN {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        Ok(bytes)
    }

    fn seen(&self, bytes: &Bytes) {
        self.unseen.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
    }
}

/// Waits for the next piece of a form, not for ever.
async fn patiently<T>(
    next: impl Future<Output = Result<Option<T>, axum::extract::multipart::MultipartError>>,
    meter: &Meter,
) -> Result<Option<T>, Refusal> {
    match timeout(SILENCE, next).await {
        Ok(Ok(next)) => Ok(next),
        Ok(Err(_)) if meter.too_large.load(Ordering::Relaxed) => Err(Refusal::too_large(meter.limit)),
        Ok(Err(_)) => Err(incomplete()),
        Err(_) => Err(Refusal::too_slow()),
    }
}

async fn next_piece(field: &mut Field<'_>, meter: &Meter) -> Result<Option<Bytes>, Refusal> {
    let piece = patiently(field.chunk(), meter).await?;
    if let Some(bytes) = &piece {
        meter.seen(bytes);
    }
    Ok(piece)
}

async fn read_text(name: &str, mut field: Field<'_>, meter: &Meter) -> Result<String, Refusal> {
    let mut text = Vec::new();
    while let Some(bytes) = next_piece(&mut field, meter).await? {
        if text.len() + bytes.len() > LONGEST_FIELD {
            let message = format!("the field {} has more than {LONGEST_FIELD} bytes", shown(name));
            return Err(Refusal::bad("invalid_request", message));
        }
        text.extend_from_slice(&bytes);
    }
    String::from_utf8(text).map_err(|_| {
        Refusal::bad(
            "invalid_request",
            format!("the field {} is not UTF-8", shown(name)),
        )
    })
}

async fn write_file(path: &Path, mut field: Field<'_>, meter: &Meter) -> Result<u64, Refusal> {
    let mut file = File::create(path).await?;
    let mut size = 0;
    while let Some(bytes) = next_piece(&mut field, meter).await? {
        size += bytes.len() as u64;
        if size > meter.limit {
            return Err(Refusal::too_large(meter.limit));
        }
        file.write_all(&bytes).await?;
    }
    file.flush().await?;
    Ok(size)
}

fn incomplete() -> Refusal {
    Refusal::bad("invalid_request", "the form is damaged or ends too early")
}

/// The last part of a file's name without anything that could confuse a log or a terminal.
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
    use super::*;

    #[test]
    fn a_value_in_an_error_is_short_and_keeps_no_part_of_a_long_secret() {
        let text = shown(&format!("https://user:hunter2{}@host/talk.wav", "x".repeat(200)));
        assert!(!text.contains("hunter2"), "{text}");
        assert_eq!(shown(&"ä".repeat(200)).chars().count(), 102);
    }
}
