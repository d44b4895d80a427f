//! `/microphone`: transcribes in the browser, through the gateway's route for sessions.

use maud::{Markup, html};

use super::layout::VERSION;

/// The content of the page. The script fills it.
pub(super) fn content() -> Markup {
    html! {
        h2 { "Microphone" }
        form #microphone data-session="v1/audio/transcriptions/stream" data-token="v1/realtime/token" {
            label { "Language " input name="language" size="6" placeholder="auto"; }
            label { "Model " input name="model" size="24" placeholder="any"; }
            button name="start" { "Start" }
            button type="button" name="stop" disabled { "Stop" }
            output {}
        }
        h2 { "Transcript" }
        ol #finals {}
        p #partial .none {}
        script src={ "assets/microphone.js?v=" (*VERSION) } defer {}
    }
}
