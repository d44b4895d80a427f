//! What the server says about a task: the reply of `lookup.lua`.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::{info, warn};

use super::message::read_time;
use crate::broker::{Claim, Lookup, TaskMetadata};
use crate::protocol::RequestBinding;

/// The reply is not one that the script can give.
#[derive(Debug, thiserror::Error)]
#[error("the server replied with something that the script can't return")]
pub(super) struct MalformedReply;

/// Reads a word and what follows it.
pub(super) fn read_lookup(claim: &Claim, reply: &[Option<Vec<u8>>]) -> Result<Lookup, MalformedReply> {
    let task_id = &*claim.task_id;
    let (word, values) = reply.split_first().ok_or(MalformedReply)?;
    let reason = || {
        let reason = values.first().and_then(Option::as_deref).unwrap_or_default();
        String::from_utf8_lossy(reason).into_owned()
    };
    match word.as_deref() {
        Some(b"task") => {
            let mut fields = [None; Field::ALL];
            if values.len() != fields.len() {
                return Err(MalformedReply);
            }
            for (field, value) in fields.iter_mut().zip(values) {
                *field = value.as_deref();
            }
            Ok(read_metadata(claim, fields))
        }
        Some(b"lost") => Ok(Lookup::Lost),
        Some(b"duplicate") => {
            info!(task_id, owner = reason(), "duplicate_task_message");
            Ok(Lookup::Lost)
        }
        // The platform lost it, too, and the work has not begun.
        Some(b"unrecorded") => {
            warn!(
                task_id,
                advice = "submit its job again",
                "task_lost_by_redis_before_its_start"
            );
            Ok(Lookup::Lost)
        }
        Some(b"cancelled") => Ok(Lookup::Cancelled {
            is_running: !reason().is_empty(),
        }),
        Some(b"missing") => Ok(Lookup::Missing),
        Some(b"blocked") => Ok(Lookup::Blocked(reason())),
        Some(b"malformed") => Ok(Lookup::Malformed {
            metadata: Box::default(),
            problem: format!("its metadata can't be read: {}", reason()),
        }),
        _ => Err(MalformedReply),
    }
}

/// The fields of a task's metadata, section 2.3, in the order of the reply. The last three
/// are computed, from `handed_back` and from the ids of the messages.
#[derive(Clone, Copy)]
enum Field {
    Stage,
    EnqueuedAt,
    LoadedModelId,
    RequestId,
    TraceContext,
    RequestBindings,
    ResolvedArtifactIds,
    InferenceStarts,
    EarlierDeliveries,
    AgeMs,
    WaitedMs,
}

impl Field {
    const ALL: usize = 11;

    fn name(self) -> &'static str {
        match self {
            Self::Stage => "stage",
            Self::EnqueuedAt => "enqueued_at",
            Self::LoadedModelId => "loaded_model_id",
            Self::RequestId => "request_id",
            Self::TraceContext => "_trace_context",
            Self::RequestBindings => "request_bindings_json",
            Self::ResolvedArtifactIds => "resolved_artifact_ids_json",
            Self::InferenceStarts => "inference_starts",
            Self::EarlierDeliveries => "handed_back",
            Self::AgeMs => "age_ms",
            Self::WaitedMs => "waited_ms",
        }
    }
}

/// Fields that serve only traces or waiting times are left out when they can't be read; fields that
/// decide about the work must be right.
fn read_metadata(claim: &Claim, values: [Option<&[u8]>; Field::ALL]) -> Lookup {
    let lenient = |field| text(values, field).unwrap_or(None);
    let owned = |field| lenient(field).map(str::to_owned);
    let mut metadata = Box::new(TaskMetadata::default());
    metadata.enqueued_at =
        lenient(Field::EnqueuedAt).and_then(|time| read_time(&claim.task_id, Field::EnqueuedAt.name(), time));
    metadata.model = owned(Field::LoadedModelId);
    metadata.request_id = owned(Field::RequestId);
    metadata.trace_context = owned(Field::TraceContext);
    let number = |field| lenient(field).and_then(|number| number.parse().ok()).unwrap_or(0);
    metadata.inference_starts = number(Field::InferenceStarts);
    metadata.earlier_deliveries = number(Field::EarlierDeliveries);
    // A server that took over from another one can have an earlier time.
    let time = |field| {
        let millis = lenient(field)?.parse::<i64>().ok()?;
        Some(Duration::from_millis(u64::try_from(millis).unwrap_or(0)))
    };
    metadata.age = time(Field::AgeMs);
    metadata.waited = time(Field::WaitedMs);
    match read_work(values, &mut metadata) {
        Ok(()) => Lookup::Task(metadata),
        Err(problem) => Lookup::Malformed { metadata, problem },
    }
}

