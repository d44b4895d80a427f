//! What a cloud provider has to tell, and how it is asked.

use std::fmt;
use std::pin::Pin;

use http::Extensions;
use opentelemetry::KeyValue;

use super::error::MetadataError;

/// A cloud provider, which recognises its own machines, containers and functions.
pub(super) trait CloudProvider: Send + 'static {
    /// What the environment and the firmware tell. Makes no request and returns at once.
    fn recognise(&self) -> Found;

    /// Asks the provider's services and adds their answers to `found`, the result of
    /// [`recognise`](Self::recognise).
    ///
    /// Called if the outcome of `found` is [`Outcome::Unasked`]. The future can be dropped at any
    /// time; `found` keeps the answers until then.
    fn ask<'a>(&'a self, found: &'a mut Found) -> Asking<'a>;
}

/// The future of [`CloudProvider::ask`].
pub(super) type Asking<'a> = Pin<Box<dyn Future<Output = Result<(), MetadataError>> + 'a>>;

/// A service of a cloud provider that runs processes. The constants name those that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Platform {
    provider: &'static str,
    name: &'static str,
}

impl Platform {
    pub(super) const fn new(provider: &'static str, name: &'static str) -> Self {
        Self { provider, name }
    }

    /// The resource attribute `cloud.provider`, such as `aws`.
    #[must_use]
    pub const fn provider(self) -> &'static str {
        self.provider
    }

    /// The resource attribute `cloud.platform`, such as `aws_ec2`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.name
    }
}

/// What is known about the place of this process.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    pub(super) platform: Option<Platform>,
    pub(super) identity: Identity,
    /// Resource attributes of this platform only.
    pub(super) attributes: Vec<(&'static str, String)>,
    /// Handles to services of the provider that have answered.
    pub(super) services: Extensions,
    /// The remedy for silence, if a service must be there.
    pub(super) remedy: Option<&'static str>,
    pub(super) outcome: Outcome,
}

/// The identity and the place of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Identity {
    pub(super) instance_id: Option<String>,
    pub(super) instance_type: Option<String>,
    pub(super) image_id: Option<String>,
    pub(super) region: Option<String>,
    pub(super) availability_zone: Option<String>,
}

/// The state of a detection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Outcome {
    /// The environment forbids it.
    #[default]
    Forbidden,
    /// The process does not run at this provider.
    Elsewhere,
    /// The provider's services have to be asked.
    Unasked,
    /// The provider's services did not answer.
    Silent(MetadataError),
    Known,
}

impl Found {
    /// The resource attributes, by the names of the semantic conventions.
    ///
    /// Attributes that name the customer's account, such as ARNs, are left out.
    pub(super) fn resource_attributes(&self) -> Vec<KeyValue> {
        let Some(platform) = self.platform else {
            return Vec::new();
        };
        let identity = self.identity.clone();
        let named = [
            ("cloud.provider", Some(platform.provider.to_owned())),
            ("cloud.platform", Some(platform.name.to_owned())),
            ("cloud.region", identity.region),
            ("cloud.availability_zone", identity.availability_zone),
            ("host.id", identity.instance_id),
            ("host.type", identity.instance_type),
            ("host.image.id", identity.image_id),
        ];
        let named = named.into_iter().filter_map(|(name, value)| Some((name, value?)));
        named
            .chain(self.attributes.iter().cloned())
            .map(|(name, value)| KeyValue::new(name, value))
            .collect()
    }
}

impl Identity {
    /// Takes the values of `other` that are unknown here.
    pub(super) fn fill_from(&mut self, other: Self) {
        let fill = |field: &mut Option<String>, value| *field = field.take().or(value);
        fill(&mut self.instance_id, other.instance_id);
        fill(&mut self.instance_type, other.instance_type);
        fill(&mut self.image_id, other.image_id);
        fill(&mut self.region, other.region);
        fill(&mut self.availability_zone, other.availability_zone);
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forbidden => f.write_str("forbidden by the environment"),
            Self::Elsewhere => f.write_str("the machine belongs to no known cloud"),
            Self::Unasked => f.write_str("not asked"),
            Self::Silent(error) => error.fmt(f),
            Self::Known => f.write_str("found"),
        }
    }
}
