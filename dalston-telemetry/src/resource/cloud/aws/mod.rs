//! Amazon Web Services: EC2, ECS and Lambda.

mod config;
mod ecs;
mod firmware;
mod identity;
mod imds;
#[cfg(test)]
mod tests;

pub use imds::MetadataService;

use super::error::MetadataError;
use super::provider::{Asking, CloudProvider, Found, Outcome, Platform};
use crate::env::{Env, EnvError};
use config::AwsConfig;
use firmware::{Firmware, Verdict};

const HOP_LIMIT: &str = "set the instance's HttpPutResponseHopLimit to 2 (containers lose answers of the instance \
     metadata service otherwise), or AWS_EC2_METADATA_DISABLED to true to end this warning";

impl Platform {
    /// A virtual machine of Amazon's.
    pub const EC2: Self = Self::new("aws", "aws_ec2");
    /// Amazon's container service, on Fargate or on instances.
    pub const ECS: Self = Self::new("aws", "aws_ecs");
    /// Amazon's functions.
    pub const LAMBDA: Self = Self::new("aws", "aws_lambda");
}

pub(super) struct Aws {
    config: AwsConfig,
    firmware: Firmware,
}

impl Aws {
    pub(super) fn read(env: &Env) -> Result<Self, EnvError> {
        let config = AwsConfig::read(env)?;
        let firmware = config.looks_at_firmware().then(Firmware::read);
        Ok(Self {
            config,
            firmware: firmware.unwrap_or_default(),
        })
    }

    /// Adds what the firmware tells about an instance.
    fn add_firmware(&self, found: &mut Found) {
        if self.firmware.verdict() == Verdict::Ec2 {
            found.remedy = Some(HOP_LIMIT);
            found.platform.get_or_insert(Platform::EC2);
            found.identity.fill_from(self.firmware.identity());
        }
    }

    async fn ask_services(&self, found: &mut Found) -> Result<(), MetadataError> {
        let mut is_on_instance = true;
        let mut asked = Ok(());
        if let Some(ecs) = &self.config.ecs {
            let answer = ecs::ask(ecs, found).await;
            is_on_instance = ecs.on_instances || answer.as_ref().is_ok_and(|on_instance| *on_instance);
            asked = answer.map(|_| ());
        }
        // Fargate has no instance metadata service.
        if is_on_instance && self.config.imds.enabled {
            self.add_firmware(found);
            asked = self.ask_imds(found).await;
        }
        asked
    }

    async fn ask_imds(&self, found: &mut Found) -> Result<(), MetadataError> {
        let service = MetadataService::new(&self.config.imds);
        let mut identity = identity::ask(&service).await?;
        // The service knows the instance better than the firmware and ECS do.
        identity.fill_from(std::mem::take(&mut found.identity));
        found.identity = identity;
        found.platform.get_or_insert(Platform::EC2);
        found.services.insert(service);
        Ok(())
    }
}

impl CloudProvider for Aws {
    fn recognise(&self) -> Found {
        let config = &self.config;
        let mut found = Found::default();
        if !config.allowed {
            return found;
        }
        let region = config.region.as_deref().unwrap_or_default();
        if let Some(lambda) = &config.lambda {
            found.platform = Some(Platform::LAMBDA);
            identity::set_region(&mut found.identity, region);
            found.attributes.push(("faas.name", lambda.name.clone()));
            let version = lambda.version.clone();
            found
                .attributes
                .extend(version.map(|version| ("faas.version", version)));
            found.outcome = Outcome::Known;
            return found;
        }
        if config.ecs.is_some() {
            found.platform = Some(Platform::ECS);
            identity::set_region(&mut found.identity, region);
            found.outcome = Outcome::Unasked;
        }
        if config.imds.enabled {
            // Containers on Fargate see the firmware of a machine that is not the customer's.
            if config.ecs.as_ref().is_none_or(|ecs| ecs.on_instances) {
                self.add_firmware(&mut found);
            }
            if config.ecs.is_none() {
                found.outcome = match self.firmware.verdict() {
                    Verdict::Elsewhere if !config.imds.certain => Outcome::Elsewhere,
                    _ => Outcome::Unasked,
                };
            }
        }
        found
    }

    fn ask<'a>(&'a self, found: &'a mut Found) -> Asking<'a> {
        Box::pin(self.ask_services(found))
    }
}
