//! The resource: the attributes of everything that this process exports.
//!
//! If two sources have the same attribute, the later one in this list wins:
//!
//! 1. detectors: operating system, host, process, container, Kubernetes, a random
//!    `service.instance.id`
//! 2. the cloud ([`TelemetryBuilder::cloud`](crate::TelemetryBuilder)): its `host.id` is the
//!    instance id, and that of the host only the machine id
//! 3. `service.namespace=dalston` and the service name given in code
//! 4. `OTEL_RESOURCE_ATTRIBUTES`
//! 5. `OTEL_SERVICE_NAME` and `INSTANCE_TYPE` (`host.type`)
//! 6. explicit calls on the builder: `version`, `resource_attribute`

#[cfg(feature = "ec2")]
pub mod cloud;

use opentelemetry::{Key, KeyValue, Value};
use opentelemetry_resource_detectors::{
    ContainerResourceDetector, HostResourceDetector, K8sResourceDetector, OsResourceDetector,
    ProcessResourceDetector, ServiceInstanceIdResourceDetector,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{ResourceDetector, TelemetryResourceDetector};
use percent_encoding::percent_decode_str;

use crate::env::{Env, EnvError};
use crate::settings::cloud::KUBERNETES_SERVICE_HOST;
use crate::settings::traces::{OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME};
use crate::settings::{HOSTNAME, INSTANCE_TYPE};

mod names {
    pub(super) const DEPLOYMENT_ENVIRONMENT_NAME: &str = "deployment.environment.name";
    pub(super) const HOST_ARCH: &str = "host.arch";
    pub(super) const HOST_NAME: &str = "host.name";
    pub(super) const HOST_TYPE: &str = "host.type";
    pub(super) const PROCESS_COMMAND_ARGS: &str = "process.command_args";
    pub(super) const PROCESS_EXECUTABLE_NAME: &str = "process.executable.name";
    pub(super) const SERVICE_NAME: &str = "service.name";
    pub(super) const SERVICE_NAMESPACE: &str = "service.namespace";
}

/// The service name: `OTEL_SERVICE_NAME`, else `service.name` in
/// `OTEL_RESOURCE_ATTRIBUTES`, else the name that the program gives.
pub(crate) fn service_name(env: &Env, from_code: &str) -> Result<String, EnvError> {
    if let Some(name) = OTEL_SERVICE_NAME.read(env)? {
        return Ok(name);
    }
    Ok(attribute(env, names::SERVICE_NAME)?.unwrap_or_else(|| from_code.to_owned()))
}

/// The kind of machine: `host.type` as the program gives it, else `INSTANCE_TYPE`, else `host.type`
/// in `OTEL_RESOURCE_ATTRIBUTES`, else the detected one. The attribute, the field of log lines and
/// the label of metrics have this value. If it is not known, field and label are `unknown`, and
/// there is no attribute.
pub(crate) fn instance_type(
    env: &Env,
    explicit: &[KeyValue],
    detected: &[KeyValue],
) -> Result<Option<String>, EnvError> {
    let of = |attributes: &[KeyValue]| {
        let is_type = |attribute: &&KeyValue| attribute.key.as_str() == names::HOST_TYPE;
        let attribute = attributes.iter().rev().find(is_type)?;
        Some(attribute.value.to_string())
    };
    if let Some(explicit) = of(explicit).or(INSTANCE_TYPE.read(env)?) {
        return Ok(Some(explicit));
    }
    Ok(attribute(env, names::HOST_TYPE)?.or_else(|| of(detected)))
}

/// Merges the attributes of all sources. `detected` are those of the cloud.
///
/// Reads a few files and runs `hostname`. It opens no socket.
pub(crate) fn build(
    env: &Env,
    service: &str,
    explicit: &[KeyValue],
    detected: &[KeyValue],
) -> Result<Resource, EnvError> {
    let mut merged = Merged::default();
    merged.all(&TelemetryResourceDetector.detect());
    merged.all(&OsResourceDetector.detect());
    merged.host(env);
    merged.process();
    merged.all(&ContainerResourceDetector.detect());
    if KUBERNETES_SERVICE_HOST.is_set(env) {
        // Outside Kubernetes, the detector would take HOSTNAME for the name of a pod.
        merged.all(&K8sResourceDetector.detect());
    }
    merged.all(&ServiceInstanceIdResourceDetector.detect());

    for attribute in detected {
        merged.set(attribute.key.clone(), attribute.value.clone());
    }

    merged.set(names::SERVICE_NAMESPACE, "dalston");
    let from_env = attributes(env)?;
    for (key, value) in from_env {
        merged.set(key, value);
    }
    merged.set(names::SERVICE_NAME, service_name(env, service)?);
    if let Some(instance_type) = instance_type(env, explicit, detected)? {
        merged.set(names::HOST_TYPE, instance_type);
    }
    for attribute in explicit {
        merged.set(attribute.key.clone(), attribute.value.clone());
    }
    merged.modernise();
    Ok(Resource::builder_empty().with_attributes(merged.0).build())
}

/// The value of one attribute in `OTEL_RESOURCE_ATTRIBUTES`, unless it is blank.
fn attribute(env: &Env, name: &str) -> Result<Option<String>, EnvError> {
    let mut attributes = attributes(env)?.into_iter().rev();
    let found = attributes.find(|(key, value)| key == name && !value.trim().is_empty());
    Ok(found.map(|(_, value)| value))
}

/// Reads `OTEL_RESOURCE_ATTRIBUTES`: percent-encoded `key=value` pairs, separated by commas.
fn attributes(env: &Env) -> Result<Vec<(String, String)>, EnvError> {
    let Some((name, list)) = OTEL_RESOURCE_ATTRIBUTES.first(env) else {
        return Ok(Vec::new());
    };
    let wrong = || OTEL_RESOURCE_ATTRIBUTES.error(name, list);
    list.split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
            let decode = |part: &str| match percent_decode_str(part.trim()).decode_utf8() {
                Ok(text) => Ok(text.into_owned()),
                Err(_) => Err(wrong()),
            };
            let key = decode(key)?;
            if key.is_empty() {
                Err(wrong())
            } else {
                Ok((key, decode(value)?))
            }
        })
        .collect()
}

