//! Token ids of one model. All ids come from its files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use tokenizers::Tokenizer;

use crate::config::Config;
use crate::error::{Error, LoadError};
use crate::task::Task;

/// The tokens of one model: text and control tokens.
#[derive(Debug)]
pub struct Vocabulary {
    tokenizer: Tokenizer,
    size: i64,
    /// Language code to token id; empty for an English-only model.
    languages: BTreeMap<String, i64>,
    tasks: Option<(i64, i64)>,
    start_of_transcript: i64,
    end_of_text: i64,
    no_timestamps: i64,
    first_timestamp: i64,
    no_speech: Option<i64>,
    start_of_previous: Option<i64>,
    /// Control tokens that are never part of a transcript.
    control: Vec<i64>,
    /// Tokens that the model's files exclude from sampling.
    suppressed: Option<Vec<i64>>,
}

impl Vocabulary {
    /// Reads `tokenizer.json` in `dir`, or the older `vocab.json`, `merges.txt` and
    /// `added_tokens.json`, and adds the ids of `config`.
    ///
    /// # Errors
    /// A file is missing or malformed, or neither source has a token that decoding needs.
    pub fn load(dir: &Path, config: &Config) -> Result<Self, LoadError> {
        let mut path = dir.join("tokenizer.json");
        let vocabulary = dir.join("vocab.json");
        let mut tokenizer = if !path.exists() && vocabulary.exists() {
            path = vocabulary;
            from_parts(dir)?
        } else {
            Tokenizer::from_bytes(read(&path)?).map_err(|error| invalid(&path, &*error))?
        };
        // A prompt is text: "<|nospeech|>" in it must not become a control token.
        tokenizer.set_encode_special_tokens(true);
        Self::build(tokenizer, config, &path)
    }

    fn build(tokenizer: Tokenizer, config: &Config, path: &Path) -> Result<Self, LoadError> {
        let generation = &config.generation;
        let missing = |name: &str| LoadError::Invalid {
            path: PathBuf::from(path),
            problem: format!("token {name:?} is missing, and generation_config.json does not name it either"),
        };
        let find = |name: &str| tokenizer.token_to_id(name).map(i64::from);
        let need = |known: Option<i64>, name: &str| known.or_else(|| find(name)).ok_or_else(|| missing(name));

        let end_of_text = need(
            find("<|endoftext|>").or(generation.eos_token_id.as_ref().and_then(|id| id.first())),
            "<|endoftext|>",
        )?;
        let start_of_transcript = need(
            find("<|startoftranscript|>").or(config.model.decoder_start_token_id),
            "<|startoftranscript|>",
        )?;
        let no_timestamps = need(generation.no_timestamps_token_id, "<|notimestamps|>")?;
        // Old tokenizer files do not list the timestamps. Their ids follow <|notimestamps|>.
        let first_timestamp = find("<|0.00|>").unwrap_or(no_timestamps + 1);

        let task = |key: &str, name: &str| {
            generation
                .task_to_id
                .as_ref()
                .and_then(|map| map.get(key).copied())
                .or_else(|| find(name))
        };
        let (transcribe, translate) = (
            task("transcribe", "<|transcribe|>"),
            task("translate", "<|translate|>"),
        );
        // All Whisper vocabularies have the languages. Those of English-only models are GPT-2's,
        // with this id for the end of text.
        let is_multilingual = generation
            .is_multilingual
            .unwrap_or(end_of_text != GPT2_END_OF_TEXT);
        let mut languages: BTreeMap<String, i64> = generation
            .lang_to_id
            .iter()
            .flatten()
            .map(|(name, &id)| (name.trim_matches(['<', '|', '>']).to_owned(), id))
            .collect();
        if languages.is_empty() && is_multilingual {
            // The languages are between these two in every Whisper vocabulary.
            for id in start_of_transcript + 1..translate.or(transcribe).unwrap_or(0) {
                let name = u32::try_from(id).ok().and_then(|id| tokenizer.id_to_token(id));
                let code = name
                    .as_deref()
                    .and_then(|n| n.strip_prefix("<|")?.strip_suffix("|>"));
                languages.extend(code.map(|code| (code.to_owned(), id)));
            }
        }
        if !is_multilingual {
            languages.clear();
        }
        let tasks = if languages.is_empty() {
            None
        } else {
            Some((
                need(transcribe, "<|transcribe|>")?,
                need(translate, "<|translate|>")?,
            ))
        };
        let no_speech = find("<|nospeech|>").or_else(|| find("<|nocaptions|>"));
        let start_of_previous = generation.prev_sot_token_id.or_else(|| find("<|startofprev|>"));
        let start_of_model = find("<|startoflm|>");
        let control = [
            Some(start_of_transcript),
            transcribe,
            translate,
            start_of_model,
            start_of_previous,
            no_speech,
        ];

        let this = Self {
            size: config.model.vocab_size,
            languages,
            tasks,
            start_of_transcript,
            end_of_text,
            no_timestamps,
            first_timestamp,
            no_speech,
            start_of_previous,
            control: control.into_iter().flatten().collect(),
            suppressed: generation.suppress_tokens.clone(),
            tokenizer,
        };
        this.check().map_err(|problem| LoadError::Invalid {
            path: PathBuf::from(path),
            problem,
        })?;
        Ok(this)
    }

