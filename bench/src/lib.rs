//! Benchmarks that need servers or peers: see `benches`.
