//! Sorting of (slot, number) by slot.

/// Sorts by the upper 32 bits and keeps the order of equal ones: least significant digit first. `other` is scratch.
pub(super) fn sort_by_slot(keys: &mut Vec<u64>, other: &mut Vec<u64>) {
    const DIGIT_BITS: u32 = 11;
    const DIGITS: usize = 1 << DIGIT_BITS;
    let largest = keys.iter().map(|key| key >> 32).max().unwrap_or(0);
    other.resize(keys.len(), 0);
    let mut shift = 32;
    while shift < 64 && largest >> (shift - 32) > 0 {
        let digit = |key: u64| (key >> shift) as usize & (DIGITS - 1);
        let mut starts = [0u32; DIGITS];
        keys.iter().for_each(|&key| starts[digit(key)] += 1);
        let mut sum = 0;
        for start in &mut starts {
            sum += std::mem::replace(start, sum);
        }
        for &key in keys.iter() {
            let start = &mut starts[digit(key)];
            other[*start as usize] = key;
            *start += 1;
        }
        std::mem::swap(keys, other);
        shift += DIGIT_BITS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sorting_is_stable(slots in prop::collection::vec(prop_oneof![0u64..50, 0u64..5_000_000_000 % (1 << 32)], 0..300)) {
            let mut keys: Vec<u64> = slots.iter().enumerate().map(|(n, slot)| (slot << 32) | n as u64).collect();
            let mut expected = keys.clone();
            expected.sort_unstable();
            sort_by_slot(&mut keys, &mut Vec::new());
            prop_assert_eq!(keys, expected);
        }
    }
}
