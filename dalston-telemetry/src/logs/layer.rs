use std::cell::Cell;
use std::fmt;
use std::time::SystemTime;

use opentelemetry::Context as OtelContext;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceId};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, SpanRef};

use super::fields::{FieldForm, FieldScratch, FieldVisitor, IDS, id_of};
use super::json::{JsonHead, JsonLine};
use super::readable::ReadableLine;
use super::time::TimeCache;
use super::writer::LogWriter;
use super::{Form, LogFilter, LogSettings};
use crate::logs::context::LogContext;
use crate::metrics::TelemetryMetrics;
use crate::redact;

/// Writes a line for every event that its [`LogFilter`] lets through.
pub(crate) struct LogLayer {
    form: Form,
    head: JsonHead,
    writer: LogWriter,
    /// Whether [`SpanFields`] is there to inherit from.
    inherits: bool,
    filter: LogFilter,
    metrics: TelemetryMetrics,
    clock: fn() -> SystemTime,
}

/// The parts of a line besides the event's own fields.
pub(super) trait LineForm: FieldForm {
    fn begin(&mut self, time: SystemTime, times: &mut TimeCache, level: Level);
    fn trace_id(&mut self, trace_id: TraceId);
    fn span_id(&mut self, span_id: SpanId);
    /// A field of the task or of a span around; `json` is the whole member, if it was prepared.
    fn inherited(&mut self, name: &str, value: &str, json: Option<&str>);
    /// The process's own instance type.
    fn instance_type(&mut self);
    fn end(&mut self, metadata: &Metadata<'_>);
}

/// Buffers of a thread, so that a line allocates nothing.
#[derive(Default)]
struct Scratch {
    line: Vec<u8>,
    fields: Vec<u8>,
    ids: Vec<u8>,
    times: TimeCache,
    names: FieldScratch,
}

thread_local! {
    /// Empty while a line is being made: an event from within a value's `Display` makes its line in other buffers.
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

impl LogLayer {
    /// `inherits` tells whether somebody has [`SpanFields`] remember what lines can inherit.
    pub(crate) fn new(settings: &LogSettings, inherits: bool) -> Self {
        Self {
            form: settings.form,
            head: JsonHead::new(&settings.service, &settings.instance_type),
            writer: settings.writer.clone(),
            inherits,
            filter: settings.filter.clone(),
            metrics: settings.metrics.clone(),
            clock: SystemTime::now,
        }
    }

    #[cfg(test)]
    pub(super) fn clock(mut self, clock: fn() -> SystemTime) -> Self {
        self.clock = clock;
        self
    }

    fn write<S>(&self, event: &Event<'_>, cx: &Context<'_, S>)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        const KEEP: usize = 16 * 1024;
        let mut scratch = SCRATCH.try_with(Cell::take).ok().flatten().unwrap_or_default();
        for buffer in [&mut scratch.line, &mut scratch.fields, &mut scratch.ids] {
            buffer.clear();
            buffer.shrink_to(KEEP);
        }
        scratch.names.clear();
        self.make_line(event, cx, &mut scratch);
        if self.writer.write_line(&scratch.line) {
            self.metrics.log_message((*event.metadata().level()).into());
        }
        // Fails only in a thread that is ending.
        let _ = SCRATCH.try_with(|kept| kept.set(Some(scratch)));
    }

    fn make_line<S>(&self, event: &Event<'_>, cx: &Context<'_, S>, scratch: &mut Scratch)
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let Scratch {
            line,
            fields,
            ids,
            times,
            names,
        } = scratch;
        match self.form {
            Form::Json => {
                let mut form = JsonLine {
                    line,
                    head: &self.head,
                };
                self.fill(event, cx, &mut form, times, names);
            }
            Form::Readable { colours } => {
                let mut form = ReadableLine {
                    line,
                    fields,
                    ids,
                    colours,
                };
                self.fill(event, cx, &mut form, times, names);
            }
        }
    }

