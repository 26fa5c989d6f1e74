//! Sorting of (slot, source) by slot: least significant digit first, which keeps the order of equal slots.

/// The most bits of a digit: its counters fit in a first-level cache.
const DIGIT_BITS_MAX: u32 = 11;

/// Fewer keys are compared.
const COMPARED_MAX: usize = 256;

/// Something to sort: gives pairs of slot and source, the same in the same order each time.
pub(super) trait Pairs {
    /// How many pairs there are.
    fn count(&self) -> usize;
    /// The largest slot.
    fn largest(&self) -> u32;
    /// Calls `visit` for each pair.
    fn each(&self, visit: impl FnMut(u32, u32));
}

/// The keys `slot << 32 | source`, sorted by slot; equal slots keep their order. Both vectors are scratch, `keys` has the
/// result.
pub(super) fn sort_by_slot(pairs: &impl Pairs, keys: &mut Vec<u64>, other: &mut Vec<u64>) {
    if pairs.count() < COMPARED_MAX {
        // Counters would take longer. Sources ascend, so the order of equal slots is kept.
        keys.clear();
        pairs.each(|slot, source| keys.push(u64::from(slot) << 32 | u64::from(source)));
        keys.sort_unstable();
        return;
    }
    let bits = (u32::BITS - pairs.largest().leading_zeros()).max(1);
    let digits = bits.div_ceil(DIGIT_BITS_MAX);
    let digit_bits = bits.div_ceil(digits);
    let mask = (1usize << digit_bits) - 1;
    // All digits are counted in one pass.
    let mut starts = vec![[0u32; 1 << DIGIT_BITS_MAX]; digits as usize];
    let starts = &mut starts[..];
    match &mut *starts {
        [first] => pairs.each(|slot, _| first[slot as usize & mask] += 1),
        [first, second] => pairs.each(|slot, _| {
            first[slot as usize & mask] += 1;
            second[(slot >> digit_bits) as usize & mask] += 1;
        }),
        starts => pairs.each(|slot, _| {
            for (digit, counts) in (0..).zip(starts.iter_mut()) {
                counts[(slot >> (digit * digit_bits)) as usize & mask] += 1;
            }
        }),
    }
    for starts in starts.iter_mut() {
        let mut sum = 0;
        for start in &mut starts[..=mask] {
            sum += std::mem::replace(start, sum);
        }
    }
    keys.resize(pairs.count(), 0);
    other.resize(pairs.count(), 0);
    // The first pass makes the keys on its way.
    let mut starts = starts.iter_mut();
    if let Some(starts) = starts.next() {
        pairs.each(|slot, source| {
            let start = &mut starts[slot as usize & mask];
            keys[*start as usize] = u64::from(slot) << 32 | u64::from(source);
            *start += 1;
        });
    }
    for (digit, starts) in (1..).zip(starts) {
        let shift = 32 + digit * digit_bits;
        for &key in keys.iter() {
            let start = &mut starts[(key >> shift) as usize & mask];
            other[*start as usize] = key;
            *start += 1;
        }
        std::mem::swap(keys, other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct List(Vec<u32>);

    impl Pairs for List {
        fn count(&self) -> usize {
            self.0.len()
        }

        fn largest(&self) -> u32 {
            self.0.iter().copied().max().unwrap_or(0)
        }

        fn each(&self, mut visit: impl FnMut(u32, u32)) {
            self.0.iter().zip(0..).for_each(|(&slot, source)| visit(slot, source));
        }
    }

    proptest! {
        #[test]
        fn sorting_is_stable(
            slots in prop::collection::vec(prop_oneof![0u32..50, any::<u32>(), 0u32..5000], 0..600),
            shift in 0u32..32,
        ) {
            let list = List(slots.iter().map(|slot| slot >> shift).collect());
            let mut expected: Vec<u64> =
                list.0.iter().zip(0..).map(|(&slot, source)| u64::from(slot) << 32 | source).collect();
            expected.sort_unstable();
            let (mut keys, mut other) = (vec![7; 3], Vec::new());
            sort_by_slot(&list, &mut keys, &mut other);
            prop_assert_eq!(keys, expected);
        }
    }
}
