//! An engine with settings, options and metrics of its own: it finds keywords in a transcript.

use dalston_engine_sdk::dalston_telemetry::metrics::{Counter, DenseFamily};
use dalston_engine_sdk::{
    Engine, EngineInfo, LoadContext, ModelId, OutputFile, Stage, StartContext, TaskContext, TaskError,
    TaskRequest, Transcript,
};
use serde::Deserialize;
use serde_json::{Value, json};

/// For the whole process: `--set ignore_case=true`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    keywords: Vec<String>,
    #[serde(default)]
    ignore_case: bool,
}

/// For one task: `--config at_most=5`.
#[derive(Debug, Deserialize)]
struct Options {
    at_most: Option<usize>,
}

struct KeywordFinder {
    settings: Settings,
    found: DenseFamily<(), Counter>,
}

impl KeywordFinder {
    fn new(settings: Settings) -> Result<Self, TaskError> {
        if settings.keywords.is_empty() {
            return Err("keywords is empty: expected at least one".into());
        }
        let found = DenseFamily::default();
        Ok(Self { settings, found })
    }

    fn is_same(&self, keyword: &str, word: &str) -> bool {
        match self.settings.ignore_case {
            true => keyword.eq_ignore_ascii_case(word),
            false => keyword == word,
        }
    }
}

impl Engine for KeywordFinder {
    type Model = ();
    type Output = Value;

    fn info(&self) -> EngineInfo {
        let stage = Stage::other("keywords").expect("a plain name");
        EngineInfo::new("keyword-finder", env!("CARGO_PKG_VERSION")).stage(stage)
    }

    fn start(&mut self, cx: &StartContext) {
        let found = self.found.clone();
        cx.metrics().register(|registry| {
            registry.register("keyword_finder_found", "Keywords that were found", found)
        });
    }

    fn load(&self, _model: &ModelId, _cx: &LoadContext) -> Result<(), TaskError> {
        Ok(())
    }

    fn process(&self, _model: &mut (), task: &TaskRequest, cx: &TaskContext) -> Result<Value, TaskError> {
        let transcript: Transcript = task.require_previous("transcribe")?;
        let options: Options = task.config_as()?;
        let mut keywords = self.settings.keywords.clone();
        // A list for this task alone, one word a line.
        if let Some(list) = task.input("keywords") {
            let list = std::fs::read_to_string(list.path())?;
            keywords.extend(list.lines().map(str::to_owned));
        }
        let words = transcript.text.split_whitespace();
        let is_keyword = |word: &&str| keywords.iter().any(|keyword| self.is_same(keyword, word));
        let found: Vec<&str> = words
            .filter(is_keyword)
            .take(options.at_most.unwrap_or(usize::MAX))
            .collect();
        self.found.with(()).inc_by(found.len() as u64);
        let list = cx.temp_dir().join("found.txt");
        std::fs::write(&list, found.join("\n"))?;
        cx.add_output_file(OutputFile::new("found", "text", list))?;
        Ok(json!({ "found": found }))
    }
}

fn main() -> std::process::ExitCode {
    dalston_engine_sdk::main_with(KeywordFinder::new)
}