/// Attributes in the order of their first value. A later value replaces an earlier one.
#[derive(Default)]
struct Merged(Vec<KeyValue>);

impl Merged {
    fn set(&mut self, key: impl Into<Key>, value: impl Into<Value>) {
        let (key, value) = (key.into(), value.into());
        match self.0.iter_mut().find(|attribute| attribute.key == key) {
            Some(attribute) => attribute.value = value,
            None => self.0.push(KeyValue::new(key, value)),
        }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.0
            .iter()
            .find(|attribute| attribute.key.as_str() == key)
            .map(|attribute| &attribute.value)
    }

    fn all(&mut self, resource: &Resource) {
        for (key, value) in resource {
            self.set(key.clone(), value.clone());
        }
    }

    fn host(&mut self, env: &Env) {
        self.all(&HostResourceDetector::default().detect());
        // The detector gives Rust's name of the architecture instead of that of the conventions.
        match std::env::consts::ARCH {
            "x86_64" => self.set(names::HOST_ARCH, "amd64"),
            "aarch64" => self.set(names::HOST_ARCH, "arm64"),
            _ => {}
        }
        // Slim images lack the `hostname` program that the detector runs.
        if self.get(names::HOST_NAME).is_none() {
            let kernel = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
            let from_env = HOSTNAME.first(env).map(|(_, name)| name.to_owned());
            let name = from_env.or_else(kernel).unwrap_or_default();
            if !name.trim().is_empty() {
                self.set(names::HOST_NAME, name.trim().to_owned());
            }
        }
    }

    fn process(&mut self) {
        for (key, value) in &ProcessResourceDetector.detect() {
            // Arguments may contain passwords (`--redis-url=redis://:secret@host`).
            if key.as_str() != names::PROCESS_COMMAND_ARGS {
                self.set(key.clone(), value.clone());
            }
        }
        if let Ok(path) = std::env::current_exe()
            && let Some(name) = path.file_name()
        {
            self.set(
                names::PROCESS_EXECUTABLE_NAME,
                name.to_string_lossy().into_owned(),
            );
        }
    }

