//! Probes of the dependencies of a worker, for `run` and `doctor`.

use std::io::{self, Write};
use std::path::Path;
#[cfg(feature = "worker")]
use std::time::Duration;

#[cfg(feature = "worker")]
use object_store::{ObjectStoreExt, path::Path as ObjectPath};
#[cfg(feature = "worker")]
use tokio::{net::TcpListener, time::timeout};

#[cfg(feature = "worker")]
use crate::clock;
use crate::engine::Check;
#[cfg(feature = "worker")]
use crate::redis::RedisServer;
#[cfg(feature = "worker")]
use crate::store::{Store, StoreError};

/// The content of a file of a probe: enough to need a block of the disk.
const CONTENT: [u8; 4096] = [b'.'; 4096];
/// The time limit of one probe.
#[cfg(feature = "worker")]
const TIMEOUT: Duration = Duration::from_secs(10);

/// Makes a directory in the directory for temporary files, and a file in it, as a task does.
pub(crate) fn temp_dir(root: &Path) -> Check {
    const NAME: &str = "temporary files";
    let write = || {
        let dir = tempfile::Builder::new()
            .prefix("dalston-probe-")
            .tempdir_in(root)?;
        std::fs::File::create(dir.path().join("file"))?.write_all(&CONTENT)?;
        dir.close()
    };
    match write() {
        Ok(()) => Check::ok(NAME, format!("{} can be written", root.display())),
        Err(error) => Check::missing(
            NAME,
            format!("{} can't be written: {}", root.display(), cause(&error)),
        )
        .advice("make it writable, or set TMPDIR to a directory that is"),
    }
}

/// As [`temp_dir`], on a thread that may block.
#[cfg(feature = "worker")]
pub(crate) async fn temp_dir_async(root: &Path) -> Check {
    let root = root.to_owned();
    let probe = tokio::task::spawn_blocking(move || temp_dir(&root));
    probe
        .await
        .unwrap_or_else(|error| Check::missing("temporary files", error.to_string()))
}

/// Asks Redis for a sign of life.
#[cfg(feature = "worker")]
pub(crate) async fn redis(server: &RedisServer) -> Check {
    const NAME: &str = "redis";
    let address = server.address();
    let problem = match timeout(TIMEOUT, server.ping()).await {
        Ok(Ok(())) => return Check::ok(NAME, format!("{address} answers")),
        Ok(Err(error)) => crate::error::chain(&error),
        Err(_) => format!("{address} did not answer within {} s", TIMEOUT.as_secs()),
    };
    Check::missing(NAME, problem).advice("start Redis, or correct REDIS_URL")
}

/// Compares the clocks of this machine and of Redis. `None` if Redis does not tell its time.
#[cfg(feature = "worker")]
#[cfg_attr(not(feature = "cli"), expect(dead_code, reason = "only `doctor` calls it"))]
pub(crate) async fn clock(server: &RedisServer) -> Option<Check> {
    const NAME: &str = "clock";
    let seconds = timeout(TIMEOUT, server.clock_difference()).await.ok()?.ok()?;
    Some(match clock::problem(seconds, server) {
        Some(problem) => Check::warning(NAME, problem).advice(clock::ADVICE),
        None => Check::ok(
            NAME,
            format!("differs from that of Redis by {:.3} s", seconds.abs()),
        ),
    })
}

/// Writes, reads and deletes the object `dalston-probe/{instance}` of the deployment's bucket.
///
/// A worker never deletes other objects, so a refused delete is only a warning.
#[cfg(feature = "worker")]
pub(crate) async fn storage(store: &Store, instance: &str) -> Check {
    const NAME: &str = "storage";
    let key = format!("dalston-probe/{instance}");
    let locator = store.locator(&key);
    let probe = async {
        store.write(&key, CONTENT.as_slice()).await?;
        let read = store.read(&locator, CONTENT.len()).await?;
        let removed = store.objects().delete(&ObjectPath::from(&*key)).await;
        Ok::<_, StoreError>((read == CONTENT.as_slice(), removed))
    };
    match timeout(TIMEOUT, probe).await {
        Ok(Ok((true, Ok(())))) => Check::ok(NAME, format!("{} can be read and written", store.locator(""))),
        Ok(Ok((true, Err(error)))) => Check::warning(
            NAME,
            format!("deleting {locator}: {}", crate::error::chain(&error)),
        )
        .advice("allow s3:DeleteObject on dalston-probe/*, or let the bucket expire these objects"),
        Ok(Ok((false, _))) => Check::missing(
            NAME,
            format!("reading {locator}: it differs from what was written"),
        ),
        Ok(Err(error)) => {
            let advice = match &error {
                StoreError::NoBucket { .. } => "DALSTON_S3_BUCKET names the bucket",
                _ => {
                    "check DALSTON_S3_ENDPOINT_URL, DALSTON_S3_BUCKET and DALSTON_S3_REGION; AWS_ACCESS_KEY_ID and \
                     AWS_SECRET_ACCESS_KEY, or the role of the machine, must allow s3:GetObject and s3:PutObject"
                }
            };
            Check::missing(NAME, error.to_string()).advice(advice)
        }
        Err(_) => {
            let seconds = TIMEOUT.as_secs();
            Check::missing(
                NAME,
                format!("writing, reading and deleting {locator} took more than {seconds} s"),
            )
            .advice("check DALSTON_S3_ENDPOINT_URL and the network")
        }
    }
}

/// Whether the port of the HTTP server is free. The worker also works without it.
#[cfg(feature = "worker")]
#[cfg_attr(not(feature = "cli"), expect(dead_code, reason = "only `doctor` calls it"))]
pub(crate) async fn port(port: u16) -> Check {
    const NAME: &str = "port";
    match TcpListener::bind(("0.0.0.0", port)).await {
        Ok(_) if port == 0 => Check::ok(NAME, "any free one"),
        Ok(_) => Check::ok(NAME, format!("{port} is free")),
        Err(error) => Check::warning(NAME, format!("{port} can't be used: {}", cause(&error)))
            .advice("free the port, or set DALSTON_METRICS_PORT to another one"),
    }
}

/// The message of the operating system, without Rust's `(os error 13)`.
fn cause(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(at) => text[..at].to_lowercase(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::CheckStatus;

    #[test]
    fn temporary_directory_must_exist() {
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
}
