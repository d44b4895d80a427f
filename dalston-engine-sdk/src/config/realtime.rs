//! How a worker serves realtime sessions.

use std::time::Duration;

use dalston_telemetry::services::SpanNames;
use dalston_telemetry::{Env, EnvError};

use super::settings::{
    DALSTON_MAX_SESSIONS, DALSTON_REALTIME_IDLE_TIMEOUT_SECONDS, DALSTON_REALTIME_INPUT_SECONDS,
    DALSTON_REALTIME_LAG_HARD_GRACE_SECONDS, DALSTON_REALTIME_LAG_HARD_SECONDS,
    DALSTON_REALTIME_LAG_WARNING_SECONDS, DALSTON_REALTIME_MAX_SESSION_SECONDS,
    DALSTON_REALTIME_MAX_UTTERANCE_DURATION, DALSTON_REALTIME_MIN_SILENCE_DURATION_MS, DALSTON_RT_SPAN_NAMES,
    DALSTON_RT_SPAN_SAMPLE_RATE, DALSTON_WORKER_ENDPOINT, DALSTON_WORKER_PORT,
};

/// The configuration of realtime sessions.
///
/// Each field names its environment variable. The page of [`settings`](crate::settings) has the
/// defaults and the accepted values.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RealtimeConfig {
    /// The port, on all addresses. 0 is any free one. `DALSTON_WORKER_PORT`.
    pub port: u16,
    /// The URL of the port that the registry shows. Default: host name and port.
    /// `DALSTON_WORKER_ENDPOINT`.
    pub endpoint: Option<String>,
    /// How many sessions there may be at the same time. `DALSTON_MAX_SESSIONS`.
    pub max_sessions: usize,
    /// How far a session may lag before the client gets a warning.
    /// `DALSTON_REALTIME_LAG_WARNING_SECONDS`.
    pub lag_warning: Duration,
    /// How far a session may lag for a while. `DALSTON_REALTIME_LAG_HARD_SECONDS`.
    pub lag_hard: Duration,
    /// How long it may lag that far. `DALSTON_REALTIME_LAG_HARD_GRACE_SECONDS`.
    pub lag_hard_grace: Duration,
    /// The length at which an utterance is cut. `DALSTON_REALTIME_MAX_UTTERANCE_DURATION`.
    pub max_utterance: Duration,
    /// The silence that ends an utterance. `DALSTON_REALTIME_MIN_SILENCE_DURATION_MS`.
    pub min_silence: Duration,
    /// The audio of a session that may wait for its transcription before the client is slowed down.
    /// `DALSTON_REALTIME_INPUT_SECONDS`.
    pub input: Duration,
    /// How long a client may send neither audio nor `keepalive`.
    /// `DALSTON_REALTIME_IDLE_TIMEOUT_SECONDS`.
    pub idle_timeout: Duration,
    /// How long a session may last. `DALSTON_REALTIME_MAX_SESSION_SECONDS`.
    pub max_session: Duration,
    /// One chunk of audio in so many has a span. `DALSTON_RT_SPAN_SAMPLE_RATE`.
    pub span_sample_rate: u32,
    /// The names of the spans of a session. `DALSTON_RT_SPAN_NAMES`.
    pub span_names: SpanNames,
}

impl Default for RealtimeConfig {
    fn default() -> Self {
        Self {
            port: DALSTON_WORKER_PORT.default_value(),
            endpoint: None,
            max_sessions: DALSTON_MAX_SESSIONS.default_value(),
            lag_warning: DALSTON_REALTIME_LAG_WARNING_SECONDS.default_value(),
            lag_hard: DALSTON_REALTIME_LAG_HARD_SECONDS.default_value(),
            lag_hard_grace: DALSTON_REALTIME_LAG_HARD_GRACE_SECONDS.default_value(),
            max_utterance: DALSTON_REALTIME_MAX_UTTERANCE_DURATION.default_value(),
            min_silence: DALSTON_REALTIME_MIN_SILENCE_DURATION_MS.default_value(),
            input: DALSTON_REALTIME_INPUT_SECONDS.default_value(),
            idle_timeout: DALSTON_REALTIME_IDLE_TIMEOUT_SECONDS.default_value(),
            max_session: DALSTON_REALTIME_MAX_SESSION_SECONDS.default_value(),
            span_sample_rate: DALSTON_RT_SPAN_SAMPLE_RATE.default_value(),
            span_names: DALSTON_RT_SPAN_NAMES.default_value(),
        }
    }
}

impl RealtimeConfig {
    /// Reads the configuration from the environment.
    ///
    /// # Errors
    ///
    /// If a variable has a value that it does not accept. The error names the variable, the value
    /// and the accepted values.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        Ok(Self {
            port: DALSTON_WORKER_PORT.read_or_default(env)?,
            endpoint: DALSTON_WORKER_ENDPOINT.read(env)?,
            max_sessions: DALSTON_MAX_SESSIONS.read_or_default(env)?,
            lag_warning: DALSTON_REALTIME_LAG_WARNING_SECONDS.read_or_default(env)?,
            lag_hard: DALSTON_REALTIME_LAG_HARD_SECONDS.read_or_default(env)?,
            lag_hard_grace: DALSTON_REALTIME_LAG_HARD_GRACE_SECONDS.read_or_default(env)?,
            max_utterance: DALSTON_REALTIME_MAX_UTTERANCE_DURATION.read_or_default(env)?,
            min_silence: DALSTON_REALTIME_MIN_SILENCE_DURATION_MS.read_or_default(env)?,
            input: DALSTON_REALTIME_INPUT_SECONDS.read_or_default(env)?,
            idle_timeout: DALSTON_REALTIME_IDLE_TIMEOUT_SECONDS.read_or_default(env)?,
            max_session: DALSTON_REALTIME_MAX_SESSION_SECONDS.read_or_default(env)?,
            span_sample_rate: DALSTON_RT_SPAN_SAMPLE_RATE.read_or_default(env)?,
            span_names: DALSTON_RT_SPAN_NAMES.read_or_default(env)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_environment_gives_the_documented_defaults() {
        let config = RealtimeConfig::from_env(&Env::default()).unwrap();
        assert_eq!(config, RealtimeConfig::default());
        assert_eq!(
            (config.port, config.max_sessions, config.span_sample_rate),
            (9000, 2, 10)
        );
        let seconds = [
            config.lag_warning,
            config.lag_hard,
            config.lag_hard_grace,
            config.max_utterance,
        ];
        assert_eq!(seconds.map(|time| time.as_secs()), [3, 5, 2, 30]);
        let seconds = [config.input, config.idle_timeout, config.max_session];
        assert_eq!(seconds.map(|time| time.as_secs()), [30, 60, 14_400]);
        assert_eq!(config.min_silence, Duration::from_millis(400));
        let env = Env::from_pairs([("DALSTON_RT_SPAN_NAMES", "live")]);
        let config = RealtimeConfig::from_env(&env).unwrap();
        assert_eq!(config.span_names, SpanNames::Live);
    }

    #[test]
    fn wrong_value_names_its_variable() {
        let env = Env::from_pairs([("DALSTON_MAX_SESSIONS", "0")]);
        assert_eq!(
            RealtimeConfig::from_env(&env).unwrap_err().to_string(),
            r#"DALSTON_MAX_SESSIONS is "0": expected a whole number from 1 to 10000"#
        );
    }
}
