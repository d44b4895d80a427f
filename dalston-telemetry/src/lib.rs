//! Traces, metrics and logs for Dalston services.
