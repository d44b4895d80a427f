//! Delivery of requests to a collector: bounded, counted, and with one bound at shutdown.
//!
//! - [`Queue`](queue::Queue) and [`BatchExporter`]: items that are sent together, such as spans.
//! - [`Delivery`]: attempts and back-off for one request after another.
//! - [`Exporters`]: flush and shutdown of all signals within one bound.

mod attempts;
mod backoff;
mod batch;
mod control;
mod exporter;
mod queue;
mod report;
mod request;
mod stats;
mod thread;

pub(super) use attempts::{Delivery, Lost};
pub(crate) use batch::Console;
pub(super) use batch::{BatchExporter, BatchTransport, Item};
pub(super) use control::Control;
pub(crate) use exporter::{Exporter, Exporters};
pub(super) use report::Reporter;
pub(crate) use report::{REPORTS, ReportTo};
pub(super) use request::{Accepted, Failure, MAX_REQUEST_BYTES, Retry, Transport};
pub use stats::ExportStats;
pub(super) use thread::spawn;
