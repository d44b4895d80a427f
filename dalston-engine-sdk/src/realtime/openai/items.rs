//! The items of a conversation: an utterance is one. [`Items`].

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::events::id;
use super::seconds;

/// The items of a session that are not complete.
#[derive(Debug, Default)]
pub(super) struct Items {
    /// That of the current utterance.
    current: Option<Item>,
    /// Items whose transcript is awaited.
    committed: VecDeque<Committed>,
    /// The last one that was committed.
    previous: Option<String>,
    /// Bytes of audio since the last commit or clear.
    bytes: usize,
    /// The client has cleared the audio or committed it, so the end of speech commits nothing.
    ended_by_client: bool,
}

#[derive(Debug)]
struct Item {
    id: String,
    /// The text of the deltas so far.
    said: String,
}

#[derive(Debug)]
struct Committed {
    item: Item,
    /// The end of its speech in seconds; `None` if the client has committed it.
    end: Option<f64>,
}

impl Item {
    fn new() -> Self {
        Self {
            id: id("item"),
            said: String::new(),
        }
    }

    /// A delta up to this text, if the text goes on from the deltas before.
    fn say(&mut self, text: &str) -> Option<Value> {
        let delta = text.strip_prefix(&*self.said).filter(|delta| !delta.is_empty())?;
        let event = json!({
            "type": "conversation.item.input_audio_transcription.delta",
            "item_id": self.id,
            "content_index": 0,
            "delta": delta,
        });
        text.clone_into(&mut self.said);
        Some(event)
    }

    fn complete(mut self, text: &str, seconds: f64) -> Vec<Value> {
        let delta = self.say(text);
        let completed = json!({
            "type": "conversation.item.input_audio_transcription.completed",
            "item_id": self.id,
            "content_index": 0,
            "transcript": text,
            "usage": {"type": "duration", "seconds": seconds},
        });
        delta.into_iter().chain([completed]).collect()
    }

    fn fail(self, code: &Value, message: &Value) -> Value {
        json!({
            "type": "conversation.item.input_audio_transcription.failed",
            "item_id": self.id,
            "content_index": 0,
            "error": {"type": "transcription_error", "code": code, "message": message, "param": null},
        })
    }
}

