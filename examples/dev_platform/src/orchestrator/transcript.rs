//! The final transcript: section 3.6 of the protocol.

use anyhow::{Context, Result};
use dalston_engine_sdk::protocol::{TaskResponseData, Timestamp};
use dalston_engine_sdk::stage::{Preparation, Segment, StageName, Transcript, Word};
use serde_json::{Value, json};

use crate::db::{Job, SpeakerDetection};

/// A segment with the channel that it was spoken on.
struct Spoken {
    segment: Segment,
    channel: Option<u32>,
    language: String,
}

/// Joins the answers of the tasks. Segments of all channels stand in the order of their starts.
pub(super) fn assemble(job: &Job, responses: &[(String, TaskResponseData)]) -> Result<Value> {
    let mut prepared = None;
    let mut transcripts = Vec::new();
    let mut warnings = Vec::new();
    for (stage, response) in responses {
        let read = || format!("the answer of {stage}");
        if stage == "prepare" {
            let answer: Preparation = serde_json::from_value(response.data.clone()).with_context(read)?;
            warnings.extend(answer.status.warnings.clone());
            prepared = Some(answer);
        } else {
            let answer: Transcript = serde_json::from_value(response.data.clone()).with_context(read)?;
            let channel = stage.parse::<StageName>().ok().and_then(|name| name.channel());
            warnings.extend(answer.warnings.clone());
            transcripts.push((channel, answer));
        }
    }
    let (_, first) = transcripts.first().context("no task has transcribed")?;
    let first = first.clone();
    let mut spoken: Vec<Spoken> = Vec::new();
    for (channel, transcript) in &transcripts {
        spoken.extend(transcript.segments.iter().map(|segment| Spoken {
            segment: segment.clone(),
            channel: *channel,
            language: transcript.language.clone(),
        }));
    }
    spoken.sort_by(|a, b| a.segment.start.total_cmp(&b.segment.start));
    let texts = spoken.iter().map(|spoken| spoken.segment.text.trim());
    let text = match transcripts.len() {
        1 => first.text.clone(),
        _ => texts
            .filter(|text| !text.is_empty())
            .collect::<Vec<_>>()
            .join(" "),
    };
    let has_words = job.parameters.word_timestamps;
    let segments = spoken
        .iter()
        .enumerate()
        .map(|(at, spoken)| segment(at, spoken, has_words));
    let segments: Vec<Value> = segments.collect();
    let channels = transcripts.iter().filter_map(|(channel, _)| *channel);
    let speakers: Vec<Value> = channels
        .map(|channel| json!({"id": speaker(channel), "label": format!("Channel {channel}"), "channel": channel}))
        .collect();
    let source = prepared
        .as_ref()
        .and_then(|prepared| prepared.source_media.clone());
    let source = source.unwrap_or_else(|| job.media.clone());
    let detection = match job.parameters.speaker_detection {
        SpeakerDetection::None => "none",
        SpeakerDetection::PerChannel => "per_channel",
    };
    let stages: Vec<&String> = responses.iter().map(|(stage, _)| stage).collect();
    Ok(json!({
        "job_id": job.id,
        "version": "1.0",
        "metadata": {
            "audio_duration": source.duration,
            "audio_channels": source.channels,
            "sample_rate": source.sample_rate,
            "language": first.language,
            "language_confidence": first.language_confidence,
            "language_source": first.language_source,
            "languages": first.languages,
            "word_timestamps": has_words && segments.iter().any(|segment| !segment["words"].is_null()),
            "word_timestamps_requested": has_words,
            "speaker_detection": detection,
            "speaker_count": speakers.len(),
            "created_at": job.created_at,
            "completed_at": Timestamp::now(),
            "pipeline_stages": stages,
            "pipeline_warnings": warnings,
        },
        "text": text,
        "speakers": speakers,
        "segments": segments,
        "paragraphs": [],
        "summary": null,
        "redacted_text": null,
        "pii_entities": null,
        "pii_metadata": null,
    }))
}

fn segment(at: usize, spoken: &Spoken, has_words: bool) -> Value {
    let segment = &spoken.segment;
    let words = segment.words.as_ref().filter(|_| has_words);
    let words: Option<Vec<Value>> = words.map(|words| words.iter().map(word).collect());
    let known = |name: &str| segment.metadata.get(name).cloned().unwrap_or_default();
    let confidence = segment
        .confidence
        .map_or_else(|| known("confidence"), Value::from);
    json!({
        "id": format!("seg_{at:03}"),
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "redacted_text": null,
        "speaker": spoken.channel.map(speaker),
        "language": segment.language.as_ref().unwrap_or(&spoken.language),
        "words": words,
        "tokens": known("tokens"),
        "temperature": known("temperature"),
        "confidence": confidence,
        "avg_logprob": known("avg_logprob"),
        "compression_ratio": known("compression_ratio"),
        "no_speech_prob": known("no_speech_prob"),
        "speaker_confidence": null,
        "emotion": null,
        "emotion_confidence": null,
        "events": [],
    })
}

fn word(word: &Word) -> Value {
    json!({"text": word.text, "start": word.start, "end": word.end, "confidence": word.confidence})
}

fn speaker(channel: u32) -> String {
    format!("SPEAKER_{channel:02}")
}
