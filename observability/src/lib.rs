//! Alert rules, their tests and the dashboards of `examples/observability-stack`, generated from
//! one file of settings.
//!
//! | Module | Contents |
//! |---|---|
//! | `settings` | thresholds, hours, objective, addresses |
//! | `rules` | recording rules and alerts |
//! | `boards` | the dashboards of Grafana |
//! | `scenarios` | for each alert: series that fire it and series that must not |
//!
//! The generated files are checked in. `cargo xtask rules` writes them, and a test fails while one
//! is out of date.

mod boards;
mod rules;
mod scenarios;
mod settings;
mod yaml;

/// The directory of the stack in the workspace.
const STACK: &str = "examples/observability-stack";

/// The generated files: their paths in the workspace, and their contents.
#[must_use]
pub fn files() -> Vec<(String, String)> {
    let mut files = vec![
        (
            "prometheus/rules/recording.yml".to_owned(),
            rules::recording_file(),
        ),
        ("prometheus/rules/alerts.yml".to_owned(), rules::alerts_file()),
    ];
    let tests = scenarios::files();
    files.extend(tests.map(|(name, text)| (format!("prometheus/tests/{name}"), text)));
    let boards = boards::files().into_iter();
    files.extend(boards.map(|(name, text)| (format!("grafana/dashboards/{name}"), text)));
    let in_stack = |(name, text)| (format!("{STACK}/{name}"), text);
    files.into_iter().map(in_stack).collect()
}
