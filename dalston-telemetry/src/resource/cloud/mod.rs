//! Which machine of Amazon's cloud this process runs on: [`Cloud`] (feature `ec2`).
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
//! # What is asked, and when
//!
//! | Where | How it is recognised | What is asked |
//! |---|---|---|
//! | Lambda | `AWS_LAMBDA_FUNCTION_NAME` | nothing |
//! | ECS, Fargate included | `ECS_CONTAINER_METADATA_URI_V4` | that address; on ECS with machines of one's own, EC2's as well |
//! | EC2 | the firmware's names, or nothing that speaks against it | the instance metadata service, version 2 |
//! | elsewhere | the firmware names another vendor, or the system is not Linux | nothing |
//!
//! The firmware's names are those that Linux shows below `/sys/class/dmi/id`. On current instances they also hold the instance
//! id and the instance type, so that both are known where the service can't be reached.
//!
//! All of it takes 2 s at most, and 0.3 s where nobody accepts the connection. No proxy is used and no redirect followed,
//! every answer is bounded, and what does not look like an answer of Amazon's (a captive portal's page) is not believed.
//! Finding nothing is never an error.
//!
//! [`settings`](crate::settings) lists the variables that decide what is asked. With `DALSTON_DEPLOY_ENV=aws` the service is asked
//! whatever the firmware says; with any other value nothing is asked.

mod detect;
mod firmware;
mod http;
mod identity;
mod imds;
mod settings;

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use opentelemetry::KeyValue;

pub use self::imds::{MetadataError, MetadataService};

use self::detect::{Found, Outcome};
use self::firmware::Firmware;
use self::settings::Settings;
use crate::env::{Env, EnvError};

/// For everything that is asked, and for one question later on.
const BUDGET: Duration = Duration::from_secs(2);
/// What is left of it is for handing over what was found.
const ASKING: Duration = Duration::from_millis(1_900);

/// What is known of the cloud that this process runs in. Nothing, on a laptop. Cheap to clone.
#[derive(Clone, Default)]
pub struct Cloud {
    found: Arc<Found>,
}

/// A service of Amazon's that runs processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Platform {
    /// A virtual machine.
    Ec2,
    /// The container service, on Fargate or on machines of one's own.
    Ecs,
    /// Functions.
    Lambda,
}

impl Cloud {
    /// Nothing is known.
    #[must_use]
    pub fn unknown() -> Self {
        Self::default()
    }

    /// Finds out where this process runs.
    ///
    /// Blocks the calling thread for 2 s at most, usually for milliseconds; works with and without a runtime.
    ///
    /// # Errors
    ///
    /// When a variable has a wrong value. That nothing was found is no error.
    #[doc(alias = "AwsEc2ResourceDetector")]
    pub fn detect(env: &Env) -> Result<Self, EnvError> {
        let settings = Settings::read(env)?;
        let firmware = settings.looks_at_firmware().then(Firmware::read);
        Ok(Self::ask(settings, firmware.unwrap_or_default()))
    }

    fn ask(settings: Settings, firmware: Firmware) -> Self {
        let mut found = Found::without_asking(&settings, &firmware);
        if found.outcome == Outcome::ToBeAsked {
            let (sender, answer) = mpsc::sync_channel(1);
            let known = found.clone();
            let thread = std::thread::Builder::new().name("cloud".to_owned());
            // A thread of its own, because a runtime can't be entered from within another one.
            let asking = thread.spawn(move || {
                let found = detect::on_a_runtime(&settings, &firmware, known, ASKING);
                let _ = sender.send(found);
            });
            // Looking up a host name can't be given up, so the thread may outlast its own deadline.
            match asking.map(|_| answer.recv_timeout(BUDGET)) {
                Ok(Ok(answer)) => found = answer,
                _ => found.outcome = Outcome::Silent(MetadataError::Timeout),
            }
        }
        Self {
            found: Arc::new(found),
        }
    }

    /// The service that runs this process, if it is one of Amazon's.
    #[must_use]
    pub fn platform(&self) -> Option<Platform> {
        self.found.platform
    }

    /// The EC2 instance: `i-0123456789abcdef0`.
    #[doc(alias = "get_instance_id")]
    #[must_use]
    pub fn instance_id(&self) -> Option<&str> {
        self.found.identity.instance_id.as_deref()
    }

    /// The kind of EC2 instance: `g5.xlarge`.
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

    /// The instance metadata service, if it has answered: also for what changes while the instance runs.
    #[must_use]
    pub fn metadata(&self) -> Option<&MetadataService> {
        self.found.metadata.as_ref()
    }

    /// All that is known, as resource attributes.
    pub(crate) fn attributes(&self) -> Vec<KeyValue> {
        self.found.attributes()
    }

    /// Says once, in the log, what came of it.
    pub(crate) fn log(&self) {
        let found = &self.found;
        match &found.outcome {
            Outcome::Silent(error) if found.is_certainly_ec2 => tracing::warn!(
                %error,
                "instance_metadata_unavailable: in a container, the answers of the instance metadata service are lost on the \
                 way unless the instance's HttpPutResponseHopLimit is 2; AWS_EC2_METADATA_DISABLED=true ends this warning"
            ),
            outcome => tracing::debug!(
                outcome = %outcome,
                instance_id = self.instance_id(),
                instance_type = self.instance_type(),
                availability_zone = self.availability_zone(),
                "cloud_detection"
            ),
        }
    }
}

