//! Sizes, and the checked conversions between counts and bytes.

use crate::error::{Error, ErrorKind, Result};

/// `count * each`, or a `Capacity` error that names what overflowed.
pub fn checked_bytes(what: &str, count: u64, each: u64) -> Result<u64> {
    count.checked_mul(each).ok_or_else(|| {
        Error::new(ErrorKind::Capacity, format!("{what} does not fit in 64 bits"))
            .with_context("count", count)
            .with_context("bytes_each", each)
    })
}

/// The least multiple of `step` that is not below `value`. `step` is not zero.
pub fn round_up(value: u64, step: u64) -> u64 {
    value.div_ceil(step) * step
}

/// Nanoseconds that `nbytes` take at `bytes_per_s`, rounded up.
pub fn transfer_ns(nbytes: u64, bytes_per_s: u64) -> u64 {
    debug_assert!(bytes_per_s > 0, "a link needs a bandwidth");
    match nbytes.checked_mul(1_000_000_000) {
        Some(product) => product.div_ceil(bytes_per_s),
        None => (u128::from(nbytes) * 1_000_000_000).div_ceil(u128::from(bytes_per_s)) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfer_time_is_exact_and_rounds_up() {
        assert_eq!(transfer_ns(4096, 2_400_000_000), 1707);
        assert_eq!(transfer_ns(0, 1), 0);
        assert_eq!(transfer_ns(1 << 60, 1 << 30), (1u64 << 30) * 1_000_000_000);
    }

    #[test]
    fn overflow_is_a_capacity_error() {
        let error = checked_bytes("table 3", u64::MAX, 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Capacity);
    }
}
