//! The limits of the cache: evicts models that were idle for long, and then those that were idle
//! for longest.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::cache::{Cache, Name};
use crate::config::ModelConfig;
use crate::model_id::ModelId;

/// Deeper directories are not followed. No model has any.
const MAX_DEPTH: usize = 16;

/// A model in the cache.
#[derive(Debug)]
struct Entry {
    name: Name,
    model: ModelId,
    bytes: u64,
    used_at: SystemTime,
}

/// Keeps the cache within its limits. Scans it periodically, and whenever a model has `arrived`.
pub(super) async fn evict_periodically(
    cache: &Cache,
    settings: &ModelConfig,
    arrived: &Notify,
) -> std::convert::Infallible {
    let (max_bytes, ttl) = (settings.max_bytes, settings.ttl);
    in_background({
        let cache = cache.clone();
        move || remove_partials(&cache)
    })
    .await;
    if max_bytes.is_none() && ttl.is_none() {
        return std::future::pending().await;
    }
    loop {
        let cache = cache.clone();
        in_background(move || evict(&cache, max_bytes, ttl, SystemTime::now())).await;
        tokio::select! {
            () = sleep(settings.scan_interval) => {}
            () = arrived.notified() => {}
        }
    }
}

/// Runs on a blocking thread, because the control loop must not wait for a slow disk.
async fn in_background(act: impl FnOnce() + Send + 'static) {
    let (dispatch, log) = (
        tracing::dispatcher::get_default(tracing::Dispatch::clone),
        dalston_telemetry::context::LogContext::current(),
    );
    let done = spawn_blocking(move || {
        tracing::dispatcher::with_default(&dispatch, || {
            let _log = log.enter();
            act();
        });
    });
    if let Err(error) = done.await
        && error.is_panic()
    {
        warn!(%error, "model_cache_scan_failed");
    }
}

/// Removes the unfinished downloads and removals of processes that were killed.
fn remove_partials(cache: &Cache) {
    for name in cache.partials() {
        if let Some(removal) = cache.lock_for_removal(&name)
            && let Err(error) = removal.remove_partial()
        {
            warn!(%error, "model_partial_not_removed");
        }
    }
}

fn evict(cache: &Cache, max_bytes: Option<u64>, ttl: Option<Duration>, now: SystemTime) {
    let mut entries: Vec<Entry> = cache
        .models()
        .into_iter()
        .map(|found| entry(cache, found))
        .collect();
    entries.sort_by_key(|entry| entry.used_at);
    let mut total: u64 = entries.iter().map(|entry| entry.bytes).sum();
    for entry in entries {
        let idle = now.duration_since(entry.used_at).unwrap_or_default();
        let reason = if ttl.is_some_and(|ttl| idle > ttl) {
            "ttl"
        } else if max_bytes.is_some_and(|max| total > max) {
            "budget"
        } else {
            continue;
        };
        // A model in use stays, and its size still counts.
        let Some(removal) = cache.lock_for_removal(&entry.name) else {
            debug!(model = %entry.model, "model_in_use_kept");
            continue;
        };
        // It may have been used since the scan.
        if cache.used_at(&entry.name) > entry.used_at {
            continue;
        }
        let Entry { model, bytes, .. } = entry;
        match removal.remove() {
            Ok(()) => {
                total = total.saturating_sub(bytes);
                let idle_hours = (idle.as_secs_f64() / 360.0).round() / 10.0;
                info!(%model, reason, bytes, idle_hours, "model_evicted");
            }
            Err(error) => warn!(%model, %error, "model_not_evicted"),
        }
    }
}

fn entry(cache: &Cache, (name, model): (Name, ModelId)) -> Entry {
    Entry {
        bytes: size(&cache.model(&name), MAX_DEPTH).unwrap_or_default(),
        used_at: cache.used_at(&name),
        name,
        model,
    }
}

/// The size of all files in bytes. Links are not followed.
fn size(dir: &Path, depth: usize) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_file() {
            bytes += metadata.len();
        } else if metadata.is_dir() && depth > 0 {
            bytes += size(&entry.path(), depth - 1)?;
        }
    }
    Ok(bytes)
}
