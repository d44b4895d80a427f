//! Which events become log lines: [`LogFilter`].

use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use tracing::dispatcher::{WeakDispatch, with_default};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Dispatch, Metadata};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Filter};

use crate::env::{Env, EnvError};
use crate::parse_error::ParseError;
use crate::settings::logs::{LOG_LEVEL, RUST_LOG};

/// Selects the events that become log lines. Clones share the directives, which can change at any
/// time.
///
/// It filters for the log layer only, and selects no spans. It does not affect which spans are
/// exported.
#[derive(Clone)]
pub(crate) struct LogFilter {
    shared: Arc<Shared>,
    /// The most verbose level of the layers beside the log layer.
    others: LevelFilter,
}

struct Shared {
    targets: RwLock<Targets>,
    /// The subscriber that the log layer is a part of.
    dispatch: OnceLock<WeakDispatch>,
}

impl LogFilter {
    /// Directives as `RUST_LOG` takes them: `info,dalston_engine_sdk=debug,hyper=off`.
    ///
    /// If all directives name a target, other targets log errors only.
    pub(crate) fn new(directives: &str) -> Result<Self, WrongDirective<'_>> {
        Ok(Self {
            shared: Arc::new(Shared {
                targets: RwLock::new(parse(directives)?),
                dispatch: OnceLock::new(),
            }),
            others: LevelFilter::OFF,
        })
    }

    /// The filter of the first variable that is set: `RUST_LOG`, `LOG_LEVEL`, `DALSTON_LOG_LEVEL`;
    /// else `default`.
    pub(crate) fn from_env(env: &Env, default: LevelFilter) -> Result<Self, EnvError> {
        let default = default.to_string();
        let (name, directives) = match RUST_LOG.first(env) {
            Some(set) => set,
            None => {
                let (name, directives) = LOG_LEVEL.first(env).unwrap_or((LOG_LEVEL.name(), &default));
                // The parser takes a misspelt level for a target, and would drop all other lines.
                let is_bare_target = |directive: &str| {
                    !directive.is_empty() && !directive.contains('=') && parse_level(directive).is_none()
                };
                if directives.split(',').map(str::trim).any(is_bare_target) {
                    return Err(LOG_LEVEL.error(name, directives));
                }
                (name, directives)
            }
        };
        Self::new(directives).map_err(|WrongDirective(directive)| {
            let accepted = format!("{}, which \"{directive}\" is not", RUST_LOG.accepted());
            EnvError::new(name, directives, accepted)
        })
    }

    /// Sets the most verbose level of the layers beside the log layer.
    ///
    /// Of layers that were joined with `and_then`, directly above a `Registry`, tracing-subscriber
    /// asks only the last one for the most verbose level (0.3.23, `Layered::pick_level_hint`).
    /// Without this, a service that logs warnings only would lose its spans.
    pub(crate) fn beside(mut self, level: LevelFilter) -> Self {
        self.others = level;
        self
    }

    /// Changes the filter, for this and all its clones.
    pub(crate) fn set(&self, directives: &str) -> Result<(), ParseError> {
        let targets = parse(directives).map_err(|WrongDirective(directive)| {
            ParseError::new("log filter directive", directive, RUST_LOG.accepted())
        })?;
        *self
            .shared
            .targets
            .write()
            .unwrap_or_else(PoisonError::into_inner) = targets;
        // Callsites cache the decision. In a process with one subscriber, tracing asks the default
        // subscriber of this thread (tracing-core 0.1.36, `Rebuilder::JustOne`).
        match self.dispatch() {
            Some(dispatch) => with_default(&dispatch, tracing_core::callsite::rebuild_interest_cache),
            None => tracing_core::callsite::rebuild_interest_cache(),
        }
        Ok(())
    }

    /// To be called when the log layer has become part of a subscriber.
    pub(super) fn belongs_to(&self, dispatch: &Dispatch) {
        // A layer is part of one subscriber, and a subscriber has one dispatch.
        let _ = self.shared.dispatch.set(dispatch.downgrade());
    }

    /// The subscriber that the log layer is a part of: the only way to a span that the layer's
    /// filter hides.
    pub(super) fn dispatch(&self) -> Option<Dispatch> {
        self.shared.dispatch.get()?.upgrade()
    }

    fn enables(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && self.with_targets(|targets| targets.would_enable(metadata.target(), metadata.level()))
    }

    /// The most verbose level that is logged anywhere.
    fn most_verbose(&self) -> LevelFilter {
        self.with_targets(|targets| {
            let levels = targets.iter().map(|(_, level)| level);
            levels
                .chain(targets.default_level())
                .max()
                .unwrap_or(LevelFilter::OFF)
        })
    }

    fn with_targets<R>(&self, f: impl FnOnce(&Targets) -> R) -> R {
        f(&self.shared.targets.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_targets(|targets| write!(f, "LogFilter({targets})"))
    }
}

impl<S> Filter<S> for LogFilter {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.enables(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enables(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.most_verbose().max(self.others))
    }
}

/// The directive of a filter that is not valid: one of those between the commas.
#[derive(Debug)]
pub(crate) struct WrongDirective<'a>(&'a str);

fn parse(directives: &str) -> Result<Targets, WrongDirective<'_>> {
    let mut targets = Targets::new();
    let mut default = None;
    let mut names_targets = false;
    for directive in directives
        .split(',')
        .map(str::trim)
        .filter(|directive| !directive.is_empty())
    {
        let wrong = || WrongDirective(directive);
        let (target, level) = match directive.split_once('=') {
            Some((target, level)) => (target.trim(), parse_level(level.trim()).ok_or_else(wrong)?),
            None => match parse_level(directive) {
                Some(level) => {
                    default = Some(level);
                    continue;
                }
                None => (directive, LevelFilter::TRACE),
            },
        };
        // Filters by span or by field would have to see every span.
        let is_target =
            |character: char| character.is_alphanumeric() || matches!(character, '_' | ':' | '-' | '.');
        if target.is_empty() || !target.chars().all(is_target) {
            return Err(wrong());
        }
        names_targets = true;
        targets = targets.with_target(target, level);
    }
    let default = default.unwrap_or(if names_targets {
        LevelFilter::ERROR
    } else {
        LevelFilter::INFO
    });
    Ok(targets.with_default(default))
}

/// Levels by the names of Rust, and by those of Python, which existing deployments use.
fn parse_level(name: &str) -> Option<LevelFilter> {
    match name.to_ascii_lowercase().as_str() {
        "off" => Some(LevelFilter::OFF),
        "critical" | "fatal" | "error" => Some(LevelFilter::ERROR),
        "warning" | "warn" => Some(LevelFilter::WARN),
        "info" => Some(LevelFilter::INFO),
        "debug" => Some(LevelFilter::DEBUG),
        "trace" | "notset" => Some(LevelFilter::TRACE),
        _ => None,
    }
}
