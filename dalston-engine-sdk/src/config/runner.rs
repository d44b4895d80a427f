use std::path::PathBuf;
use std::time::Duration;

use dalston_telemetry::settings::INSTANCE_TYPE;
use dalston_telemetry::{Env, EnvError};

use super::engine::EngineConfig;
use super::settings::{
    DALSTON_BATCH_WAIT_SECONDS, DALSTON_DEFAULT_TASK_TIMEOUT_S, DALSTON_DRAIN_TIMEOUT_SECONDS,
    DALSTON_ENGINE_ID, DALSTON_MAX_BATCH, DALSTON_MAX_DELIVERIES, DALSTON_MAX_LOADED_MODELS,
    DALSTON_MAX_STUCK_THREADS, DALSTON_MODEL_PRELOAD, DALSTON_MODEL_TTL_SECONDS, DALSTON_SLOTS,
    DALSTON_TEMP_PURGE_MAX_AGE_S, DALSTON_WORKER_ID, TMPDIR,
};
use crate::model_id::ModelId;

/// The part of a worker's configuration that does not depend on where its tasks come from.
///
/// Each field names its environment variable. The page of [`settings`](crate::settings) has the
/// defaults and the accepted values.
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
    /// `DALSTON_ENGINE_ID`.
    pub engine_id: Option<String>,
    /// Makes the name of this process unique: the first 12 characters count. If a live process of
    /// the deployment has the name, a random text takes its place. `DALSTON_WORKER_ID`, else
    /// random.
    pub instance_suffix: Option<String>,
    /// How many inference threads there are, each with models of its own: 1 to 1024.
    /// `DALSTON_SLOTS`.
    pub slots: usize,
    /// The most tasks that the engine gets at once, if it takes batches: at least 1. `None` stands
    /// for the number of the engine. `DALSTON_MAX_BATCH`.
    pub max_batch: Option<usize>,
    /// How long an idle inference thread waits for a full batch, at most 60 s. `None` stands for
    /// the time of the engine. `DALSTON_BATCH_WAIT_SECONDS`.
    pub batch_wait: Option<Duration>,
    /// What the engine gets when it loads a model.
    pub engine: EngineConfig,
    /// Models to load before the first task is taken. The unnamed one stands for the default model;
    /// the variable says `true`. `DALSTON_MODEL_PRELOAD`.
    pub preload: Vec<ModelId>,
    /// How many models an inference thread keeps. `DALSTON_MAX_LOADED_MODELS`.
    pub max_loaded_models: usize,
    /// How long an inference thread keeps a model that no task asks for.
    /// `DALSTON_MODEL_TTL_SECONDS`.
    pub model_ttl: Duration,
    /// How long a task may take if its queue entry gives no deadline.
    /// `DALSTON_DEFAULT_TASK_TIMEOUT_S`.
    pub task_timeout: Duration,
    /// How long tasks may go on after the worker was told to stop. `DALSTON_DRAIN_TIMEOUT_SECONDS`.
    pub drain_timeout: Duration,
    /// How often inference of a task may begin on workers that die in it or lose the task. Then the
    /// task fails. Deliveries to workers that do not begin it count a tenth.
    /// `DALSTON_MAX_DELIVERIES`.
    pub max_deliveries: u32,
    /// How many inference threads may be stuck in calls that never return before the worker gives
    /// up. `DALSTON_MAX_STUCK_THREADS`.
    pub max_stuck_threads: usize,
    /// Where the directories of tasks are made. `TMPDIR`.
    pub temp_root: PathBuf,
    /// How old directories of tasks get there before they are removed, when the worker starts and
    /// every hour: a process that was killed leaves its directories. It should be longer than any
    /// task of another worker on this machine takes. `DALSTON_TEMP_PURGE_MAX_AGE_S`.
    pub temp_max_age: Duration,
    /// The hardware, as metrics show it. Without it,
    /// [telemetry's](dalston_telemetry::TelemetryHandle::instance_type) counts, else `unknown`.
    /// `INSTANCE_TYPE`.
    pub instance_type: Option<String>,
}

impl Default for RunnerConfig {
    fn default() -> Self {
        Self {
            engine_id: None,
            instance_suffix: None,
            slots: DALSTON_SLOTS.default_value(),
            max_batch: None,
            batch_wait: None,
            engine: EngineConfig::default(),
            preload: Vec::new(),
            max_loaded_models: DALSTON_MAX_LOADED_MODELS.default_value(),
            model_ttl: DALSTON_MODEL_TTL_SECONDS.default_value(),
            task_timeout: DALSTON_DEFAULT_TASK_TIMEOUT_S.default_value(),
            drain_timeout: DALSTON_DRAIN_TIMEOUT_SECONDS.default_value(),
            max_deliveries: DALSTON_MAX_DELIVERIES.default_value(),
            max_stuck_threads: DALSTON_MAX_STUCK_THREADS.default_value(),
            temp_root: TMPDIR.default_value(),
            temp_max_age: DALSTON_TEMP_PURGE_MAX_AGE_S.default_value(),
            instance_type: None,
        }
    }
}

