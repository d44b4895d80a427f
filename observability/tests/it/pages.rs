//! The documents: their links lead somewhere, and the guides name existing things only.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::files::{STACK, read, text, workspace, yaml};
use crate::manifest::Manifest;
use crate::rules::{RULES, alerts, checker, rules};
use crate::runbooks::{is_histogram, sources};

/// Directories without documents of this project, beside the hidden ones.
const SKIPPED: [&str; 3] = ["target", "node_modules", "shared"];

/// The crates of these names are no metrics.
const CRATES: [&str; 2] = ["dalston_telemetry", "dalston_engine_sdk"];

/// The files below a directory with this extension.
fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_symlink() || name.starts_with('.') || SKIPPED.contains(&name) {
            continue;
        }
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The guides of `docs`, without the pages that other tests compare or check.
pub(crate) fn guides() -> Vec<(PathBuf, String)> {
    let docs = workspace().join("docs");
    let other = ["reference", "performance.md", "runbooks.md"].map(|name| docs.join(name));
    let guides = files(&docs, "md").into_iter();
    let guides = guides.filter(|path| !other.iter().any(|other| path.starts_with(other)));
    guides
        .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
        .collect()
}

/// The lines outside of blocks of code.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    page.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// The blocks of code in a language.
pub(crate) fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let start = format!("```{language}\n");
    let blocks = page.split(&*start).skip(1);
    blocks.map(|rest| rest.split("```").next().unwrap()).collect()
}

/// The anchors of the headings of a page, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = prose(page).filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// The targets of the links of a page, without those into the web and into rustdoc.
fn links(page: &str) -> Vec<&str> {
    let inline = prose(page).flat_map(|line| line.split("](").skip(1));
    let inline = inline.filter_map(|rest| Some(rest.split_once(')')?.0));
    let listed = prose(page).filter(|line| line.starts_with('['));
    let listed = listed.filter_map(|line| Some(line.split_once("]: ")?.1));
    let targets = inline.chain(listed);
    targets
        .filter(|target| !target.contains("://") && !target.contains("::"))
        .collect()
}

#[test]
fn links_lead_to_files_and_sections() {
    let mut broken = Vec::new();
    let mut count = 0;
    for path in files(&workspace(), "md") {
        let page = fs::read_to_string(&path).unwrap();
        for link in links(&page) {
            count += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            let has_anchor = || anchors(&fs::read_to_string(&target).unwrap()).contains(anchor);
            if !target.exists() || !(anchor.is_empty() || has_anchor()) {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(count > 100, "{count}");
}

/// The code of a page: inline, and in blocks except those in Rust, which are compiled. Cells below
/// the heading "There" name things of other programs.
fn code(page: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut block = None;
    let mut skips = 0;
    for line in page.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            block = match block {
                Some(_) => None,
                None => Some(language),
            };
            continue;
        }
        if let Some(language) = block {
            found.extend((language != "rust").then_some(line));
            continue;
        }
        if !line.starts_with('|') {
            skips = 0;
        } else if line.starts_with("| There |") {
            skips = 1;
        }
        let cells = line.split(" | ").skip(skips);
        found.extend(cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)));
    }
    found
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    let words = code.split(|c: char| !c.is_ascii_alphanumeric() && !"_:.-{}…".contains(c));
    words.map(|word| word.trim_matches(|c| ":.-".contains(c)))
}

/// What a word can name.
struct Names {
    manifest: Manifest,
    recorded: BTreeSet<String>,
    /// Of the crates, of the example platform and of the stack.
    variables: String,
    spans: String,
    sources: String,
}

impl Names {
    fn load() -> Self {
        let recorded = rules(RULES[0]).into_iter();
        let recorded = recorded.filter_map(|rule| Some(rule["record"].as_str()?.to_owned()));
        let variables = [
            "docs/reference/environment.md",
            "examples/dev_platform/README.md",
            "examples/observability-stack/.env.example",
        ];
        let directories = ["dalston-engine-sdk/src", "dalston-telemetry/src"];
        Self {
            manifest: Manifest::load(),
            recorded: recorded.collect(),
            variables: variables.map(read).concat(),
            spans: read("docs/reference/spans.md"),
            sources: directories.map(|path| sources(&workspace().join(path))).concat(),
        }
    }

