//! Log lines.

pub(crate) mod json;

pub(crate) use json::{is_reserved, json_member};
