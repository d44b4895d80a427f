//! Finding out where this process runs.

use std::fmt;
use std::time::Duration;

use http::{Method, StatusCode};
use opentelemetry::KeyValue;
use serde_json::Value;
use tokio::time::timeout;

use super::Platform;
use super::firmware::{Firmware, Verdict};
use super::http::ask;
use super::identity::Identity;
use super::imds::{MetadataError, MetadataService};
use super::settings::{Ecs, Settings};

/// The description of a task with its containers.
const MAX_TASK: usize = 64 * 1024;

/// What is known, and how it came to that.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    pub(super) platform: Option<Platform>,
    pub(super) identity: Identity,
    /// What only this platform has.
    extra: Vec<(&'static str, String)>,
    /// The service, once it has answered.
    pub(super) metadata: Option<MetadataService>,
    /// Whether the firmware says that this is EC2.
    pub(super) is_certainly_ec2: bool,
    pub(super) outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Outcome {
    /// Nobody looked.
    #[default]
    NotWanted,
    /// There is nothing of Amazon's here to ask.
    Elsewhere,
    /// Somebody has to be asked; never the end of it.
    ToBeAsked,
    /// There was no answer.
    Silent(MetadataError),
    /// It is known.
    Known,
}

impl Found {
    /// What variables and firmware say.
    pub(super) fn without_asking(settings: &Settings, firmware: &Firmware) -> Self {
        let mut found = Self::default();
        if !settings.allowed {
            return found;
        }
        let region = settings.region.as_deref().unwrap_or_default();
        if let Some(lambda) = &settings.lambda {
            found.platform = Some(Platform::Lambda);
            found.identity.set_region(region);
            found.extra.push(("faas.name", lambda.name.clone()));
            let version = lambda.version.clone();
            found
                .extra
                .extend(version.map(|version| ("faas.version", version)));
            found.outcome = Outcome::Known;
            return found;
        }
        if settings.ecs.is_some() {
            found.platform = Some(Platform::Ecs);
            found.identity.set_region(region);
            found.outcome = Outcome::ToBeAsked;
        }
        if settings.imds.enabled {
            let verdict = firmware.verdict();
            // Fargate's containers see the firmware of a machine of Amazon's own.
            if settings.ecs.as_ref().is_none_or(|ecs| ecs.on_instances) {
                found.believe(firmware);
            }
            if settings.ecs.is_none() {
                found.outcome = match verdict {
                    Verdict::Elsewhere if !settings.imds.certain => Outcome::Elsewhere,
                    _ => Outcome::ToBeAsked,
                };
            }
        }
        found
    }

    /// Takes what the firmware says of an instance.
    fn believe(&mut self, firmware: &Firmware) {
        if firmware.verdict() == Verdict::Ec2 {
            self.is_certainly_ec2 = true;
            self.platform.get_or_insert(Platform::Ec2);
            self.identity.fill_from(firmware.identity());
        }
    }

    /// As resource attributes, by the names of the semantic conventions. None tells the customer's account, as ARNs
    /// would.
    pub(super) fn attributes(&self) -> Vec<KeyValue> {
        let Some(platform) = self.platform else {
            return Vec::new();
        };
        let identity = self.identity.clone();
        let platform = match platform {
            Platform::Ec2 => "aws_ec2",
            Platform::Ecs => "aws_ecs",
            Platform::Lambda => "aws_lambda",
        };
        let named = [
            ("cloud.provider", Some("aws".to_owned())),
            ("cloud.platform", Some(platform.to_owned())),
            ("cloud.region", identity.region),
            ("cloud.availability_zone", identity.availability_zone),
            ("host.id", identity.instance_id),
            ("host.type", identity.instance_type),
            ("host.image.id", identity.image_id),
        ];
        let named = named.into_iter().filter_map(|(name, value)| Some((name, value?)));
        named
            .chain(self.extra.iter().cloned())
            .map(|(name, value)| KeyValue::new(name, value))
            .collect()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWanted => f.write_str("turned off by the environment"),
            Self::Elsewhere => f.write_str("this machine is not Amazon's"),
            Self::ToBeAsked => f.write_str("nobody was asked"),
            Self::Silent(error) => error.fmt(f),
            Self::Known => f.write_str("found"),
        }
    }
}

