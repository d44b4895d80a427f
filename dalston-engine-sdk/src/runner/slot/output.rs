//! The answer of an engine, completed and checked.

use std::time::Duration;

use serde_json::Value;

use super::{Processed, catch};
use crate::context::TaskContext;
use crate::error::TaskError;
use crate::spans::{self, OpenSpan};
use crate::stage::{OutputDefaults, Stage, StageOutput, check_answer};
use crate::task::TaskRequest;

/// Ends `engine.process` with the answer of the engine, completed and checked.
pub(super) fn conclude<O: StageOutput>(
    output: Result<O, TaskError>,
    span: OpenSpan,
    request: &TaskRequest,
    cx: &TaskContext,
    elapsed: Duration,
) -> Result<Processed, TaskError> {
    if let Err(error) = &output {
        spans::record_failure(&span, error);
    }
    let result = output.and_then(|output| finish_output(output, request, cx));
    if let Ok(processed) = &result
        && !span.is_disabled()
    {
        let transcript = transcript_counts(request.stage().stage(), &processed.data);
        spans::processed(&span, elapsed, cx.info().audio_seconds, transcript);
    }
    result
}

/// The numbers of segments and words of a transcript.
fn transcript_counts(stage: &Stage, data: &Value) -> Option<(usize, usize)> {
    if *stage != Stage::Transcribe {
        return None;
    }
    let segments = data.get("segments")?.as_array()?;
    let words = segments.iter().map(|segment| {
        let timed = segment.get("words").and_then(Value::as_array);
        let text = segment.get("text").and_then(Value::as_str).unwrap_or_default();
        match timed.filter(|words| !words.is_empty()) {
            Some(words) => words.len(),
            None => text.split_whitespace().count(),
        }
    });
    Some((segments.len(), words.sum()))
}

/// Completes and checks the answer of the engine. This runs foreign code, too.
fn finish_output<O: StageOutput>(
    mut output: O,
    request: &TaskRequest,
    cx: &TaskContext,
) -> Result<Processed, TaskError> {
    catch(move || {
        let info = cx.info();
        let mut defaults = OutputDefaults::new(&info.engine_id);
        defaults.channel = request.channel();
        defaults.model_id = (!info.model.is_unnamed()).then(|| info.model.as_str());
        defaults.duration = info.audio_seconds;
        defaults.warnings = request.warnings();
        output.fill_in(&defaults);
        let language = output.language().map(str::to_owned);
        let checked = output.into_data().and_then(|data| {
            check_answer(request.stage().stage(), &data)?;
            Ok(data)
        });
        let data = checked
            .map_err(|error| TaskError::permanent("invalid_output", error).context("the engine's answer"))?;
        Ok(Processed { data, language })
    })
}