    fn fill<S, F: LineForm>(
        &self,
        event: &Event<'_>,
        cx: &Context<'_, S>,
        form: &mut F,
        times: &mut TimeCache,
        names: &mut FieldScratch,
    ) where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let metadata = event.metadata();
        form.begin((self.clock)(), times, *metadata.level());
        event.record(&mut FieldVisitor { form, scratch: names });
        if !names.has("event") {
            form.event(metadata.name());
        }
        let has_trace_id = self.span_ids::<S>(event, form);
        let mut missing = Missing::of(names);
        if self.inherits {
            self.inherit_from_spans(event, cx, form, &mut missing);
        }
        LogContext::with_current(|context| {
            if !has_trace_id
                && !event.is_root()
                && let Some(trace_id) = context.trace_id()
            {
                form.trace_id(trace_id);
            }
            for field in context.fields() {
                let is_wanted = match field.id {
                    Some(id) => missing.take(id),
                    None => !names.has(&field.name),
                };
                if is_wanted {
                    form.inherited(&field.name, &field.value, Some(&field.json));
                }
            }
        });
        if missing.take(INSTANCE_TYPE) {
            form.instance_type();
        }
        form.end(metadata);
    }

    /// Writes the ids of the span around the event, and tells whether there was one.
    fn span_ids<S>(&self, event: &Event<'_>, form: &mut impl LineForm) -> bool
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let mut write = |span: &SpanContext| {
            if span.is_valid() {
                form.trace_id(span.trace_id());
                // The parent in another process is not the span around this event.
                if !span.is_remote() {
                    form.span_id(span.span_id());
                }
            }
            span.is_valid()
        };
        if let Some(parent) = event.parent() {
            let Some(dispatch) = self.filter.dispatch() else {
                return false;
            };
            // The nearest span that has a context: others are not exported.
            return scope_of::<S>(&dispatch, parent)
                .into_iter()
                .flatten()
                .any(|span| {
                    tracing_opentelemetry::get_otel_context(&span.id(), &dispatch)
                        .is_some_and(|context| write(context.span().span_context()))
                });
        }
        // OpenTelemetry warns about its context stack while it is being changed: not the time to look at it.
        let is_readable = event.is_contextual() && !event.metadata().target().starts_with("opentelemetry");
        is_readable
            && OtelContext::map_current(|context| {
                context.has_active_span() && write(context.span().span_context())
            })
    }

    fn inherit_from_spans<S>(
        &self,
        event: &Event<'_>,
        cx: &Context<'_, S>,
        form: &mut impl LineForm,
        missing: &mut Missing,
    ) where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let current;
        let span = match event.parent() {
            Some(parent) => parent,
            None if event.is_contextual() => {
                current = cx.current_span();
                let Some(id) = current.id() else { return };
                id
            }
            None => return,
        };
        let Some(dispatch) = self.filter.dispatch() else {
            return;
        };
        for span in scope_of::<S>(&dispatch, span).into_iter().flatten() {
            if missing.is_nothing() {
                return;
            }
            let extensions = span.extensions();
            let Some(SpanIds(values)) = extensions.get::<SpanIds>() else {
                continue;
            };
            for (id, value) in (0..).zip(values) {
                if let Some(value) = value
                    && missing.take(id)
                {
                    form.inherited(IDS[usize::from(id)], value, None);
                }
            }
        }
    }
}

impl<S> Layer<S> for LogLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_register_dispatch(&self, dispatch: &Dispatch) {
        self.filter.belongs_to(dispatch);
    }

    fn on_event(&self, event: &Event<'_>, cx: Context<'_, S>) {
        self.write(event, &cx);
    }
}

impl fmt::Debug for LogLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogLayer")
            .field("form", &self.form)
            .field("writer", &self.writer)
            .finish_non_exhaustive()
    }
}

const INSTANCE_TYPE: u8 = 4;

/// The ids that a line does not have yet.
struct Missing(u8);

impl Missing {
    fn of(names: &FieldScratch) -> Self {
        let mut missing = 0;
        for (id, name) in IDS.iter().enumerate() {
            if !names.has(name) {
                missing |= 1 << id;
            }
        }
        Self(missing)
    }

    /// Whether the id is missing, which it is not from now on.
    fn take(&mut self, id: u8) -> bool {
        let was_missing = self.0 & 1 << id != 0;
        self.0 &= !(1 << id);
        was_missing
    }

    fn is_nothing(&self) -> bool {
        self.0 == 0
    }
}

/// The spans from this one outwards, whatever the filters of layers say.
fn scope_of<'a, S>(dispatch: &'a Dispatch, id: &Id) -> Option<impl Iterator<Item = SpanRef<'a, S>>>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
{
    Some(dispatch.downcast_ref::<S>()?.span(id)?.scope())
}

/// Remembers the ids among a span's fields, for the lines of events within it.
///
/// Used only when tracing is on, when spans are recorded anyway.
pub(crate) struct SpanFields;

/// In the order of [`IDS`].
#[derive(Default)]
struct SpanIds([Option<Box<str>>; IDS.len()]);

impl SpanFields {
    /// The layer and its filter; spans above this level are not recorded.
    pub(crate) fn layer<S>(level: LevelFilter) -> impl Layer<S> + Send + Sync + 'static
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let wants = move |metadata: &Metadata<'_>| {
            metadata.is_span() && *metadata.level() <= level && has_ids(metadata)
        };
        Self.with_filter(filter_fn(wants).with_max_level_hint(level))
    }
}

impl<S> Layer<S> for SpanFields
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, cx: Context<'_, S>) {
        let mut ids = SpanIds::default();
        attributes.record(&mut ids);
        if let Some(span) = cx.span(id) {
            span.extensions_mut().replace(ids);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, cx: Context<'_, S>) {
        if let Some(span) = cx.span(id) {
            // Formatted before the lock is taken: a value's `Display` may log.
            let mut new = SpanIds::default();
            values.record(&mut new);
            let mut extensions = span.extensions_mut();
            if let Some(SpanIds(ids)) = extensions.get_mut::<SpanIds>() {
                for (id, new) in ids.iter_mut().zip(new.0) {
                    if new.is_some() {
                        *id = new;
                    }
                }
            }
        }
    }
}

impl SpanIds {
    fn set(&mut self, field: &Field, value: &str) {
        if let Some(id) = id_of(field.name())
            && !value.is_empty()
        {
            self.0[usize::from(id)] = Some(redact::text(value).into());
        }
    }
}

impl Visit for SpanIds {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if id_of(field.name()).is_some() {
            self.set(field, &format!("{value:?}"));
        }
    }
}

/// Whether a span that is made there may have such a field.
fn has_ids(metadata: &Metadata<'_>) -> bool {
    let mut fields = metadata.fields().iter();
    fields.any(|field| id_of(field.name()).is_some())
}
