//! The cryptography of TLS.

/// Makes ring the provider of the process, unless the program has chosen one. The clients of Redis
/// and S3 use this provider and panic without one, and so do clients of an engine's own.
pub(crate) fn use_ring() {
    // An error means that a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
