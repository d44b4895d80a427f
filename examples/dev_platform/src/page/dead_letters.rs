//! `/dead-letters`: events that could not be handled, and tasks that have failed for good.

use anyhow::Result;
use maud::{Markup, html};

use super::job::retry;
use super::layout::{no_redis, table, time};
use super::view::Part;
use crate::db::Task;
use crate::platform::Platform;
use crate::wire::DeadLetter;

/// The most tasks that are listed.
const MAX_TASKS: u32 = 100;

pub(super) async fn parts(platform: &Platform) -> Result<Vec<Part>> {
    let events = match platform.wire.dead_letters().await {
        Ok((letters, total)) => {
            let rows: Vec<Markup> = letters.iter().map(event).collect();
            let columns = ["Failed", "Event", "Reason", "Error", "Payload"];
            html! {
                (table("Events that could not be handled", &columns, &rows))
                @if total > rows.len() as u64 { p.none { "the newest " (rows.len()) " of " (total) } }
            }
        }
        Err(error) => no_redis(&error),
    };
    let failed = platform.db.read(|db| Task::failed(db, MAX_TASKS)).await?;
    let can_retry = !platform.page.is_read_only;
    let rows: Vec<Markup> = failed.iter().map(|failed| task(failed, can_retry)).collect();
    let mut columns = vec!["Failed", "Task", "Engine", "Attempts", "Error"];
    columns.extend(can_retry.then_some("Job"));
    let tasks = table("Tasks that have failed for good", &columns, &rows);
    Ok(vec![Part::new("events", events), Part::new("tasks", tasks)])
}

fn event(letter: &DeadLetter) -> Markup {
    html! {
        td { @match letter.text("failed_at").parse() { Ok(at) => (time(at)), Err(_) => "-" } }
        td { (letter.text("event_type")) br; span.none { (letter.text("source_message_id")) } }
        td { (letter.text("failure_reason")) }
        td.text { (letter.text("error")) }
        td.text { details { summary { "show" } pre { (letter.text("raw_payload")) } } }
    }
}

fn task(task: &Task, can_retry: bool) -> Markup {
    html! {
        td { @match task.completed_at { Some(at) => (time(at)), None => "-" } }
        td { a href={ "jobs/" (task.job_id) } title=(task.id) { (task.stage) } }
        td { (task.engine_id) }
        td { (task.retries + 1) }
        td.text { (task.error.as_deref().unwrap_or_default()) }
        @if can_retry { td { (retry(&task.job_id)) } }
    }
}
