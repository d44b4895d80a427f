//! The sampler that `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG` ask for.

use opentelemetry_sdk::trace::Sampler;

use crate::env::{Env, EnvError};

const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";

/// Reads the sampler; parent-based always-on when nothing is set.
pub(crate) fn from_env(env: &Env) -> Result<Sampler, EnvError> {
    let Some(name) = env.get(SAMPLER) else {
        return Ok(parent_based(Sampler::AlwaysOn));
    };
    Ok(match name.to_ascii_lowercase().as_str() {
        "always_on" => Sampler::AlwaysOn,
        "always_off" => Sampler::AlwaysOff,
        "traceidratio" => Sampler::TraceIdRatioBased(ratio(env)?),
        "parentbased_always_on" => parent_based(Sampler::AlwaysOn),
        "parentbased_always_off" => parent_based(Sampler::AlwaysOff),
        "parentbased_traceidratio" => parent_based(Sampler::TraceIdRatioBased(ratio(env)?)),
        _ => {
            return Err(EnvError::new(
                SAMPLER,
                name,
                "always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off \
                 or parentbased_traceidratio",
            ));
        }
    })
}

/// Whether what becomes of a span follows from its parent alone, so that its context can be told before it starts: with
/// parent-based always-on.
pub(crate) fn follows_parents_alone(sampler: &Sampler) -> bool {
    // What is in the box is known by its text alone.
    matches!(sampler, Sampler::ParentBased(root) if format!("{root:?}") == "AlwaysOn")
}

fn parent_based(root: Sampler) -> Sampler {
    Sampler::ParentBased(Box::new(root))
}

/// The ratio of traces to keep; everything when it is not given, as the specification says.
fn ratio(env: &Env) -> Result<f64, EnvError> {
    const ACCEPTED: &str = "a number from 0 to 1";
    match env.parse::<f64>(ARGUMENT, ACCEPTED)? {
        None => Ok(1.0),
        // NaN is in no range, so it ends up in the last arm.
        Some(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        Some(_) => Err(EnvError::new(
            ARGUMENT,
            env.get(ARGUMENT).unwrap_or_default(),
            ACCEPTED,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<String, String> {
        from_env(&Env::from_pairs(pairs.iter().copied()))
            .map(|sampler| format!("{sampler:?}"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn every_standard_sampler_is_understood() {
        let cases = [
            (None, None, "ParentBased(AlwaysOn)"),
            (Some("always_on"), None, "AlwaysOn"),
            (Some("always_off"), None, "AlwaysOff"),
            (Some("Always_OFF"), None, "AlwaysOff"),
            (Some("traceidratio"), Some("0.25"), "TraceIdRatioBased(0.25)"),
            (Some("traceidratio"), None, "TraceIdRatioBased(1.0)"),
            (Some("parentbased_always_on"), None, "ParentBased(AlwaysOn)"),
            (Some("parentbased_always_off"), None, "ParentBased(AlwaysOff)"),
            (
                Some("parentbased_traceidratio"),
                Some("0"),
                "ParentBased(TraceIdRatioBased(0.0))",
            ),
            // An argument that the sampler does not take is not looked at.
            (Some("always_on"), Some("nonsense"), "AlwaysOn"),
        ];
        for (sampler, argument, expected) in cases {
            let pairs: Vec<_> = [sampler.map(|s| (SAMPLER, s)), argument.map(|a| (ARGUMENT, a))]
                .into_iter()
                .flatten()
                .collect();
            assert_eq!(read(&pairs).as_deref(), Ok(expected), "{pairs:?}");
        }
    }

    #[test]
    fn a_wrong_sampler_or_ratio_is_named() {
        let error = read(&[(SAMPLER, "ParentBased_traceratio")]).unwrap_err();
        assert!(
            error.starts_with(r#"OTEL_TRACES_SAMPLER is "ParentBased_traceratio": expected always_on"#),
            "{error}"
        );
        for ratio in ["2", "-0.1", "NaN", "half", "inf"] {
            let error = read(&[(SAMPLER, "traceidratio"), (ARGUMENT, ratio)]).unwrap_err();
            assert_eq!(
                error,
                format!("OTEL_TRACES_SAMPLER_ARG is {ratio:?}: expected a number from 0 to 1")
            );
        }
    }
}
