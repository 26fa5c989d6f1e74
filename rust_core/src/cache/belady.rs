//! Belady's MIN: on a miss, the row whose next use is farthest away leaves. It needs the future, so it is a
//! ceiling for replay and no policy. A row that comes in always stays (no bypass), as in every other policy.

/// A use that never comes.
pub const NEVER: u32 = u32::MAX;

/// Replays a stream. `next_use[t]` is when the key of access `t` is asked for again, or [`NEVER`]; `visit` is
/// told of each access whether it hits. Capacity is at least 1.
pub fn replay_min(next_use: &[u32], capacity: usize, mut visit: impl FnMut(usize, bool)) {
    // A cached row is known by the time of its next use alone: it is a hit when that time comes. Rows that
    // are never used again need no name: there is one to evict as long as their number is not zero.
    let mut uses = TimeSet::new(next_use.len());
    let mut never_again = 0usize;
    let mut cached = 0usize;
    for (time, &next) in next_use.iter().enumerate() {
        let hit = uses.remove(time as u32);
        visit(time, hit);
        if !hit {
            if cached < capacity {
                cached += 1;
            } else if never_again > 0 {
                never_again -= 1;
            } else if let Some(farthest) = uses.max() {
                uses.remove(farthest);
            }
        }
        if next == NEVER {
            never_again += 1;
        } else {
            uses.insert(next);
        }
    }
}

/// A set of numbers with its greatest one: a tree of 64-bit words, each bit saying whether the word below has any.
#[derive(Debug)]
struct TimeSet {
    levels: Vec<Vec<u64>>,
}

impl TimeSet {
    fn new(len: usize) -> Self {
        let mut levels = vec![vec![0u64; len.div_ceil(64).max(1)]];
        while levels[levels.len() - 1].len() > 1 {
            let words = levels[levels.len() - 1].len();
            levels.push(vec![0; words.div_ceil(64)]);
        }
        Self { levels }
    }

    #[inline]
    fn insert(&mut self, number: u32) {
        let mut position = number as usize;
        for level in &mut self.levels {
            let word = &mut level[position / 64];
            let was_empty = *word == 0;
            *word |= 1 << (position % 64);
            if !was_empty {
                return;
            }
            position /= 64;
        }
    }

    #[inline]
    fn remove(&mut self, number: u32) -> bool {
        let mut position = number as usize;
        if self.levels[0][position / 64] >> (position % 64) & 1 == 0 {
            return false;
        }
        for level in &mut self.levels {
            let word = &mut level[position / 64];
            *word &= !(1 << (position % 64));
            if *word != 0 {
                break;
            }
            position /= 64;
        }
        true
    }

    #[inline]
    fn max(&self) -> Option<u32> {
        let mut position = 0usize;
        for level in self.levels.iter().rev() {
            let word = level[position];
            if word == 0 {
                return None;
            }
            position = position * 64 + 63 - word.leading_zeros() as usize;
        }
        Some(position as u32)
    }
}
