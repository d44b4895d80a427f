//! `/jobs/{id}`: a job, its stages, and its waterfall.

use anyhow::Result;
use dalston_engine_sdk::protocol::Timestamp;
use dalston_telemetry::opentelemetry::TraceId;
use dalston_telemetry::opentelemetry::trace::TraceContextExt;
use maud::{Markup, html};

use super::jobs::took;
use super::layout::{between, state, table, time};
use super::trace;
use super::view::Part;
use crate::db::{Job, JobStatus, Task};
use crate::platform::Platform;

/// The width of a bar, in its own units.
const WIDTH: f64 = 1000.0;

pub(super) async fn parts(platform: &Platform, id: &str) -> Result<Option<Vec<Part>>> {
    let key = id.to_owned();
    let found = platform.db.read(move |db| {
        let Some(job) = Job::find(db, &key)? else {
            return Ok(None);
        };
        Ok(Some((job, Task::of_job(db, &key)?)))
    });
    let Some((job, tasks)) = found.await? else {
        return Ok(None);
    };
    let trace_id = trace_id(&job);
    let spans = trace_id.map_or_else(Vec::new, |id| platform.traces.spans(id));
    Ok(Some(vec![
        Part::new("job", summary(&job, trace_id, platform.page.is_read_only)),
        Part::new("stages", stages(&job, &tasks)),
        Part::new("trace", trace::section(trace_id, &spans)),
    ]))
}

fn trace_id(job: &Job) -> Option<TraceId> {
    let context = job.message().context();
    let span = context.span().span_context().clone();
    span.is_valid().then(|| span.trace_id())
}

fn summary(job: &Job, trace_id: Option<TraceId>, is_read_only: bool) -> Markup {
    let api = format!("v1/audio/transcriptions/{}", job.id);
    let model = job.parameters.model.as_deref();
    let can_be_cancelled = matches!(job.status, JobStatus::Pending | JobStatus::Running);
    // The script reads the transcript through the API, which records who has read it.
    let transcript = (job.status == JobStatus::Completed).then_some(&api);
    html! {
        h2 data-transcript=[transcript] { (job.display_name) " " (state(job.status.as_str())) }
        @if let Some(error) = &job.error { p.bad { (error) } }
        dl.facts {
            dt { "Job" } dd { code { (job.id) } }
            @if let Some(id) = trace_id { dt { "Trace" } dd { code { (id) } } }
            @if let Some(id) = &job.request_id { dt { "Request" } dd { code { (id) } } }
            dt { "Created" } dd { (time(job.created_at)) }
            @if let Some(at) = job.retried_at {
                dt { "Retries" } dd { (job.retries) ", the last at " (time(at)) }
            }
            dt { "Took" } dd { (took(job)) }
            dt { "Recording" } dd { (format!("{:.1} s", job.media.duration)) ", " (job.media.channels) " channels" }
            dt { "Engine" } dd { (job.engine_id.as_deref().unwrap_or("-")) }
            @if let Some(model) = model { dt { "Model" } dd { (model) } }
        }
        p.actions {
            @if !is_read_only {
                @if can_be_cancelled { button data-call={ "POST " (api) "/cancel" } { "Cancel" } " " }
                @if job.status.is_retryable() { (retry(&job.id)) " " }
                @if job.status.is_terminal() {
                    button data-call={ "DELETE " (api) } data-confirm="Delete the job and its files?" { "Delete" } " "
                }
            }
            a href=(api) { "as JSON" }
        }
    }
}

/// The button that runs a job again.
pub(super) fn retry(job_id: &str) -> Markup {
    html! { button data-call={ "POST v1/audio/transcriptions/" (job_id) "/retry" } { "Retry" } }
}

fn stages(job: &Job, tasks: &[Task]) -> Markup {
    let now = Timestamp::now();
    let end = match job.ended_at {
        Some(ended) if job.status.is_terminal() => ended,
        _ => now,
    };
    let whole = end.seconds_since(job.run_at()).max(0.001);
    let rows: Vec<Markup> = tasks.iter().map(|task| row(job, task, whole, end)).collect();
    let columns = [
        "Stage",
        "State",
        "Wait, then run",
        "Wait",
        "Run",
        "Retries",
        "Engine",
        "Documents",
    ];
    html! {
        (table("Stages", &columns, &rows))
        @for task in tasks {
            @if let Some(error) = &task.error { p.bad { (task.stage) ": " (error) } }
        }
    }
}

fn row(job: &Job, task: &Task, whole: f64, end: Timestamp) -> Markup {
    let place = |time: Timestamp| (time.seconds_since(job.run_at()) / whole * WIDTH).clamp(0.0, WIDTH);
    let bar = |class: &str, from: Option<Timestamp>, to: Option<Timestamp>| {
        let from = place(from?);
        let width = (place(to.unwrap_or(end)) - from).max(0.0);
        Some(html! {
            rect class=(class) x=(format!("{from:.1}")) y="2" width=(format!("{width:.1}")) height="12" {}
        })
    };
    let documents = format!("v1/audio/transcriptions/{}/tasks/{}/artifacts", job.id, task.id);
    let is_queued = task.ready_at.is_some();
    // An attempt that ended without a start waited until its end.
    let waited = task.started_at.or(task.completed_at);
    html! {
        td { (task.stage) }
        td { (state(task.status.as_str())) }
        td {
            svg.stage viewBox="0 0 1000 16" preserveAspectRatio="none" role="img" aria-label="wait and run" {
                @if let Some(bar) = bar("wait", task.ready_at, waited) { (bar) }
                @if let Some(bar) = bar("run", task.started_at, task.completed_at) { (bar) }
            }
        }
        td { (between(task.ready_at, task.started_at)) }
        td { (between(task.started_at, task.completed_at)) }
        td { (task.retries) }
        td { (task.engine_id) }
        td { @if is_queued { a href=(documents) title=(task.id) { "request and response" } } @else { "-" } }
    }
}