/// Asks whoever has to be asked, on this thread, within the time.
pub(super) fn on_a_runtime(
    settings: &Settings,
    firmware: &Firmware,
    known: Found,
    within: Duration,
) -> Found {
    let mut found = known;
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match built {
        Ok(runtime) => runtime,
        Err(error) => {
            found.outcome = Outcome::Silent(MetadataError::NoConnection(error.to_string()));
            return found;
        }
    };
    let asked = runtime.block_on(async { timeout(within, ask_all(settings, firmware, &mut found)).await });
    // Not waiting for a host name that is still being looked up.
    runtime.shutdown_background();
    found.outcome = match asked {
        Ok(Ok(())) => Outcome::Known,
        Ok(Err(error)) => Outcome::Silent(error),
        Err(_) => Outcome::Silent(MetadataError::Timeout),
    };
    found
}

async fn ask_all(settings: &Settings, firmware: &Firmware, found: &mut Found) -> Result<(), MetadataError> {
    let mut on_instances = true;
    let mut asked = Ok(());
    if let Some(ecs) = &settings.ecs {
        match ask_ecs(ecs, found).await {
            Ok(launched_on_instances) => on_instances = launched_on_instances || ecs.on_instances,
            Err(error) => {
                on_instances = ecs.on_instances;
                asked = Err(error);
            }
        }
    }
    // Fargate has none.
    if on_instances && settings.imds.enabled {
        found.believe(firmware);
        asked = ask_imds(settings, found).await;
    }
    asked
}

/// Returns whether the task runs on an instance that has a metadata service.
async fn ask_ecs(ecs: &Ecs, found: &mut Found) -> Result<bool, MetadataError> {
    let answer = ask(&ecs.endpoint, Method::GET, "/task", None, MAX_TASK).await?;
    if answer.status != StatusCode::OK {
        return Err(MetadataError::Status(answer.status.as_u16()));
    }
    let task: Value = serde_json::from_str(&answer.body).map_err(|_| MetadataError::Unbelievable)?;
    let text = |name: &str| {
        const LONGEST: usize = 512;
        let text = task.get(name)?.as_str()?;
        (!text.is_empty() && text.len() <= LONGEST).then(|| text.to_owned())
    };
    found
        .identity
        .set_availability_zone(&text("AvailabilityZone").unwrap_or_default());
    let launched = text("LaunchType").map(|launched| launched.to_ascii_lowercase());
    for (name, value) in [
        ("aws.ecs.task.family", text("Family")),
        ("aws.ecs.task.revision", text("Revision")),
        ("aws.ecs.launchtype", launched.clone()),
    ] {
        found.extra.extend(value.map(|value| (name, value)));
    }
    if let Some(arn) = text("TaskARN") {
        // arn:aws:ecs:REGION:ACCOUNT:task/...
        found
            .identity
            .set_region(arn.split(':').nth(3).unwrap_or_default());
    }
    Ok(launched.as_deref() == Some("ec2"))
}

async fn ask_imds(settings: &Settings, found: &mut Found) -> Result<(), MetadataError> {
    let service = MetadataService::new(&settings.imds);
    let document = service.get("dynamic/instance-identity/document").await?;
    let mut identity = match document.and_then(|text| Identity::from_document(&text)) {
        Some(identity) => identity,
        None => one_by_one(&service).await?,
    };
    if identity.instance_id.is_none() {
        return Err(MetadataError::Unbelievable);
    }
    // What the service says counts more than what firmware or ECS say.
    identity.fill_from(std::mem::take(&mut found.identity));
    found.identity = identity;
    found.platform.get_or_insert(Platform::Ec2);
    found.metadata = Some(service);
    Ok(())
}

/// For services that have no identity document.
async fn one_by_one(service: &MetadataService) -> Result<Identity, MetadataError> {
    type Setter = fn(&mut Identity, &str);
    let mut identity = Identity::default();
    let items: [(&str, Setter); 5] = [
        ("instance-id", Identity::set_instance_id),
        ("instance-type", Identity::set_instance_type),
        ("placement/availability-zone", Identity::set_availability_zone),
        ("placement/region", Identity::set_region),
        ("ami-id", Identity::set_image_id),
    ];
    for (path, set) in items {
        let value = service.get(&format!("meta-data/{path}")).await?;
        set(&mut identity, &value.unwrap_or_default());
        if identity.instance_id.is_none() {
            return Err(MetadataError::Unbelievable);
        }
    }
    Ok(identity)
}
