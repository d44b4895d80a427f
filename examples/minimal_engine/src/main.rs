//! The shortest complete engine.
fn main() {}
