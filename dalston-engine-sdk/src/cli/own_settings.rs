//! The settings of an engine's own, for [`main_with`](super::main_with).

use std::ffi::OsString;

use dalston_telemetry::Env;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::args::{Assignment, SET};
use super::failure::Failure;
use crate::config::settings::DALSTON_ENGINE_SETTINGS;

/// Reads the settings: those of the environment, and over them those of the command line.
pub(super) fn read<S: DeserializeOwned>(args: &[OsString], env: &Env) -> Result<S, Failure> {
    let mut settings = DALSTON_ENGINE_SETTINGS.read(env)?.unwrap_or_default();
    let mut given = Map::new();
    for assignment in assignments(args) {
        if given.insert(assignment.key.clone(), assignment.json()).is_some() {
            let problem = format!("--{SET} {} is given twice", assignment.key);
            return Err(Failure::Usage(problem));
        }
    }
    settings.extend(given);
    S::deserialize(Value::Object(settings)).map_err(|error| {
        let names = format!("--{SET}, DALSTON_ENGINE_SETTINGS");
        Failure::Usage(format!("the settings of the engine ({names}): {error}"))
    })
}

/// The values of `--set`. The engine is built from them, and the rest of the command line is read
/// after that, with the description of the engine. What is malformed is reported then.
fn assignments(args: &[OsString]) -> Vec<Assignment> {
    let (long, joined) = (format!("--{SET}"), format!("--{SET}="));
    let mut found = Vec::new();
    let mut args = args
        .iter()
        .skip(1)
        .map_while(|arg| (arg != "--").then_some(arg.to_str()));
    while let Some(arg) = args.next() {
        let value = match arg {
            Some(arg) if arg == long => args.next().flatten(),
            Some(arg) => arg.strip_prefix(&joined),
            None => None,
        };
        found.extend(value.and_then(|value| value.parse().ok()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        beams: u32,
        #[serde(default)]
        name: Option<String>,
    }

    fn read_from(args: &str, variable: &str) -> Result<Settings, String> {
        let args: Vec<OsString> = args.split(' ').map(OsString::from).collect();
        let env = Env::from_pairs([("DALSTON_ENGINE_SETTINGS", variable)]);
        read(&args, &env).map_err(|failure| match failure {
            Failure::Usage(text) => text,
            other => panic!("{other:?}"),
        })
    }

    fn settings(beams: u32, name: Option<&str>) -> Result<Settings, String> {
        let name = name.map(str::to_owned);
        Ok(Settings { beams, name })
    }

    #[test]
    fn arguments_win_over_the_environment_key_by_key() {
        assert_eq!(read_from("x run --set beams=5", ""), settings(5, None));
        let variable = r#"{"beams": 2, "name": "a"}"#;
        assert_eq!(read_from("x run", variable), settings(2, Some("a")));
        assert_eq!(read_from("x --set=beams=5 run", variable), settings(5, Some("a")));
        assert_eq!(read_from("x run --set name=null", variable), settings(2, None));
        // Behind `--` are only files.
        assert_eq!(
            read_from("x transcribe -- --set beams=5", variable),
            settings(2, Some("a"))
        );
    }

    #[test]
    fn wrong_settings_are_named() {
        let begin = "the settings of the engine (--set, DALSTON_ENGINE_SETTINGS): ";
        for (args, variable, text) in [
            ("x run", "", format!("{begin}missing field `beams`")),
            (
                "x run --set beams=many",
                "",
                format!("{begin}invalid type: string \"many\", expected u32"),
            ),
            (
                "x run --set beams=1 --set beam=2",
                "",
                format!("{begin}unknown field `beam`, expected `beams` or `name`"),
            ),
            (
                "x --set beams=1 run --set beams=2",
                "",
                "--set beams is given twice".to_owned(),
            ),
            (
                "x run",
                "[1]",
                "DALSTON_ENGINE_SETTINGS is \"[1]\": expected a JSON object".to_owned(),
            ),
        ] {
            assert_eq!(read_from(args, variable), Err(text));
        }
    }
}
