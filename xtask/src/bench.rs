//! Benchmarks by name, and the page that records their results.

use std::fs;

use crate::error::Error;
use crate::libtorch;
use crate::steps::{cargo, root, target_directory};
use crate::tools;

struct Bench {
    name: &'static str,
    /// The heading of its section in the page.
    title: &'static str,
    about: &'static str,
    package: &'static str,
    target: &'static str,
}

const BENCHES: [Bench; 11] = [
    Bench {
        name: "runner",
        title: "Tasks",
        about: "the cost of a task with the whole protocol, beside apalis; --quick takes a minute",
        package: "bench",
        target: "runner",
    },
    Bench {
        name: "overlap",
        title: "Overlap of download, inference and upload",
        about: "how busy the inference thread is with a slow store",
        package: "dalston-engine-sdk",
        target: "overlap",
    },
    Bench {
        name: "telemetry",
        title: "Spans on the thread that creates them",
        about: "the cost of a span with tracing off and on",
        package: "dalston-telemetry",
        target: "spans",
    },
    Bench {
        name: "spans",
        title: "Exported spans",
        about: "the cost of an exported span, beside tracing-opentelemetry and the SDK",
        package: "bench",
        target: "spans",
    },
    Bench {
        name: "log",
        title: "Log lines",
        about: "the cost of a JSON log line, beside tracing-subscriber",
        package: "dalston-telemetry",
        target: "log_line",
    },
    Bench {
        name: "metrics",
        title: "Metrics",
        about: "the cost of counters, histograms and scrapes, beside five peers",
        package: "bench",
        target: "metrics",
    },
    Bench {
        name: "http",
        title: "HTTP requests",
        about: "the cost of the layer for HTTP servers, beside tower-http and axum-prometheus",
        package: "bench",
        target: "http",
    },
    Bench {
        name: "realtime",
        title: "Chunks of realtime sessions",
        about: "the cost of the steps of a chunk of audio without a span",
        package: "dalston-telemetry",
        target: "realtime",
    },
    Bench {
        name: "sessions",
        title: "Realtime sessions",
        about: "how many sessions one core serves, their latency and memory",
        package: "bench",
        target: "sessions",
    },
    Bench {
        name: "whisper-sessions",
        title: "Realtime sessions with Whisper",
        about: "how soon the transcript of speech comes with the shipped model; takes 7 minutes",
        package: "faster_whisper",
        target: "sessions",
    },
    Bench {
        name: "whisper",
        title: "Whisper",
        about: "seconds per encoder pass, token and recording, and a batch; --peer adds faster-whisper",
        package: "faster_whisper",
        target: "whisper",
    },
];

const PAGE: &str = "docs/performance.md";
const INTRODUCTION: &str = "\
# Performance

<!-- Written by cargo xtask bench. Change the benchmarks instead. -->

Each section names the command that measures it, the machine and the versions. A ratio compares with a peer in the same run and
says more than a time. Peers are listed with their versions. `cargo xtask bench all` measures everything except Whisper and
rewrites this page; `--peer` adds Whisper and installs its peer. Run it on an idle machine. `cargo xtask bench NAME` prints the tables
of one benchmark, and `--record` also writes them into this page.
";

/// Prints the names of the benchmarks.
pub(crate) fn list() {
    for bench in BENCHES {
        println!("  {:<18}{}", bench.name, bench.about);
    }
    println!(
        "  {:<18}all of them except whisper, recorded in {PAGE}; --peer adds whisper",
        "all"
    );
}

/// Runs one benchmark with these arguments, or all of them.
pub(crate) fn run(name: &str, arguments: &[&str]) -> Result<(), Error> {
    if name == "all" {
        return run_all(arguments);
    }
    let Some(bench) = BENCHES.iter().find(|bench| bench.name == name) else {
        return Err(Error::Usage(format!(
            "there is no benchmark \"{name}\"; cargo xtask bench lists them"
        )));
    };
    let others: Vec<&str> = arguments
        .iter()
        .copied()
        .filter(|argument| *argument != "--record")
        .collect();
    if others.len() == arguments.len() {
        return bench.run(&others, None);
    }
    if others.contains(&"--quick") {
        return Err(Error::Usage("--quick measures too little to --record".to_owned()));
    }
    bench.record(&others)
}