    /// An id beyond the embedding would be an out-of-bounds read on a GPU.
    fn check(&self) -> Result<(), String> {
        let tasks = self
            .tasks
            .iter()
            .flat_map(|&(transcribe, translate)| [transcribe, translate]);
        let known = [self.end_of_text, self.no_timestamps, self.start_of_transcript]
            .into_iter()
            .chain(self.control.iter().copied())
            .chain(self.languages.values().copied())
            .chain(tasks);
        for id in known {
            if !(0..self.size).contains(&id) {
                return Err(format!(
                    "token id {id} lies outside the vocabulary of {} in config.json",
                    self.size
                ));
            }
        }
        if self.first_timestamp <= self.end_of_text || self.first_timestamp >= self.size {
            return Err(format!(
                "the first timestamp is token {}: expected it after <|endoftext|> ({}) and within the vocabulary of {}",
                self.first_timestamp, self.end_of_text, self.size
            ));
        }
        Ok(())
    }

    /// The language codes of the model, sorted: `["en"]` for an English-only model.
    #[must_use]
    pub fn languages(&self) -> Vec<String> {
        if self.languages.is_empty() {
            return vec!["en".to_owned()];
        }
        self.languages.keys().cloned().collect()
    }

    /// Whether prompts contain a language and a task.
    #[must_use]
    pub fn is_multilingual(&self) -> bool {
        !self.languages.is_empty()
    }

    /// The model's code for `language`. Case and region (`de-AT`) are ignored.
    ///
    /// # Errors
    /// [`Error::UnknownLanguage`] lists the languages of the model.
    pub fn language(&self, language: &str) -> Result<String, Error> {
        let wanted = language.trim().to_ascii_lowercase();
        let known = self.languages();
        let primary = wanted.split(['-', '_']).next().unwrap_or_default();
        let find = |code: &str| known.iter().find(|known| *known == code).cloned();
        find(&wanted)
            .or_else(|| find(primary))
            .ok_or_else(|| Error::UnknownLanguage {
                language: language.to_owned(),
                known,
            })
    }

    /// The language tokens in the order of [`languages`](Self::languages).
    pub(crate) fn language_ids(&self) -> Vec<i64> {
        self.languages.values().copied().collect()
    }

