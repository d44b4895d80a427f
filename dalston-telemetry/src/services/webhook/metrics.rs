use std::time::Duration;

use crate::metrics::{Counter, DenseFamily, Exemplar, Histogram, Metrics, Unit, buckets};

crate::label! {
    /// What became of an attempt to deliver a webhook.
    pub enum DeliveryStatus = "status" {
        Success => "success",
        /// It will not be tried again.
        Failed => "failed",
        /// It failed and will be tried again.
        Retried => "retried",
    }
}

/// The metrics of webhooks. Cheap to clone.
///
/// | What | PromQL |
/// |---|---|
/// | Webhooks that nobody got, in an hour | `increase(dalston_webhook_deliveries_total{status="failed"}[1h])` |
/// | Time that 95 % of the attempts keep to | `histogram_quantile(0.95, sum by (le) (rate(dalston_webhook_delivery_duration_seconds_bucket[5m])))` |
#[derive(Clone, Debug)]
pub struct WebhookMetrics {
    deliveries: DenseFamily<DeliveryStatus, Counter>,
    delivery_duration: DenseFamily<(), Histogram>,
}

impl WebhookMetrics {
    /// The handles in this registry; registered when first asked for.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        metrics.set(|registry| {
            let mut registry = registry.with_prefix("dalston_webhook");
            Self {
                deliveries: registry.keep(
                    "deliveries",
                    "Attempts to deliver a webhook",
                    DenseFamily::default(),
                ),
                delivery_duration: registry.keep_with_unit(
                    "delivery_duration",
                    "Time that an attempt to deliver a webhook took",
                    Unit::Seconds,
                    DenseFamily::new(|| Histogram::with_exemplars(buckets::DELIVERY)),
                ),
            }
        })
    }

    /// Records an attempt: `dalston_webhook_deliveries_total` and `dalston_webhook_delivery_duration_seconds`.
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
    fn all_that_can_become_of_a_webhook_is_there_at_zero() {
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
