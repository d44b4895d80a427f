//! A call of the stream of a realtime session.

use std::time::{Duration, Instant};

use super::{Processed, catch, conclude};
use crate::context::TaskContext;
use crate::engine::Engine;
use crate::error::TaskError;
use crate::spans::{self, SpanOpener};
use crate::stage::Transcript;
use crate::stream::{Hypothesis, StreamStep, TranscriptStream};
use crate::task::TaskRequest;

/// Gives the stream the audio of the request. Returns what it says, and how long it took. A push
/// has no span: there are ten in a second.
pub(super) fn run<E: Engine>(
    engine: &E,
    model: &mut E::Model,
    step: &StreamStep,
    request: &TaskRequest,
    cx: &TaskContext,
    opener: &SpanOpener,
) -> (Result<Processed, TaskError>, Duration) {
    let begun = Instant::now();
    if !step.ends {
        let pushed = catch(|| {
            let mut stream = take(engine, model, step, request, cx)?;
            let hypothesis = push(&mut *stream, model, request, cx)?;
            step.state.keep(stream);
            let data = serde_json::to_value(hypothesis)?;
            Ok(Processed { data, language: None })
        });
        return (pushed, begun.elapsed());
    }
    let span = spans::process(opener);
    let finished: Result<Transcript, TaskError> = span.in_scope(|| {
        catch(|| {
            let mut stream = take(engine, model, step, request, cx)?;
            push(&mut *stream, model, request, cx)?;
            let transcript = stream.finish(model, cx)?;
            step.state.keep(stream);
            Ok(transcript)
        })
    });
    let elapsed = begun.elapsed();
    (conclude(finished, span, request, cx, elapsed), elapsed)
}

fn take<E: Engine>(
    engine: &E,
    model: &mut E::Model,
    step: &StreamStep,
    request: &TaskRequest,
    cx: &TaskContext,
) -> Result<Box<dyn TranscriptStream<E::Model>>, TaskError> {
    match step.state.take() {
        Some(stream) => Ok(stream),
        None => engine.stream(model, request, cx),
    }
}

fn push<M>(
    stream: &mut dyn TranscriptStream<M>,
    model: &mut M,
    request: &TaskRequest,
    cx: &TaskContext,
) -> Result<Option<Hypothesis>, TaskError> {
    let samples = request.audio()?.read(..)?;
    match samples.is_empty() {
        true => Ok(None),
        false => stream.push(model, &samples, cx),
    }
}