    /// Whether something has the name that the word is, or the word is not a name of ours.
    fn has(&self, word: &str) -> bool {
        // All names that begin so.
        let (word, is_start) = match word.strip_suffix('…') {
            Some(start) => (start, true),
            None => (word, false),
        };
        let starts = |starts: &[&str]| starts.iter().any(|start| word.starts_with(start));
        let is_file = [".rs", ".yaml"].iter().any(|end| word.ends_with(end));
        if is_file || CRATES.contains(&word) {
            return true;
        }
        if let Some((_, item)) = word.rsplit_once("::") {
            let item = item.trim_matches(['{', '}']);
            let kinds = ["fn", "struct", "enum", "trait", "mod", "const", "type"];
            let is_item = |kind: &str| {
                let declared = format!("{kind} {item}");
                self.sources.match_indices(&declared).any(|(at, _)| {
                    let after = self.sources[at + declared.len()..].chars().next();
                    after.is_none_or(|c| !c.is_alphanumeric() && c != '_')
                })
            };
            return starts(&["std::", "tracing::", "OpenTelemetrySpanExt::"])
                || kinds.into_iter().any(is_item);
        }
        if starts(&["DALSTON_", "OTEL_"]) {
            let is_name = |start: &str, end: &str| self.variables.contains(&format!("{start}{word}{end}"));
            return match is_start || word.ends_with('_') {
                true => self.variables.contains(word),
                false => is_name("`", "`") || is_name("\n", "="),
            };
        }
        if starts(&["dalston:"]) {
            return self.recorded.contains(word);
        }
        if starts(&["dalston_", "stt_", "audio_", "process_"]) && word.contains('_') {
            let word = word.split('{').next().unwrap_or_default();
            let is_ours = self.manifest.get(word).is_some() || is_histogram(&self.manifest, word);
            return is_ours || is_start || !starts(&["dalston_"]);
        }
        if starts(&[
            "engine.",
            "gateway.",
            "orchestrator.",
            "session_router.",
            "dalston.",
        ]) {
            let parts: Vec<&str> = word.split('.').collect();
            return is_start
                || matches!(parts[..], ["engine", _, "process" | "http_process"])
                || self.spans.contains(&format!("`{word}`"));
        }
        true
    }
}