    /// Adds the stable name of an attribute that has only its deprecated one.
    fn modernise(&mut self) {
        if self.get(names::DEPLOYMENT_ENVIRONMENT_NAME).is_none()
            && let Some(value) = self.get("deployment.environment").cloned()
        {
            self.set(names::DEPLOYMENT_ENVIRONMENT_NAME, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Env {
        Env::from_pairs(pairs.iter().copied())
    }

    fn text(resource: &Resource, key: &str) -> Option<String> {
        resource
            .get(&Key::from(key.to_owned()))
            .map(|value| value.to_string())
    }

    #[test]
    fn service_name_is_from_variable_then_attributes_then_code() {
        let both = env(&[
            ("OTEL_SERVICE_NAME", "own"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=listed,a=b"),
        ]);
        let listed = env(&[("OTEL_RESOURCE_ATTRIBUTES", "service.name=listed,a=b")]);
        let empty = env(&[("OTEL_RESOURCE_ATTRIBUTES", "service.name=,a=b")]);
        for (env, expected) in [
            (both, "own"),
            (listed, "listed"),
            (empty, "code"),
            (env(&[]), "code"),
        ] {
            assert_eq!(service_name(&env, "code").as_deref(), Ok(expected));
            assert_eq!(
                text(&build(&env, "code", &[], &[]).unwrap(), "service.name").as_deref(),
                Some(expected)
            );
        }
    }

    #[test]
    fn attributes_of_the_environment_are_percent_decoded() {
        let env = env(&[(
            "OTEL_RESOURCE_ATTRIBUTES",
            "team=speech%20%26%20audio, a%2Cb = x%3Dy ,empty=,plain=1=2,",
        )]);
        let expected = [
            ("team", "speech & audio"),
            ("a,b", "x=y"),
            ("empty", ""),
            ("plain", "1=2"),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(attributes(&env).unwrap(), expected);
    }

    #[test]
    fn a_malformed_attribute_list_is_an_error_that_shows_it() {
        for list in ["no-equals-sign", "a=1,b", "=1", "a=%ff"] {
            let error = attributes(&env(&[("OTEL_RESOURCE_ATTRIBUTES", list)])).unwrap_err();
            assert_eq!(
                (error.variable(), error.value()),
                ("OTEL_RESOURCE_ATTRIBUTES", Some(list))
            );
        }
    }

    #[test]
    fn explicit_calls_win_over_environment_over_detectors() {
        let env = env(&[(
            "OTEL_RESOURCE_ATTRIBUTES",
            "host.name=from-env,service.namespace=theirs,service.version=0,deployment.environment.name=staging",
        )]);
        let resource = build(
            &env,
            "engine-x",
            &[KeyValue::new("service.version", "1.2.3")],
            &[],
        )
        .unwrap();
        let get = |key| text(&resource, key);
        assert_eq!(get("host.name").as_deref(), Some("from-env"));
        assert_eq!(get("service.namespace").as_deref(), Some("theirs"));
        assert_eq!(get("service.version").as_deref(), Some("1.2.3"));
        assert_eq!(get("deployment.environment.name").as_deref(), Some("staging"));
    }

    #[test]
    fn the_process_is_described_without_its_arguments() {
        let resource = build(&env(&[]), "engine-x", &[], &[]).unwrap();
        let get = |key| text(&resource, key);
        assert_eq!(get("service.namespace").as_deref(), Some("dalston"));
        assert_eq!(
            get("process.pid").as_deref(),
            Some(std::process::id().to_string().as_str())
        );
        assert_eq!(get("telemetry.sdk.language").as_deref(), Some("rust"));
        assert!(get("service.instance.id").is_some_and(|id| id.len() == 36));
        assert!(get("host.name").is_some() && get("host.arch").is_some() && get("os.type").is_some());
        assert_eq!(get("process.command_args"), None);
        // HOSTNAME alone makes no pod.
        assert_eq!(get("k8s.pod.name"), None);
    }

    #[test]
    fn the_deprecated_environment_attribute_gets_its_new_name() {
        let resource = build(
            &env(&[("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=prod")]),
            "x",
            &[],
            &[],
        )
        .unwrap();
        assert_eq!(
            text(&resource, "deployment.environment.name").as_deref(),
            Some("prod")
        );
    }

    #[test]
    fn the_instance_type_is_explicit_before_it_is_detected() {
        let detected = [
            KeyValue::new("host.type", "g5.xlarge"),
            KeyValue::new("host.id", "i-1"),
        ];
        let explicit = [KeyValue::new("host.type", "by-call")];
        let listed = ("OTEL_RESOURCE_ATTRIBUTES", "host.type=listed");
        for (pairs, detected, expected) in [
            (vec![], &detected[..], Some("g5.xlarge")),
            (vec![("INSTANCE_TYPE", "")], &detected, Some("g5.xlarge")),
            (vec![("INSTANCE_TYPE", "mine")], &detected, Some("mine")),
            (vec![listed], &detected, Some("listed")),
            (vec![listed, ("INSTANCE_TYPE", "mine")], &[], Some("mine")),
            (vec![], &[], None),
        ] {
            let env = env(&pairs);
            assert_eq!(instance_type(&env, &[], detected).unwrap().as_deref(), expected);
            let resource = build(&env, "x", &[], detected).unwrap();
            assert_eq!(text(&resource, "host.type").as_deref(), expected, "{pairs:?}");
            let resource = build(&env, "x", &explicit, detected).unwrap();
            assert_eq!(
                text(&resource, "host.type").as_deref(),
                Some("by-call"),
                "{pairs:?}"
            );
        }
    }

    #[test]
    fn environment_wins_over_cloud_over_host_detection() {
        let detected = [
            KeyValue::new("host.id", "i-0123456789abcdef0"),
            KeyValue::new("cloud.region", "eu-west-2"),
        ];
        let env = env(&[("OTEL_RESOURCE_ATTRIBUTES", "cloud.region=mine")]);
        let resource = build(&env, "x", &[], &detected).unwrap();
        assert_eq!(text(&resource, "host.id").as_deref(), Some("i-0123456789abcdef0"));
        assert_eq!(text(&resource, "cloud.region").as_deref(), Some("mine"));
    }
}