fn read_work(values: [Option<&[u8]>; Field::ALL], metadata: &mut TaskMetadata) -> Result<(), String> {
    let stage = text(values, Field::Stage)?.ok_or_else(|| "its metadata has no stage".to_owned())?;
    stage.clone_into(&mut metadata.stage);
    if let Some(bindings) = text(values, Field::RequestBindings)? {
        let bindings = RequestBinding::list_from_slice(bindings.as_bytes());
        metadata.bindings = Some(bindings.map_err(|error| error.to_string())?);
    }
    if let Some(ids) = text(values, Field::ResolvedArtifactIds)? {
        let name = Field::ResolvedArtifactIds.name();
        let ids: BTreeMap<String, Option<String>> = serde_json::from_str(ids)
            .map_err(|error| format!("the field {name:?} of its metadata: {error}"))?;
        let known = ids.into_iter().filter_map(|(slot, id)| id.map(|id| (slot, id)));
        metadata.resolved_artifact_ids = Some(known.collect());
    }
    Ok(())
}

fn text(values: [Option<&[u8]>; Field::ALL], field: Field) -> Result<Option<&str>, String> {
    match values[field as usize] {
        None | Some([]) => Ok(None),
        Some(value) => match std::str::from_utf8(value) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(format!(
                "the field {:?} of its metadata is not UTF-8",
                field.name()
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Consumer;
    use crate::protocol::{ArtifactSelector, QueuedTask, TaskRequestData};

    fn claim() -> Claim {
        let consumer = Consumer {
            engine_id: "my-asr".to_owned(),
            instance: "my-asr-1".to_owned(),
        };
        Claim::new(consumer, "1-0", "T", "J", 1)
    }

    #[test]
    fn metadata_of_an_orchestrator_is_read_whole() {
        let mut request = TaskRequestData::new("T", "J");
        let selector = ArtifactSelector::new("prepare", "audio").channel(1);
        request.request_bindings = vec![RequestBinding::new("audio", selector)];
        request.resolved_artifact_ids = [("audio".to_owned(), "P:audio".to_owned())].into();
        let now = "2026-11-20T18:17:06.690014Z".parse().unwrap();
        let task = QueuedTask::new(&request, "transcribe_ch1", "my-asr", now, Duration::from_secs(90));
        let trace = r#"{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#;
        let hash: BTreeMap<_, _> = task
            .request_id("req_5f")
            .trace_context(trace)
            .metadata()
            .into_iter()
            .collect();
        let fields = [
            Field::Stage,
            Field::EnqueuedAt,
            Field::LoadedModelId,
            Field::RequestId,
            Field::TraceContext,
            Field::RequestBindings,
            Field::ResolvedArtifactIds,
            Field::InferenceStarts,
            Field::EarlierDeliveries,
            Field::AgeMs,
            Field::WaitedMs,
        ];
        let values = fields.map(|field| hash.get(field.name()).map(String::as_bytes));
        let Lookup::Task(found) = read_metadata(&claim(), values) else {
            panic!("it is readable");
        };
        let mut expected = TaskMetadata::new("transcribe_ch1");
        expected.enqueued_at = Some(now);
        expected.request_id = Some("req_5f".to_owned());
        expected.trace_context = Some(trace.to_owned());
        expected.bindings = Some(request.request_bindings);
        expected.resolved_artifact_ids = Some(request.resolved_artifact_ids);
        assert_eq!(*found, expected);
    }

    #[test]
    fn reply_of_another_shape_is_an_error() {
        let claim = claim();
        let reply =
            |words: &[&str]| -> Vec<_> { words.iter().map(|word| Some(word.as_bytes().to_vec())).collect() };
        for words in [
            &[][..],
            &["error"],
            &["task"],
            &["task", "transcribe"],
            &["task"; 11],
        ] {
            assert!(read_lookup(&claim, &reply(words)).is_err(), "{words:?}");
        }
        assert!(read_lookup(&claim, &[None]).is_err());
        assert!(matches!(
            read_lookup(&claim, &reply(&["blocked"])),
            Ok(Lookup::Blocked(_))
        ));
    }
}