#[test]
fn guides_name_existing_things_only() {
    let names = Names::load();
    let mut unknown = Vec::new();
    for (path, page) in guides() {
        for code in code(&page) {
            let wrong = words(code).filter(|word| !names.has(word));
            unknown.extend(wrong.map(|word| format!("{}: {word}", path.display())));
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn queries_of_guides_use_existing_metrics_and_labels() {
    let checker = checker();
    let mut count = 0;
    for (path, page) in guides() {
        for block in blocks(&page, "promql") {
            for query in block.split("\n\n") {
                let lines = query.lines().filter(|line| !line.starts_with('#'));
                let query = lines.collect::<Vec<_>>().join("\n");
                let checked = checker.check(&query);
                assert!(checked.is_ok(), "{}: {checked:?}", path.display());
                count += 1;
            }
        }
    }
    assert!(count > 0);
}

/// Boards are named by their titles, beside a link to their files.
#[test]
fn guides_name_boards_by_their_titles() {
    let mut count = 0;
    for (path, page) in guides() {
        for named in page.split(&format!("]({}", "../")).skip(1) {
            let Some((file, _)) = named.split_once(')') else {
                continue;
            };
            let Some(file) = file.split_once(&format!("{STACK}/grafana/dashboards/")) else {
                continue;
            };
            let board = read(&format!("{STACK}/grafana/dashboards/{}", file.1));
            let board: Value = serde_json::from_str(&board).unwrap();
            let title = board["title"].as_str().unwrap();
            let is_named = page.contains(&format!("[{title}]("));
            assert!(is_named, "{}: {} is called {title}", path.display(), file.1);
            count += 1;
        }
    }
    assert!(count > 0);
}

/// The page about the operation of the telemetry.
const OPERATIONS: &str = "docs/operations/observability.md";

/// The rows of the table with this heading, by their cells.
fn table<'a>(page: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let (_, rest) = page.split_once(&format!("\n{heading}\n")).expect(heading);
    let rows = rest.lines().skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|line| line.trim_matches(['|', ' ']).split(" | ").collect())
        .collect()
}

#[test]
fn limits_are_those_of_the_compose_file() {
    let services = &yaml("docker-compose.yml")["services"];
    let page = read(OPERATIONS);
    let rows = table(&page, "| Service | CPU cores | Memory |");
    assert!(rows.len() >= 7, "{rows:?}");
    for row in rows {
        let limits = &services[row[0].trim_matches('`')]["deploy"]["resources"]["limits"];
        assert_eq!([text(&limits["cpus"]), text(&limits["memory"])], row[1..]);
    }
}

#[test]
fn targets_are_met_ones_of_the_benchmarks() {
    let performance = read("docs/performance.md");
    let columns = |line: &str| {
        let cells = line.trim_matches(['|', ' ']).split('|');
        cells.map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
    };
    let measured: Vec<_> = performance.lines().map(columns).collect();
    let page = read(OPERATIONS);
    for row in table(&page, "| Measurement | Target |") {
        let is_met = |cells: &Vec<String>| cells.len() == 4 && cells[..2] == row[..] && cells[3] == "met";
        assert!(measured.iter().any(is_met), "docs/performance.md: {row:?}");
    }
}

/// The series that one value of each open label can add, by part and open labels.
fn budget() -> BTreeMap<(String, String), u64> {
    let metrics: Value = serde_json::from_str(&read("docs/reference/metrics.json")).unwrap();
    let mut budget = BTreeMap::new();
    for metric in metrics["metrics"].as_array().unwrap() {
        let labels = metric["labels"].as_array().unwrap().iter();
        let (closed, open): (Vec<_>, Vec<_>) = labels.partition(|label| label["values"].is_array());
        let combinations = closed
            .iter()
            .map(|label| label["values"].as_array().unwrap().len() as u64);
        let samples = match metric["type"].as_str().unwrap() {
            "histogram" => metric["buckets"].as_array().unwrap().len() as u64 + 3,
            _ => 1,
        };
        let open: Vec<_> = open
            .iter()
            .map(|label| format!("`{}`", label["name"].as_str().unwrap()))
            .collect();
        let open = match open.is_empty() {
            true => "none".to_owned(),
            false => open.join(", "),
        };
        let part = metric["part"].as_str().unwrap().to_owned();
        *budget.entry((part, open)).or_default() += combinations.product::<u64>() * samples;
    }
    budget
}

#[test]
fn cardinality_budget_is_that_of_the_metrics() {
    let mut budget = budget();
    let page = read(OPERATIONS);
    for row in table(&page, "| Part | Open labels | Series, at most |") {
        let key = (row[0].to_owned(), row[1].to_owned());
        let listed: u64 = row[2].parse().unwrap();
        let series = budget
            .remove(&key)
            .unwrap_or_else(|| panic!("no metric of {key:?}"));
        // Rounded up, so that the page need not follow each new metric.
        let is_near = (series..=series + series / 5 + 5).contains(&listed);
        assert!(
            is_near,
            "{OPERATIONS}: {key:?} has {series} series, and {listed} are listed"
        );
    }
    let large: Vec<_> = budget.iter().filter(|(_, series)| **series > 30).collect();
    assert!(large.is_empty(), "not in the table: {large:?}");
}

/// A row of a table that begins with an alert has its severity.
#[test]
fn guides_name_alerts_with_their_severity() {
    let alerts = alerts();
    let mut count = 0;
    for (path, page) in guides() {
        for line in prose(&page).filter(|line| line.starts_with("| [") && line.contains("](")) {
            let name = line["| [".len()..].split(']').next().unwrap();
            let Some(alert) = alerts.iter().find(|alert| alert["alert"] == *name) else {
                continue;
            };
            let severity = line.split(" | ").nth(1).unwrap();
            assert_eq!(
                alert["labels"]["severity"],
                *severity,
                "{}: {name}",
                path.display()
            );
            count += 1;
        }
    }
    assert!(count > 0);
}
