//! Where the models of a deployment come from, and where they are kept.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dalston_telemetry::{Env, EnvError};

use super::choices::ModelSource;
use super::settings::{
    DALSTON_MODEL_CACHE_DIR, DALSTON_MODEL_CACHE_MAX_GB, DALSTON_MODEL_CACHE_SCAN_INTERVAL,
    DALSTON_MODEL_CACHE_TTL_HOURS, DALSTON_MODEL_DIR, DALSTON_MODEL_SOURCE, HF_ENDPOINT, HF_TOKEN, HOME,
    XDG_CACHE_HOME,
};

/// How models reach a worker of a live deployment.
///
/// Each field names its environment variable. The page of [`settings`](crate::settings) has the
/// defaults and the accepted values.
///
/// `Debug` shows no token.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelConfig {
    /// Where to look for a model that is not on this machine, in this order.
    /// `DALSTON_MODEL_SOURCE`.
    pub sources: Vec<ModelSource>,
    /// The directory for models that were downloaded. Processes may share it. Without one, nothing
    /// is downloaded. `DALSTON_MODEL_CACHE_DIR`.
    pub cache_dir: Option<PathBuf>,
    /// The size of all models in the cache, in bytes. Those that were not used for longest go
    /// first. Default no limit. `DALSTON_MODEL_CACHE_MAX_GB`.
    pub max_bytes: Option<u64>,
    /// How long a model that is not used stays in the cache. Default no limit.
    /// `DALSTON_MODEL_CACHE_TTL_HOURS`.
    pub ttl: Option<Duration>,
    /// The time between two checks of these limits. `DALSTON_MODEL_CACHE_SCAN_INTERVAL`.
    pub scan_interval: Duration,
    /// The Hugging Face hub, or a mirror of it. `HF_ENDPOINT`.
    pub hub_endpoint: String,
    /// The key to models of the hub that are not public. `HF_TOKEN`.
    pub hub_token: Option<String>,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            sources: DALSTON_MODEL_SOURCE.default_value(),
            cache_dir: None,
            max_bytes: None,
            ttl: None,
            scan_interval: DALSTON_MODEL_CACHE_SCAN_INTERVAL.default_value(),
            hub_endpoint: HF_ENDPOINT.default_value(),
            hub_token: None,
        }
    }
}

impl ModelConfig {
    /// Reads the configuration from the environment.
    ///
    /// # Errors
    ///
    /// If a variable has a value that it does not accept. The error names the variable, the value
    /// and the accepted values.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        const GIB: f64 = 1_073_741_824.0;
        let gib = DALSTON_MODEL_CACHE_MAX_GB.read_or_default(env)?;
        let hours = DALSTON_MODEL_CACHE_TTL_HOURS.read_or_default(env)?;
        let endpoint = HF_ENDPOINT.read_or_default(env)?;
        Ok(Self {
            sources: DALSTON_MODEL_SOURCE.read_or_default(env)?,
            cache_dir: cache_dir(env, Path::new("/models"))?,
            max_bytes: (gib > 0.0).then_some((gib * GIB) as u64),
            ttl: (hours > 0.0).then(|| Duration::from_secs_f64(hours * 3600.0)),
            scan_interval: DALSTON_MODEL_CACHE_SCAN_INTERVAL.read_or_default(env)?,
            hub_endpoint: endpoint.trim_end_matches('/').to_owned(),
            hub_token: HF_TOKEN.read(env)?,
        })
    }
}

impl fmt::Debug for ModelConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelConfig")
            .field("sources", &self.sources)
            .field("cache_dir", &self.cache_dir)
            .field("max_bytes", &self.max_bytes)
            .field("ttl", &self.ttl)
            .field("scan_interval", &self.scan_interval)
            .field(
                "hub_endpoint",
                &dalston_telemetry::redact::text(&self.hub_endpoint),
            )
            .field("hub_token", &self.hub_token.is_some())
            .finish()
    }
}

