//! Options whose limits depend on the model.

use super::rules::RuleConfig;
use super::suppress;
use crate::error::Error;
use crate::options::{OptionError, Options};
use crate::tokenizer::Prompt;
use crate::whisper::Whisper;

pub(super) fn rule_config(
    whisper: &Whisper,
    options: &Options,
    warnings: &mut Vec<String>,
) -> Result<RuleConfig, Error> {
    let generation = &whisper.config().generation;
    let suppress_first = if options.suppress_blank {
        generation.begin_suppress_tokens.clone().unwrap_or_default()
    } else {
        Vec::new()
    };
    let latest = options.max_initial_timestamp / whisper.config().timestamp_step();
    Ok(RuleConfig {
        suppress: suppress::ids(&options.suppress_tokens, whisper.vocabulary(), warnings)?,
        suppress_first,
        timestamps: !options.without_timestamps,
        max_initial_timestamp: Some(latest.round() as i64),
        repetition_penalty: options.repetition_penalty,
        no_repeat_ngram_size: options.no_repeat_ngram_size,
    })
}

pub(super) fn max_tokens(whisper: &Whisper, options: &Options) -> Result<usize, Error> {
    // The shortest prompt has three tokens.
    let most = (whisper.config().model.max_target_positions - 3) as usize;
    match options.max_new_tokens {
        None => Ok(whisper.max_sampled_tokens()),
        Some(wanted) if wanted <= most => Ok(wanted),
        Some(wanted) => {
            let expected = format!("at most {most}, the positions of this model's decoder");
            Err(OptionError::new("max_new_tokens", wanted, expected).into())
        }
    }
}

/// The number of tokens that the decoder has room for behind a prompt.
pub(super) fn room(whisper: &Whisper, prompt: &Prompt) -> usize {
    let positions = whisper.config().model.max_target_positions as usize;
    (positions + prompt.given().len()).saturating_sub(prompt.ids.len())
}

/// The frames of a window.
pub(super) fn window_frames(whisper: &Whisper, options: &Options) -> Result<usize, Error> {
    let features = &whisper.config().features;
    match options.chunk_length {
        None => Ok(features.window_frames()),
        Some(seconds) if seconds as i64 <= features.chunk_length => {
            Ok((seconds as i64 * features.sampling_rate / features.hop_length) as usize)
        }
        Some(seconds) => {
            let expected = format!(
                "at most {}, the seconds of this model's window",
                features.chunk_length
            );
            Err(OptionError::new("chunk_length", seconds, expected).into())
        }
    }
}

pub(super) fn in_vocabulary(ids: &[i64], size: i64) -> Result<Vec<i64>, Error> {
    match ids.iter().find(|id| !(0..size).contains(*id)) {
        None => Ok(ids.to_vec()),
        Some(id) => {
            let expected = format!("tokens from 0 to {}", size - 1);
            Err(OptionError::new("initial_prompt", id, expected).into())
        }
    }
}
