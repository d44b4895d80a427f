/// What a [`Waterfall`](crate::Waterfall) was told about its look.
#[derive(Clone, Debug)]
pub(super) struct Look {
    /// In columns.
    pub(super) width: usize,
    pub(super) ascii: bool,
    pub(super) color: bool,
    pub(super) fold_after: usize,
    pub(super) attributes: Vec<String>,
}
