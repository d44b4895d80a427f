//! `/workers`: the engine processes, and what each of them does. Their sessions are on `/sessions`.

use anyhow::Result;
use maud::{Markup, html};
use redis::RedisResult;

use super::layout::{age, no_redis, or_dash, state, table};
use super::view::Part;
use crate::db::{Task, TaskStatus};
use crate::platform::Platform;
use crate::wire::{EngineRecord, InHand};

pub(super) async fn parts(platform: &Platform) -> Result<Vec<Part>> {
    let (engines, in_hand) = match load(platform).await {
        Ok(loaded) => loaded,
        Err(error) => return Ok(vec![Part::new("workers", no_redis(&error))]),
    };
    let ids: Vec<String> = in_hand.iter().map(|task| task.task_id.clone()).collect();
    let tasks = platform.db.read(move |db| {
        ids.iter()
            .map(|id| Task::find(db, id))
            .collect::<Result<Vec<_>, _>>()
    });
    let tasks: Vec<(InHand, Option<Task>)> = in_hand.into_iter().zip(tasks.await?).collect();
    let rows: Vec<Markup> = engines.iter().map(|engine| row(engine, &tasks)).collect();
    let columns = [
        "Worker",
        "Engine",
        "State",
        "Works on",
        "Model in memory",
        "GPU memory",
        "Heartbeat",
    ];
    Ok(vec![Part::new("workers", table("Workers", &columns, &rows))])
}

async fn load(platform: &Platform) -> RedisResult<(Vec<EngineRecord>, Vec<InHand>)> {
    let engines = platform.wire.engines().await?;
    let mut ids: Vec<&str> = engines.iter().map(EngineRecord::engine_id).collect();
    ids.sort_unstable();
    ids.dedup();
    let mut in_hand = Vec::new();
    for id in ids {
        in_hand.extend(platform.wire.in_hand(id).await?);
    }
    Ok((engines, in_hand))
}

fn row(engine: &EngineRecord, tasks: &[(InHand, Option<Task>)]) -> Markup {
    let instance = engine.text("instance");
    let own = tasks.iter().filter(|(task, _)| task.instance == instance);
    let version = engine.capabilities()["version"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let since = |name| engine.text(name).parse().ok().map_or("-".to_owned(), age);
    html! {
        td.text title={ "registered " (since("registered_at")) " ago on " (engine.text("hostname")) } { (instance) }
        td { (engine.engine_id()) " " (version) br; span.none { (engine.text("stage")) } }
        td {
            (state(engine.text("status")))
            br; span.none { (engine.number("active_batch")) " of " (engine.number("capacity")) }
        }
        td { @for (held, task) in own { (work(held, task.as_ref())) } }
        td { (or_dash(engine.text("loaded_model"))) }
        td { (gpu(engine)) }
        td { (since("last_heartbeat")) }
    }
}

fn work(held: &InHand, task: Option<&Task>) -> Markup {
    html! {
        div {
            @if let Some(task) = task {
                a href={ "jobs/" (task.job_id) } title=(task.id) { (task.stage) }
                @match (task.status, task.started_at) {
                    (TaskStatus::Running, Some(since)) => { " since " (age(since)) }
                    (TaskStatus::Ready, _) => " is prepared",
                    _ => { " is " (task.status.as_str()) }
                }
            } @else {
                (held.task_id)
            }
            @if held.deliveries > 1 { span.bad { " delivered " (held.deliveries) " times" } }
        }
    }
}

fn gpu(engine: &EngineRecord) -> String {
    match (engine.text("gpu_memory_used"), engine.text("gpu_memory_total")) {
        (_, "" | "0GB") => "no GPU".to_owned(),
        (used, total) => format!("{used} of {total}"),
    }
}