/// The same places as the platform's own engines, so that both can share downloads.
fn cache_dir(env: &Env, mounted: &Path) -> Result<Option<PathBuf>, EnvError> {
    if let Some(dir) = DALSTON_MODEL_CACHE_DIR.read(env)? {
        return Ok(Some(dir));
    }
    let root = match DALSTON_MODEL_DIR.read(env)? {
        Some(dir) => Some(dir),
        None if mounted.is_dir() => Some(mounted.to_owned()),
        None => {
            let of_user = HOME.read(env)?.map(|home| home.join(".cache"));
            let cache = XDG_CACHE_HOME.read(env)?.or(of_user);
            cache.map(|cache| cache.join("dalston").join("models"))
        }
    };
    Ok(root.map(|root| root.join("s3-cache")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCES: &str =
        "s3, hf or auto, or several of them with commas between (models of ngc can't be downloaded)";

    #[test]
    fn defaults_are_s3_and_no_limits() {
        let mut config = ModelConfig::from_env(&Env::default()).unwrap();
        config.cache_dir = None;
        assert_eq!(config, ModelConfig::default());
    }

    #[test]
    fn each_variable_sets_its_field() {
        let env = Env::from_pairs([
            ("DALSTON_MODEL_SOURCE", "HF, s3,hf"),
            ("DALSTON_MODEL_DIR", "/weights"),
            ("DALSTON_MODEL_CACHE_DIR", "/scratch/models"),
            ("DALSTON_MODEL_CACHE_MAX_GB", "1.5"),
            ("DALSTON_MODEL_CACHE_TTL_HOURS", "0.5"),
            ("DALSTON_MODEL_CACHE_SCAN_INTERVAL", "60"),
            ("HF_ENDPOINT", "https://hub.example/"),
            ("HF_TOKEN", "hf_hunter2"),
        ]);
        let config = ModelConfig::from_env(&env).unwrap();
        let expected = ModelConfig {
            sources: vec![ModelSource::HuggingFace, ModelSource::S3],
            cache_dir: Some(PathBuf::from("/scratch/models")),
            max_bytes: Some(3 << 29),
            ttl: Some(Duration::from_secs(1800)),
            scan_interval: Duration::from_secs(60),
            hub_endpoint: "https://hub.example".to_owned(),
            hub_token: Some("hf_hunter2".to_owned()),
        };
        assert_eq!(config, expected);
        let shown = format!("{config:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn zero_turns_limits_off() {
        let env = Env::from_pairs([
            ("DALSTON_MODEL_CACHE_MAX_GB", "0"),
            ("DALSTON_MODEL_CACHE_TTL_HOURS", "0"),
        ]);
        let config = ModelConfig::from_env(&env).unwrap();
        assert_eq!((config.max_bytes, config.ttl), (None, None));
    }

    #[test]
    fn cache_is_where_the_platforms_engines_have_theirs() {
        let home = [("HOME", "/home/me")];
        let nowhere = Path::new("/no/such/directory");
        let place = |pairs: &[(&str, &str)], mounted: &Path| {
            let env = Env::from_pairs(home.into_iter().chain(pairs.iter().copied()));
            cache_dir(&env, mounted).unwrap().unwrap().display().to_string()
        };
        assert_eq!(place(&[], nowhere), "/home/me/.cache/dalston/models/s3-cache");
        assert_eq!(
            place(&[("XDG_CACHE_HOME", "/xdg")], nowhere),
            "/xdg/dalston/models/s3-cache"
        );
        assert_eq!(place(&[], Path::new("/tmp")), "/tmp/s3-cache");
        assert_eq!(
            place(&[("DALSTON_MODEL_DIR", "/weights")], nowhere),
            "/weights/s3-cache"
        );
        assert_eq!(cache_dir(&Env::default(), nowhere), Ok(None));
    }

    #[test]
    fn wrong_value_is_named_with_accepted_values() {
        for (name, value, accepted) in [
            ("DALSTON_MODEL_SOURCE", "ngc", SOURCES),
            ("DALSTON_MODEL_SOURCE", "s3;hf", SOURCES),
            ("DALSTON_MODEL_SOURCE", ",", SOURCES),
            ("DALSTON_MODEL_CACHE_MAX_GB", "-1", "a number of GiB from 0"),
            ("DALSTON_MODEL_CACHE_TTL_HOURS", "inf", "a number of hours from 0"),
            (
                "DALSTON_MODEL_CACHE_SCAN_INTERVAL",
                "0",
                "a number of seconds from 1",
            ),
        ] {
            let error = ModelConfig::from_env(&Env::from_pairs([(name, value)])).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("{name} is {value:?}: expected {accepted}")
            );
        }
    }
}
