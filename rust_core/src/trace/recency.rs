//! A stack in order of use, with its depths: for stack distances, and for traces made of them.

/// Ids that were never used.
const NEVER: u32 = u32::MAX;

/// Ids that a stack can hold: times are 32-bit numbers.
pub(super) const IDS_MAX: usize = 1 << 30;

/// Ids `0..count` in order of use. `touch` and `at_depth` take time in the logarithm of the number of ids.
///
/// Each used id has a mark at the time of its last use; how deep it lies is the number of marks after its own.
/// Marks are bits, counted by a Fenwick tree over words of 64. Time runs over twice as many places as there are
/// ids; when they are used up, the marks move together, so a stream may be as long as it likes.
#[derive(Debug)]
pub(super) struct RecencyStack {
    time_of: Vec<u32>,
    id_at: Vec<u32>,
    marks: Vec<u64>,
    /// Fenwick tree: entry `i` (from 1) sums the marks of the `i & -i` words that end with word `i - 1`.
    sums: Vec<u32>,
    now: u32,
    used: u32,
}

impl RecencyStack {
    /// Nothing was used yet. At most 2^30 ids.
    pub(super) fn new(ids: usize) -> Self {
        assert!(ids <= IDS_MAX, "callers check the number of ids");
        let words = (2 * ids).div_ceil(64).max(1);
        Self {
            time_of: vec![NEVER; ids],
            id_at: vec![0; words * 64],
            marks: vec![0; words],
            sums: vec![0; words + 1],
            now: 0,
            used: 0,
        }
    }

    /// Ids that were used so far.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// Uses an id. Gives how many other ids were used since its last use: the stack distance. An lru cache of
    /// more rows than that holds it. `None` if it was never used.
    #[inline]
    pub(super) fn touch(&mut self, id: u32) -> Option<u32> {
        if self.now as usize == self.id_at.len() {
            self.move_together();
        }
        let time = self.time_of[id as usize];
        let depth = if time == NEVER {
            self.used += 1;
            None
        } else {
            let depth = self.used - self.marks_until(time);
            self.marks[(time / 64) as usize] &= !(1 << (time % 64));
            self.add(time / 64, u32::MAX);
            Some(depth)
        };
        self.time_of[id as usize] = self.now;
        self.id_at[self.now as usize] = id;
        self.marks[(self.now / 64) as usize] |= 1 << (self.now % 64);
        self.add(self.now / 64, 1);
        self.now += 1;
        depth
    }

    /// The id that lies so deep: 0 is the last used one. `depth < used()`.
    pub(super) fn at_depth(&self, depth: u32) -> u32 {
        let mut left = self.used - depth; // the mark that is wanted, counted from 1 from the oldest on
        let mut word = 0usize;
        let mut step = self.marks.len().next_power_of_two();
        while step > 0 {
            if word + step < self.sums.len() && self.sums[word + step] < left {
                word += step;
                left -= self.sums[word];
            }
            step /= 2;
        }
        let mut marks = self.marks[word];
        for _ in 1..left {
            marks &= marks - 1;
        }
        self.id_at[word * 64 + marks.trailing_zeros() as usize]
    }

    /// Marks at times up to this one.
    fn marks_until(&self, time: u32) -> u32 {
        let word = (time / 64) as usize;
        let mut count = (self.marks[word] << (63 - time % 64)).count_ones();
        let mut entry = word;
        while entry > 0 {
            count += self.sums[entry];
            entry &= entry - 1;
        }
        count
    }

    fn add(&mut self, word: u32, change: u32) {
        let mut entry = word as usize + 1;
        while entry < self.sums.len() {
            self.sums[entry] = self.sums[entry].wrapping_add(change);
            entry += entry & entry.wrapping_neg();
        }
    }

    fn move_together(&mut self) {
        let mut now = 0;
        for time in 0..self.id_at.len() as u32 {
            if self.marks[(time / 64) as usize] >> (time % 64) & 1 == 1 {
                let id = self.id_at[time as usize];
                self.id_at[now as usize] = id;
                self.time_of[id as usize] = now;
                now += 1;
            }
        }
        self.now = now;
        for (word, marks) in self.marks.iter_mut().enumerate() {
            let left = now.saturating_sub(word as u32 * 64).min(64);
            *marks = if left == 64 { u64::MAX } else { (1 << left) - 1 };
        }
        self.sums[0] = 0;
        for entry in 1..self.sums.len() {
            self.sums[entry] = self.marks[entry - 1].count_ones();
        }
        for entry in 1..self.sums.len() {
            let above = entry + (entry & entry.wrapping_neg());
            if above < self.sums.len() {
                self.sums[above] += self.sums[entry];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against a vector, the last used id in front.
        #[test]
        fn depths_are_those_of_a_list(
            ids in 1u32..100,
            uses in prop::collection::vec((any::<bool>(), any::<u32>()), 1..800),
        ) {
            let mut stack = RecencyStack::new(ids as usize);
            let mut list: Vec<u32> = Vec::new();
            for (by_depth, number) in uses {
                let id = if by_depth && !list.is_empty() {
                    let depth = number % list.len() as u32;
                    prop_assert_eq!(stack.at_depth(depth), list[depth as usize]);
                    list[depth as usize]
                } else {
                    number % ids
                };
                let depth = list.iter().position(|&other| other == id);
                prop_assert_eq!(stack.touch(id), depth.map(|depth| depth as u32));
                list.retain(|&other| other != id);
                list.insert(0, id);
                prop_assert_eq!(stack.used() as usize, list.len());
            }
        }
    }
}
