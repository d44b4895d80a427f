//! Which of many failures in a row are logged.

/// Whether the failure with this number in a row is logged. An outage of an hour with a failure
/// each second leads to 24 lines.
pub(crate) const fn is_logged(failures: u64) -> bool {
    failures.is_power_of_two() || failures.is_multiple_of(300)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outage_of_an_hour_is_logged_24_times() {
        let logged: Vec<u64> = (1..=3_600).filter(|failures| is_logged(*failures)).collect();
        assert_eq!(logged[..10], [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]);
        assert_eq!(logged.len(), 24);
    }
}
