//! What the script for tasks in hand answers: one text in MessagePack, which the server's Lua brings along.
//!
//! A client of Redis makes a value of its own of everything in an answer, and most of what a script says of a task would be taken
//! apart again at once.

use std::collections::BTreeMap;

use super::broker::readable;
use crate::broker::{Lookup, TaskMetadata};
use crate::protocol::RequestBinding;

/// What the script answers to one call.
#[derive(Debug)]
pub(super) enum Answer {
    /// Who owns the entry, or whether something is there.
    Number(i64),
    Lookup(Lookup),
    /// It went wrong, with this error of the server.
    Refused(String),
}

#[derive(Debug, thiserror::Error)]
#[error("the answer of the server is not what the script makes")]
pub(super) struct Malformed;

/// The answers to calls about these tasks.
pub(super) fn read<'a>(
    task_ids: impl ExactSizeIterator<Item = &'a str>,
    text: &[u8],
) -> Result<Vec<Answer>, Malformed> {
    let mut packed = Packed { rest: text };
    if packed.list()? != task_ids.len() {
        return Err(Malformed);
    }
    let answers: Result<_, _> = task_ids.map(|task_id| answer(task_id, &mut packed)).collect();
    if packed.rest.is_empty() {
        answers
    } else {
        Err(Malformed)
    }
}

fn answer(task_id: &str, packed: &mut Packed<'_>) -> Result<Answer, Malformed> {
    let length = match packed.item()? {
        Item::Number(number) => return Ok(Answer::Number(number)),
        Item::List(length) if length > 0 => length - 1,
        Item::List(_) | Item::Nothing | Item::Text(_) => return Err(Malformed),
    };
    match packed.item()? {
        Item::Text(b"error") => Ok(Answer::Refused(reason(length, packed)?)),
        Item::Text(state) => Ok(Answer::Lookup(why_not(state, length, packed)?)),
        Item::Number(_) if length == Field::ALL => {
            let mut values = [None; Field::ALL];
            for value in &mut values {
                *value = packed.text()?;
            }
            Ok(Answer::Lookup(read_metadata(task_id, values)))
        }
        _ => Err(Malformed),
    }
}

/// Why a task should not be done.
fn why_not(state: &[u8], length: usize, packed: &mut Packed<'_>) -> Result<Lookup, Malformed> {
    let reason = reason(length, packed)?;
    match state {
        b"lost" => Ok(Lookup::Lost),
        b"cancelled" => Ok(Lookup::Cancelled),
        b"missing" => Ok(Lookup::Missing),
        b"blocked" => Ok(Lookup::Blocked(reason)),
        b"malformed" => Ok(Lookup::Malformed {
            metadata: Box::default(),
            problem: format!("its metadata can't be read: {reason}"),
        }),
        _ => Err(Malformed),
    }
}

fn reason(length: usize, packed: &mut Packed<'_>) -> Result<String, Malformed> {
    let mut reason = String::new();
    for _ in 0..length {
        reason = String::from_utf8_lossy(packed.text()?.unwrap_or_default()).into_owned();
    }
    Ok(reason)
}

/// The fields of a task's metadata, section 2.3, in the order in which the script answers with them.
#[derive(Clone, Copy)]
enum Field {
    Stage,
    EnqueuedAt,
    LoadedModelId,
    RequestId,
    TraceContext,
    RequestBindings,
    ResolvedArtifactIds,
}

impl Field {
    const ALL: usize = 7;

    fn name(self) -> &'static str {
        match self {
            Self::Stage => "stage",
            Self::EnqueuedAt => "enqueued_at",
            Self::LoadedModelId => "loaded_model_id",
            Self::RequestId => "request_id",
            Self::TraceContext => "_trace_context",
            Self::RequestBindings => "request_bindings_json",
            Self::ResolvedArtifactIds => "resolved_artifact_ids_json",
        }
    }
}

/// What is only for tracing or for the clock is left out when it makes no sense; what decides about the work must be right.
fn read_metadata(task_id: &str, values: [Option<&[u8]>; Field::ALL]) -> Lookup {
    let lenient = |field| text(values, field).unwrap_or(None);
    let owned = |field| lenient(field).map(str::to_owned);
    let mut metadata = Box::new(TaskMetadata::default());
    metadata.enqueued_at =
        lenient(Field::EnqueuedAt).and_then(|time| readable(task_id, Field::EnqueuedAt.name(), time));
    metadata.model = owned(Field::LoadedModelId);
    metadata.request_id = owned(Field::RequestId);
    metadata.trace_context = owned(Field::TraceContext);
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

/// The part of MessagePack that `cmsgpack` makes of numbers, texts, and lists of them. What else there is, the script has no use for.
#[derive(Debug, Clone, Copy)]
struct Packed<'a> {
    rest: &'a [u8],
}

#[derive(Debug, PartialEq)]
enum Item<'a> {
    /// `nil` or `false`: Lua has the latter for a field that a hash does not have.
    Nothing,
    Number(i64),
    Text(&'a [u8]),
    /// So many items follow.
    List(usize),
}

