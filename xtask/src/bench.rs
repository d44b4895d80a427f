//! Benchmarks by name, so that nobody has to know which package holds which.

use crate::error::Error;
use crate::libtorch;
use crate::steps::cargo;
use crate::tools;

struct Bench {
    name: &'static str,
    about: &'static str,
    package: &'static str,
    target: &'static str,
}

const BENCHES: [Bench; 7] = [
    Bench {
        name: "telemetry",
        about: "what a span costs with tracing off and on",
        package: "dalston-telemetry",
        target: "spans",
    },
    Bench {
        name: "spans",
        about: "what a span costs that is exported, beside tracing-opentelemetry and the SDK",
        package: "bench",
        target: "spans",
    },
    Bench {
        name: "log",
        about: "what a log line and a span cost with JSON logs on",
        package: "dalston-telemetry",
        target: "log_line",
    },
    Bench {
        name: "metrics",
        about: "what it costs to count, to observe and to be scraped, beside five peers",
        package: "bench",
        target: "metrics",
    },
    Bench {
        name: "overlap",
        about: "how busy the inference thread is when the store is slow",
        package: "dalston-engine-sdk",
        target: "overlap",
    },
    Bench {
        name: "runner",
        about: "what a task costs with the whole protocol, beside apalis; --quick: in a minute",
        package: "bench",
        target: "runner",
    },
    Bench {
        name: "whisper",
        about: "seconds per encoder pass and per decoded token; --peer: beside transformers",
        package: "faster_whisper",
        target: "whisper",
    },
];

/// Says which benchmarks there are.
pub(crate) fn list() {
    for bench in BENCHES {
        println!("  {:<12}{}", bench.name, bench.about);
    }
}

/// Runs one, with the remaining arguments handed on to it. `--peer` alone gets the path of a Python with the peers.
pub(crate) fn run(name: &str, arguments: &[&str]) -> Result<(), Error> {
    let Some(bench) = BENCHES.iter().find(|bench| bench.name == name) else {
        return Err(Error::Usage(format!(
            "there is no benchmark \"{name}\"; cargo xtask bench names those there are"
        )));
    };
    let mut command = cargo()
        .args("bench --package")
        .arg(bench.package)
        .arg("--bench")
        .arg(bench.target);
    if bench.package == "faster_whisper" {
        command = command.env("LIBTORCH", libtorch::set_up(libtorch::Variant::Cpu)?);
    }
    command = command.arg("--");
    let mut arguments = arguments.iter().peekable();
    while let Some(argument) = arguments.next() {
        command = command.arg(argument);
        if *argument == "--peer" && arguments.peek().is_none_or(|next| next.starts_with("--")) {
            command = command.arg(tools::peers()?);
        }
    }
    command.run()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steps::root;

    #[test]
    fn every_benchmark_is_where_it_is_looked_for() {
        for bench in BENCHES {
            let found = ["", "examples/"].iter().any(|place| {
                let benches = root().join(place).join(bench.package).join("benches");
                [
                    format!("{}.rs", bench.target),
                    format!("{}/main.rs", bench.target),
                ]
                .iter()
                .any(|file| benches.join(file).is_file())
            });
            assert!(found, "{}", bench.name);
        }
    }
}
