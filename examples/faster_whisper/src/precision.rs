//! Device and precision of a model, and the reason for them.

use std::fs;

use dalston_engine_sdk::{Check, EngineConfig, PrecisionChoice, torch};
use tch::Kind;

use crate::model::Placement;

/// A placement, and why it was chosen.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chosen {
    pub(crate) placement: Placement,
    pub(crate) reason: String,
}

/// Chooses by the options and the processor. README.md has the rules as a table.
///
/// # Errors
/// The device or the precision of the options can't be used.
pub(crate) fn choose(config: &EngineConfig) -> Result<Chosen, torch::PlacementError> {
    let on_device = torch::Placement::choose(&of_activations(config))?;
    if on_device.device().is_cuda() && config.precision == PrecisionChoice::Int8 {
        // It says that the precision is not one of a GPU.
        torch::Placement::choose(config)?;
    }
    let given = Placement::new(on_device.device(), on_device.kind());
    Ok(if given.device.is_cuda() || !is_free(config.precision) {
        let reason = match config.precision {
            PrecisionChoice::Auto => "float16 is the fastest on a GPU".to_owned(),
            _ => "as set".to_owned(),
        };
        Chosen {
            placement: given,
            reason,
        }
    } else {
        Processor::of(&cpuinfo()).choose(config.precision == PrecisionChoice::Int8)
    })
}

/// The checks of libtorch and the device, and one of the precision.
pub(crate) fn checks(config: &EngineConfig) -> Vec<Check> {
    let mut checks = torch::checks(&of_activations(config));
    if let Ok(chosen) = choose(config) {
        let detail = format!("{}: {}", name(chosen.placement), chosen.reason);
        checks.push(Check::ok("precision", detail));
    }
    checks
}

/// The name of a precision, as CTranslate2 has it for a decoder in int8.
pub(crate) fn name(placement: Placement) -> &'static str {
    match (placement.kind, placement.int8) {
        (Kind::Half, _) => "float16",
        (Kind::BFloat16, true) => "int8_bfloat16",
        (Kind::BFloat16, false) => "bfloat16",
        (_, true) => "int8_float32",
        (_, false) => "float32",
    }
}

impl Placement {
    /// What the precision `auto` means on the CPU of this machine.
    #[must_use]
    pub fn auto_on_cpu() -> Self {
        Processor::of(&cpuinfo()).choose(false).placement
    }

    /// The name of the precision, as `int8_float32`.
    #[must_use]
    pub fn precision(self) -> &'static str {
        name(self)
    }
}

fn cpuinfo() -> String {
    fs::read_to_string("/proc/cpuinfo").unwrap_or_default()
}

/// Whether the processor decides.
fn is_free(choice: PrecisionChoice) -> bool {
    matches!(choice, PrecisionChoice::Auto | PrecisionChoice::Int8)
}

/// The options with a precision that libtorch has. int8 is one of weights only.
fn of_activations(config: &EngineConfig) -> EngineConfig {
    match config.precision {
        PrecisionChoice::Int8 => config.clone().precision(PrecisionChoice::Auto),
        _ => config.clone(),
    }
}

/// What the choice depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Processor {
    has_amx: bool,
    has_avx512_bf16: bool,
    /// Whether int8 has vectors: see `model/kernels`.
    has_avx2: bool,
    is_amd: bool,
}

impl Processor {
    /// From the text of `/proc/cpuinfo`.
    fn of(about: &str) -> Self {
        let field = |name: &str| {
            let line = about.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':'))
                .map_or("", |(_, value)| value)
        };
        let has = |flag: &str| field("flags").split_whitespace().any(|other| other == flag);
        Self {
            has_amx: has("amx_bf16"),
            has_avx512_bf16: has("avx512_bf16"),
            has_avx2: has("avx2") && has("fma"),
            is_amd: field("vendor_id").trim() == "AuthenticAMD",
        }
    }

    fn choose(self, int8: bool) -> Chosen {
        let (kind, reason) = match self {
            Self { has_amx: true, .. } => (Kind::BFloat16, "the processor has AMX for bfloat16"),
            Self {
                has_avx512_bf16: true,
                is_amd: true,
                ..
            } => (Kind::BFloat16, "the processor has fast AVX512-BF16"),
            // On a Xeon of the fifth generation without AMX, bfloat16 takes 1.7 times the time of
            // float32, in spite of AVX512-BF16.
            Self { has_avx2: true, .. } => (
                Kind::Float,
                "the processor has no fast bfloat16, and the decoder reads weights in int8 faster",
            ),
            _ => (Kind::Float, "the processor has no fast bfloat16 and no AVX2"),
        };
        let placement = Placement {
            int8: int8 || (kind == Kind::Float && self.has_avx2),
            ..Placement::new(tch::Device::Cpu, kind)
        };
        let reason = reason.to_owned();
        Chosen { placement, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(vendor: &str, flags: &str) -> Processor {
        Processor::of(&format!(
            "processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags} sse2\n"
        ))
    }

    #[test]
    fn processor_decides_the_precision() {
        for (vendor, flags, expected) in [
            ("GenuineIntel", "avx512_bf16 amx_bf16", "bfloat16"),
            ("GenuineIntel", "avx2 fma avx512_bf16", "int8_float32"),
            ("AuthenticAMD", "avx2 fma avx512_bf16", "bfloat16"),
            ("AuthenticAMD", "avx2 fma", "int8_float32"),
            ("AuthenticAMD", "avx", "float32"),
        ] {
            let chosen = processor(vendor, flags).choose(false);
            assert_eq!(
                name(chosen.placement),
                expected,
                "{vendor} {flags}: {}",
                chosen.reason
            );
        }
    }

    #[test]
    fn named_precision_is_taken() {
        let config = EngineConfig::new().device(dalston_engine_sdk::DeviceChoice::Cpu);
        for (choice, expected) in [
            (PrecisionChoice::Float32, "float32"),
            (PrecisionChoice::Bfloat16, "bfloat16"),
        ] {
            let chosen = choose(&config.clone().precision(choice)).unwrap();
            assert_eq!(
                (name(chosen.placement), chosen.reason.as_str()),
                (expected, "as set")
            );
        }
        let free = choose(&config.clone().precision(PrecisionChoice::Int8)).unwrap();
        assert!(free.placement.int8);
    }
}
