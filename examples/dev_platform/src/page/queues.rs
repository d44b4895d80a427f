//! `/queues`: what waits for workers.

use std::collections::BTreeSet;

use anyhow::Result;
use maud::{Markup, html};
use redis::RedisResult;

use super::layout::{age, no_redis, table};
use super::view::Part;
use crate::db::Task;
use crate::platform::Platform;
use crate::wire::Queue;

pub(super) async fn parts(platform: &Platform) -> Result<Vec<Part>> {
    // A queue whose workers are all gone is the one that matters.
    let known = platform.db.read(|db| Task::engine_ids(db)).await?;
    let markup = match load(platform, known).await {
        Ok(queues) => {
            let rows: Vec<Markup> = queues.iter().map(row).collect();
            let columns = ["Engine", "Waiting", "Oldest waits since", "In hand", "Workers"];
            table("Queues", &columns, &rows)
        }
        Err(error) => no_redis(&error),
    };
    Ok(vec![Part::new("queues", markup)])
}

async fn load(platform: &Platform, known: Vec<String>) -> RedisResult<Vec<(Queue, usize)>> {
    let engines = platform.wire.engines().await?;
    let mut ids: BTreeSet<&str> = engines.iter().map(|engine| engine.engine_id()).collect();
    ids.extend(known.iter().map(String::as_str));
    let mut queues = Vec::new();
    for id in ids {
        if let Some(queue) = platform.wire.inspect(id).await? {
            let workers = engines.iter().filter(|engine| engine.engine_id() == id);
            queues.push((queue, workers.count()));
        }
    }
    Ok(queues)
}

fn row((queue, workers): &(Queue, usize)) -> Markup {
    html! {
        td { (queue.engine_id) }
        td { (queue.depth) }
        td { @match queue.oldest { Some(since) => (age(since)), None => "-" } }
        td { (queue.in_hand) }
        td class=[(*workers == 0).then_some("bad")] { (workers) }
    }
}
