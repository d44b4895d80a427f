//! What the gateway, the orchestrator and the page share: [`Platform`].

use dalston_engine_sdk::store::Store;
use dalston_telemetry::TelemetryHandle;
use dalston_telemetry::audit::AuditLog;

use crate::config::PageConfig;
use crate::db::Db;
use crate::traces::TraceStore;
use crate::wire::Wire;

/// What the gateway and the orchestrator need. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Platform {
    pub(crate) db: Db,
    pub(crate) wire: Wire,
    pub(crate) store: Store,
    pub(crate) audit: AuditLog,
    pub(crate) telemetry: TelemetryHandle,
    /// Empty without the gateway, which receives the spans.
    pub(crate) traces: TraceStore,
    pub(crate) page: PageConfig,
}
