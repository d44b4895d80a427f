//! Values that tracing-opentelemetry can't take as they are: [`Values`].

use std::error::Error;
use std::fmt::{self, Write as _};
use std::iter;

use tracing::field::{DisplayValue, Field, FieldSet, Value, Visit, display};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// Passes values to OpenTelemetry's layer in a form that it can take.
///
/// - Unsigned integers and those of 128 bits become an `i64`, the integer type of OpenTelemetry, or
///   the nearest one. tracing-opentelemetry 0.34 implements neither `record_u64` nor the methods
///   for 128 bits, so that a `usize` would arrive as text.
/// - A value whose `Display` or `Debug` fails becomes the text that it wrote before.
///   tracing-opentelemetry formats it with `format!`, which panics in the code of the user.
pub(super) struct Values<L> {
    layer: L,
}

impl<L> Values<L> {
    pub(super) fn new(layer: L) -> Self {
        Self { layer }
    }
}

/// Only the methods that OpenTelemetry's layer implements.
impl<S, L> Layer<S> for Values<L>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    L: Layer<S>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, cx: Context<'_, S>) {
        let record = |visitor: &mut dyn Visit| attributes.record(visitor);
        let metadata = attributes.metadata();
        let Some(copy) = CopiedValues::of(Some(metadata.fields()), record) else {
            return self.layer.on_new_span(attributes, id, cx);
        };
        let values = copy.values();
        let values = metadata.fields().value_set_all(&values);
        let attributes = match attributes.parent() {
            Some(parent) => Attributes::child_of(parent.clone(), metadata, &values),
            None if attributes.is_root() => Attributes::new_root(metadata, &values),
            None => Attributes::new(metadata, &values),
        };
        self.layer.on_new_span(&attributes, id, cx);
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, cx: Context<'_, S>) {
        let fields = cx.metadata(id).map(|metadata| metadata.fields());
        let Some((fields, copy)) = fields.zip(CopiedValues::of(fields, |visitor| record.record(visitor)))
        else {
            return self.layer.on_record(id, record, cx);
        };
        let values = copy.values();
        let values = fields.value_set_all(&values);
        self.layer.on_record(id, &Record::new(&values), cx);
    }

    fn on_event(&self, event: &Event<'_>, cx: Context<'_, S>) {
        let metadata = event.metadata();
        let Some(copy) = CopiedValues::of(Some(metadata.fields()), |visitor| event.record(visitor)) else {
            return self.layer.on_event(event, cx);
        };
        let values = copy.values();
        let values = metadata.fields().value_set_all(&values);
        let event = match event.parent() {
            Some(parent) => Event::new_child_of(parent.clone(), metadata, &values),
            None if event.is_root() => Event::new_child_of(None::<Id>, metadata, &values),
            None => Event::new(metadata, &values),
        };
        self.layer.on_event(&event, cx);
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, cx: Context<'_, S>) {
        self.layer.on_follows_from(id, follows, cx);
    }

    fn on_enter(&self, id: &Id, cx: Context<'_, S>) {
        self.layer.on_enter(id, cx);
    }

    fn on_exit(&self, id: &Id, cx: Context<'_, S>) {
        self.layer.on_exit(id, cx);
    }

    fn on_close(&self, id: Id, cx: Context<'_, S>) {
        self.layer.on_close(id, cx);
    }
}

/// The values of a span or event, with others in place of those that OpenTelemetry's layer can't
/// take. A value can only be read by a visitor, and lives no longer than its visit.
struct CopiedValues(Vec<Option<CopiedValue>>);

enum CopiedValue {
    Bool(bool),
    F64(f64),
    I64(i64),
    U64(u64),
    Str(String),
    Debug(DisplayValue<String>),
    Error(Box<dyn Error + 'static>),
}

impl CopiedValues {
    /// Copies the values, or returns `None` if all of them can pass as they are.
    fn of(fields: Option<&FieldSet>, record: impl Fn(&mut dyn Visit)) -> Option<Self> {
        let mut search = Search { found: false };
        record(&mut search);
        if !search.found {
            return None;
        }
        let mut copy = Self(Vec::new());
        copy.0.resize_with(fields?.len(), || None);
        record(&mut copy);
        Some(copy)
    }

