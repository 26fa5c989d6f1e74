//! Counter-based random numbers: a draw depends on its key and on nothing else, so neither
//! threads nor the order of calls can change it.

/// The finaliser of `SplitMix64` (Steele, Lea, Flood, OOPSLA 2014): a bijection with good avalanche.
#[inline]
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The key of one stream, e.g. of one device or of one table.
#[inline]
pub fn stream(seed: u64, index: u64) -> u64 {
    mix(mix(seed.wrapping_add(GOLDEN)).wrapping_add(index.wrapping_mul(GOLDEN)))
}

/// 64 random bits: number `counter` of stream `key`.
#[inline]
pub fn draw(key: u64, counter: u64) -> u64 {
    mix(key.wrapping_add(counter.wrapping_add(1).wrapping_mul(GOLDEN)))
}

/// A float in `[-1, 1)` with 24 random bits, exact in f32.
#[inline]
pub fn unit_symmetric_f32(bits: u64) -> f32 {
    // 2^-23 is exact and so is the subtraction: every host gives the same bits.
    ((bits >> 40) as u32 as f32) * (1.0 / 8_388_608.0) - 1.0
}

/// [`mix`] as the hasher of a map whose keys are numbers, one or several together.
#[derive(Debug, Default)]
pub struct MixHasher(u64);

impl std::hash::Hasher for MixHasher {
    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("keys are numbers");
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = mix(self.0 ^ key);
    }

    fn write_u32(&mut self, key: u32) {
        self.write_u64(u64::from(key));
    }

    fn write_usize(&mut self, key: usize) {
        self.write_u64(key as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_draw_of_splitmix64_matches_the_published_vector() {
        // SplitMix64 seeded with 0 gives this first output (reference C code by S. Vigna).
        assert_eq!(draw(0, 0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(draw(0, 1), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn symmetric_floats_stay_in_range_and_centre_on_zero() {
        let count = 100_000;
        let mut sum = 0.0f64;
        for counter in 0..count {
            let value = unit_symmetric_f32(draw(7, counter));
            assert!((-1.0..1.0).contains(&value));
            sum += f64::from(value);
        }
        // The mean of n uniform draws on [-1, 1) has standard error 0.577 / sqrt(n).
        assert!((sum / count as f64).abs() < 4.0 * 0.577 / (count as f64).sqrt());
    }
}
