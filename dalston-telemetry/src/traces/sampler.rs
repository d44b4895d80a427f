//! The sampler: `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`.

use opentelemetry_sdk::trace::Sampler;

use crate::env::{Env, EnvError};
use crate::settings::traces::{OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG, SamplerKind};

/// Reads the sampler; parent-based always-on by default.
pub(crate) fn from_env(env: &Env) -> Result<Sampler, EnvError> {
    // Read only for samplers that take it. By the specification, the default is 1.
    let ratio = || {
        OTEL_TRACES_SAMPLER_ARG
            .read_or_default(env)
            .map(Sampler::TraceIdRatioBased)
    };
    Ok(match OTEL_TRACES_SAMPLER.read_or_default(env)? {
        SamplerKind::AlwaysOn => Sampler::AlwaysOn,
        SamplerKind::AlwaysOff => Sampler::AlwaysOff,
        SamplerKind::Ratio => ratio()?,
        SamplerKind::ParentBasedAlwaysOn => parent_based(Sampler::AlwaysOn),
        SamplerKind::ParentBasedAlwaysOff => parent_based(Sampler::AlwaysOff),
        SamplerKind::ParentBasedRatio => parent_based(ratio()?),
    })
}

fn parent_based(root: Sampler) -> Sampler {
    Sampler::ParentBased(Box::new(root))
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
            // A common slip, and samplers of other SDKs.
            (
                Some("ParentBased_traceratio"),
                Some("0.5"),
                "ParentBased(TraceIdRatioBased(0.5))",
            ),
            (
                Some("parentbased_jaeger_remote"),
                Some("endpoint=http://localhost:14250"),
                "ParentBased(AlwaysOn)",
            ),
            // The argument of a sampler that takes none is ignored.
            (Some("always_on"), Some("nonsense"), "AlwaysOn"),
        ];
        for (sampler, argument, expected) in cases {
            let pairs: Vec<_> = [
                sampler.map(|s| (OTEL_TRACES_SAMPLER.name(), s)),
                argument.map(|a| (OTEL_TRACES_SAMPLER_ARG.name(), a)),
            ]
            .into_iter()
            .flatten()
            .collect();
            assert_eq!(read(&pairs).as_deref(), Ok(expected), "{pairs:?}");
        }
    }

    #[test]
    fn a_wrong_sampler_or_ratio_is_named() {
        let error = read(&[(OTEL_TRACES_SAMPLER.name(), "sometimes")]).unwrap_err();
        assert!(
            error.starts_with(r#"OTEL_TRACES_SAMPLER is "sometimes": expected always_on"#),
            "{error}"
        );
        for ratio in ["2", "-0.1", "NaN", "half", "inf"] {
            let error = read(&[
                (OTEL_TRACES_SAMPLER.name(), "traceidratio"),
                (OTEL_TRACES_SAMPLER_ARG.name(), ratio),
            ])
            .unwrap_err();
            assert_eq!(
                error,
                format!("OTEL_TRACES_SAMPLER_ARG is {ratio:?}: expected a number from 0 to 1")
            );
        }
    }
}
