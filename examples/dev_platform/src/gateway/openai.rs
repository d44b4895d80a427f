//! The answer for clients of OpenAI's API: the request waits for the end of the job.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use axum::Json;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::error::ApiError;
use super::{Caller, Gateway};
use crate::db::JobStatus;

/// The longest wait.
const TIMEOUT: Duration = Duration::from_secs(300);
/// The time between two looks at the job.
const INTERVAL: Duration = Duration::from_millis(100);

/// The form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Text,
    Srt,
    VerboseJson,
    Vtt,
}

impl Format {
    /// Takes the field out of a form.
    pub(super) fn take(fields: &mut BTreeMap<String, String>) -> Result<Self, ApiError> {
        match fields.remove("response_format").as_deref() {
            None | Some("json") => Ok(Self::Json),
            Some("text") => Ok(Self::Text),
            Some("srt") => Ok(Self::Srt),
            Some("verbose_json") => Ok(Self::VerboseJson),
            Some("vtt") => Ok(Self::Vtt),
            Some(other) => Err(ApiError::bad_request(format!(
                "response_format is {other:?}: expected json, text, srt, verbose_json or vtt"
            ))),
        }
    }
}

/// Waits for the job and answers with its transcript.
pub(super) async fn answer(
    gateway: &Gateway,
    caller: &Caller,
    job_id: &str,
    format: Format,
) -> Result<Response, ApiError> {
    let deadline = Instant::now() + TIMEOUT;
    let job = loop {
        let (job, _) = gateway.job(job_id).await?;
        if job.status.is_terminal() {
            break job;
        }
        if Instant::now() >= deadline {
            return Err(ApiError::timeout(format!(
                "the job {job_id} takes longer than 300 s"
            )));
        }
        sleep(INTERVAL).await;
    };
    if job.status != JobStatus::Completed {
        let error = job
            .error
            .unwrap_or_else(|| format!("the job is {}", job.status.as_str()));
        return Err(ApiError::unprocessable(error));
    }
    let transcript = gateway.transcript(&job, caller).await?;
    Ok(render(&transcript, format))
}

fn render(transcript: &Value, format: Format) -> Response {
    let text = transcript["text"].as_str().unwrap_or_default();
    let plain = |content_type: &'static str, body: String| {
        ([(header::CONTENT_TYPE, content_type)], body).into_response()
    };
    match format {
        Format::Json => Json(json!({"text": text})).into_response(),
        Format::Text => plain("text/plain; charset=utf-8", format!("{text}\n")),
        Format::Srt => plain("application/x-subrip; charset=utf-8", subtitles(transcript, ',')),
        Format::Vtt => {
            let body = format!("WEBVTT\n\n{}", subtitles(transcript, '.'));
            plain("text/vtt; charset=utf-8", body)
        }
        Format::VerboseJson => Json(json!({
            "task": "transcribe",
            "language": transcript["metadata"]["language"],
            "duration": transcript["metadata"]["audio_duration"],
            "text": text,
            "segments": transcript["segments"],
        }))
        .into_response(),
    }
}

/// Numbered subtitles. SubRip has a comma before the milliseconds, WebVTT a point.
fn subtitles(transcript: &Value, point: char) -> String {
    let segments = transcript["segments"].as_array().into_iter().flatten();
    let mut text = String::new();
    for (number, segment) in (1..).zip(segments) {
        let clock = |name: &str| clock(segment[name].as_f64().unwrap_or(0.0), point);
        let line = segment["text"]
            .as_str()
            .unwrap_or_default()
            .trim()
            .replace("-->", "->");
        let _ = write!(
            text,
            "{number}\n{} --> {}\n{line}\n\n",
            clock("start"),
            clock("end")
        );
    }
    text
}

fn clock(seconds: f64, point: char) -> String {
    let milliseconds = (seconds * 1000.0).round() as u64;
    let (seconds, milliseconds) = (milliseconds / 1000, milliseconds % 1000);
    let (minutes, seconds) = (seconds / 60, seconds % 60);
    let (hours, minutes) = (minutes / 60, minutes % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}{point}{milliseconds:03}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_become_subtitles_with_their_point() {
        let transcript = json!({"segments": [{"start": 0.0, "end": 59.9996, "text": " a --> b "}]});
        assert_eq!(
            subtitles(&transcript, ','),
            "1\n00:00:00,000 --> 00:01:00,000\na -> b\n\n"
        );
        assert_eq!(
            subtitles(&transcript, '.'),
            "1\n00:00:00.000 --> 00:01:00.000\na -> b\n\n"
        );
    }
}
