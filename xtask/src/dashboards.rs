//! Checks of the dashboards that are not part of the tests: pictures, and the types of Grafana.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use crate::error::Error;
use crate::steps::{Cmd, cargo, root, target_directory};
use crate::system::{Need, PROMETHEUS, REDIS, require};

const BOARDS: &str = "examples/observability-stack/grafana/dashboards";

/// How long jobs run before the pictures are drawn.
const SECONDS: &str = "90";

const NPM: Need = Need {
    purpose: "compare dashboards with Grafana's types",
    probe: &["npm", "--version"],
    package: "npm",
};

const PACKAGES: &str =
    r#"{"private": true, "dependencies": {"@grafana/schema": "13.2.3", "typescript": "5.9.3"}}"#;

/// The type of a board. Grafana's schema lacks these fields of variables, which its own exports
/// have.
const TYPE: &str = "\
import type { Dashboard, VariableModel } from '@grafana/schema';
type Variable = VariableModel & {definition?: string; auto?: boolean; auto_count?: number; auto_min?: string};
type Board = Partial<Omit<Dashboard, 'templating'>> & {templating: {list: Variable[]}};
";

/// Draws each board with the data of a Prometheus that scrapes the dev platform while jobs run.
pub(crate) fn render() -> Result<(), Error> {
    require(&[REDIS, PROMETHEUS])?;
    cargo()
        .args("test -p dev_platform --test it -- every_panel_has_data_while_jobs_run")
        .env("LIBTORCH", crate::test::NO_LIBTORCH)
        .env("BOARDS_SECONDS", SECONDS)
        .run()?;
    let kept = root().join("docs/images/boards");
    fs::create_dir_all(&kept).map_err(Error::at(&kept))?;
    for (name, _) in boards()? {
        let drawn = target_directory().join("boards").join(format!("{name}.svg"));
        let copy = kept.join(format!("{name}.svg"));
        fs::copy(&drawn, &copy).map_err(Error::at(&drawn))?;
        println!("{}", copy.display());
    }
    Ok(())
}

/// Compares the files with the types of Grafana's schema.
pub(crate) fn typecheck() -> Result<(), Error> {
    require(&[NPM])?;
    let directory = root().join(".tools/grafana-schema");
    fs::create_dir_all(&directory).map_err(Error::at(&directory))?;
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).map_err(Error::at(&path))
    };
    write("package.json", PACKAGES)?;
    let mut source = TYPE.to_owned();
    for (name, board) in boards()? {
        // Writing into a string does not fail.
        let _ = writeln!(
            source,
            "export const {} = {board} satisfies Board;",
            name.replace('-', "_")
        );
    }
    write("boards.ts", &source)?;
    let prefix = format!("--prefix={}", directory.display());
    Cmd::new("npm")
        .args("install --no-audit --no-fund --silent")
        .arg(prefix)
        .run()?;
    Cmd::new(directory.join("node_modules/.bin/tsc"))
        .args("--noEmit --strict --skipLibCheck --moduleResolution bundler --module esnext")
        .arg(directory.join("boards.ts"))
        .run()?;
    println!("the boards have the types of Grafana's schema");
    Ok(())
}

/// The names of the boards and their files, in order.
fn boards() -> Result<Vec<(String, String)>, Error> {
    let directory = root().join(BOARDS);
    let entries = fs::read_dir(&directory).map_err(Error::at(&directory))?;
    let paths: Result<Vec<PathBuf>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.map_err(Error::at(&directory))?;
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).map_err(Error::at(&path))?;
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Ok((name, text.trim().to_owned()))
    };
    paths.into_iter().map(read).collect()
}
