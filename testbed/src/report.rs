//! The report of a benchmark: tables for the terminal, and a section of `docs/performance.md`.
//!
//! `cargo xtask bench NAME --record` names a file in `BENCH_REPORT`, takes the section from there,
//! and writes it into the page.

#![allow(clippy::print_stdout)]

use std::fmt::Write;
use std::process::Command;
use std::{env, fs};

/// Collects the tables of a benchmark. [`finish`](Self::finish) writes them.
#[derive(Debug)]
pub struct Report {
    /// Machine, versions and date.
    conditions: String,
    targets: Vec<Target>,
    tables: String,
}

impl Report {
    /// Starts a report that names the machine and the versions of these packages, as `Cargo.lock`
    /// has them.
    ///
    /// Call it before the measurements: it records the load of the machine.
    #[must_use]
    pub fn start(packages: &[&str]) -> Self {
        let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock");
        let lock = fs::read_to_string(lock).unwrap_or_default();
        let versions: String = packages
            .iter()
            .map(|name| format!(", {name} {}", version(&lock, name)))
            .collect();
        let conditions = format!(
            "Measured on {}: {}; {}{versions}.",
            first_line("date", &["-u", "+%F"]),
            machine(),
            first_line("rustc", &["--version"]),
        );
        println!("{conditions}\n");
        Self {
            conditions,
            targets: Vec::new(),
            tables: String::new(),
        }
    }

    /// Adds a value that has to be at most `limit`.
    pub fn at_most(&mut self, what: impl Into<String>, limit: f64, measured: f64, unit: &'static str) {
        self.target(what.into(), limit, true, measured, unit);
    }

    /// Adds a value that has to be at least `limit`.
    pub fn at_least(&mut self, what: impl Into<String>, limit: f64, measured: f64, unit: &'static str) {
        self.target(what.into(), limit, false, measured, unit);
    }

    fn target(&mut self, what: String, limit: f64, is_maximum: bool, measured: f64, unit: &'static str) {
        self.targets.push(Target {
            what,
            limit,
            is_maximum,
            measured,
            unit,
        });
    }

    /// Adds a paragraph.
    pub fn note(&mut self, text: &str) {
        println!("{text}\n");
        self.tables += &format!("{text}\n\n");
    }

    /// Adds a table. Its first column contains names, the others numbers.
    pub fn table<const N: usize>(&mut self, title: &str, head: [&str; N], rows: &[[String; N]]) {
        self.note(title);
        let text = table(head, rows);
        println!("{text}");
        self.tables += &format!("{text}\n");
    }

    /// Prints the targets with their verdicts, and writes the section if `BENCH_REPORT` names a
    /// file.
    ///
    /// # Panics
    ///
    /// If the file cannot be written.
    pub fn finish(self) {
        let mut section = format!("{}\n\n", self.conditions);
        if !self.targets.is_empty() {
            let rows: Vec<_> = self.targets.iter().map(Target::row).collect();
            let targets = table(["Measurement", "Target", "Measured", "Verdict"], &rows);
            println!("{targets}");
            section += &format!("{targets}\n");
        }
        section += &self.tables;
        if let Some(file) = env::var_os("BENCH_REPORT") {
            fs::write(&file, section).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
    }
}

#[derive(Debug)]
struct Target {
    what: String,
    limit: f64,
    is_maximum: bool,
    measured: f64,
    unit: &'static str,
}

impl Target {
    fn row(&self) -> [String; 4] {
        let (relation, is_met) = if self.is_maximum {
            ("at most", self.measured <= self.limit)
        } else {
            ("at least", self.measured >= self.limit)
        };
        let with_unit = |number: String| format!("{number} {}", self.unit).trim_end().to_owned();
        [
            self.what.clone(),
            with_unit(format!("{relation} {}", self.limit)),
            with_unit(number(self.measured)),
            if is_met { "met" } else { "**not met**" }.to_owned(),
        ]
    }
}

/// A number with three significant digits and at most three decimals, or a dash for NaN.
#[must_use]
pub fn number(value: f64) -> String {
    if value.is_nan() {
        return "–".to_owned();
    }
    let digits = value.abs().max(1e-9).log10().floor();
    let decimals = (2.0 - digits).clamp(0.0, 3.0);
    format!("{value:.*}", decimals as usize)
}

/// The value below which this share of the values lies. NaN if there is none.
#[must_use]
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    let at = (values.len() as f64 * share) as usize;
    values
        .get(at.min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

/// The middle one of these values, or NaN if there is none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Whether the arguments of the process contain `--quick`: a short run, whose values are no basis
/// for a claim.
#[must_use]
pub fn is_quick() -> bool {
    env::args().any(|argument| argument == "--quick")
}

/// A Markdown table with aligned columns, so that it is readable on a terminal.
fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let head = head.map(str::to_owned);
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().chain([&head]).map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    });
    let mut text = String::new();
    let mut line = |row: &[String; N]| {
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            // Writing into a string does not fail.
            let _ = match column {
                0 => write!(text, "| {cell:<width$} "),
                _ => write!(text, "| {cell:>width$} "),
            };
        }
        text += "|\n";
    };
    line(&head);
    line(&std::array::from_fn(|column| match column {
        0 => "-".repeat(widths[column]),
        _ => "-".repeat(widths[column] - 1) + ":",
    }));
    rows.iter().for_each(line);
    text
}

fn machine() -> String {
    let about = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = about
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    format!("{processor}, {cores} cores, load {load} before the start")
}

/// The highest version of a package in the text of a `Cargo.lock`.
fn version<'a>(lock: &'a str, package: &str) -> &'a str {
    let start = format!("name = \"{package}\"\nversion = \"");
    lock.rsplit_once(&start)
        .and_then(|(_, rest)| rest.split('"').next())
        .unwrap_or("of unknown version")
}

/// The first line that a program prints.
#[must_use]
pub fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.ok()
        .and_then(|text| text.lines().next().map(str::to_owned))
        .unwrap_or_else(|| format!("{program} of unknown version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_follow_from_limits() {
        let target = |is_maximum, measured| Target {
            what: "latency".to_owned(),
            limit: 0.5,
            is_maximum,
            measured,
            unit: "ms",
        };
        assert_eq!(
            target(true, 0.3333).row(),
            ["latency", "at most 0.5 ms", "0.333 ms", "met"]
        );
        assert_eq!(target(true, 0.501).row()[3], "**not met**");
        assert_eq!(target(false, 0.501).row()[3], "met");
        assert_eq!(target(true, f64::NAN).row()[3], "**not met**");
    }

    #[test]
    fn tables_are_aligned() {
        let rows = [
            ["a peer".to_owned(), number(1234.5)],
            ["µ".to_owned(), number(0.25)],
        ];
        assert_eq!(
            table(["", "ns"], &rows),
            "|        |    ns |\n| ------ | ----: |\n| a peer |  1234 |\n| µ      | 0.250 |\n"
        );
    }

    #[test]
    fn highest_version_of_a_package_is_reported() {
        let lock = "[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n\n[[package]]\nname = \"a\"\nversion = \"2.1.0\"\nsource = \"\"\n";
        assert_eq!(version(lock, "a"), "2.1.0");
        assert_eq!(version(lock, "b"), "of unknown version");
    }
}
