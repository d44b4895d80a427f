//! What all pages have, and how times are written.

use std::sync::LazyLock;
use std::time::Duration;

use dalston_engine_sdk::protocol::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{trace, view::Part};
use crate::config::PageConfig;

pub(super) const SCRIPT: &str = include_str!("page.js");
pub(super) const MICROPHONE: &str = include_str!("microphone.js");
pub(super) const STYLE: &str = include_str!("style.css");

/// The version of all of them.
pub(super) static VERSION: LazyLock<String> =
    LazyLock::new(|| Part::new("", html! { (SCRIPT) (MICROPHONE) (STYLE) }).version());

const LINKS: [(&str, &str); 6] = [
    ("./", "Jobs"),
    ("queues", "Queues"),
    ("workers", "Workers"),
    ("sessions", "Sessions"),
    ("microphone", "Microphone"),
    ("dead-letters", "Dead letters"),
];

/// Where a page is.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) title: &'static str,
    /// The way from it to the first page.
    pub(super) root: &'static str,
    /// The address of its events, from the first page.
    pub(super) events: String,
    pub(super) config: PageConfig,
}

impl Place {
    /// Whether there is a link to a page: a session with the microphone is a change.
    fn shows(&self, title: &str) -> bool {
        !self.config.is_read_only || title != "Microphone"
    }
}

pub(super) fn page(place: &Place, parts: &[Part]) -> Markup {
    let main = html! {
        main data-events=(place.events) {
            @for part in parts {
                div id=(part.name) data-version=(part.version()) { (PreEscaped(&part.html)) }
            }
            @if place.title == "Job" {
                aside #details hidden {}
                (trace::help())
                section #transcript hidden { h2 { "Transcript" } p {} }
            }
        }
    };
    document(place, &main)
}

/// A page that follows nothing.
pub(super) fn plain(place: &Place, content: &Markup) -> Markup {
    document(place, &html! { main { (content) } })
}

pub(super) fn problem(place: &Place, text: &str) -> Markup {
    plain(place, &html! { p.bad { (text) } })
}

fn document(place: &Place, main: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { (place.title) " - Dalston" }
                base href=(place.root);
                link rel="icon" href="data:,";
                link rel="stylesheet" href={ "assets/style.css?v=" (*VERSION) };
                script src={ "assets/page.js?v=" (*VERSION) } defer {}
            }
            body {
                header {
                    h1 { "Dalston" }
                    nav {
                        @for (href, title) in LINKS.into_iter().filter(|(_, title)| place.shows(title)) {
                            a href=(href) aria-current=[(title == place.title).then_some("page")] { (title) }
                        }
                        @if let Some(grafana) = &place.config.grafana { a href=(grafana) { "Grafana" } }
                    }
                    @if place.config.is_read_only { span.none { "read-only" } }
                    span #connection role="status" {}
                }
                (main)
            }
        }
    }
}

/// A heading and a table, or the word "none".
pub(super) fn table(title: &str, columns: &[&str], rows: &[Markup]) -> Markup {
    html! {
        h2 { (title) }
        @if rows.is_empty() {
            p.none { "none" }
        } @else {
            table {
                thead { tr { @for column in columns { th { (column) } } } }
                tbody { @for row in rows { tr { (row) } } }
            }
        }
    }
}

/// What is shown in place of what Redis holds.
pub(super) fn no_redis(error: &redis::RedisError) -> Markup {
    tracing::warn!(%error, "page_without_redis");
    html! { p.bad { "Redis can't be read now." } }
}

pub(super) fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// A state, in its colour.
pub(super) fn state(name: &str) -> Markup {
    html! { span class={ "state " (name) } { (name) } }
}

/// A time of day in UTC.
pub(super) fn time(at: Timestamp) -> Markup {
    let text = at.to_string();
    // `2026-01-31T12:00:00.000000+00:00`
    let short = text.get(..19).unwrap_or(&text).replace('T', " ");
    html! { time datetime=(text) { (short) } }
}

/// How long ago it was.
pub(super) fn age(since: Timestamp) -> String {
    let seconds = Timestamp::now().seconds_since(since).max(0.0);
    match seconds as u64 {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// From one time to the other; a dash if one is missing.
pub(super) fn between(from: Option<Timestamp>, to: Option<Timestamp>) -> String {
    match (from, to) {
        (Some(from), Some(to)) => duration(Duration::from_secs_f64(to.seconds_since(from).max(0.0))),
        _ => "-".to_owned(),
    }
}

pub(super) fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match time.as_micros() {
        0 => "0 ms".to_owned(),
        1..1_000 => format!("{:.2} ms", seconds * 1e3),
        1_000..100_000 => format!("{:.1} ms", seconds * 1e3),
        100_000..1_000_000 => format!("{:.0} ms", seconds * 1e3),
        1_000_000..60_000_000 => format!("{seconds:.2} s"),
        _ => format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_suitable_unit() {
        let shown = |micros| duration(Duration::from_micros(micros));
        let found = [
            shown(0),
            shown(50),
            shown(1_500),
            shown(250_000),
            shown(2_340_000),
            shown(125_000_000),
        ];
        assert_eq!(
            found,
            ["0 ms", "0.05 ms", "1.5 ms", "250 ms", "2.34 s", "2 min 05 s"]
        );
    }

    #[test]
    fn page_has_no_absolute_address_and_no_inline_script() {
        let place = Place {
            title: "Job",
            root: "../",
            events: "events/jobs/1".to_owned(),
            config: PageConfig::default(),
        };
        let text = page(&place, &[Part::new("job", html! { "<" })]).into_string();
        for wrong in ["href=\"/", "src=\"/", "<script>", "style=", "onclick"] {
            assert!(!text.contains(wrong), "{wrong} in {text}");
        }
        assert!(text.contains("<base href=\"../\">"), "{text}");
    }
}