fn run_all(arguments: &[&str]) -> Result<(), Error> {
    let with_peer = match arguments {
        [] => false,
        ["--peer"] => true,
        _ => return Err(Error::Usage("bench all accepts only --peer".to_owned())),
    };
    for bench in &BENCHES {
        // Without its peer, whisper has no ratios to report.
        match (bench.name, with_peer) {
            ("whisper", false) => {}
            ("whisper", true) => bench.record(&["--peer"])?,
            _ => bench.record(&[])?,
        }
    }
    Ok(())
}

impl Bench {
    /// Runs the benchmark. It writes its section to `report`. `--peer` without a value gets the
    /// path of a Python with the peers.
    fn run(&self, arguments: &[&str], report: Option<&std::path::Path>) -> Result<(), Error> {
        let mut command = cargo()
            .args("bench --package")
            .arg(self.package)
            .arg("--bench")
            .arg(self.target);
        if self.package == "faster_whisper" {
            command = command.env("LIBTORCH", libtorch::set_up(libtorch::Variant::Cpu)?);
        }
        if let Some(report) = report {
            command = command.env("BENCH_REPORT", report);
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

    /// Runs the benchmark and writes its section into the page.
    fn record(&self, arguments: &[&str]) -> Result<(), Error> {
        let directory = target_directory().join("bench-reports");
        fs::create_dir_all(&directory).map_err(Error::at(&directory))?;
        let report = directory.join(format!("{}.md", self.name));
        self.run(arguments, Some(&report))?;
        let section = fs::read_to_string(&report).map_err(Error::at(&report))?;
        let path = root().join(PAGE);
        let old = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, page(&old, self.name, &section)).map_err(Error::at(&path))
    }
}

/// The page with a new section of one benchmark. It keeps the sections of the others.
fn page(old: &str, name: &str, section: &str) -> String {
    let mut page = INTRODUCTION.to_owned();
    for bench in BENCHES {
        let heading = format!("\n## {} (`cargo xtask bench {}`)\n\n", bench.title, bench.name);
        let kept = || Some(old.split_once(&heading)?.1.split("\n## ").next()?.trim_end());
        let body = if bench.name == name {
            section.trim_end()
        } else {
            kept().unwrap_or("Not measured yet.")
        };
        page += &format!("{heading}{body}\n");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn benchmarks_exist_at_their_targets() {
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

    #[test]
    fn new_section_replaces_only_its_own() {
        let first = page("", "log", "a\n\n| b |\n");
        assert_eq!(first.matches("Not measured yet.").count(), BENCHES.len() - 1);

        let second = page(&first, "spans", "c\n");
        let third = page(&second, "log", "d\n");

        let section = |page: &str, title: &str| {
            let rest = page.split_once(&format!("## {title} ")).unwrap().1;
            let body = rest.split_once("\n\n").unwrap().1;
            body.split("\n\n## ").next().unwrap().trim_end().to_owned()
        };
        assert_eq!(section(&second, "Log lines"), "a\n\n| b |");
        assert_eq!(section(&third, "Log lines"), "d");
        assert_eq!(section(&third, "Exported spans"), "c");
    }

    #[test]
    fn recorded_page_has_the_current_layout() {
        let recorded = fs::read_to_string(root().join(PAGE)).unwrap();
        assert_eq!(
            page(&recorded, "", ""),
            recorded,
            "change {PAGE} through cargo xtask bench"
        );
    }

    #[test]
    fn quick_run_is_not_recorded() {
        let error = run("spans", &["--record", "--quick"]).unwrap_err();
        assert!(matches!(error, Error::Usage(_)), "{error}");
    }
}
