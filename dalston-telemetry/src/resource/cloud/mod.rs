//! The cloud in which this process runs: [`Cloud`] (feature `ec2`).
//!
//! Amazon's EC2, ECS and Lambda are recognised.
//!
//! ```no_run
//! use dalston_telemetry::cloud::Cloud;
//! use dalston_telemetry::{Env, Telemetry};
//!
//! # fn main() -> Result<(), dalston_telemetry::InitError> {
//! let cloud = Cloud::detect(&Env::from_process())?;
//! let telemetry = Telemetry::builder("engine-whisper").cloud(cloud).install()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Detection
//!
//! | Platform | Recognised by | Requests to |
//! |---|---|---|
//! | Lambda | `AWS_LAMBDA_FUNCTION_NAME` | none |
//! | ECS, Fargate included | `ECS_CONTAINER_METADATA_URI_V4` | that address; for ECS on instances, also the metadata service of EC2 |
//! | EC2 | firmware of EC2, or no firmware of another vendor | the instance metadata service, version 2 |
//! | none | firmware of another vendor, or another system than Linux | none |
//!
//! The firmware is read from `/sys/class/dmi/id`. On current instances it also holds the instance
//! id and the instance type, so that both are known if the service can't be reached.
//!
//! The detection takes 2 s at most, and 0.3 s if no service accepts the connection. Requests use no
//! proxy and follow no redirect, and the length of an answer is limited. An answer that does not
//! look like one of the service, such as the page of a captive portal, is ignored. It is no error
//! if nothing is found.
//!
//! [`settings`](crate::settings) lists the variables of the detection. With
//! `DALSTON_DEPLOY_ENV=aws` the service is asked even if the firmware is not Amazon's. With any
//! other value, there are no requests.

mod aws;
mod detection;
mod error;
mod http;
mod provider;

use std::fmt;
use std::sync::Arc;

use opentelemetry::KeyValue;

pub use self::aws::MetadataService;
pub use self::error::MetadataError;
pub use self::provider::Platform;

use self::provider::{CloudProvider, Found, Outcome};
use crate::env::{Env, EnvError};

/// The cloud providers, in the order in which they are asked. A new one is a folder beside this
/// file and a line here.
fn providers(env: &Env) -> Result<Vec<Box<dyn CloudProvider>>, EnvError> {
    Ok(vec![Box::new(aws::Aws::read(env)?)])
}

/// What is known about the cloud in which this process runs. Cheap to clone.
#[derive(Clone, Default)]
pub struct Cloud {
    found: Arc<Found>,
}

impl Cloud {
    /// Nothing is known.
    #[must_use]
    pub fn unknown() -> Self {
        Self::default()
    }

    /// Finds out where this process runs.
    ///
    /// Blocks the calling thread for 2 s at most, usually for milliseconds. Works with and without
    /// a runtime.
    ///
    /// # Errors
    ///
    /// When a variable has a wrong value. It is no error if nothing is found.
    #[doc(alias = "AwsEc2ResourceDetector")]
    pub fn detect(env: &Env) -> Result<Self, EnvError> {
        Ok(Self::of(providers(env)?))
    }

    fn of(providers: Vec<Box<dyn CloudProvider>>) -> Self {
        Self {
            found: Arc::new(detection::detect(providers)),
        }
    }

    /// The service that runs this process.
    #[must_use]
    pub fn platform(&self) -> Option<Platform> {
        self.found.platform
    }

    /// The id of the instance, such as `i-0123456789abcdef0`.
    #[doc(alias = "get_instance_id")]
    #[must_use]
    pub fn instance_id(&self) -> Option<&str> {
        self.found.identity.instance_id.as_deref()
    }

    /// The type of the instance, such as `g5.xlarge`.
    #[must_use]
    pub fn instance_type(&self) -> Option<&str> {
        self.found.identity.instance_type.as_deref()
    }

    /// The region: `eu-west-2`.
    #[must_use]
    pub fn region(&self) -> Option<&str> {
        self.found.identity.region.as_deref()
    }

    /// The availability zone: `eu-west-2a`.
    #[must_use]
    pub fn availability_zone(&self) -> Option<&str> {
        self.found.identity.availability_zone.as_deref()
    }

    /// The instance metadata service of EC2, if it has answered. It also tells what changes while
    /// the instance runs, such as an interruption of a spot instance.
    #[must_use]
    pub fn metadata(&self) -> Option<&MetadataService> {
        self.found.services.get()
    }

    /// The resource attributes.
    pub(crate) fn attributes(&self) -> Vec<KeyValue> {
        self.found.resource_attributes()
    }

    /// Logs the outcome of the detection.
    pub(crate) fn log(&self) {
        match (&self.found.outcome, self.found.remedy) {
            (Outcome::Silent(error), Some(remedy)) => {
                tracing::warn!(%error, remedy, "instance_metadata_unavailable");
            }
            (outcome, _) => tracing::debug!(
                %outcome,
                instance_id = self.instance_id(),
                instance_type = self.instance_type(),
                availability_zone = self.availability_zone(),
                "cloud_detection"
            ),
        }
    }
}

impl PartialEq for Cloud {
    /// Whether platform and identity are the same.
    fn eq(&self, other: &Self) -> bool {
        let known = |cloud: &Self| (cloud.found.platform, cloud.found.identity.clone());
        known(self) == known(other)
    }
}

impl fmt::Debug for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cloud")
            .field("platform", &self.found.platform)
            .field("identity", &self.found.identity)
            .finish_non_exhaustive()
    }
}
