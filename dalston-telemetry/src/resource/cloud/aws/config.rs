//! The configuration of the detection on AWS, from the environment.

use url::{Host, Url};

use crate::env::{Env, EnvError};
use crate::resource::cloud::http::Endpoint;
use crate::settings::cloud::{
    AWS_EC2_METADATA_DISABLED, AWS_EC2_METADATA_SERVICE_ENDPOINT, AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE,
    AWS_EC2_METADATA_V1_DISABLED, AWS_EXECUTION_ENV, AWS_LAMBDA_FUNCTION_NAME, AWS_LAMBDA_FUNCTION_VERSION,
    AWS_REGION, AddressFamily, ECS_CONTAINER_METADATA_URI_V4,
};
use crate::settings::{DALSTON_DEPLOY_ENV, Variable};

/// Which services are asked, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AwsConfig {
    /// Whether requests are allowed.
    pub(super) allowed: bool,
    pub(super) lambda: Option<Lambda>,
    pub(super) ecs: Option<Ecs>,
    pub(super) imds: Imds,
    pub(super) region: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lambda {
    pub(super) name: String,
    pub(super) version: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ecs {
    pub(super) endpoint: Endpoint,
    /// Whether containers are known to run on instances, which have a metadata service.
    pub(super) on_instances: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Imds {
    pub(super) enabled: bool,
    pub(super) endpoint: Endpoint,
    /// Whether the service is asked even if the firmware is of another vendor.
    pub(super) certain: bool,
    /// Whether the environment sets the endpoint. The firmware is not read then.
    pub(super) given: bool,
    pub(super) allow_v1: bool,
}

impl AwsConfig {
    pub(super) fn read(env: &Env) -> Result<Self, EnvError> {
        let deployed = DALSTON_DEPLOY_ENV.read(env)?;
        let given = Endpoint::read(env, &AWS_EC2_METADATA_SERVICE_ENDPOINT)?;
        let family = AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE.read_or_default(env)?;
        let imds = Imds {
            enabled: !AWS_EC2_METADATA_DISABLED.read_or_default(env)?,
            certain: given.is_some() || deployed.as_deref() == Some("aws"),
            given: given.is_some(),
            endpoint: given.unwrap_or_else(|| match family {
                AddressFamily::V6 => Endpoint::address("fd00:ec2::254", "[fd00:ec2::254]"),
                AddressFamily::V4 => Endpoint::address("169.254.169.254", "169.254.169.254"),
            }),
            allow_v1: !AWS_EC2_METADATA_V1_DISABLED.read_or_default(env)?,
        };
        let on_instances = AWS_EXECUTION_ENV.read(env)?.as_deref() == Some("AWS_ECS_EC2");
        let ecs = Endpoint::read(env, &ECS_CONTAINER_METADATA_URI_V4)?.map(|endpoint| Ecs {
            endpoint,
            on_instances,
        });
        let version = AWS_LAMBDA_FUNCTION_VERSION.read(env)?;
        let lambda = AWS_LAMBDA_FUNCTION_NAME
            .read(env)?
            .map(|name| Lambda { name, version });
        Ok(Self {
            allowed: deployed.is_none_or(|deployed| deployed == "aws"),
            lambda,
            ecs,
            imds,
            region: AWS_REGION.read(env)?,
        })
    }

    pub(super) fn looks_at_firmware(&self) -> bool {
        self.allowed && self.imds.enabled && !self.imds.given && self.lambda.is_none()
    }
}

impl Endpoint {
    fn address(host: &str, authority: &str) -> Self {
        Self {
            host: host.to_owned(),
            port: 80,
            authority: authority.to_owned(),
            path: String::new(),
        }
    }

    fn read(env: &Env, variable: &Variable<String>) -> Result<Option<Self>, EnvError> {
        let Some((name, value)) = variable.first(env) else {
            return Ok(None);
        };
        let wrong = || variable.error(name, value);
        let url = Url::parse(value).map_err(|_| wrong())?;
        let (Some(host), "http") = (url.host(), url.scheme()) else {
            return Err(wrong());
        };
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_string(),
        };
        Ok(Some(Self {
            host: match host {
                Host::Domain(name) => name.to_owned(),
                Host::Ipv4(address) => address.to_string(),
                Host::Ipv6(address) => address.to_string(),
            },
            port: url.port().unwrap_or(80),
            authority,
            path: url.path().trim_end_matches('/').to_owned(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
    const MODE: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE";
    const ECS_ENDPOINT: &str = "ECS_CONTAINER_METADATA_URI_V4";

    fn read(pairs: &[(&str, &str)]) -> Result<AwsConfig, EnvError> {
        AwsConfig::read(&Env::from_pairs(pairs.iter().copied()))
    }

    fn imds(pairs: &[(&str, &str)]) -> Imds {
        read(pairs).unwrap().imds
    }

    #[test]
    fn the_endpoint_is_from_a_variable_or_the_default() {
        let default = imds(&[]);
        assert_eq!(
            default.endpoint,
            Endpoint::address("169.254.169.254", "169.254.169.254")
        );
        assert!(default.enabled && default.allow_v1 && !default.certain);
        for mode in ["IPv6", "ipv6"] {
            let endpoint = imds(&[(MODE, mode)]).endpoint;
            assert_eq!(endpoint, Endpoint::address("fd00:ec2::254", "[fd00:ec2::254]"));
        }
        for given in ["http://[fd00:ec2::254]:8080", "http://[fd00:ec2::254]:8080/"] {
            let given = imds(&[(ENDPOINT, given), (MODE, "IPv4")]);
            let expected = Endpoint {
                host: "fd00:ec2::254".into(),
                port: 8080,
                authority: "[fd00:ec2::254]:8080".into(),
                path: String::new(),
            };
            assert_eq!(
                (given.endpoint, given.certain, given.given),
                (expected, true, true)
            );
        }
        let path = imds(&[(ENDPOINT, "http://proxy/imds/")]).endpoint;
        assert_eq!((&*path.host, path.port, &*path.path), ("proxy", 80, "/imds"));
    }

    #[test]
    fn the_deployment_forbids_or_forces_requests() {
        for (value, allowed, certain) in [("", true, false), ("aws", true, true), ("staging", false, false)] {
            let config = read(&[("DALSTON_DEPLOY_ENV", value)]).unwrap();
            assert_eq!(
                (config.allowed, config.imds.certain),
                (allowed, certain),
                "{value:?}"
            );
        }
    }

    #[test]
    fn errors_name_the_variable() {
        for (variable, value) in [
            (ENDPOINT, "169.254.169.254"),
            (ENDPOINT, "https://169.254.169.254"),
            (ENDPOINT, "http://"),
            (ECS_ENDPOINT, "unix:/socket"),
            (MODE, "IPv5"),
            ("AWS_EC2_METADATA_DISABLED", "perhaps"),
            ("AWS_EC2_METADATA_V1_DISABLED", "perhaps"),
        ] {
            let error = read(&[(variable, value)]).unwrap_err();
            assert_eq!(error.variable(), variable, "{value}");
        }
        let error = read(&[(ENDPOINT, "https://user:hunter2@host")]).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
