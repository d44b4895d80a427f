use std::time::Duration;

use crate::metrics::{Counter, DenseFamily, Exemplar, Histogram, Metrics, Unit, buckets};

crate::label! {
    /// The result of an attempt to deliver a webhook.
    pub enum DeliveryStatus = "status" {
        Success => "success",
        /// The attempt failed and there is no further one.
        Failed => "failed",
        /// The attempt failed and there will be a further one.
        Retried => "retried",
    }
}

/// The metrics of webhooks. Cheap to clone.
///
/// | What | PromQL |
/// |---|---|
/// | Webhooks that were not delivered, in an hour | `increase(dalston_webhook_deliveries_total{status="failed"}[1h])` |
/// | 95th percentile of the duration of an attempt | `histogram_quantile(0.95, sum by (le) (rate(dalston_webhook_delivery_duration_seconds_bucket[5m])))` |
#[derive(Clone, Debug)]
pub struct WebhookMetrics {
    deliveries: DenseFamily<DeliveryStatus, Counter>,
    delivery_duration: DenseFamily<(), Histogram>,
}

impl WebhookMetrics {
    /// The handles of this registry. The first call registers them.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        metrics.set(|registry| {
            let mut registry = registry.with_prefix("dalston_webhook");
            Self {
                deliveries: registry.keep(
                    "deliveries",
                    "Attempts to deliver a webhook, by result",
                    DenseFamily::default(),
                ),
                delivery_duration: registry.keep_with_unit(
                    "delivery_duration",
                    "Duration of an attempt to deliver a webhook",
                    Unit::Seconds,
                    DenseFamily::new(|| Histogram::with_exemplars(buckets::DELIVERY)),
                ),
            }
        })
    }

    /// Records an attempt: `dalston_webhook_deliveries_total` and
    /// `dalston_webhook_delivery_duration_seconds`.
    pub fn attempted(&self, status: DeliveryStatus, time: Duration) {
        let exemplar = Exemplar::current();
        self.deliveries.with(status).inc_in(exemplar);
        self.delivery_duration
            .with(())
            .observe_duration_in(time, exemplar);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_results_start_at_zero() {
        let metrics = Metrics::new();
        let webhooks = WebhookMetrics::register(&metrics);
        webhooks.attempted(DeliveryStatus::Retried, Duration::from_secs(1));
        let snapshot = metrics.snapshot();
        let count = |status| snapshot.value("dalston_webhook_deliveries_total", &[("status", status)]);
        let counts = ["success", "failed", "retried"].map(count);
        assert_eq!(counts, [Some(0.0), Some(0.0), Some(1.0)]);
        let sum = snapshot.value("dalston_webhook_delivery_duration_seconds_sum", &[]);
        assert_eq!(sum, Some(1.0));
    }
}
