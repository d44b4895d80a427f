//! The provider of meters, which gives histograms bounds that suit their unit.
//!
//! A view of the SDK can't do this: it does not see whether an instrument sets bounds of its own,
//! and would replace them.

use std::sync::Arc;

use opentelemetry::InstrumentationScope;
use opentelemetry::metrics::{
    AsyncInstrumentBuilder, Counter, Gauge, Histogram, HistogramBuilder, InstrumentBuilder,
    InstrumentProvider, Meter, ObservableCounter, ObservableGauge, ObservableUpDownCounter, UpDownCounter,
};
use opentelemetry_sdk::metrics::SdkMeterProvider;

use super::buckets;

/// A provider of OpenTelemetry's meters. Made by
/// [`Metrics::meter_provider`](super::Metrics::meter_provider).
#[derive(Clone, Debug)]
pub struct MeterProvider(SdkMeterProvider);

impl MeterProvider {
    pub(super) fn new(provider: SdkMeterProvider) -> Self {
        Self(provider)
    }
}

impl opentelemetry::metrics::MeterProvider for MeterProvider {
    fn meter_with_scope(&self, scope: InstrumentationScope) -> Meter {
        Meter::new(Arc::new(Instruments(self.0.meter_with_scope(scope))))
    }
}

/// Makes instruments as this meter does, and sets the bounds of histograms that have none.
struct Instruments(Meter);

impl Instruments {
    /// The provider behind the meter, which only builders show.
    fn provider(&self) -> &dyn InstrumentProvider {
        self.0.u64_counter("").instrument_provider
    }
}

fn with_bounds<'a, T>(mut builder: HistogramBuilder<'a, T>) -> HistogramBuilder<'a, T> {
    let bounds = match builder.unit.as_deref() {
        Some("s") => buckets::SECONDS,
        Some("1") => buckets::RATIO,
        _ => return builder,
    };
    builder.boundaries.get_or_insert_with(|| bounds.to_vec());
    builder
}

macro_rules! forward {
    ($($method:ident($builder:ty) -> $instrument:ty;)*) => {
        $(fn $method(&self, builder: $builder) -> $instrument {
            self.provider().$method(builder)
        })*
    };
}

impl InstrumentProvider for Instruments {
    fn f64_histogram(&self, builder: HistogramBuilder<'_, Histogram<f64>>) -> Histogram<f64> {
        self.provider().f64_histogram(with_bounds(builder))
    }

    fn u64_histogram(&self, builder: HistogramBuilder<'_, Histogram<u64>>) -> Histogram<u64> {
        self.provider().u64_histogram(with_bounds(builder))
    }

