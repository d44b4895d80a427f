//! How a worker is set up: [`RunnerConfig`], from the environment. The only place of this crate that knows variables.

#[cfg(feature = "worker")]
mod deployment;
mod models;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use dalston_telemetry::{Env, EnvError};

#[cfg(feature = "worker")]
pub use self::deployment::{DeploymentConfig, SpotDrain};
pub use self::models::{ModelSettings, ModelSource};
use crate::model_id::ModelId;
use crate::options::EngineOptions;

/// More inference threads than any machine has use for.
pub(crate) const MAX_SLOTS: usize = 1024;
pub(crate) const SLOTS_ACCEPTED: &str = "a whole number from 1 to 1024";

/// The settings of a worker that do not depend on where its tasks come from.
///
/// | Field | Variable | Default |
/// |---|---|---|
/// | `engine_id` | `DALSTON_ENGINE_ID` | what the engine says |
/// | `instance_suffix` | `DALSTON_WORKER_ID`, `DALSTON_INSTANCE` | random |
/// | `slots` | `DALSTON_SLOTS` | 1 |
/// | `options.device` | `DALSTON_DEVICE` | `auto` |
/// | `options.precision` | `DALSTON_PRECISION` | `auto` |
/// | `options.model` | `DALSTON_DEFAULT_MODEL` | what the engine says |
/// | `options.model_root` | `DALSTON_MODEL_DIR` | none |
/// | `preload` | `DALSTON_MODEL_PRELOAD` | nothing |
/// | `max_loaded_models` | `DALSTON_MAX_LOADED_MODELS` | 2 |
/// | `model_ttl` | `DALSTON_MODEL_TTL_SECONDS` | 3600 s |
/// | `task_timeout` | `DALSTON_DEFAULT_TASK_TIMEOUT_S` | 3600 s |
/// | `drain_timeout` | `DALSTON_DRAIN_TIMEOUT_SECONDS` | 25 s |
/// | `max_deliveries` | `DALSTON_MAX_DELIVERIES` | 3 |
/// | `max_stuck_threads` | `DALSTON_MAX_STUCK_THREADS` | 2 |
/// | `temp_root` | `TMPDIR` | `/tmp` |
/// | `temp_max_age` | `DALSTON_TEMP_PURGE_MAX_AGE_S` | 30 days |
/// | `instance_type` | `INSTANCE_TYPE` | what telemetry says |
///
/// ```
/// use dalston_engine_sdk::RunnerConfig;
/// use dalston_telemetry::Env;
///
/// let env = Env::from_pairs([("DALSTON_SLOTS", "2"), ("DALSTON_MODEL_PRELOAD", "tiny,base")]);
/// let config = RunnerConfig::from_env(&env)?;
/// assert_eq!((config.slots, config.preload.len()), (2, 2));
/// # Ok::<(), dalston_telemetry::EnvError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RunnerConfig {
    /// An engine id that replaces the engine's own: another queue for the same program.
    pub engine_id: Option<String>,
    /// What makes the name of this process unique: the first 12 characters count. It should be new for every start.
    pub instance_suffix: Option<String>,
    /// How many inference threads there are, each with models of its own: 1 to 1024.
    pub slots: usize,
    /// What the engine gets to see when it loads a model.
    pub options: EngineOptions,
    /// Models to load before the first task is taken. The unnamed one stands for the default model; the variable says `true`.
    pub preload: Vec<ModelId>,
    /// How many models an inference thread keeps.
    pub max_loaded_models: usize,
    /// How long a model is kept that no task asks for.
    pub model_ttl: Duration,
    /// How long a task may take if its queue entry does not say it.
    pub task_timeout: Duration,
    /// How long tasks may go on after the worker was told to stop.
    pub drain_timeout: Duration,
    /// How often a task may be delivered; one that kills its workers comes back until then.
    pub max_deliveries: u32,
    /// How many inference threads may be stuck in calls that never return before the worker gives up.
    pub max_stuck_threads: usize,
    /// Where the directories of tasks are made.
    pub temp_root: PathBuf,
    /// How old directories of tasks get there before they are removed, when the worker starts and every hour: a process that was
    /// killed leaves them. It should be longer than any task of another worker on this machine takes.
    pub temp_max_age: Duration,
    /// The hardware, as it should appear in metrics: unless set, [what telemetry says](dalston_telemetry::TelemetryHandle::instance_type),
    /// else `unknown`.
    pub instance_type: Option<String>,
}