impl PartialEq for Cloud {
    /// Whether the same is known of both.
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

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::time::Instant;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::{LogWriter, Telemetry};

    /// A service that takes connections and says nothing, as it looks from a container that is one hop too far away. Nothing in
    /// the settings insists on it.
    fn silent_service() -> (TcpListener, Settings) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let env = Env::from_pairs([("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)]);
        let mut settings = Settings::read(&env).unwrap();
        settings.imds.certain = false;
        (listener, settings)
    }

    fn was_asked(listener: &TcpListener) -> bool {
        listener.set_nonblocking(true).unwrap();
        listener.accept().is_ok()
    }

    fn log_of(cloud: &Cloud, level: &'static str) -> Vec<String> {
        let (writer, lines) = LogWriter::buffer();
        let (layer, _telemetry) = Telemetry::builder("engine-test")
            .env(Env::from_pairs([("LOG_LEVEL", level)]))
            .log_writer(writer)
            .into_layer()
            .unwrap();
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || cloud.log());
        lines.lines()
    }

    #[test]
    fn a_machine_of_another_vendor_asks_nobody_and_says_nothing() {
        let (listener, settings) = silent_service();
        let cloud = Cloud::ask(settings, Firmware::of("LENOVO"));
        assert_eq!(cloud, Cloud::unknown());
        assert!(!was_asked(&listener));
        assert_eq!(log_of(&cloud, "info"), [] as [&str; 0]);
        assert!(log_of(&cloud, "debug")[0].contains("this machine is not Amazon's"));
    }

    #[test]
    fn an_instance_out_of_reach_of_its_service_is_known_by_its_firmware_and_the_log_says_what_to_do() {
        let (listener, settings) = silent_service();
        let begun = Instant::now();
        let cloud = Cloud::ask(settings, Firmware::of("Amazon EC2"));
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        assert!(was_asked(&listener));
        assert_eq!(cloud.platform(), Some(Platform::Ec2));
        assert_eq!(cloud.instance_id(), Some("i-0123456789abcdef0"));
        assert_eq!(cloud.instance_type(), Some("g5.xlarge"));
        assert_eq!(cloud.availability_zone(), None);
        assert!(cloud.metadata().is_none(), "it never answered");
        let lines = log_of(&cloud, "info");
        assert_eq!(lines.len(), 1, "{lines:?}");
        for part in [
            r#""level":"warning""#,
            "HttpPutResponseHopLimit",
            "no answer within 2 s",
        ] {
            assert!(lines[0].contains(part), "{part}: {lines:?}");
        }
    }

    #[test]
    fn a_machine_that_says_nothing_of_itself_asks_but_does_not_complain() {
        let (listener, settings) = silent_service();
        let cloud = Cloud::ask(settings, Firmware::default());
        assert!(was_asked(&listener));
        assert_eq!(cloud, Cloud::unknown());
        assert_eq!(log_of(&cloud, "info"), [] as [&str; 0]);
    }

    #[test]
    fn a_deployment_on_aws_asks_whatever_the_firmware_says() {
        let (listener, mut settings) = silent_service();
        settings.imds.certain = true;
        assert_eq!(Cloud::ask(settings, Firmware::of("LENOVO")), Cloud::unknown());
        assert!(was_asked(&listener));
    }

    /// Answers every request with this task.
    fn ecs_service(launch_type: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let _ = connection.read(&mut request).unwrap();
            let task = format!(r#"{{"LaunchType": "{launch_type}", "Family": "engine"}}"#);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", task.len());
            connection.write_all((head + &task).as_bytes()).unwrap();
        });
        url
    }

    fn in_ecs(ecs: &str) -> (TcpListener, Settings) {
        let (listener, mut settings) = silent_service();
        let env = Env::from_pairs([("ECS_CONTAINER_METADATA_URI_V4", ecs)]);
        settings.ecs = Settings::read(&env).unwrap().ecs;
        (listener, settings)
    }

    #[test]
    fn the_machine_below_fargate_is_not_the_instance_of_its_tasks() {
        let nobody = "http://127.0.0.1:9".to_owned();
        for ecs in [ecs_service("FARGATE"), nobody] {
            let (listener, settings) = in_ecs(&ecs);
            let cloud = Cloud::ask(settings, Firmware::of("Amazon EC2"));
            assert_eq!(cloud.platform(), Some(Platform::Ecs));
            assert_eq!(
                (cloud.instance_id(), cloud.instance_type()),
                (None, None),
                "{ecs}"
            );
            assert!(!was_asked(&listener), "{ecs}");
            assert_eq!(log_of(&cloud, "info"), [] as [&str; 0]);
        }
    }

    #[test]
    fn tasks_on_instances_are_told_by_their_firmware_once_the_task_says_so() {
        let (listener, settings) = in_ecs(&ecs_service("EC2"));
        let cloud = Cloud::ask(settings, Firmware::of("Amazon EC2"));
        assert!(was_asked(&listener));
        assert_eq!(cloud.platform(), Some(Platform::Ecs));
        assert_eq!(cloud.instance_id(), Some("i-0123456789abcdef0"));
        assert_eq!(cloud.instance_type(), Some("g5.xlarge"));
    }
}