impl Items {
    pub(super) fn append(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// The client commits its audio. `None` if there is none.
    pub(super) fn commit(&mut self) -> Option<Vec<Value>> {
        if std::mem::take(&mut self.bytes) == 0 {
            return None;
        }
        self.ended_by_client = self.current.is_some();
        let item = self.current.take().unwrap_or_else(Item::new);
        Some(self.committed(item, None))
    }

    pub(super) fn clear(&mut self) {
        self.bytes = 0;
        self.ended_by_client = self.current.take().is_some();
    }

    pub(super) fn speech_started(&mut self, at: f64) -> Vec<Value> {
        self.ended_by_client = false;
        let item = self.current.insert(Item::new());
        vec![json!({
            "type": "input_audio_buffer.speech_started",
            "audio_start_ms": milliseconds(at),
            "item_id": item.id,
        })]
    }

    pub(super) fn speech_stopped(&mut self, at: f64) -> Vec<Value> {
        if std::mem::take(&mut self.ended_by_client) {
            return Vec::new();
        }
        self.bytes = 0;
        let item = self.current.take().unwrap_or_else(Item::new);
        let stopped = json!({
            "type": "input_audio_buffer.speech_stopped",
            "audio_end_ms": milliseconds(at),
            "item_id": item.id,
        });
        let mut events = vec![stopped];
        events.extend(self.committed(item, Some(at)));
        events
    }

    /// A partial transcript, whose first characters stay.
    pub(super) fn partial(&mut self, text: &str, stable: usize) -> Vec<Value> {
        let stable: String = text.chars().take(stable).collect();
        let item = self.current.get_or_insert_with(Item::new);
        item.say(&stable).into_iter().collect()
    }

    /// A final transcript.
    pub(super) fn completed(&mut self, message: &Value) -> Vec<Value> {
        let text = message["text"].as_str().unwrap_or_default();
        let length = seconds(&message["end"]) - seconds(&message["start"]);
        let (item, mut events) = self.item_of(message);
        events.extend(item.complete(text, (length.max(0.0) * 1e3).round() / 1e3));
        events
    }

    /// An utterance that was not transcribed.
    pub(super) fn failed(&mut self, message: &Value) -> Vec<Value> {
        let (item, mut events) = self.item_of(message);
        events.push(item.fail(&message["code"], &message["message"]));
        events
    }

    /// The item that a message about an utterance ends, and the events before.
    fn item_of(&mut self, message: &Value) -> (Item, Vec<Value>) {
        let end = seconds(&message["end"]);
        let by_client = message["from_flush"] == true;
        let is_it = |committed: &Committed| match committed.end {
            None => by_client,
            Some(at) => !by_client && (at - end).abs() < 0.002,
        };
        let mut events = Vec::new();
        let place = self.committed.iter().position(is_it);
        // Those before have no transcript: sounds that were too short, or no words.
        for before in self.committed.drain(..place.unwrap_or(0)) {
            events.extend(before.item.complete("", 0.0));
        }
        if let Some(committed) = place.and_then(|_| self.committed.pop_front()) {
            return (committed.item, events);
        }
        // A long utterance was cut, and the speech goes on.
        let goes_on = self.current.as_ref().is_some_and(|_| !by_client);
        let item = self.current.take().unwrap_or_else(Item::new);
        events.extend(self.commit_event(&item));
        if goes_on {
            self.current = Some(Item::new());
        }
        (item, events)
    }

    fn committed(&mut self, item: Item, end: Option<f64>) -> Vec<Value> {
        let events = self.commit_event(&item);
        self.committed.push_back(Committed { item, end });
        events
    }

    fn commit_event(&mut self, item: &Item) -> Vec<Value> {
        let previous = self.previous.replace(item.id.clone());
        let content = json!([{"type": "input_audio", "transcript": null}]);
        vec![
            json!({
                "type": "input_audio_buffer.committed",
                "item_id": item.id,
                "previous_item_id": previous,
            }),
            json!({
                "type": "conversation.item.added",
                "previous_item_id": previous,
                "item": {"id": item.id, "type": "message", "role": "user", "status": "completed", "content": content},
            }),
        ]
    }
}

/// Times of a session are a few hours at most.
fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1e3).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript(text: &str, start: f64, end: f64, from_flush: bool) -> Value {
        json!({"text": text, "start": start, "end": end, "from_flush": from_flush})
    }

    /// The types of the events without their prefixes, with the number of the item and the text.
    fn shown(events: &[Value], ids: &mut Vec<String>) -> Vec<String> {
        let mut show = |event: &Value| {
            let kind = event["type"]
                .as_str()
                .unwrap()
                .rsplit('.')
                .next()
                .unwrap()
                .to_owned();
            let id = event["item_id"]
                .as_str()
                .or(event["item"]["id"].as_str())
                .unwrap()
                .to_owned();
            let number = ids.iter().position(|known| *known == id).unwrap_or_else(|| {
                ids.push(id);
                ids.len() - 1
            });
            let text = event["delta"].as_str().or(event["transcript"].as_str());
            format!(
                "{kind} {number}{}",
                text.map(|text| format!(" {text:?}")).unwrap_or_default()
            )
        };
        events.iter().map(&mut show).collect()
    }

    #[test]
    fn utterance_is_an_item_whose_deltas_make_its_transcript() {
        let (mut items, mut ids) = (Items::default(), Vec::new());
        let mut events = items.speech_started(1.0);
        events.extend(items.partial("one tw", 3));
        events.extend(items.partial("one two", 3));
        events.extend(items.partial("one two three", 7));
        events.extend(items.speech_stopped(2.0));
        events.extend(items.completed(&transcript("one two three", 1.0, 2.0, false)));
        assert_eq!(
            shown(&events, &mut ids),
            [
                "speech_started 0",
                "delta 0 \"one\"",
                "delta 0 \" two\"",
                "speech_stopped 0",
                "committed 0",
                "added 0",
                "delta 0 \" three\"",
                "completed 0 \"one two three\"",
            ]
        );
        // A transcript that differs has no further delta.
        let mut events = items.speech_started(3.0);
        events.extend(items.partial("for", 3));
        events.extend(items.speech_stopped(4.0));
        events.extend(items.completed(&transcript("Four", 3.0, 4.0, false)));
        let completed = "completed 1 \"Four\"".to_owned();
        assert_eq!(shown(&events, &mut ids).last(), Some(&completed));
    }

    #[test]
    fn sound_without_transcript_completes_empty() {
        let (mut items, mut ids) = (Items::default(), Vec::new());
        let mut events = items.speech_started(1.0);
        events.extend(items.speech_stopped(1.1));
        events.extend(items.speech_started(2.0));
        events.extend(items.speech_stopped(3.0));
        events.extend(items.completed(&transcript("one", 2.0, 3.0, false)));
        let shown = shown(&events, &mut ids);
        assert_eq!(
            shown[shown.len() - 3..],
            ["completed 0 \"\"", "delta 1 \"one\"", "completed 1 \"one\""]
        );
    }

    #[test]
    fn utterance_without_transcript_fails_with_its_item() {
        let (mut items, mut ids) = (Items::default(), Vec::new());
        let mut events = items.speech_started(1.0);
        events.extend(items.speech_stopped(2.0));
        events.extend(items.speech_started(3.0));
        events.extend(items.failed(&json!({"code": "c", "message": "m", "start": 1.0, "end": 2.0})));
        events.extend(items.speech_stopped(4.0));
        events.extend(items.completed(&transcript("two", 3.0, 4.0, false)));
        assert_eq!(
            shown(&events, &mut ids)[4..],
            [
                "speech_started 1",
                "failed 0",
                "speech_stopped 1",
                "committed 1",
                "added 1",
                "delta 1 \"two\"",
                "completed 1 \"two\"",
            ]
        );
        let error = json!({"type": "transcription_error", "code": "c", "message": "m", "param": null});
        assert_eq!(events[5]["error"], error);
    }

    #[test]
    fn commit_in_speech_commits_its_item_once() {
        let (mut items, mut ids) = (Items::default(), Vec::new());
        assert_eq!(items.commit(), None);
        items.append(100);
        let mut events = items.speech_started(1.0);
        events.extend(items.commit().unwrap());
        events.extend(items.speech_stopped(1.5));
        events.extend(items.completed(&transcript("one", 1.0, 1.5, true)));
        assert_eq!(
            shown(&events, &mut ids),
            [
                "speech_started 0",
                "committed 0",
                "added 0",
                "delta 0 \"one\"",
                "completed 0 \"one\""
            ]
        );
        assert_eq!(items.commit(), None);
    }

    #[test]
    fn cut_utterance_is_two_items() {
        let (mut items, mut ids) = (Items::default(), Vec::new());
        let mut events = items.speech_started(1.0);
        events.extend(items.completed(&transcript("one", 1.0, 31.0, false)));
        events.extend(items.speech_stopped(33.0));
        events.extend(items.completed(&transcript("two", 31.0, 33.0, false)));
        assert_eq!(
            shown(&events, &mut ids),
            [
                "speech_started 0",
                "committed 0",
                "added 0",
                "delta 0 \"one\"",
                "completed 0 \"one\"",
                "speech_stopped 1",
                "committed 1",
                "added 1",
                "delta 1 \"two\"",
                "completed 1 \"two\"",
            ]
        );
    }
}
