//! Which cryptography TLS uses.

/// Makes ring the process's provider, unless the program has chosen one already. The clients of Redis and S3 take the
/// provider from there, and panic when there is none.
pub(crate) fn use_ring() {
    // An error means that there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
