//! The form of a submission.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;

use axum::extract::Multipart;
use axum::extract::multipart::Field;
use tempfile::NamedTempFile;

use super::error::ApiError;
use crate::db::{Parameters, SpeakerDetection};

/// The most bytes of a recording.
const MAX_RECORDING: u64 = 1 << 30;
/// The most bytes of another field, and the most fields.
const MAX_FIELD: usize = 64 * 1024;
const MAX_FIELDS: usize = 64;
/// The most words of a vocabulary.
const MAX_VOCABULARY: usize = 100;
/// The names of models with which clients of OpenAI's API expect its answers.
const OPENAI_MODELS: [&str; 4] = [
    "whisper-1",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
    "gpt-4o-transcribe-diarize",
];

/// A recording and what its sender wishes.
#[derive(Debug)]
pub(super) struct Form {
    pub(super) recording: NamedTempFile,
    pub(super) file_name: String,
    pub(super) parameters: Parameters,
    /// The format of the answer, if the client speaks OpenAI's API.
    pub(super) openai: Option<super::openai::Format>,
}

impl Form {
    pub(super) async fn read(mut multipart: Multipart) -> Result<Self, ApiError> {
        let invalid =
            |error: axum::extract::multipart::MultipartError| ApiError::bad_request(error.body_text());
        let mut fields = BTreeMap::new();
        let mut recording = None;
        while let Some(field) = multipart.next_field().await.map_err(invalid)? {
            let name = field.name().unwrap_or_default().to_owned();
            if name == "file" {
                if recording.is_some() {
                    return Err(ApiError::bad_request("the form has more than one file"));
                }
                recording = Some(receive(field).await?);
                continue;
            }
            let text = text(&name, field).await?;
            if fields.len() >= MAX_FIELDS {
                return Err(ApiError::bad_request(format!(
                    "the form has more than {MAX_FIELDS} fields"
                )));
            }
            if fields.contains_key(&name) {
                return Err(ApiError::bad_request(format!("{name} is given more than once")));
            }
            if !text.is_empty() {
                fields.insert(name, text);
            }
        }
        let is_openai = fields
            .get("model")
            .is_some_and(|model| OPENAI_MODELS.contains(&&**model));
        let form = Self::new(recording, fields, is_openai);
        form.map_err(|error| error.in_openai_form(is_openai))
    }

    fn new(
        recording: Option<(NamedTempFile, String)>,
        mut fields: BTreeMap<String, String>,
        is_openai: bool,
    ) -> Result<Self, ApiError> {
        let openai = match is_openai {
            true => Some(super::openai::Format::take(&mut fields)?),
            false => None,
        };
        let parameters = parameters(&mut fields)?;
        refuse(&fields)?;
        let (recording, file_name) =
            recording.ok_or_else(|| ApiError::bad_request("the form has no file"))?;
        Ok(Self {
            recording,
            file_name,
            parameters,
            openai,
        })
    }
}

/// Refuses what nothing here fulfils, unless the value asks for nothing.
fn refuse(fields: &BTreeMap<String, String>) -> Result<(), ApiError> {
    let asks = |(_, value): &(&String, &String)| !matches!(value.as_str(), "false" | "none");
    let Some((name, _)) = fields.iter().find(asks) else {
        return Ok(());
    };
    let advice = match name.as_str() {
        "audio_url" => "send the recording as file",
        "num_speakers" | "min_speakers" | "max_speakers" => {
            "no stage here tells speakers apart; leave it out, or use speaker_detection=per_channel"
        }
        "response_format" => "it needs a model of OpenAI's API, for example whisper-1",
        name if name.starts_with("pii") || name.starts_with("redact") => {
            "no stage here finds or redacts personal data; leave it out"
        }
        _ => "leave it out",
    };
    Err(ApiError::bad_request(format!(
        "{name} is not supported here: {advice}"
    )))
}

