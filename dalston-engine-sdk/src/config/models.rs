//! Where the models of a deployment come from, and where they are kept.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dalston_telemetry::{Env, EnvError};

const SOURCES_ACCEPTED: &str =
    "s3, hf or auto, or several of them with commas between (models of ngc can't be downloaded)";

/// How models reach a worker of a live deployment.
///
/// | Field | Variable | Default |
/// |---|---|---|
/// | `sources` | `DALSTON_MODEL_SOURCE` | `s3` |
/// | `cache_dir` | `DALSTON_MODEL_CACHE_DIR` | `s3-cache` under `DALSTON_MODEL_DIR`, else under `/models` if there is such a directory, else under `~/.cache/dalston/models` |
/// | `max_bytes` | `DALSTON_MODEL_CACHE_MAX_GB` | 0: no limit |
/// | `ttl` | `DALSTON_MODEL_CACHE_TTL_HOURS` | 0: no limit |
/// | `scan_interval` | `DALSTON_MODEL_CACHE_SCAN_INTERVAL` | 600 s |
/// | `hub_endpoint` | `HF_ENDPOINT` | `https://huggingface.co` |
/// | `hub_token` | `HF_TOKEN` | none |
///
/// `Debug` shows no token.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelSettings {
    /// Where to look for a model that is not on this machine, in this order.
    pub sources: Vec<ModelSource>,
    /// The directory for models that were downloaded. Processes may share it. Without one, nothing is downloaded.
    pub cache_dir: Option<PathBuf>,
    /// How much all models in the cache may take, in bytes. Those that were not used for longest go first.
    pub max_bytes: Option<u64>,
    /// How long a model stays in the cache that nobody uses.
    pub ttl: Option<Duration>,
    /// How often the two limits are looked after.
    pub scan_interval: Duration,
    /// The Hugging Face hub, or a mirror of it.
    pub hub_endpoint: String,
    /// The key to the hub, for models that are not open to everybody.
    pub hub_token: Option<String>,
}

/// A place that models come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelSource {
    /// `models/{model_id}/` in the bucket of the deployment.
    S3,
    /// The Hugging Face hub.
    HuggingFace,
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            sources: vec![ModelSource::S3],
            cache_dir: None,
            max_bytes: None,
            ttl: None,
            scan_interval: Duration::from_secs(600),
            hub_endpoint: "https://huggingface.co".to_owned(),
            hub_token: None,
        }
    }
}

impl ModelSettings {
    /// Reads the settings from the environment.
    ///
    /// # Errors
    ///
    /// If a variable has a value that it can't have; the error names the variable, the value and what is accepted.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let mut settings = Self {
            cache_dir: cache_dir(env, Path::new("/models")),
            hub_token: env.get("HF_TOKEN").map(str::to_owned),
            ..Self::default()
        };
        if let Some(sources) = sources(env)? {
            settings.sources = sources;
        }
        if let Some(endpoint) = env.get("HF_ENDPOINT") {
            settings.hub_endpoint = endpoint.trim_end_matches('/').to_owned();
        }
        const GIB: f64 = 1_073_741_824.0;
        let gib = number(env, "DALSTON_MODEL_CACHE_MAX_GB", 0.0, "a number of GiB from 0")?;
        settings.max_bytes = gib.filter(|gib| *gib > 0.0).map(|gib| (gib * GIB) as u64);
        let hours = number(
            env,
            "DALSTON_MODEL_CACHE_TTL_HOURS",
            0.0,
            "a number of hours from 0",
        )?;
        settings.ttl = hours
            .filter(|hours| *hours > 0.0)
            .map(|hours| Duration::from_secs_f64(hours * 3600.0));
        let name = "DALSTON_MODEL_CACHE_SCAN_INTERVAL";
        if let Some(seconds) = number(env, name, 1.0, "a number of seconds from 1")? {
            settings.scan_interval = Duration::from_secs_f64(seconds);
        }
        Ok(settings)
    }
}

impl fmt::Debug for ModelSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelSettings")
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