    /// The prompt: the last tokens of earlier text that fit, language, task, and whether timestamps
    /// are on.
    ///
    /// # Errors
    /// The language is unknown, or the task is translation and the model is English-only.
    pub fn prompt(
        &self,
        language: &str,
        task: Task,
        timestamps: bool,
        previous: &[i64],
        most_previous: usize,
    ) -> Result<Prompt, Error> {
        let mut ids = Vec::new();
        if let Some(start) = self.start_of_previous.filter(|_| !previous.is_empty()) {
            let skipped = previous.len().saturating_sub(most_previous);
            ids.push(start);
            ids.extend(previous.iter().skip(skipped));
        }
        let start = ids.len();
        ids.push(self.start_of_transcript);
        let code = self.language(language)?;
        match self.tasks {
            None if task == Task::Translate => return Err(Error::CannotTranslate { language: code }),
            None => {}
            Some((transcribe, translate)) => {
                ids.extend(self.languages.get(&code));
                ids.push(if task == Task::Translate {
                    translate
                } else {
                    transcribe
                });
            }
        }
        if !timestamps {
            ids.push(self.no_timestamps);
        }
        Ok(Prompt {
            ids,
            start,
            timestamps,
            given: 0,
        })
    }

    /// Text as token ids, without control tokens.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, Error> {
        let encoding = self
            .tokenizer
            .encode(text, false)
            .map_err(|e| Error::Tokenizer(one_line(&e.to_string())))?;
        Ok(encoding
            .get_ids()
            .iter()
            .map(|&id| i64::from(id))
            .filter(|&id| id < self.end_of_text)
            .collect())
    }

    /// The stripped text of `ids`; control and timestamp tokens are left out.
    ///
    /// # Errors
    /// The tokenizer refuses the ids.
    pub fn decode(&self, ids: &[i64]) -> Result<String, Error> {
        // tokenizer.json does not mark timestamps as special, so their ids are compared.
        let text: Vec<i64> = ids.iter().copied().filter(|&id| id < self.end_of_text).collect();
        Ok(self.decode_all(&text)?.trim().to_owned())
    }

    /// The words of a text: their text, with the blank before it, and their number of tokens.
    ///
    /// Words begin at blanks and at punctuation. In languages without blanks, every character is a
    /// word.
    ///
    /// # Errors
    /// The tokenizer refuses the ids.
    pub fn words(&self, ids: &[i64], language: &str) -> Result<Vec<(String, usize)>, Error> {
        let pieces = self.pieces(ids)?;
        if WITHOUT_BLANKS.contains(&language) {
            return Ok(pieces);
        }
        let mut words: Vec<(String, usize)> = Vec::new();
        for (piece, tokens) in pieces {
            let begins = piece.starts_with(' ') || ASCII_PUNCTUATION.contains(piece.trim());
            match words.last_mut().filter(|_| !begins) {
                Some((word, count)) => {
                    word.push_str(&piece);
                    *count += tokens;
                }
                None => words.push((piece, tokens)),
            }
        }
        Ok(words)
    }

    /// The shortest pieces of a text that are whole characters, with their numbers of tokens.
    fn pieces(&self, ids: &[i64]) -> Result<Vec<(String, usize)>, Error> {
        let all: Vec<char> = self.decode_all(ids)?.chars().collect();
        let (mut pieces, mut done, mut start) = (Vec::new(), 0, 0);
        for end in 1..=ids.len() {
            let tokens = ids.get(start..end).unwrap_or_default();
            let piece = self.decode_all(tokens)?;
            // A part of a character is decoded as this one, which can also be part of the text.
            let unknown = piece.chars().position(|c| c == char::REPLACEMENT_CHARACTER);
            let is_whole = unknown.is_none_or(|at| {
                all.get(done + at)
                    .is_some_and(|&c| c == char::REPLACEMENT_CHARACTER)
            });
            if is_whole || end == ids.len() {
                done += piece.chars().count();
                pieces.push((piece, tokens.len()));
                start = end;
            }
        }
        Ok(pieces)
    }

    fn decode_all(&self, ids: &[i64]) -> Result<String, Error> {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        self.tokenizer
            .decode(&ids, false)
            .map_err(|e| Error::Tokenizer(one_line(&e.to_string())))
    }

    /// Number of tokens of the network.
    #[must_use]
    pub fn size(&self) -> i64 {
        self.size
    }

    /// `<|startoftranscript|>`
    #[must_use]
    pub fn start_of_transcript(&self) -> i64 {
        self.start_of_transcript
    }

    /// `<|endoftext|>`
    #[must_use]
    pub fn end_of_text(&self) -> i64 {
        self.end_of_text
    }

    /// `<|notimestamps|>`
    #[must_use]
    pub fn no_timestamps(&self) -> i64 {
        self.no_timestamps
    }

    /// `<|0.00|>`; all ids from here on are timestamps.
    #[must_use]
    pub fn first_timestamp(&self) -> i64 {
        self.first_timestamp
    }

    /// `<|nospeech|>` or, in older models, `<|nocaptions|>`.
    #[must_use]
    pub fn no_speech(&self) -> Option<i64> {
        self.no_speech
    }

    /// The tokens that are not sampled by default: those of the model's files, else the control
    /// tokens.
    #[must_use]
    pub fn usually_suppressed(&self) -> &[i64] {
        self.suppressed.as_ref().unwrap_or(&self.control)
    }

    /// Control tokens, which are never part of a transcript.
    pub(crate) fn control(&self) -> &[i64] {
        &self.control
    }
}