    forward! {
        u64_counter(InstrumentBuilder<'_, Counter<u64>>) -> Counter<u64>;
        f64_counter(InstrumentBuilder<'_, Counter<f64>>) -> Counter<f64>;
        u64_observable_counter(AsyncInstrumentBuilder<'_, ObservableCounter<u64>, u64>) -> ObservableCounter<u64>;
        f64_observable_counter(AsyncInstrumentBuilder<'_, ObservableCounter<f64>, f64>) -> ObservableCounter<f64>;
        i64_up_down_counter(InstrumentBuilder<'_, UpDownCounter<i64>>) -> UpDownCounter<i64>;
        f64_up_down_counter(InstrumentBuilder<'_, UpDownCounter<f64>>) -> UpDownCounter<f64>;
        i64_observable_up_down_counter(AsyncInstrumentBuilder<'_, ObservableUpDownCounter<i64>, i64>)
            -> ObservableUpDownCounter<i64>;
        f64_observable_up_down_counter(AsyncInstrumentBuilder<'_, ObservableUpDownCounter<f64>, f64>)
            -> ObservableUpDownCounter<f64>;
        u64_gauge(InstrumentBuilder<'_, Gauge<u64>>) -> Gauge<u64>;
        f64_gauge(InstrumentBuilder<'_, Gauge<f64>>) -> Gauge<f64>;
        i64_gauge(InstrumentBuilder<'_, Gauge<i64>>) -> Gauge<i64>;
        u64_observable_gauge(AsyncInstrumentBuilder<'_, ObservableGauge<u64>, u64>) -> ObservableGauge<u64>;
        i64_observable_gauge(AsyncInstrumentBuilder<'_, ObservableGauge<i64>, i64>) -> ObservableGauge<i64>;
        f64_observable_gauge(AsyncInstrumentBuilder<'_, ObservableGauge<f64>, f64>) -> ObservableGauge<f64>;
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;

    /// The bounds of a histogram in a text, without the infinite one.
    fn bounds(text: &str, name: &str) -> Vec<f64> {
        let start = format!("{name}_bucket{{");
        let lines = text.lines().filter(|line| line.starts_with(&start));
        let bounds = lines.filter_map(|line| line.split("le=\"").nth(1)?.split('"').next()?.parse().ok());
        bounds.filter(|bound: &f64| bound.is_finite()).collect()
    }

    #[test]
    fn histograms_without_bounds_get_those_of_their_unit() {
        let metrics = Metrics::new();
        let meter = metrics.meter("mine");
        for (name, unit) in [("wait", "s"), ("share", "1"), ("lag", "ms")] {
            meter.f64_histogram(name).with_unit(unit).build().record(0.5, &[]);
        }
        meter.u64_histogram("age").with_unit("s").build().record(1, &[]);
        let own = meter
            .f64_histogram("own")
            .with_unit("s")
            .with_boundaries(vec![3.0, 4.0]);
        own.build().record(0.5, &[]);
        let text = metrics.encode();
        assert_eq!(bounds(&text, "wait_seconds"), super::buckets::SECONDS);
        assert_eq!(bounds(&text, "age_seconds"), super::buckets::SECONDS);
        assert_eq!(bounds(&text, "share"), super::buckets::RATIO);
        assert_eq!(bounds(&text, "own_seconds"), [3.0, 4.0]);
        assert_eq!(bounds(&text, "lag_milliseconds").last(), Some(&10_000.0));
    }

    #[test]
    fn all_kinds_of_instruments_reach_the_sdk() {
        let metrics = Metrics::new();
        let meter = metrics.meter("mine");
        meter.u64_counter("a").build().add(1, &[]);
        meter.f64_counter("b").build().add(1.0, &[]);
        meter.i64_up_down_counter("c").build().add(1, &[]);
        meter.f64_up_down_counter("d").build().add(1.0, &[]);
        meter.u64_gauge("e").build().record(1, &[]);
        meter.f64_gauge("f").build().record(1.0, &[]);
        meter.i64_gauge("g").build().record(1, &[]);
        let _observed = (
            meter
                .u64_observable_counter("h")
                .with_callback(|to| to.observe(1, &[]))
                .build(),
            meter
                .f64_observable_counter("i")
                .with_callback(|to| to.observe(1.0, &[]))
                .build(),
            meter
                .i64_observable_up_down_counter("j")
                .with_callback(|to| to.observe(1, &[]))
                .build(),
            meter
                .f64_observable_up_down_counter("k")
                .with_callback(|to| to.observe(1.0, &[]))
                .build(),
            meter
                .u64_observable_gauge("l")
                .with_callback(|to| to.observe(1, &[]))
                .build(),
            meter
                .i64_observable_gauge("m")
                .with_callback(|to| to.observe(1, &[]))
                .build(),
            meter
                .f64_observable_gauge("n")
                .with_callback(|to| to.observe(1.0, &[]))
                .build(),
        );
        let snapshot = metrics.snapshot();
        for name in [
            "a_total", "b_total", "c", "d", "e", "f", "g", "h_total", "i_total", "j", "k", "l", "m", "n",
        ] {
            assert_eq!(
                snapshot.value(name, &[("otel_scope_name", "mine")]),
                Some(1.0),
                "{name}"
            );
        }
    }
}