fn sources(env: &Env) -> Result<Option<Vec<ModelSource>>, EnvError> {
    const NAME: &str = "DALSTON_MODEL_SOURCE";
    let Some(value) = env.get(NAME) else {
        return Ok(None);
    };
    let mut sources = Vec::new();
    for word in value.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word.to_ascii_lowercase().as_str() {
            "s3" => sources.push(ModelSource::S3),
            "hf" => sources.push(ModelSource::HuggingFace),
            "auto" => sources.extend([ModelSource::S3, ModelSource::HuggingFace]),
            _ => return Err(EnvError::new(NAME, value, SOURCES_ACCEPTED)),
        }
    }
    let mut known = Vec::new();
    sources.retain(|source| {
        let new = !known.contains(source);
        known.push(*source);
        new
    });
    match sources.is_empty() {
        true => Err(EnvError::new(NAME, value, SOURCES_ACCEPTED)),
        false => Ok(Some(sources)),
    }
}

/// The same places as the platform's own engines, so that both can share what they downloaded.
fn cache_dir(env: &Env, mounted: &Path) -> Option<PathBuf> {
    if let Some(dir) = env.get("DALSTON_MODEL_CACHE_DIR") {
        return Some(PathBuf::from(dir));
    }
    let root = match env.get("DALSTON_MODEL_DIR") {
        Some(dir) => PathBuf::from(dir),
        None if mounted.is_dir() => mounted.to_owned(),
        None => {
            let home = || Some(Path::new(env.get("HOME")?).join(".cache"));
            let cache = env.get("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
            cache.join("dalston").join("models")
        }
    };
    Some(root.join("s3-cache"))
}

fn number(env: &Env, name: &str, least: f64, accepted: &'static str) -> Result<Option<f64>, EnvError> {
    // More than any disk holds and than any machine lives, and still exact.
    const MOST: f64 = 1e9;
    match env.parse::<f64>(name, accepted)? {
        Some(number) if !(least..=MOST).contains(&number) => {
            Err(EnvError::new(name, env.get(name).unwrap_or_default(), accepted))
        }
        number => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_any_variable_models_come_from_s3_and_stay() {
        let mut settings = ModelSettings::from_env(&Env::default()).unwrap();
        settings.cache_dir = None;
        assert_eq!(settings, ModelSettings::default());
    }

    #[test]
    fn every_variable_sets_its_field() {
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
        let settings = ModelSettings::from_env(&env).unwrap();
        let expected = ModelSettings {
            sources: vec![ModelSource::HuggingFace, ModelSource::S3],
            cache_dir: Some(PathBuf::from("/scratch/models")),
            max_bytes: Some(3 << 29),
            ttl: Some(Duration::from_secs(1800)),
            scan_interval: Duration::from_secs(60),
            hub_endpoint: "https://hub.example".to_owned(),
            hub_token: Some("hf_hunter2".to_owned()),
        };
        assert_eq!(settings, expected);
        let shown = format!("{settings:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn zero_turns_the_limits_off() {
        let env = Env::from_pairs([
            ("DALSTON_MODEL_CACHE_MAX_GB", "0"),
            ("DALSTON_MODEL_CACHE_TTL_HOURS", "0"),
        ]);
        let settings = ModelSettings::from_env(&env).unwrap();
        assert_eq!((settings.max_bytes, settings.ttl), (None, None));
    }

    #[test]
    fn the_cache_lies_where_the_engines_of_the_platform_have_theirs() {
        let home = [("HOME", "/home/me")];
        let nowhere = Path::new("/no/such/directory");
        let place = |pairs: &[(&str, &str)], mounted: &Path| {
            let env = Env::from_pairs(home.into_iter().chain(pairs.iter().copied()));
            cache_dir(&env, mounted).unwrap().display().to_string()
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
        assert_eq!(cache_dir(&Env::default(), nowhere), None);
    }

    #[test]
    fn a_wrong_value_is_an_error_that_says_what_is_accepted() {
        for (name, value, accepted) in [
            ("DALSTON_MODEL_SOURCE", "ngc", SOURCES_ACCEPTED),
            ("DALSTON_MODEL_SOURCE", "s3;hf", SOURCES_ACCEPTED),
            ("DALSTON_MODEL_SOURCE", ",", SOURCES_ACCEPTED),
            ("DALSTON_MODEL_CACHE_MAX_GB", "-1", "a number of GiB from 0"),
            ("DALSTON_MODEL_CACHE_TTL_HOURS", "inf", "a number of hours from 0"),
            (
                "DALSTON_MODEL_CACHE_SCAN_INTERVAL",
                "0",
                "a number of seconds from 1",
            ),
        ] {
            let error = ModelSettings::from_env(&Env::from_pairs([(name, value)])).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("{name} is {value:?}: expected {accepted}")
            );
        }
    }
}