/// Takes the fields that this platform fulfils.
fn parameters(fields: &mut BTreeMap<String, String>) -> Result<Parameters, ApiError> {
    let speaker_detection = match fields.remove("speaker_detection").as_deref() {
        None | Some("none") => SpeakerDetection::None,
        Some("per_channel") => SpeakerDetection::PerChannel,
        Some("diarize") => {
            return Err(ApiError::bad_request(
                "speaker_detection=diarize is not supported here: no stage tells speakers apart; use \
                 per_channel if each speaker has a channel, or none",
            ));
        }
        Some(other) => {
            let detail = format!("speaker_detection is {other:?}: expected none or per_channel");
            return Err(ApiError::bad_request(detail));
        }
    };
    let granularity = fields.remove("timestamps_granularity");
    let word_timestamps = match granularity.as_deref() {
        None | Some("word") => true,
        Some("none" | "segment") => false,
        Some(other) => {
            let detail = format!("timestamps_granularity is {other:?}: expected none, segment or word");
            return Err(ApiError::bad_request(detail));
        }
    };
    let temperature = fields.remove("temperature").map(|text| {
        let number = text
            .parse::<f64>()
            .ok()
            .filter(|number| (0.0..=1.0).contains(number));
        number.ok_or_else(|| {
            ApiError::bad_request(format!("temperature is {text:?}: expected a number from 0 to 1"))
        })
    });
    let model = fields.remove("model");
    Ok(Parameters {
        model: model.filter(|model| model != "auto" && !OPENAI_MODELS.contains(&&**model)),
        language: fields
            .remove("language")
            .filter(|language| !language.eq_ignore_ascii_case("auto")),
        prompt: fields.remove("prompt"),
        vocabulary: vocabulary(fields.remove("vocabulary"))?,
        temperature: temperature.transpose()?,
        speaker_detection,
        word_timestamps,
    })
}

/// A JSON list, or words with commas between.
fn vocabulary(text: Option<String>) -> Result<Vec<String>, ApiError> {
    let Some(text) = text else {
        return Ok(Vec::new());
    };
    let words: Vec<String> = match serde_json::from_str(&text) {
        Ok(words) => words,
        Err(_) => text.split(',').map(|word| word.trim().to_owned()).collect(),
    };
    if words.len() > MAX_VOCABULARY {
        return Err(ApiError::bad_request(format!(
            "vocabulary has more than {MAX_VOCABULARY} words"
        )));
    }
    Ok(words)
}

/// Writes a recording to a temporary file, chunk by chunk.
async fn receive(mut field: Field<'_>) -> Result<(NamedTempFile, String), ApiError> {
    let name = field.file_name().unwrap_or("recording").to_owned();
    let file = NamedTempFile::new().map_err(|error| ApiError::internal(&error))?;
    let mut size = 0;
    loop {
        let chunk = field.chunk().await;
        let Some(chunk) = chunk.map_err(|error| ApiError::bad_request(error.body_text()))? else {
            break;
        };
        size += chunk.len() as u64;
        if size > MAX_RECORDING {
            return Err(ApiError::too_large(format!(
                "the recording has more than {MAX_RECORDING} bytes"
            )));
        }
        let mut writer: File = file
            .as_file()
            .try_clone()
            .map_err(|error| ApiError::internal(&error))?;
        let written = tokio::task::spawn_blocking(move || writer.write_all(&chunk)).await;
        written
            .map_err(|error| ApiError::internal(&error))?
            .map_err(|error| ApiError::internal(&error))?;
    }
    Ok((file, name))
}

async fn text(name: &str, mut field: Field<'_>) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    loop {
        let chunk = field.chunk().await;
        let Some(chunk) = chunk.map_err(|error| ApiError::bad_request(error.body_text()))? else {
            break;
        };
        if bytes.len() + chunk.len() > MAX_FIELD {
            return Err(ApiError::too_large(format!(
                "{name} has more than {MAX_FIELD} bytes"
            )));
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes)
        .map(|text| text.trim().to_owned())
        .map_err(|_| ApiError::bad_request(format!("{name} is not UTF-8")))
}
