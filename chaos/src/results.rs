//! Checks that the next stage finds all that it reads of a completed task, from one attempt.

use std::collections::HashMap;

use dalston_engine_sdk::protocol::keys;
use dalston_engine_sdk::store::key;
use serde_json::Value;
use testbed::TestS3;

use crate::engine::FILLER;
use crate::orchestrator::Orchestrator;
use crate::task::{Kind, Status};

/// A defect of a result.
pub(crate) enum Finding {
    /// It is missing or incomplete.
    Missing(String),
    /// It is complete, but its parts are from different attempts, or from another attempt than the
    /// reported one.
    Mixed(String),
}

impl Orchestrator {
    /// Checks the result of a task that was reported as completed.
    pub(crate) async fn check_new_result(&self, task: &str) {
        let problem = match self.read_result(task).await {
            Ok(by) => {
                let owner = self.owner(task).await;
                let is_done_again = {
                    let mut state = self.state();
                    let known = state.tasks.get_mut(task);
                    known.is_some_and(|task| {
                        task.done_by = Some(by.clone());
                        task.was_queued_after_its_end()
                    })
                };
                // The owner reported the result. Its claim is `message delivery instance`.
                if is_done_again || owner.rsplit(' ').next() == by.split(' ').next() {
                    return;
                }
                format!("the claim {owner:?} has reported the result of {by:?}")
            }
            Err(Finding::Missing(problem) | Finding::Mixed(problem)) => problem,
        };
        self.violation(Some(task), format!("it is reported as completed, but {problem}"));
    }

    /// Checks the results of all completed tasks again. Returns the number of results with parts of
    /// other attempts.
    pub(crate) async fn check_all_results(&self) -> usize {
        let completed: Vec<(String, Option<String>)> = {
            let state = self.state();
            let completed = state
                .tasks
                .iter()
                .filter(|(_, task)| task.status == Status::Completed && task.plan.kind == Kind::Plain)
                // Done again, or begun again.
                .filter(|(_, task)| !task.was_queued_after_its_end());
            completed
                .map(|(id, task)| (id.clone(), task.done_by.clone()))
                .collect()
        };
        let mut mixed = 0;
        for (task, done_by) in completed {
            let found = match self.read_result(&task).await {
                Ok(by) if done_by.as_ref().is_none_or(|done_by| *done_by == by) => continue,
                Ok(by) => Finding::Mixed(format!(
                    "its result is by {by:?}, and the reported one was by {done_by:?}"
                )),
                Err(finding) => finding,
            };
            let problem = match found {
                Finding::Missing(problem) => problem,
                Finding::Mixed(problem) => {
                    mixed += 1;
                    problem
                }
            };
            self.violation(Some(&task), format!("at the end, {problem}"));
        }
        mixed
    }

    /// The claim that owns the task by its metadata.
    async fn owner(&self, task: &str) -> String {
        let owner: Option<String> = self.platform.ask(&["HGET", &keys::task(task), "owner"]).await;
        owner.unwrap_or_default()
    }

    /// Reads all parts of a result. Returns the attempt that wrote them.
    async fn read_result(&self, task: &str) -> Result<String, Finding> {
        let missing = |what: String| Err(Finding::Missing(what));
        let (job, plan) = {
            let state = self.state();
            let Some(task) = state.tasks.get(task) else {
                return missing("the task is unknown".to_owned());
            };
            (task.job.clone(), task.plan)
        };
        let (response, _) = self.read_json(&key::task_response(&job, task), task, false)?;
        let data = &response["data"];
        if data["task_id"] != task || data["model"] != plan.model_id() {
            return missing(format!("its response has the data {data}"));
        }
        let references = response["produced_artifacts"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        if references.len() as u64 != plan.artifacts {
            return missing(format!(
                "its response names {} of {} artifacts",
                references.len(),
                plan.artifacts
            ));
        }
        let index: HashMap<String, String> =
            self.platform.ask(&["HGETALL", &keys::job_artifacts(&job)]).await;
        for reference in references {
            let id = reference["artifact_id"].as_str().unwrap_or_default();
            let locator = reference["storage_locator"].as_str().unwrap_or_default();
            let path = locator
                .strip_prefix(&format!("s3://{}/", TestS3::BUCKET))
                .unwrap_or_default();
            let (file, size) = self.read_json(path, task, true)?;
            let Some(indexed) = index.get(id).and_then(|text| text.parse::<Value>().ok()) else {
                return missing(format!("its artifact {id} is not in the index"));
            };
            if indexed["storage_locator"] != reference["storage_locator"] {
                return missing(format!("the index has its artifact {id} as {indexed}"));
            }
            let sizes = [&reference["size"], &indexed["size"]].map(Value::as_u64);
            if file["by"] != data["by"] || sizes != [Some(size); 2] {
                return Err(Finding::Mixed(format!(
                    "its response is by {}, its artifact {id} by {}: {size} bytes, of which the response says {:?} and the index {:?}",
                    data["by"], file["by"], sizes[0], sizes[1]
                )));
            }
        }
        Ok(data["by"].as_str().unwrap_or_default().to_owned())
    }

    /// Reads a file that is JSON, or whose first line is, if the file is an artifact: its other
    /// lines fill it up. Returns also its size.
    fn read_json(&self, path: &str, task: &str, is_artifact: bool) -> Result<(Value, u64), Finding> {
        let missing = |what: String| Err(Finding::Missing(format!("{path} {what}")));
        let Some(object) = self.platform.s3.get(&format!("{}/{path}", TestS3::BUCKET)) else {
            return missing("is missing".to_owned());
        };
        let content = &object.content[..];
        let end = content.iter().position(|byte| is_artifact && *byte == b'\n');
        let (text, filler) = content.split_at(end.unwrap_or(content.len()));
        if filler
            .get(1..)
            .is_some_and(|filler| filler != vec![FILLER; filler.len()])
        {
            return missing("is damaged".to_owned());
        }
        match serde_json::from_slice::<Value>(text) {
            Err(error) => missing(format!("is not JSON: {error}")),
            Ok(value) if value["task_id"] != task => {
                missing(format!("is about the task {}", value["task_id"]))
            }
            Ok(value) => Ok((value, content.len() as u64)),
        }
    }
}
