//! The limits of the cache: what was not used for long goes, and then what was not used for longest.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::Shared;
use super::cache::{Cache, Name};
use crate::model_id::ModelId;

/// Directories that are deeper than any model's are not followed.
const DEEPEST: usize = 16;

/// The limits.
#[derive(Debug, Clone, Copy)]
struct Limits {
    max_bytes: Option<u64>,
    ttl: Option<Duration>,
}

/// A model in the cache.
#[derive(Debug)]
struct Entry {
    name: Name,
    model: ModelId,
    bytes: u64,
    used_at: SystemTime,
}

pub(super) async fn keep_tidy(shared: &Arc<Shared>) -> std::convert::Infallible {
    let Some(cache) = shared.cache.clone() else {
        return std::future::pending().await;
    };
    let limits = Limits {
        max_bytes: shared.settings.max_bytes,
        ttl: shared.settings.ttl,
    };
    in_background({
        let cache = cache.clone();
        move || clear_partials(&cache)
    })
    .await;
    if limits.max_bytes.is_none() && limits.ttl.is_none() {
        return std::future::pending().await;
    }
    loop {
        let cache = cache.clone();
        in_background(move || evict(&cache, limits, SystemTime::now())).await;
        tokio::select! {
            () = sleep(shared.settings.scan_interval) => {}
            () = shared.arrived.notified() => {}
        }
    }
}

/// Disks may be slow, and the control loop may not wait for them.
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

/// Removes what processes left that were killed while they downloaded or removed a model.
fn clear_partials(cache: &Cache) {
    for name in cache.partials() {
        if let Some(removal) = cache.try_claim(&name)
            && let Err(error) = removal.remove_partial()
        {
            warn!(%error, "model_partial_not_removed");
        }
    }
}

fn evict(cache: &Cache, limits: Limits, now: SystemTime) {
    let mut entries: Vec<Entry> = cache
        .models()
        .into_iter()
        .map(|found| entry(cache, found))
        .collect();
    entries.sort_by_key(|entry| entry.used_at);
    let mut total: u64 = entries.iter().map(|entry| entry.bytes).sum();
    for entry in entries {
        let idle = now.duration_since(entry.used_at).unwrap_or_default();
        let reason = if limits.ttl.is_some_and(|ttl| idle > ttl) {
            "ttl"
        } else if limits.max_bytes.is_some_and(|most| total > most) {
            "budget"
        } else {
            continue;
        };
        // Whoever uses it keeps it, and it counts all the same.
        let Some(removal) = cache.try_claim(&entry.name) else {
            debug!(model = %entry.model, "model_in_use_kept");
            continue;
        };
        // It may have been used since it was looked at.
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
        bytes: size(&cache.model(&name), DEEPEST).unwrap_or_default(),
        used_at: cache.used_at(&name),
        name,
        model,
    }
}

/// The bytes of all files, without those behind links.
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
