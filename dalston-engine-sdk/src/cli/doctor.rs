//! `doctor`: what was found on this machine, what is missing, and what to do about it.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use super::terminal::Style;
use crate::engine::{Check, CheckStatus};

/// Whether the engine could work: nothing is missing.
pub(super) fn can_work(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.status != CheckStatus::Missing)
}

/// The rows as a table, the advice below its row.
pub(super) fn table(checks: &[Check], style: Style) -> String {
    let width = checks
        .iter()
        .map(|check| check.name.chars().count())
        .max()
        .unwrap_or(0);
    let mut out = String::new();
    for check in checks {
        let status = match check.status {
            CheckStatus::Ok => style.good("ok     "),
            CheckStatus::Warning => style.warning("warning"),
            CheckStatus::Missing => style.bad("missing"),
        };
        out.push_str(&format!("{status}  {:width$}  {}\n", check.name, check.detail));
        if let Some(advice) = &check.advice {
            out.push_str(&format!("{:7}  {:width$}  -> {advice}\n", "", ""));
        }
    }
    out
}

/// Whether tasks have a place for their files.
pub(super) fn temp_dir(root: &Path) -> Check {
    const NAME: &str = "temporary files";
    match tempfile::Builder::new()
        .prefix("dalston-doctor-")
        .tempfile_in(root)
    {
        Ok(_) => Check::ok(NAME, format!("{} can be written", root.display())),
        Err(error) => Check::missing(
            NAME,
            format!("{} can't be written: {}", root.display(), cause(&error)),
        )
        .advice("make it writable, or set TMPDIR to a directory that is"),
    }
}

/// Whether somebody listens where spans are to be sent. A warning at most: an engine works without a collector.
pub(super) fn collector(endpoint: Option<(&str, &str, u16)>) -> Check {
    const NAME: &str = "trace collector";
    let Some((shown, host, port)) = endpoint else {
        return Check::ok(NAME, "not asked for (OTEL_ENABLED is not true)");
    };
    match connect(host, port) {
        Ok(()) => Check::ok(NAME, format!("{shown} accepts connections")),
        Err(error) => Check::warning(NAME, format!("{shown}: {}", cause(&error))).advice(
            "start a collector there, set OTEL_EXPORTER_OTLP_ENDPOINT to one that runs, or leave OTEL_ENABLED unset; \
             tasks are processed all the same",
        ),
    }
}

fn connect(host: &str, port: u16) -> io::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let mut refused = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(_) => return Ok(()),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// The system's words without Rust's `(os error 13)`.
fn cause(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(at) => text[..at].to_lowercase(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn advice_stands_under_its_row() {
        let checks = [
            Check::ok("libtorch", "2.11.0, CPU only"),
            Check::warning("GPU", "none found").advice("the CPU is used"),
            Check::missing("model", "no directory was named").advice("give one with --model"),
        ];
        assert_eq!(
            table(&checks, Style::plain()),
            "ok       libtorch  2.11.0, CPU only\n\
             warning  GPU       none found\n                   -> the CPU is used\n\
             missing  model     no directory was named\n                   -> give one with --model\n"
        );
        assert!(can_work(&checks[..2]) && !can_work(&checks));
    }

    #[test]
    fn a_temporary_directory_must_exist() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(temp_dir(dir.path()).status, CheckStatus::Ok);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let gone = dir.path().join("gone");
        let check = temp_dir(&gone);
        assert_eq!(check.status, CheckStatus::Missing);
        assert!(
            check
                .detail
                .starts_with(&format!("{} can't be written: no such file", gone.display())),
            "{check:?}"
        );
    }

    #[test]
    fn an_absent_collector_is_a_warning_and_no_more() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(
            collector(Some(("http://127.0.0.1", "127.0.0.1", port))).status,
            CheckStatus::Ok
        );
        drop(listener);
        let check = collector(Some(("http://127.0.0.1", "127.0.0.1", port)));
        assert_eq!(
            (check.status, check.detail.as_str()),
            (CheckStatus::Warning, "http://127.0.0.1: connection refused")
        );
        assert_eq!(collector(None).status, CheckStatus::Ok);
    }
}