    fn values(&self) -> Vec<Option<&dyn Value>> {
        let values = self.0.iter().map(|value| {
            Some(match value.as_ref()? {
                CopiedValue::Bool(value) => value as &dyn Value,
                CopiedValue::F64(value) => value,
                CopiedValue::I64(value) => value,
                CopiedValue::U64(value) => value,
                CopiedValue::Str(text) => text,
                CopiedValue::Debug(text) => text,
                CopiedValue::Error(error) => error,
            })
        });
        values.collect()
    }

    fn set(&mut self, field: &Field, value: CopiedValue) {
        if let Some(copied) = self.0.get_mut(field.index()) {
            *copied = Some(value);
        }
    }
}

impl Visit for CopiedValues {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, CopiedValue::Bool(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, CopiedValue::F64(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, CopiedValue::I64(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        let value = match is_of_log_record(field) {
            true => CopiedValue::U64(value),
            false => CopiedValue::I64(value.try_into().unwrap_or(i64::MAX)),
        };
        self.set(field, value);
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        let value = value.clamp(i64::MIN.into(), i64::MAX.into());
        self.set(field, CopiedValue::I64(value.try_into().unwrap_or(i64::MAX)));
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.set(field, CopiedValue::I64(value.try_into().unwrap_or(i64::MAX)));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, CopiedValue::Str(value.to_owned()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.set(field, CopiedValue::Error(Box::new(CopiedError::of(value))));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        // An implementation that fails has written a part.
        let _ = write!(text, "{value:?}");
        self.set(field, CopiedValue::Debug(display(text)));
    }
}

/// Looks for a value that OpenTelemetry's layer can't take.
struct Search {
    found: bool,
}

impl Visit for Search {
    fn record_u64(&mut self, field: &Field, _: u64) {
        self.found |= !is_of_log_record(field);
    }

    fn record_i128(&mut self, _: &Field, _: i128) {
        self.found = true;
    }

    fn record_u128(&mut self, _: &Field, _: u128) {
        self.found = true;
    }

    fn record_str(&mut self, _: &Field, _: &str) {}

    fn record_error(&mut self, _: &Field, value: &(dyn Error + 'static)) {
        let errors = iter::successors(Some(value), |error: &&(dyn Error + 'static)| (*error).source());
        for error in errors.take(MAX_SOURCES) {
            self.found |= write!(Discard, "{error}").is_err();
        }
    }

    fn record_debug(&mut self, _: &Field, value: &dyn fmt::Debug) {
        self.found |= write!(Discard, "{value:?}").is_err();
    }
}

/// Takes text and keeps nothing.
struct Discard;

impl fmt::Write for Discard {
    fn write_str(&mut self, _: &str) -> fmt::Result {
        Ok(())
    }
}

/// A bound for a chain of errors that is a ring.
const MAX_SOURCES: usize = 16;

/// Whether tracing-log reads the field, by its type: the metadata of a record of the `log` crate.
fn is_of_log_record(field: &Field) -> bool {
    field.name().starts_with("log.")
}

/// An error with its sources, as texts.
#[derive(Debug)]
struct CopiedError {
    text: String,
    source: Option<Box<Self>>,
}

impl CopiedError {
    fn of(error: &dyn Error) -> Self {
        Self::up_to(error, MAX_SOURCES)
    }

    fn up_to(error: &dyn Error, sources: usize) -> Self {
        let mut text = String::new();
        // An implementation that fails has written a part.
        let _ = write!(text, "{error}");
        let source = error.source().filter(|_| sources > 0);
        Self {
            text,
            source: source.map(|source| Box::new(Self::up_to(source, sources - 1))),
        }
    }
}

impl fmt::Display for CopiedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for CopiedError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let source = self.source.as_deref()?;
        Some(source)
    }
}