/// The tokens before the first sampled one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// All tokens.
    pub ids: Vec<i64>,
    /// Position of `<|startoftranscript|>`.
    pub start: usize,
    /// Whether timestamps are decoded.
    pub timestamps: bool,
    /// Number of tokens at the end that are the begin of the text.
    pub given: usize,
}

impl Prompt {
    /// Gives the begin of the text: as much of `prefix` as leaves room for more text in
    /// `positions`.
    pub(crate) fn begin_with(&mut self, prefix: &[i64], first_timestamp: i64, positions: usize) {
        let before = self.ids.len();
        if self.timestamps {
            self.ids.push(first_timestamp);
        }
        let room = (positions / 2).min(positions.saturating_sub(self.ids.len() + 1));
        self.ids.extend(prefix.iter().take(room.saturating_sub(1)));
        self.given = self.ids.len() - before;
    }

    /// The begin of the text.
    pub(crate) fn given(&self) -> &[i64] {
        let start = self.ids.len().saturating_sub(self.given);
        self.ids.get(start..).unwrap_or_default()
    }
}

const GPT2_END_OF_TEXT: i64 = 50_256;
/// Languages that write no blanks between words.
const WITHOUT_BLANKS: [&str; 6] = ["zh", "ja", "th", "lo", "my", "yue"];
const ASCII_PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";

/// The tokenizer of a directory without `tokenizer.json`, made from the files that it replaced.
fn from_parts(dir: &Path) -> Result<Tokenizer, LoadError> {
    let tokens = |path: &Path| -> Result<BTreeMap<String, u32>, LoadError> {
        serde_json::from_slice(&read(path)?).map_err(|source| LoadError::Json {
            path: path.to_owned(),
            source,
        })
    };
    let path = dir.join("vocab.json");
    let mut vocabulary = tokens(&path)?;
    let added_path = dir.join("added_tokens.json");
    let added = if added_path.exists() {
        tokens(&added_path)?
    } else {
        BTreeMap::new()
    };
    let merges = String::from_utf8_lossy(&read(&dir.join("merges.txt"))?)
        .lines()
        .filter(|line| !line.starts_with("#version"))
        .filter_map(|line| line.split_once(' '))
        .map(|(left, right)| json!([left, right]))
        .collect::<Vec<_>>();
    // Without an entry in the vocabulary, a token would get the next free id.
    vocabulary.extend(added.clone());
    let added = added.iter().map(|(content, id)| {
        json!({
            "id": id, "content": content, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    });
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added.collect::<Vec<_>>(),
        "pre_tokenizer": bytes,
        "decoder": bytes,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    });
    Tokenizer::from_bytes(tokenizer.to_string()).map_err(|error| invalid(&path, &*error))
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    fs::read(path).map_err(|source| LoadError::Read {
        path: path.to_owned(),
        source,
    })
}

fn invalid(path: &Path, error: &(dyn std::error::Error + Send + Sync)) -> LoadError {
    LoadError::Invalid {
        path: path.to_owned(),
        problem: one_line(&error.to_string()),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
