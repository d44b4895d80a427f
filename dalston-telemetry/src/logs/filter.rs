//! Which events become log lines: [`LogFilter`].

use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use tracing::dispatcher::{WeakDispatch, with_default};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Dispatch, Metadata};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Filter};

use crate::env::{Env, EnvError, EnvWarning};
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
    fn new(targets: Targets) -> Self {
        Self {
            shared: Arc::new(Shared {
                targets: RwLock::new(targets),
                dispatch: OnceLock::new(),
            }),
            others: LevelFilter::OFF,
        }
    }

    /// The filter of the first variable that is set: `RUST_LOG`, `LOG_LEVEL`, `DALSTON_LOG_LEVEL`;
    /// else `default`. A warning names the directives for spans, which are ignored.
    pub(crate) fn from_env(env: &Env, default: LevelFilter) -> Result<(Self, Option<EnvWarning>), EnvError> {
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
        let (targets, of_spans) = parse(directives).map_err(|WrongDirective(directive)| {
            let accepted = format!("{}, which \"{directive}\" is not", RUST_LOG.accepted());
            EnvError::new(name, directives, accepted)
        })?;
        let warning = (!of_spans.is_empty()).then(|| EnvWarning {
            variable: name,
            value: of_spans.join(","),
            used: targets.to_string(),
            accepted: RUST_LOG.accepted(),
        });
        Ok((Self::new(targets), warning))
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
        let wrong = |directive| ParseError::new("log filter directive", directive, RUST_LOG.accepted());
        let (targets, of_spans) = parse(directives).map_err(|WrongDirective(directive)| wrong(directive))?;
        if let Some(directive) = of_spans.first() {
            return Err(wrong(directive));
        }
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

/// The targets with their levels, and the directives for spans, such as `target[span{field}]=debug`
/// of tracing-subscriber's `EnvFilter`.
fn parse(directives: &str) -> Result<(Targets, Vec<&str>), WrongDirective<'_>> {
    let mut targets = Targets::new();
    let mut of_spans = Vec::new();
    let mut default = None;
    let mut names_targets = false;
    for directive in split(directives) {
        let wrong = || WrongDirective(directive);
        // They would have to see every span.
        if let Some((_, span)) = directive.split_once('[') {
            let (_, level) = span.rsplit_once(']').ok_or_else(wrong)?;
            let is_level = |level: &str| parse_level(level).is_some();
            if !level.is_empty() && !level.strip_prefix('=').is_some_and(is_level) {
                return Err(wrong());
            }
            of_spans.push(directive);
            continue;
        }
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
    Ok((targets.with_default(default), of_spans))
}

/// The directives between the commas that are in no brackets.
fn split(directives: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    let parts = directives.split(move |character| {
        match character {
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        character == ',' && depth == 0
    });
    parts.map(str::trim).filter(|directive| !directive.is_empty())
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
