//! The metadata of a task on ECS.

use http::{Method, StatusCode};
use serde_json::Value;

use super::config::Ecs;
use super::identity;
use crate::resource::cloud::error::MetadataError;
use crate::resource::cloud::http::request;
use crate::resource::cloud::provider::Found;

/// The longest description of a task with its containers.
const MAX_TASK: usize = 64 * 1024;

/// Adds the task to `found`. Returns whether it runs on an instance, which has a metadata service.
pub(super) async fn ask(ecs: &Ecs, found: &mut Found) -> Result<bool, MetadataError> {
    let answer = request(&ecs.endpoint, Method::GET, "/task", None, MAX_TASK).await?;
    if answer.status != StatusCode::OK {
        return Err(MetadataError::Status(answer.status.as_u16()));
    }
    let task: Value = serde_json::from_str(&answer.body).map_err(|_| MetadataError::InvalidAnswer)?;
    let text = |name: &str| {
        const LONGEST: usize = 512;
        let text = task.get(name)?.as_str()?;
        (!text.is_empty() && text.len() <= LONGEST).then(|| text.to_owned())
    };
    let zone = text("AvailabilityZone").unwrap_or_default();
    identity::set_availability_zone(&mut found.identity, &zone);
    let launched = text("LaunchType").map(|launched| launched.to_ascii_lowercase());
    for (name, value) in [
        ("aws.ecs.task.family", text("Family")),
        ("aws.ecs.task.revision", text("Revision")),
        ("aws.ecs.launchtype", launched.clone()),
    ] {
        found.attributes.extend(value.map(|value| (name, value)));
    }
    if let Some(arn) = text("TaskARN") {
        // arn:aws:ecs:REGION:ACCOUNT:task/...
        let region = arn.split(':').nth(3).unwrap_or_default();
        identity::set_region(&mut found.identity, region);
    }
    Ok(launched.as_deref() == Some("ec2"))
}
