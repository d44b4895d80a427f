//! The example against its goldens, against models made up on the spot, and against bad files.

#![allow(clippy::unwrap_used, missing_docs)]

mod goldens;
mod support;
