use std::cell::Cell;
use std::fmt;
use std::time::SystemTime;

use opentelemetry::Context as OtelContext;
use opentelemetry::trace::{SpanContext, TraceContextExt};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Metadata, Subscriber};
use tracing_log::NormalizeEvent;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, SpanRef};

use super::context::LogContext;
use super::fields::{FieldScratch, FieldVisitor};
use super::inherited::{Fallback, INHERITED, InheritedField, PerField};
use super::json::{JsonHead, JsonLine, member};
use super::line::LineForm;
use super::output::LogOutput;
use super::readable::ReadableLine;
use super::{Form, LogConfig, LogFilter};
use crate::redact;

/// Writes a line for each event that its [`LogFilter`] enables.
pub(crate) struct LogLayer {
    form: Form,
    head: JsonHead,
    /// The fields with a fallback, by their position in [`INHERITED`], as JSON members.
    process_fields: Vec<(usize, String)>,
    output: LogOutput,
    /// Whether the subscriber has [`SpanFields`], from which lines inherit.
    inherits: bool,
    filter: LogFilter,
    clock: fn() -> SystemTime,
}

/// The buffers of a thread, kept so that a line allocates nothing.
#[derive(Default)]
struct Scratch {
    line: Vec<u8>,
    fields: Vec<u8>,
    ids: Vec<u8>,
    names: FieldScratch,
}

thread_local! {
    /// Empty while a line is being written: a value's `Display` may log, and that line needs
    /// buffers of its own.
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

impl LogLayer {
    /// `inherits`: whether the subscriber has [`SpanFields`], from which lines inherit.
    pub(crate) fn new(config: &LogConfig, inherits: bool) -> Self {
        Self {
            form: config.form,
            head: JsonHead::new(&config.service),
            process_fields: process_fields(config),
            output: config.output.clone(),
            inherits,
            filter: config.filter.clone(),
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
        self.output.write_line(&scratch.line, *event.metadata().level());
        // Fails only while the thread ends.
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
            names,
        } = scratch;
        match self.form {
            Form::Json => {
                let mut form = JsonLine {
                    line,
                    head: &self.head,
                };
                self.fill(event, cx, &mut form, names);
            }
            Form::Readable { colours } => {
                let mut form = ReadableLine {
                    line,
                    fields,
                    ids,
                    colours,
                };
                self.fill(event, cx, &mut form, names);
            }
        }
    }

    fn fill<S, F: LineForm>(
        &self,
        event: &Event<'_>,
        cx: &Context<'_, S>,
        form: &mut F,
        names: &mut FieldScratch,
    ) where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        // A record of the `log` crate has its own metadata in its fields.
        let of_record = event.normalized_metadata();
        let metadata = of_record.as_ref().unwrap_or_else(|| event.metadata());
        form.begin((self.clock)(), *metadata.level());
        event.record(&mut FieldVisitor {
            form,
            scratch: names,
            is_log_record: of_record.is_some(),
        });
        if !names.has("event") {
            form.message(metadata.name());
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
                let is_missing = match field.position {
                    Some(position) => missing.take(position),
                    None => !names.has(&field.name),
                };
                if is_missing {
                    form.context_field(&field.name, &field.value, &field.json);
                }
            }
        });
        for (position, json) in &self.process_fields {
            if missing.take(*position) {
                form.process_field(json);
            }
        }
        form.end(metadata);
    }

    /// Writes the ids of the span around the event. Returns whether there is a trace id.
    fn span_ids<S>(&self, event: &Event<'_>, form: &mut impl LineForm) -> bool
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let mut write = |span: &SpanContext| {
            if span.is_valid() {
                form.trace_id(span.trace_id());
                // A remote span is a parent in another process, not the span around this event.
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
            // The nearest span that has a context. Spans without one are not exported.
            return scope_of::<S>(&dispatch, parent)
                .into_iter()
                .flatten()
                .any(|span| {
                    tracing_opentelemetry::get_otel_context(&span.id(), &dispatch)
                        .is_some_and(|context| write(context.span().span_context()))
                });
        }
        // OpenTelemetry logs warnings while it changes its context stack, which can't be read then.
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
            if missing.is_empty() {
                return;
            }
            let extensions = span.extensions();
            let Some(SpanValues(values)) = extensions.get() else {
                continue;
            };
            for (position, value) in values.iter().enumerate() {
                if let Some(value) = value
                    && missing.take(position)
                {
                    form.inherited(INHERITED[position].name, value);
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
            .field("output", &self.output)
            .finish_non_exhaustive()
    }
}

fn process_fields(config: &LogConfig) -> Vec<(usize, String)> {
    let value = |fallback| match fallback {
        Fallback::Absent => None,
        Fallback::InstanceType => Some(config.instance_type.as_str()),
    };
    INHERITED
        .iter()
        .enumerate()
        .filter_map(|(position, field)| Some((position, member(field.name, value(field.fallback)?))))
        .collect()
}

/// Whether the line still lacks each of the inherited fields.
struct Missing(PerField<bool>);

impl Missing {
    fn of(names: &FieldScratch) -> Self {
        Self(std::array::from_fn(|position| {
            !names.has(INHERITED[position].name)
        }))
    }

    /// Returns whether the field is missing, and marks it as present.
    fn take(&mut self, position: usize) -> bool {
        std::mem::take(&mut self.0[position])
    }

    fn is_empty(&self) -> bool {
        !self.0.contains(&true)
    }
}

/// The spans from this one outwards, also those that the layer's filter hides.
fn scope_of<'a, S>(dispatch: &'a Dispatch, id: &Id) -> Option<impl Iterator<Item = SpanRef<'a, S>>>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
{
    Some(dispatch.downcast_ref::<S>()?.span(id)?.scope())
}

/// Remembers the inherited fields of a span, for the lines of events within it.
///
/// It is part of the subscriber only with tracing on. With tracing off it would make spans that
/// cost next to nothing expensive.
pub(crate) struct SpanFields;

/// The values of the inherited fields of a span.
#[derive(Default)]
struct SpanValues(PerField<Option<Box<str>>>);

impl SpanFields {
    /// The layer behind a filter for spans up to this level that have inherited fields.
    pub(crate) fn layer<S>(level: LevelFilter) -> impl Layer<S> + Send + Sync + 'static
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let wants = move |metadata: &Metadata<'_>| {
            metadata.is_span() && *metadata.level() <= level && has_inherited_fields(metadata)
        };
        Self.with_filter(filter_fn(wants).with_max_level_hint(level))
    }
}

