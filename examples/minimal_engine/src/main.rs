//! The shortest complete engine: it counts the words of a text.

use dalston_engine_sdk::{
    Engine, EngineInfo, LoadContext, ModelId, Stage, TaskContext, TaskError, TaskRequest,
};
use serde_json::{Value, json};

struct WordCounter;

impl Engine for WordCounter {
    type Model = ();
    type Output = Value;

    fn info(&self) -> EngineInfo {
        let stage = Stage::other("count").expect("a plain name");
        EngineInfo::new("word-counter", env!("CARGO_PKG_VERSION")).stage(stage)
    }

    fn load(&self, _model: &ModelId, _cx: &LoadContext) -> Result<(), TaskError> {
        Ok(())
    }

    fn process(&self, _model: &mut (), task: &TaskRequest, _cx: &TaskContext) -> Result<Value, TaskError> {
        let text = std::fs::read_to_string(task.require_input("input")?.path())?;
        Ok(json!({ "words": text.split_whitespace().count() }))
    }
}

fn main() -> std::process::ExitCode {
    dalston_engine_sdk::main(WordCounter)
}

#[cfg(test)]
mod tests;
