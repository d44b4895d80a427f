//! The check of any answer before its upload: [`check_answer`].

use serde_json::Value;

use super::name::{Stage, StageName};
use super::schema::Schema;
use super::validation::ValidationError;
use super::{align, audio_redact, diarize, pii_detect, prepare, transcript_schema};

/// The key of an answer that holds the answers of several stages, and the list of these stages.
const SEVERAL: &str = "stages_completed";

/// Checks an answer of `stage` against the schema of the platform, which drops an answer with an
/// unknown key, or fails the job.
///
/// # Errors
///
/// The path of the first invalid key, and its problem.
pub(crate) fn check_answer(stage: &Stage, data: &Value) -> Result<(), ValidationError> {
    if let Some(stages) = data.get(SEVERAL).and_then(Value::as_array) {
        return stages.iter().filter_map(Value::as_str).try_for_each(|name| {
            match (name.parse::<StageName>(), data.get(name)) {
                (Ok(stage), Some(data)) => check_one(stage.stage(), data).map_err(|error| error.within(name)),
                _ => Ok(()),
            }
        });
    }
    check_one(stage, data)
}

fn check_one(stage: &Stage, data: &Value) -> Result<(), ValidationError> {
    match schema(stage) {
        Some(schema) => schema.check(data, stage.as_str()),
        None => Ok(()),
    }
}

fn schema(stage: &Stage) -> Option<&'static Schema> {
    match stage {
        Stage::Prepare => Some(&prepare::ANSWER),
        Stage::Align => Some(&align::ANSWER),
        Stage::Diarize => Some(&diarize::ANSWER),
        Stage::PiiDetect => Some(&pii_detect::ANSWER),
        Stage::AudioRedact => Some(&audio_redact::ANSWER),
        Stage::Transcribe => Some(&transcript_schema::ANSWER),
        Stage::Other(_) => None,
    }
}
