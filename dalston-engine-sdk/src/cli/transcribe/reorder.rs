//! Results in the order of the command line.

use std::collections::BTreeMap;

/// Holds back results until all earlier ones have come.
pub(super) struct ReorderBuffer<T> {
    next: usize,
    early: BTreeMap<usize, T>,
}

impl<T> ReorderBuffer<T> {
    pub(super) fn new() -> Self {
        Self {
            next: 0,
            early: BTreeMap::new(),
        }
    }

    /// Adds the result number `index`, and returns the results that are next in order.
    pub(super) fn push(&mut self, index: usize, result: T) -> Vec<T> {
        self.early.insert(index, result);
        let mut ready = Vec::new();
        while let Some(result) = self.early.remove(&self.next) {
            self.next += 1;
            ready.push(result);
        }
        ready
    }

    /// Returns the results that are held back, when no more will come.
    pub(super) fn rest(&mut self) -> Vec<T> {
        std::mem::take(&mut self.early).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_waits_for_earlier_ones() {
        let mut buffer = ReorderBuffer::new();
        let mut push = |index| buffer.push(index, index);
        assert_eq!(
            [push(2), push(1), push(0), push(4), push(5)],
            [vec![], vec![], vec![0, 1, 2], vec![], vec![]]
        );
        assert_eq!(buffer.rest(), [4, 5]);
    }
}
