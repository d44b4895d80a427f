//! An engine that reads Morse code: a model, spans, metrics and log lines of its own, and realtime
//! sessions. `docs/engine-developer-guide.md` explains it.

mod signal;

use std::collections::HashMap;

use dalston_engine_sdk::audio::AudioFormat;
use dalston_engine_sdk::dalston_telemetry::metrics::{Counter, DenseFamily};
use dalston_engine_sdk::{
    Engine, EngineInfo, LoadContext, ModelId, Segment, Stage, StartContext, TaskContext, TaskError,
    TaskRequest, Transcript, Word,
};

use self::signal::{Mark, marks};

/// The letters of the codes, from the file `codes.txt` of a model.
struct Codes(HashMap<String, char>);

#[derive(Default)]
struct Morse {
    unknown: DenseFamily<(), Counter>,
}

impl Engine for Morse {
    type Model = Codes;
    type Output = Transcript;

    fn info(&self) -> EngineInfo {
        EngineInfo::new("morse", env!("CARGO_PKG_VERSION"))
            .stage(Stage::Transcribe)
            .audio(AudioFormat::MONO_16K)
            .default_model("international")
            .word_timestamps(true)
            .memory_gib(1)
            .realtime(true)
    }

    fn start(&mut self, cx: &StartContext) {
        let unknown = self.unknown.clone();
        cx.metrics().register(|registry| {
            registry.register(
                "morse_unknown_codes",
                "Codes that the model does not know",
                unknown,
            )
        });
    }

    fn load(&self, model: &ModelId, cx: &LoadContext) -> Result<Codes, TaskError> {
        let text = std::fs::read_to_string(cx.model_dir(model)?.join("codes.txt"))?;
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        let codes: HashMap<_, _> = lines
            .filter_map(|(letter, code)| Some((code.to_owned(), letter.chars().next()?)))
            .collect();
        if codes.is_empty() {
            return Err(TaskError::permanent("empty_model", "codes.txt has no codes"));
        }
        tracing::info!(codes = codes.len(), "codes_read");
        Ok(Codes(codes))
    }

    fn process(
        &self,
        codes: &mut Codes,
        task: &TaskRequest,
        cx: &TaskContext,
    ) -> Result<Transcript, TaskError> {
        let wants_words = task.transcribe()?.wants_words();
        let marks = tracing::info_span!("morse.marks").in_scope(|| marks(task.audio()?, cx))?;
        let words = tracing::info_span!("morse.decode").in_scope(|| self.decode(&marks, codes));
        let (Some(first), Some(last)) = (words.first(), words.last()) else {
            return Ok(Transcript::from_segments([]));
        };
        let text: Vec<&str> = words.iter().map(|word| &*word.text).collect();
        let segment = Segment::new(first.start, last.end, text.join(" "));
        Ok(Transcript::from_segments([match wants_words {
            true => segment.words(words),
            false => segment,
        }]))
    }
}

impl Morse {
    /// The words of marks: a gap of two units ends a letter, and one of five a word.
    fn decode(&self, marks: &[Mark], codes: &Codes) -> Vec<Word> {
        let unit = marks
            .iter()
            .map(|mark| mark.end - mark.start)
            .fold(f64::INFINITY, f64::min);
        let mut words = Vec::new();
        let (mut word, mut code) = (String::new(), String::new());
        let mut start = 0.0;
        for (index, mark) in marks.iter().enumerate() {
            if word.is_empty() && code.is_empty() {
                start = mark.start;
            }
            let is_dot = mark.end - mark.start < 2.0 * unit;
            code.push(if is_dot { '.' } else { '-' });
            let next = marks.get(index + 1);
            let gap = next.map_or(f64::INFINITY, |next| next.start - mark.end);
            if gap >= 2.0 * unit {
                word.push(self.letter(&code, codes));
                code.clear();
            }
            if gap >= 5.0 * unit {
                words.push(Word::new(start, mark.end, std::mem::take(&mut word)));
            }
        }
        words
    }

    fn letter(&self, code: &str, codes: &Codes) -> char {
        codes.0.get(code).copied().unwrap_or_else(|| {
            tracing::debug!(code, "code_unknown");
            self.unknown.with(()).inc();
            '?'
        })
    }
}

fn main() -> std::process::ExitCode {
    dalston_engine_sdk::main(Morse::default())
}

#[cfg(test)]
mod tests;