impl<'a> Packed<'a> {
    fn item(&mut self) -> Result<Item<'a>, Malformed> {
        let kind = self.bytes(1)?[0];
        Ok(match kind {
            0x00..=0x7f => Item::Number(kind.into()),
            0xe0..=0xff => Item::Number(kind.cast_signed().into()),
            0xc0 | 0xc2 => Item::Nothing,
            0xcc..=0xcf => {
                let number = self.number(1 << (kind - 0xcc))?;
                Item::Number(i64::try_from(number).map_err(|_| Malformed)?)
            }
            0xd0..=0xd3 => {
                let length = 1 << (kind - 0xd0);
                let unused = 64 - 8 * length as u32;
                Item::Number((self.number(length)? << unused).cast_signed() >> unused)
            }
            0xa0..=0xbf => Item::Text(self.bytes((kind & 0x1f).into())?),
            0xc4..=0xc6 => self.long_text(1 << (kind - 0xc4))?,
            0xd9..=0xdb => self.long_text(1 << (kind - 0xd9))?,
            0x90..=0x9f => self.list_of((kind & 0x0f).into())?,
            0xdc | 0xdd => {
                let length = self.number(2 << (kind - 0xdc))?;
                self.list_of(usize::try_from(length).map_err(|_| Malformed)?)?
            }
            _ => return Err(Malformed),
        })
    }

    fn list(&mut self) -> Result<usize, Malformed> {
        match self.item()? {
            Item::List(length) => Ok(length),
            _ => Err(Malformed),
        }
    }

    fn text(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        match self.item()? {
            Item::Nothing => Ok(None),
            Item::Text(text) => Ok(Some(text)),
            Item::Number(_) | Item::List(_) => Err(Malformed),
        }
    }

    fn long_text(&mut self, length: usize) -> Result<Item<'a>, Malformed> {
        let length = usize::try_from(self.number(length)?).map_err(|_| Malformed)?;
        self.bytes(length).map(Item::Text)
    }

    /// Each item of a list has at least one byte, so no length can make us reserve more than was sent.
    fn list_of(&self, length: usize) -> Result<Item<'a>, Malformed> {
        (length <= self.rest.len())
            .then_some(Item::List(length))
            .ok_or(Malformed)
    }

    /// A number of up to eight bytes, the greatest first.
    fn number(&mut self, length: usize) -> Result<u64, Malformed> {
        let bytes = self.bytes(length)?;
        Ok(bytes
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = rest;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(bytes: &[u8]) -> Result<Vec<Item<'_>>, Malformed> {
        let mut packed = Packed { rest: bytes };
        let mut items = Vec::new();
        while !packed.rest.is_empty() {
            items.push(packed.item()?);
        }
        Ok(items)
    }

    /// The answer to one lookup: a zero and the stage, and no other field is known.
    const LOOKED_UP: &[u8] = b"\x91\x98\x00\xa1s\xc2\xc2\xc2\xc2\xc2\xc2";

    #[test]
    fn numbers_and_texts_of_every_length_are_read() {
        let numbers: [(&[u8], i64); 12] = [
            (b"\x00", 0),
            (b"\x7f", 127),
            (b"\xcc\xff", 255),
            (b"\xcd\x01\x00", 256),
            (b"\xce\xff\xff\xff\xff", 0xffff_ffff),
            (b"\xcf\x7f\xff\xff\xff\xff\xff\xff\xff", i64::MAX),
            (b"\xff", -1),
            (b"\xe0", -32),
            (b"\xd0\x80", -128),
            (b"\xd1\xff\x7f", -129),
            (b"\xd2\x80\x00\x00\x00", i64::from(i32::MIN)),
            (b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00", i64::MIN),
        ];
        for (bytes, number) in numbers {
            assert_eq!(items(bytes).unwrap(), [Item::Number(number)], "{bytes:x?}");
        }
        let long = [7; 300];
        for (head, length) in [
            (&b"\xa0"[..], 0),
            (b"\xbf", 31),
            (b"\xd9\x20", 32),
            (b"\xda\x01\x2c", 300),
            (b"\xdb\x00\x00\x01\x2c", 300),
            (b"\xc4\x02", 2),
            (b"\xc5\x00\x02", 2),
            (b"\xc6\x00\x00\x00\x02", 2),
        ] {
            let bytes = [head, &long[..length]].concat();
            assert_eq!(items(&bytes).unwrap(), [Item::Text(&long[..length])]);
            if length > 0 {
                assert!(
                    items(&bytes[..bytes.len() - 1]).is_err(),
                    "{head:x?} is cut short"
                );
            }
        }
    }

    #[test]
    fn a_list_never_has_more_items_than_there_are_bytes() {
        for bytes in [
            &b"\x91"[..],
            b"\x92\x01",
            b"\xdc\xff\xff\x01",
            b"\xdd\xff\xff\xff\xff\x01",
        ] {
            assert!(items(bytes).is_err(), "{bytes:x?}");
        }
        assert_eq!(items(b"\x91\x90").unwrap(), [Item::List(1), Item::List(0)]);
    }

    #[test]
    fn an_answer_that_is_damaged_anywhere_is_an_error_and_no_panic() {
        let read = |bytes: &[u8]| read(["T"].into_iter(), bytes);
        assert!(read(LOOKED_UP).is_ok());
        assert!(read(&[LOOKED_UP, b"\x00"].concat()).is_err(), "something follows");
        for end in 0..LOOKED_UP.len() {
            assert!(read(&LOOKED_UP[..end]).is_err(), "cut at {end}");
        }
        for at in 0..LOOKED_UP.len() {
            for byte in 0..=u8::MAX {
                let mut damaged = LOOKED_UP.to_vec();
                damaged[at] = byte;
                let _ = read(&damaged);
            }
        }
    }

    #[test]
    fn an_answer_to_something_else_is_an_error() {
        let read = |bytes| read(["T"].into_iter(), bytes);
        for bytes in [
            &b"\x90"[..],
            b"\x92\x01\x01",
            b"\x91\xa1x",
            b"\x91\x90",
            b"\x91\x91\x01",
            b"\x91\x91\xa5hello",
        ] {
            assert!(read(bytes).is_err(), "{bytes:x?}");
        }
    }
}