impl Default for RunnerConfig {
    fn default() -> Self {
        Self {
            engine_id: None,
            instance_suffix: None,
            slots: 1,
            options: EngineOptions::default(),
            preload: Vec::new(),
            max_loaded_models: 2,
            model_ttl: Duration::from_secs(3600),
            task_timeout: Duration::from_secs(3600),
            // Kubernetes kills after 30 s.
            drain_timeout: Duration::from_secs(25),
            max_deliveries: 3,
            max_stuck_threads: 2,
            temp_root: PathBuf::from("/tmp"),
            temp_max_age: Duration::from_secs(30 * 86_400),
            instance_type: None,
        }
    }
}

impl RunnerConfig {
    /// Reads the settings from the environment.
    ///
    /// # Errors
    ///
    /// If a variable has a value that it can't have; the error names the variable, the value and what is accepted.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let mut config = Self {
            engine_id: env.get("DALSTON_ENGINE_ID").map(str::to_owned),
            instance_type: env.get("INSTANCE_TYPE").map(str::to_owned),
            instance_suffix: env
                .first(&["DALSTON_WORKER_ID", "DALSTON_INSTANCE"])
                .map(|(_, value)| value.to_owned()),
            ..Self::default()
        };
        let options = &mut config.options;
        set(
            &mut options.device,
            env.parse("DALSTON_DEVICE", "auto, cpu, cuda or cuda:N")?,
        );
        set(
            &mut options.precision,
            env.parse("DALSTON_PRECISION", "auto, float32, float16 or bfloat16")?,
        );
        options.model = env.get("DALSTON_DEFAULT_MODEL").map(ModelId::from);
        options.model_root = env.get("DALSTON_MODEL_DIR").map(PathBuf::from);
        if let Some(models) = env.get("DALSTON_MODEL_PRELOAD") {
            let models = models.split(',').map(str::trim).filter(|model| !model.is_empty());
            config.preload = models
                .map(|model| match model {
                    "true" => ModelId::default(),
                    name => ModelId::from(name),
                })
                .collect();
        }
        set(&mut config.slots, slots(env)?);
        set(
            &mut config.max_loaded_models,
            at_least_one(env, "DALSTON_MAX_LOADED_MODELS")?,
        );
        set(&mut config.model_ttl, seconds(env, "DALSTON_MODEL_TTL_SECONDS")?);
        set(
            &mut config.task_timeout,
            seconds(env, "DALSTON_DEFAULT_TASK_TIMEOUT_S")?,
        );
        set(
            &mut config.drain_timeout,
            seconds(env, "DALSTON_DRAIN_TIMEOUT_SECONDS")?,
        );
        set(
            &mut config.max_deliveries,
            at_least_one(env, "DALSTON_MAX_DELIVERIES")?,
        );
        set(
            &mut config.max_stuck_threads,
            env.parse("DALSTON_MAX_STUCK_THREADS", "a whole number")?,
        );
        set(&mut config.temp_root, env.get("TMPDIR").map(PathBuf::from));
        set(
            &mut config.temp_max_age,
            seconds(env, "DALSTON_TEMP_PURGE_MAX_AGE_S")?,
        );
        Ok(config)
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn at_least_one<T: FromStr + PartialOrd + From<u8>>(env: &Env, name: &str) -> Result<Option<T>, EnvError> {
    const ACCEPTED: &str = "a whole number from 1";
    match env.parse(name, ACCEPTED)? {
        Some(number) if number < T::from(1) => {
            Err(EnvError::new(name, env.get(name).unwrap_or_default(), ACCEPTED))
        }
        number => Ok(number),
    }
}

fn slots(env: &Env) -> Result<Option<usize>, EnvError> {
    const NAME: &str = "DALSTON_SLOTS";
    match env.parse(NAME, SLOTS_ACCEPTED)? {
        Some(slots) if !(1..=MAX_SLOTS).contains(&slots) => Err(EnvError::new(
            NAME,
            env.get(NAME).unwrap_or_default(),
            SLOTS_ACCEPTED,
        )),
        slots => Ok(slots),
    }
}

