//! What each page shows.

use std::hash::{DefaultHasher, Hash, Hasher};

use anyhow::Result;
use maud::Markup;

use super::jobs::JobsQuery;
use super::layout::Place;
use super::{dead_letters, job, jobs, queues, sessions, workers};
use crate::config::PageConfig;
use crate::platform::Platform;

/// A page.
#[derive(Clone, Debug)]
pub(super) enum View {
    Jobs(JobsQuery),
    Job(String),
    Queues,
    Workers,
    Sessions,
    DeadLetters,
}

/// A part of a page, which the browser replaces as a whole.
#[derive(Debug)]
pub(super) struct Part {
    /// The id of its element.
    pub(super) name: &'static str,
    pub(super) html: String,
}

impl Part {
    pub(super) fn new(name: &'static str, markup: Markup) -> Self {
        Self {
            name,
            html: markup.into_string(),
        }
    }

    /// The same for the same text, in each process of this build.
    pub(super) fn version(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.html.hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }
}

impl View {
    /// The parts; `None` if there is no such job.
    pub(super) async fn render(&self, platform: &Platform) -> Result<Option<Vec<Part>>> {
        match self {
            Self::Jobs(query) => jobs::parts(platform, query).await.map(Some),
            Self::Job(id) => job::parts(platform, id).await,
            Self::Queues => queues::parts(platform).await.map(Some),
            Self::Workers => workers::parts(platform).await.map(Some),
            Self::Sessions => sessions::parts(platform).await.map(Some),
            Self::DeadLetters => dead_letters::parts(platform).await.map(Some),
        }
    }

    /// Whether something besides the database changes it.
    pub(super) fn changes_with_time(&self) -> bool {
        !matches!(self, Self::Jobs(_))
    }

    pub(super) fn place(&self, config: &PageConfig) -> Place {
        let (title, root, events) = match self {
            Self::Jobs(query) => ("Jobs", "./", format!("events/jobs?{}", query.encoded())),
            Self::Job(id) => ("Job", "../", format!("events/jobs/{id}")),
            Self::Queues => ("Queues", "./", "events/queues".to_owned()),
            Self::Workers => ("Workers", "./", "events/workers".to_owned()),
            Self::Sessions => ("Sessions", "./", "events/sessions".to_owned()),
            Self::DeadLetters => ("Dead letters", "./", "events/dead-letters".to_owned()),
        };
        Place {
            title,
            root,
            events,
            config: config.clone(),
        }
    }
}
