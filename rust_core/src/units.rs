//! Sizes and durations, and the checked conversions between them.

use crate::error::{Error, ErrorKind, Result};

/// The timing model counts in picoseconds: one 64-byte access takes less than a nanosecond of a fast link.
pub const PS_PER_NS: u64 = 1000;

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

/// A rate in bytes per second, prepared so that a transfer time costs a multiplication and no division.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Picoseconds per byte with 32 binary places.
    ps_per_byte: u64,
}

impl Rate {
    /// Of `bytes_per_s`, which is not zero.
    pub fn new(bytes_per_s: u64) -> Self {
        debug_assert!(bytes_per_s > 0, "a link needs a bandwidth");
        let fixed = ((1_000_000_000_000u128 << 32) + u128::from(bytes_per_s) / 2) / u128::from(bytes_per_s);
        Self { ps_per_byte: fixed.min(u128::from(u64::MAX)) as u64 }
    }

    /// Picoseconds that `nbytes` take, to within one and a part in a million.
    #[inline]
    pub fn transfer_ps(self, nbytes: u64) -> u64 {
        ((u128::from(nbytes) * u128::from(self.ps_per_byte)) >> 32) as u64
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
    fn a_prepared_rate_agrees_with_the_division() {
        for (nbytes, bytes_per_s) in
            [(64u64, 106_000_000_000u64), (4096, 2_400_000_000), (1 << 20, 716_800_000), (1, 1 << 40), (1 << 30, 1000)]
        {
            let exact = nbytes as f64 * 1e12 / bytes_per_s as f64;
            let found = Rate::new(bytes_per_s).transfer_ps(nbytes) as f64;
            assert!((found - exact).abs() <= 1.0 + exact * 1e-6, "{found} against {exact}");
        }
    }

    #[test]
    fn overflow_is_a_capacity_error() {
        let error = checked_bytes("table 3", u64::MAX, 2).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Capacity);
    }
}
