//! `/sessions`: the realtime sessions of all gateways, and the workers.

use anyhow::Result;
use dalston_engine_sdk::protocol::Timestamp;
use maud::{Markup, html};
use redis::RedisResult;

use super::layout::{age, no_redis, or_dash, state, table};
use super::view::Part;
use crate::platform::Platform;
use crate::wire::{EngineRecord, LiveSession};

/// What the page shows.
struct Loaded {
    sessions: Vec<LiveSession>,
    total: usize,
    workers: Vec<(EngineRecord, usize)>,
}

pub(super) async fn parts(platform: &Platform) -> Result<Vec<Part>> {
    let loaded = match load(platform).await {
        Ok(loaded) => loaded,
        Err(error) => return Ok(vec![Part::new("sessions", no_redis(&error))]),
    };
    let columns = [
        "Session", "Since", "Worker", "Model", "Language", "Audio", "Lag", "Client",
    ];
    let rows: Vec<Markup> = loaded
        .sessions
        .iter()
        .map(|session| row(session, &loaded.workers))
        .collect();
    let more = loaded.total.saturating_sub(rows.len());
    let sessions = html! {
        (table("Sessions", &columns, &rows))
        @if more > 0 { p.none { (more) " more" } }
        @if !platform.page.is_read_only { p { a href="microphone" { "Transcribe with the microphone" } } }
    };
    let columns = [
        "Worker",
        "Engine",
        "State",
        "Sessions",
        "Model in memory",
        "Address",
        "Heartbeat",
    ];
    let rows: Vec<Markup> = loaded.workers.iter().map(worker).collect();
    Ok(vec![
        Part::new("sessions", sessions),
        Part::new("realtime-workers", table("Realtime workers", &columns, &rows)),
    ])
}

async fn load(platform: &Platform) -> RedisResult<Loaded> {
    let (sessions, total) = platform.wire.live_sessions().await?;
    let mut workers = Vec::new();
    for worker in platform.wire.realtime_workers().await? {
        let sessions = platform.wire.sessions_of(worker.text("instance")).await?;
        workers.push((worker, sessions));
    }
    Ok(Loaded {
        sessions,
        total,
        workers,
    })
}

fn row(session: &LiveSession, workers: &[(EngineRecord, usize)]) -> Markup {
    let instance = session.text("instance");
    let worker = workers.iter().map(|(worker, _)| worker);
    let worker = worker
        .into_iter()
        .find(|worker| worker.text("instance") == instance);
    // Without a wish it is the one that the worker has loaded.
    let model = match session.text("model") {
        "" => worker.map_or("", |worker| worker.text("loaded_model")),
        model => model,
    };
    let since: Option<Timestamp> = session.text("started_at").parse().ok();
    let seconds = |name| match session.text(name) {
        "" => "-".to_owned(),
        seconds => format!("{seconds} s"),
    };
    html! {
        td.text { (session.id) }
        td { @if let Some(since) = since { span title=(since) { (age(since)) } } }
        td.text { (instance) }
        td { (or_dash(model)) }
        td { @match session.text("language") { "" => "auto", language => (language) } }
        td { (seconds("audio_seconds")) }
        td title="The audio after the end of the last transcript when it came" { (seconds("lag_seconds")) }
        td { (session.text("client_ip")) }
    }
}

fn worker((worker, sessions): &(EngineRecord, usize)) -> Markup {
    let heartbeat = worker.text("last_heartbeat").parse().ok();
    html! {
        td.text { (worker.text("instance")) }
        td { (worker.engine_id()) }
        td { (state(worker.text("status"))) }
        td { (sessions) " of " (worker.number("capacity")) }
        td { (or_dash(worker.text("loaded_model"))) }
        td.text { (worker.text("endpoint")) }
        td { (heartbeat.map_or("-".to_owned(), age)) }
    }
}
