//! The realtime transcription protocol of OpenAI: [`OpenAi`].
//!
//! It is another form of the same session. Events of the client become messages of section 10 or
//! changes of the configuration, and the messages of the session become events.

mod events;
mod items;
mod update;

use std::collections::{HashMap, VecDeque};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use self::events::{Event, error};
use self::items::Items;
use self::update::{Settings, is_of_openai};
use super::peer::{Gone, Peer, Received};

/// A client that speaks the protocol of OpenAI.
pub(super) struct OpenAi<'a, P> {
    inner: &'a mut P,
    settings: Settings,
    items: Items,
    /// What the last event of the client stands for.
    queued: VecDeque<Received>,
    /// Whether there was audio.
    has_audio: bool,
}

/// The query of such a session: 24 kHz, and utterances end with 500 ms of silence.
pub(super) fn query(asked: &HashMap<String, String>) -> HashMap<String, String> {
    let defaults = [("sample_rate", "24000"), ("min_silence_duration_ms", "500")];
    let mut query: HashMap<String, String> = defaults
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    for name in ["session_id", "traceparent", "store_audio", "store_transcript"] {
        if let Some(value) = asked.get(name) {
            query.insert(name.to_owned(), value.clone());
        }
    }
    if let Some(model) = asked.get("model").filter(|model| !is_of_openai(model)) {
        query.insert("model".to_owned(), model.clone());
    }
    query
}

impl<'a, P: Peer> OpenAi<'a, P> {
    pub(super) fn new(inner: &'a mut P) -> Self {
        Self {
            inner,
            settings: Settings::default(),
            items: Items::default(),
            queued: VecDeque::new(),
            has_audio: false,
        }
    }

    fn take(&mut self, text: &str) {
        let event = match Event::parse(text) {
            Ok(event) => event,
            Err(problem) => return self.queued.push_back(Received::Reply(problem)),
        };
        let id = event.id.clone();
        if let Err(problem) = self.follow(event) {
            let reply = error("invalid_request_error", "invalid_value", &problem, id.as_deref());
            self.queued.push_back(Received::Reply(reply));
        }
    }

    fn follow(&mut self, event: Event) -> Result<(), String> {
        match &*event.kind {
            "session.update" | "transcription_session.update" => {
                let change = self.settings.update(&event.session, self.has_audio)?;
                self.queued.push_back(Received::Config(Box::new(change)));
                let reply = json!({
                    "type": event.kind.replace("update", "updated"),
                    "session": self.settings.session(),
                });
                self.queued.push_back(Received::Reply(reply));
            }
            "input_audio_buffer.append" => {
                let audio = BASE64_STANDARD
                    .decode(event.audio.as_bytes())
                    .map_err(|error| format!("audio is not base64: {error}"))?;
                self.has_audio |= !audio.is_empty();
                self.items.append(audio.len());
                self.queued.push_back(Received::Audio(audio.into()));
            }
            "input_audio_buffer.commit" => {
                let committed = self
                    .items
                    .commit()
                    .ok_or_else(|| "there is no audio to commit since the last commit or clear".to_owned())?;
                self.queued.extend(committed.into_iter().map(Received::Reply));
                self.queued
                    .push_back(Received::Text(r#"{"type":"commit"}"#.to_owned()));
            }
            "input_audio_buffer.clear" => {
                self.items.clear();
                self.queued
                    .push_back(Received::Text(r#"{"type":"clear"}"#.to_owned()));
                let cleared = json!({"type": "input_audio_buffer.cleared"});
                self.queued.push_back(Received::Reply(cleared));
            }
            other => {
                return Err(format!(
                    "type is {other:?}: expected session.update, input_audio_buffer.append, \
                     input_audio_buffer.commit or input_audio_buffer.clear"
                ));
            }
        }
        Ok(())
    }

    /// The events that a message of the session stands for.
    fn events(&mut self, message: &Value) -> Vec<Value> {
        let text = |key: &str| message[key].as_str().unwrap_or_default();
        match text("type") {
            "session.begin" => {
                self.settings.begin(message);
                vec![json!({"type": "session.created", "session": self.settings.session()})]
            }
            "vad.speech_start" => self.items.speech_started(seconds(&message["timestamp"])),
            "vad.speech_end" => self.items.speech_stopped(seconds(&message["timestamp"])),
            "transcript.partial" => {
                let stable = message["stable_until"].as_u64().unwrap_or_default();
                self.items
                    .partial(text("text"), usize::try_from(stable).unwrap_or_default())
            }
            "transcript.final" => self.items.completed(message),
            // An error with times is about an utterance.
            "error" if message.get("end").is_some() => self.items.failed(message),
            "error" if message.get("code").is_some() => {
                let kind = match text("code") {
                    "internal_error" | "lag_exceeded" | "no_capacity" => "server_error",
                    _ => "invalid_request_error",
                };
                vec![error(kind, text("code"), text("message"), None)]
            }
            "session.terminated" => {
                let text = "the session can be continued with a new connection";
                vec![error("server_error", "session_terminated", text, None)]
            }
            // The protocol has neither warnings of lag nor a last message.
            "warning" | "session.end" => Vec::new(),
            _ => vec![message.clone()],
        }
    }
}

fn seconds(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

impl<P: Peer> Peer for OpenAi<'_, P> {
    async fn receive(&mut self) -> Received {
        loop {
            if let Some(received) = self.queued.pop_front() {
                return received;
            }
            match self.inner.receive().await {
                Received::Text(text) => self.take(&text),
                Received::Audio(_) => {
                    let text = "binary messages are no part of this protocol: send input_audio_buffer.append";
                    let reply = error("invalid_request_error", "invalid_value", text, None);
                    return Received::Reply(reply);
                }
                other => return other,
            }
        }
    }

    async fn send(&mut self, message: &Value) -> Result<(), Gone> {
        for event in self.events(message) {
            let event = events::with_id(event);
            self.inner.send(&event).await?;
        }
        Ok(())
    }

    async fn ping(&mut self) -> Result<(), Gone> {
        self.inner.ping().await
    }

    async fn close(&mut self, code: u16, reason: &'static str) {
        self.inner.close(code, reason).await;
    }
}
