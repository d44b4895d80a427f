//! The parts that all tasks of a command line have in common: [`TaskParts`].

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::session::check_readable;
use crate::cli::args::{Assignment, TranscribeArgs};
use crate::cli::failure::Failure;
use crate::engine::EngineInfo;
use crate::local::LocalTask;
use crate::stage::{Stage, StageName, input_slot};
use crate::store::key::is_plain_name;

/// As large as the `request.json` that holds it may be.
const LONGEST_ANSWER: u64 = 128 << 20;

/// Configuration, further inputs and earlier answers of every task.
#[derive(Debug, Default)]
pub(super) struct TaskParts {
    pub(super) config: Map<String, Value>,
    /// The slot of FILE. `None` if there is none on the command line.
    pub(super) main_slot: Option<&'static str>,
    pub(super) inputs: Vec<(String, PathBuf)>,
    pub(super) previous: Vec<(String, Value)>,
}

impl TaskParts {
    /// Checks the names of slots and stages, and reads the earlier answers.
    pub(super) fn new(args: &TranscribeArgs, info: &EngineInfo) -> Result<Self, Failure> {
        let stage = info.stages.first().unwrap_or(&Stage::Transcribe);
        let main_slot = (!args.files.is_empty()).then(|| input_slot(stage));
        let mut parts = Self {
            config: args.config()?,
            main_slot,
            ..Self::default()
        };
        for Assignment { key: slot, value } in &args.inputs {
            let shown = format!("--input {slot}={value}");
            if !is_plain_name(slot) {
                let expected = "expected a slot of letters, digits, dots, dashes and underscores";
                return Err(Failure::Usage(format!("{shown}: {expected}")));
            }
            if main_slot == Some(slot) {
                let problem = format!("FILE is the input {slot} already: give only one of them");
                return Err(Failure::Usage(format!("{shown}: {problem}")));
            }
            if parts.inputs.iter().any(|(earlier, _)| earlier == slot) {
                return Err(Failure::Usage(format!("--input {slot} is given twice")));
            }
            let path = PathBuf::from(value);
            check_readable(&path).map_err(|problem| Failure::Failed(format!("{shown}: {problem}")))?;
            parts.inputs.push((slot.clone(), path));
        }
        for Assignment { key: stage, value } in &args.previous {
            let shown = format!("--previous {stage}={value}");
            if let Err(error) = stage.parse::<StageName>() {
                return Err(Failure::Usage(format!("{shown}: {error}")));
            }
            if parts.previous.iter().any(|(earlier, _)| earlier == stage) {
                return Err(Failure::Usage(format!("--previous {stage} is given twice")));
            }
            let answer = read_answer(Path::new(value))
                .map_err(|problem| Failure::Failed(format!("{shown}: {problem}")))?;
            parts.previous.push((stage.clone(), answer));
        }
        Ok(parts)
    }

    /// The task for FILE, whose content is this file.
    pub(super) fn task(&self, content: &Path) -> LocalTask {
        let mut task = LocalTask::new().configs(self.config.clone());
        if let Some(slot) = self.main_slot {
            task = task.input(slot, content);
        }
        for (slot, path) in &self.inputs {
            task = task.input(slot, path);
        }
        for (stage, answer) in &self.previous {
            task = task.previous(stage, answer.clone());
        }
        task
    }
}

/// Reads the answer of a stage: a `response.json`, or only its `data`.
fn read_answer(path: &Path) -> Result<Value, String> {
    check_readable(path)?;
    let mut document = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST_ANSWER + 1).read_to_end(&mut document));
    read.map_err(|error| error.to_string())?;
    if document.len() as u64 > LONGEST_ANSWER {
        return Err(format!("is larger than {} MiB", LONGEST_ANSWER >> 20));
    }
    let mut answer: Value =
        serde_json::from_slice(&document).map_err(|error| format!("is not JSON: {error}"))?;
    match answer.get("task_id").is_some() {
        true => Ok(answer.get_mut("data").map(Value::take).unwrap_or_default()),
        false => Ok(answer),
    }
}
