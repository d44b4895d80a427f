//! `/`: the jobs.

use anyhow::Result;
use dalston_engine_sdk::protocol::Timestamp;
use maud::{Markup, html};
use serde::Deserialize;
use url::form_urlencoded::Serializer;

use super::layout::{between, state, table, time};
use super::view::Part;
use crate::db::{Filter, Job, JobStatus};
use crate::platform::Platform;

/// The jobs on a page.
const PAGE: u32 = 25;
/// The last page that can be asked for.
const MAX_PAGE: u32 = 1_000_000;
const STATES: [JobStatus; 6] = [
    JobStatus::Pending,
    JobStatus::Running,
    JobStatus::Completed,
    JobStatus::Failed,
    JobStatus::Cancelling,
    JobStatus::Cancelled,
];

/// Which jobs are shown. An unknown state shows all of them.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct JobsQuery {
    #[serde(default)]
    status: String,
    #[serde(default)]
    id: String,
    #[serde(default)]
    page: u32,
}

impl JobsQuery {
    pub(super) fn encoded(&self) -> String {
        let mut query = Serializer::new(String::new());
        for (name, value) in [("status", &self.status), ("id", &self.id)] {
            if !value.is_empty() {
                query.append_pair(name, value);
            }
        }
        if self.page > 0 {
            query.append_pair("page", &self.page.to_string());
        }
        query.finish()
    }

    fn link(&self, change: impl FnOnce(&mut Self)) -> String {
        let mut query = self.clone();
        change(&mut query);
        format!("./?{}", query.encoded())
    }
}

pub(super) async fn parts(platform: &Platform, query: &JobsQuery) -> Result<Vec<Part>> {
    let page = query.page.min(MAX_PAGE);
    let filter = Filter {
        status: JobStatus::of(&query.status),
        id_part: query.id.trim().to_ascii_lowercase(),
        limit: PAGE,
        offset: page * PAGE,
    };
    let found = platform
        .db
        .read(move |db| Ok((Job::counts(db)?, Job::list(db, &filter)?)));
    let (counts, (jobs, total)) = found.await?;
    let mut parts = vec![
        Part::new("states", states(&counts, query)),
        Part::new("search", search(query)),
        Part::new("jobs", list(&jobs, total, page, query)),
    ];
    if !platform.page.is_read_only {
        parts.push(Part::new("upload", upload()));
    }
    Ok(parts)
}

fn states(counts: &[(JobStatus, i64)], query: &JobsQuery) -> Markup {
    let count = |state| {
        counts
            .iter()
            .find(|(found, _)| *found == state)
            .map_or(0, |(_, n)| *n)
    };
    let all: i64 = counts.iter().map(|(_, n)| n).sum();
    let tabs = STATES.map(|state| (state.as_str(), count(state)));
    html! {
        nav.tabs aria-label="State" {
            @for (name, count) in [("", all)].into_iter().chain(tabs) {
                @let href = query.link(|query| {
                    query.status = name.to_owned();
                    query.page = 0;
                });
                a href=(href) aria-current=[(name == query.status).then_some("true")] {
                    @if name.is_empty() { "all" } @else { (name) }
                    " " b { (count) }
                }
            }
        }
    }
}

fn search(query: &JobsQuery) -> Markup {
    html! {
        form action="./" role="search" {
            @if !query.status.is_empty() { input type="hidden" name="status" value=(query.status); }
            label { "Job or trace id " input type="search" name="id" value=(query.id) maxlength="64"; }
            " " button { "Search" }
        }
    }
}

fn list(jobs: &[Job], total: i64, page: u32, query: &JobsQuery) -> Markup {
    let rows: Vec<Markup> = jobs.iter().map(row).collect();
    let columns = ["Job", "Recording", "State", "Created", "Took", "Engine"];
    let has_more = i64::from(page + 1) * i64::from(PAGE) < total;
    html! {
        (table("Jobs", &columns, &rows))
        p.paging {
            @if page > 0 { a rel="prev" href=(query.link(|query| query.page = page - 1)) { "newer" } " " }
            @if has_more { a rel="next" href=(query.link(|query| query.page = page + 1)) { "older" } }
        }
    }
}

fn row(job: &Job) -> Markup {
    let short = job.id.get(..8).unwrap_or(&job.id);
    html! {
        td { a href={ "jobs/" (job.id) } title=(job.id) { (short) } }
        td.text { (job.display_name) }
        td { (state(job.status.as_str())) }
        td { (time(job.created_at)) }
        td { (took(job)) }
        td { (job.engine_id.as_deref().unwrap_or("-")) }
    }
}

/// The time of the last run of a job that has ended.
pub(super) fn took(job: &Job) -> String {
    let ended: Option<Timestamp> = job.ended_at.filter(|_| job.status.is_terminal());
    between(Some(job.run_at()), ended)
}

fn upload() -> Markup {
    html! {
        h2 { "Transcribe a recording" }
        form #upload-form data-upload="v1/audio/transcriptions" {
            label { "Recording " input type="file" name="file" required; }
            label { "Model or engine " input name="model" maxlength="200"; }
            label { "Language " input name="language" size="6" maxlength="20" placeholder="auto"; }
            label { "Prompt " input name="prompt" maxlength="1000"; }
            label {
                "Speakers "
                select name="speaker_detection" {
                    option value="none" { "one" }
                    option value="per_channel" { "one for each channel" }
                }
            }
            button { "Upload" }
            output.bad {}
        }
    }
}

#[cfg(test)]
mod tests {
    use dalston_engine_sdk::stage::AudioMedia;

    use super::*;
    use crate::db::Parameters;

    #[test]
    fn name_of_a_recording_is_no_markup() {
        let job = Job {
            id: "51c0".to_owned(),
            status: JobStatus::Failed,
            display_name: "<script>alert(\"1\")</script>&".to_owned(),
            parameters: Parameters::default(),
            audio_locator: String::new(),
            media: AudioMedia::new("a", "wav", 1.0, 8_000, 1),
            created_at: Timestamp::now(),
            ended_at: None,
            request_id: None,
            trace_context: None,
            engine_id: Some("<b>".to_owned()),
            error: None,
            retries: 0,
            retried_at: None,
        };
        let text = list(&[job], 1, 0, &JobsQuery::default()).into_string();
        assert!(
            text.contains("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;"),
            "{text}"
        );
        assert!(text.contains("&lt;b&gt;"), "{text}");
        assert!(!text.contains("<script>") && !text.contains("<b>"), "{text}");
    }

    #[test]
    fn search_is_kept_in_links_and_is_no_markup() {
        let query = JobsQuery {
            status: "failed".to_owned(),
            id: "\"><b>&a=".to_owned(),
            page: 2,
        };
        assert_eq!(query.encoded(), "status=failed&id=%22%3E%3Cb%3E%26a%3D&page=2");
        let text = search(&query).into_string();
        assert!(text.contains("value=\"&quot;&gt;&lt;b&gt;&amp;a=\""), "{text}");
    }
}