fn seconds(env: &Env, name: &str) -> Result<Option<Duration>, EnvError> {
    const ACCEPTED: &str = "a number of seconds from 0 to 31536000";
    const A_YEAR: f64 = 365.0 * 86_400.0;
    let Some(seconds) = env.parse::<f64>(name, ACCEPTED)? else {
        return Ok(None);
    };
    if !(0.0..=A_YEAR).contains(&seconds) {
        return Err(EnvError::new(name, env.get(name).unwrap_or_default(), ACCEPTED));
    }
    Ok(Some(Duration::from_secs_f64(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{DeviceChoice, PrecisionChoice};

    #[test]
    fn an_empty_environment_gives_the_documented_defaults() {
        let env = Env::from_pairs([("DALSTON_SLOTS", ""), ("DALSTON_MODEL_PRELOAD", " ")]);
        assert_eq!(RunnerConfig::from_env(&env).unwrap(), RunnerConfig::default());
    }

    #[test]
    fn every_variable_sets_its_field() {
        let env = Env::from_pairs([
            ("DALSTON_ENGINE_ID", "other-asr"),
            ("DALSTON_WORKER_ID", "w1"),
            ("DALSTON_INSTANCE", "i1"),
            ("DALSTON_SLOTS", "3"),
            ("DALSTON_DEVICE", "cuda:1"),
            ("DALSTON_PRECISION", "bfloat16"),
            ("DALSTON_DEFAULT_MODEL", "small"),
            ("DALSTON_MODEL_DIR", "/models"),
            ("DALSTON_MODEL_PRELOAD", "tiny, base,"),
            ("DALSTON_MAX_LOADED_MODELS", "5"),
            ("DALSTON_MODEL_TTL_SECONDS", "60"),
            ("DALSTON_DEFAULT_TASK_TIMEOUT_S", "1.5"),
            ("DALSTON_DRAIN_TIMEOUT_SECONDS", "0"),
            ("DALSTON_MAX_DELIVERIES", "7"),
            ("DALSTON_MAX_STUCK_THREADS", "0"),
            ("TMPDIR", "/scratch"),
            ("DALSTON_TEMP_PURGE_MAX_AGE_S", "3600"),
            ("INSTANCE_TYPE", "g5.xlarge"),
        ]);
        let expected = RunnerConfig {
            engine_id: Some("other-asr".to_owned()),
            instance_suffix: Some("w1".to_owned()),
            slots: 3,
            options: EngineOptions::new()
                .device(DeviceChoice::Cuda(1))
                .precision(PrecisionChoice::Bfloat16)
                .model("small")
                .model_root("/models"),
            preload: vec!["tiny".into(), "base".into()],
            max_loaded_models: 5,
            model_ttl: Duration::from_secs(60),
            task_timeout: Duration::from_millis(1500),
            drain_timeout: Duration::ZERO,
            max_deliveries: 7,
            max_stuck_threads: 0,
            temp_root: PathBuf::from("/scratch"),
            temp_max_age: Duration::from_secs(3600),
            instance_type: Some("g5.xlarge".to_owned()),
        };
        assert_eq!(RunnerConfig::from_env(&env).unwrap(), expected);
    }

    #[test]
    fn preload_may_just_ask_for_the_default_model() {
        let env = Env::from_pairs([("DALSTON_MODEL_PRELOAD", "true")]);
        assert_eq!(
            RunnerConfig::from_env(&env).unwrap().preload,
            [ModelId::default()]
        );
    }

    #[test]
    fn a_wrong_value_is_an_error_that_names_variable_value_and_what_is_accepted() {
        for (name, value, accepted) in [
            ("DALSTON_SLOTS", "0", SLOTS_ACCEPTED),
            ("DALSTON_SLOTS", "two", SLOTS_ACCEPTED),
            ("DALSTON_SLOTS", "1025", SLOTS_ACCEPTED),
            ("DALSTON_SLOTS", "18446744073709551615", SLOTS_ACCEPTED),
            ("DALSTON_DEVICE", "tpu", "auto, cpu, cuda or cuda:N"),
            (
                "DALSTON_MODEL_TTL_SECONDS",
                "-1",
                "a number of seconds from 0 to 31536000",
            ),
            (
                "DALSTON_MODEL_TTL_SECONDS",
                "NaN",
                "a number of seconds from 0 to 31536000",
            ),
            (
                "DALSTON_MODEL_TTL_SECONDS",
                "inf",
                "a number of seconds from 0 to 31536000",
            ),
        ] {
            let error = RunnerConfig::from_env(&Env::from_pairs([(name, value)])).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("{name} is {value:?}: expected {accepted}")
            );
        }
    }
}