impl RunnerConfig {
    /// Reads the configuration from the environment.
    ///
    /// # Errors
    ///
    /// If a variable has a value that it does not accept. The error names the variable, the value
    /// and the accepted values.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        Ok(Self {
            engine_id: DALSTON_ENGINE_ID.read(env)?,
            instance_suffix: DALSTON_WORKER_ID.read(env)?,
            slots: DALSTON_SLOTS.read_or_default(env)?,
            max_batch: DALSTON_MAX_BATCH.read(env)?,
            batch_wait: DALSTON_BATCH_WAIT_SECONDS.read(env)?,
            engine: EngineConfig::from_env(env)?,
            preload: DALSTON_MODEL_PRELOAD.read(env)?.unwrap_or_default(),
            max_loaded_models: DALSTON_MAX_LOADED_MODELS.read_or_default(env)?,
            model_ttl: DALSTON_MODEL_TTL_SECONDS.read_or_default(env)?,
            task_timeout: DALSTON_DEFAULT_TASK_TIMEOUT_S.read_or_default(env)?,
            drain_timeout: DALSTON_DRAIN_TIMEOUT_SECONDS.read_or_default(env)?,
            max_deliveries: DALSTON_MAX_DELIVERIES.read_or_default(env)?,
            max_stuck_threads: DALSTON_MAX_STUCK_THREADS.read_or_default(env)?,
            temp_root: TMPDIR.read_or_default(env)?,
            temp_max_age: DALSTON_TEMP_PURGE_MAX_AGE_S.read_or_default(env)?,
            instance_type: INSTANCE_TYPE.read(env)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::choices::{DeviceChoice, PrecisionChoice};

    #[test]
    fn defaults_are_the_documented_ones() {
        let config = RunnerConfig::default();
        let expected = RunnerConfig {
            engine_id: None,
            instance_suffix: None,
            slots: 1,
            max_batch: None,
            batch_wait: None,
            engine: EngineConfig::default(),
            preload: Vec::new(),
            max_loaded_models: 2,
            model_ttl: Duration::from_secs(3600),
            task_timeout: Duration::from_secs(3600),
            drain_timeout: Duration::from_secs(25),
            max_deliveries: 3,
            max_stuck_threads: 2,
            temp_root: PathBuf::from("/tmp"),
            temp_max_age: Duration::from_secs(30 * 86_400),
            instance_type: None,
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn empty_environment_gives_defaults() {
        let env = Env::from_pairs([("DALSTON_SLOTS", ""), ("DALSTON_MODEL_PRELOAD", " ")]);
        assert_eq!(RunnerConfig::from_env(&env).unwrap(), RunnerConfig::default());
    }

    #[test]
    fn each_variable_sets_its_field() {
        let env = Env::from_pairs([
            ("DALSTON_ENGINE_ID", "other-asr"),
            ("DALSTON_WORKER_ID", "w1"),
            ("DALSTON_INSTANCE", "i1"),
            ("DALSTON_SLOTS", "3"),
            ("DALSTON_MAX_BATCH", "4"),
            ("DALSTON_BATCH_WAIT_SECONDS", "0.05"),
            ("DALSTON_DEVICE", "cuda:1"),
            ("DALSTON_PRECISION", "bfloat16"),
            ("DALSTON_DEFAULT_MODEL", "small"),
            ("DALSTON_MODEL_DIR", "/models"),
            ("DALSTON_VAD_MODEL", "/models/silero_vad.jit"),
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
            max_batch: Some(4),
            batch_wait: Some(Duration::from_millis(50)),
            engine: EngineConfig::new()
                .device(DeviceChoice::Cuda(1))
                .precision(PrecisionChoice::Bfloat16)
                .model("small")
                .model_root("/models")
                .vad_model("/models/silero_vad.jit"),
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
    fn preload_true_is_the_default_model() {
        let env = Env::from_pairs([("DALSTON_MODEL_PRELOAD", "true")]);
        assert_eq!(
            RunnerConfig::from_env(&env).unwrap().preload,
            [ModelId::default()]
        );
    }

    #[test]
    fn wrong_value_is_named_with_accepted_values() {
        const SLOTS: &str = "a whole number from 1 to 1024";
        for (name, value, accepted) in [
            ("DALSTON_SLOTS", "0", SLOTS),
            ("DALSTON_SLOTS", "two", SLOTS),
            ("DALSTON_SLOTS", "1025", SLOTS),
            ("DALSTON_SLOTS", "18446744073709551615", SLOTS),
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
