//! The life of a span: its ids, what is sampled, its limits, where it is kept, and how its context travels.

pub(crate) mod collector;
pub(crate) mod ended;
pub(crate) mod ids;
pub(crate) mod limits;
pub(crate) mod processors;
pub mod propagate;
pub(crate) mod sampler;
pub(crate) mod waterfall;
