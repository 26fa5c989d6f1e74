//! A plain bit set. Its memory is zeroed lazily by the host, so a set over a huge table is cheap to open.

/// Bits `0..len`, all clear at first.
#[derive(Debug, Clone)]
pub struct BitSet {
    words: Vec<u64>,
}

impl BitSet {
    /// `len` clear bits.
    pub fn new(len: u64) -> Self {
        Self { words: vec![0; len.div_ceil(64) as usize] }
    }

    /// Whether the bit is set.
    #[inline]
    pub fn contains(&self, bit: u64) -> bool {
        self.words[(bit / 64) as usize] >> (bit % 64) & 1 == 1
    }

    /// Sets the bit; gives whether it was clear.
    #[inline]
    pub fn insert(&mut self, bit: u64) -> bool {
        let word = &mut self.words[(bit / 64) as usize];
        let mask = 1 << (bit % 64);
        let was_clear = *word & mask == 0;
        *word |= mask;
        was_clear
    }

    /// Clears the bit; gives whether it was set.
    #[inline]
    pub fn remove(&mut self, bit: u64) -> bool {
        let word = &mut self.words[(bit / 64) as usize];
        let mask = 1 << (bit % 64);
        let was_set = *word & mask != 0;
        *word &= !mask;
        was_set
    }

    /// Set bits in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().enumerate().flat_map(|(position, &word)| {
            std::iter::successors((word != 0).then_some(word), |left| {
                let rest = left & (left - 1);
                (rest != 0).then_some(rest)
            })
            .map(move |left| position as u64 * 64 + u64::from(left.trailing_zeros()))
        })
    }

    /// How many bits are set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Bytes of memory.
    pub fn metadata_bytes(&self) -> usize {
        self.words.len() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_bits_are_listed_in_order() {
        let mut bits = BitSet::new(200);
        for bit in [199, 0, 63, 64, 100] {
            assert!(bits.insert(bit));
            assert!(!bits.insert(bit));
        }
        assert!(bits.remove(100));
        assert_eq!(bits.iter().collect::<Vec<_>>(), [0, 63, 64, 199]);
        assert!(bits.contains(63) && !bits.contains(100));
    }
}