impl<S> Layer<S> for SpanFields
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, cx: Context<'_, S>) {
        let mut values = SpanValues::default();
        attributes.record(&mut values);
        if let Some(span) = cx.span(id) {
            span.extensions_mut().replace(values);
        }
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, cx: Context<'_, S>) {
        if let Some(span) = cx.span(id) {
            // Formatted before the span is locked: a value's `Display` may log.
            let mut new = SpanValues::default();
            record.record(&mut new);
            let mut extensions = span.extensions_mut();
            if let Some(SpanValues(values)) = extensions.get_mut() {
                for (value, new) in values.iter_mut().zip(new.0) {
                    if new.is_some() {
                        *value = new;
                    }
                }
            }
        }
    }
}

impl SpanValues {
    fn set(&mut self, field: &Field, value: &str) {
        if let Some(position) = InheritedField::position(field.name())
            && !value.is_empty()
        {
            self.0[position] = Some(redact::text(value).into());
        }
    }
}

impl Visit for SpanValues {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if InheritedField::position(field.name()).is_some() {
            self.set(field, &format!("{value:?}"));
        }
    }
}

/// Whether lines inherit a field of the spans of this callsite.
fn has_inherited_fields(metadata: &Metadata<'_>) -> bool {
    let mut fields = metadata.fields().iter();
    fields.any(|field| InheritedField::position(field.name()).is_some())
}
