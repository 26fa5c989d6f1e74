//! S3-FIFO (Yang, Zhang, Qiu, Yue, Rashmi; SOSP 2023): a small queue that most rows pass through once, a main
//! queue for those that were used while they were in it, and a ghost of rows that left the small queue.
//!
//! As the paper has it: a tenth of the slots for the small queue, a ghost of nine tenths, counts that stop at 3,
//! two uses to move on, one round more per use in the main queue.

use super::Policy;
use crate::cache::ghost::Ghost;
use crate::cache::list::NIL;

const SMALL_SHARE: usize = 10; // a tenth
const USES_MAX: u8 = 3;
const USES_TO_MOVE_ON: u8 = 2;

/// Two queues over one array of links, counts of uses, and the ghost.
#[derive(Debug)]
pub struct S3Fifo {
    newer: Vec<u32>,
    uses: Vec<u8>,
    small: Queue,
    main: Queue,
    small_rows_max: usize,
    ghost: Ghost,
}

#[derive(Debug)]
struct Queue {
    oldest: u32,
    newest: u32,
    len: usize,
}

impl Queue {
    const EMPTY: Self = Self { oldest: NIL, newest: NIL, len: 0 };

    #[inline]
    fn push(&mut self, newer: &mut [u32], slot: u32) {
        newer[slot as usize] = NIL;
        if self.len == 0 {
            self.oldest = slot;
        } else {
            newer[self.newest as usize] = slot;
        }
        self.newest = slot;
        self.len += 1;
    }

    #[inline]
    fn pop(&mut self, newer: &[u32]) -> u32 {
        let slot = self.oldest;
        self.oldest = newer[slot as usize];
        self.len -= 1;
        slot
    }

    fn iter<'a>(&self, newer: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
        let first = (self.len > 0).then_some(self.oldest);
        std::iter::successors(first, |&slot| Some(newer[slot as usize])).take(self.len)
    }
}

impl S3Fifo {
    /// For `capacity` slots.
    pub fn new(capacity: usize) -> Self {
        let small_rows_max = (capacity / SMALL_SHARE).max(1);
        Self {
            newer: vec![NIL; capacity],
            uses: vec![0; capacity],
            small: Queue::EMPTY,
            main: Queue::EMPTY,
            small_rows_max,
            ghost: Ghost::new(capacity - small_rows_max),
        }
    }
}

impl Policy for S3Fifo {
    #[inline]
    fn admit(&mut self, slot: u32, key: u64) {
        self.uses[slot as usize] = 0;
        let queue = if self.ghost.remove(key) { &mut self.main } else { &mut self.small };
        queue.push(&mut self.newer, slot);
    }

    #[inline]
    fn hit(&mut self, slot: u32, _key: u64) {
        let uses = &mut self.uses[slot as usize];
        *uses = (*uses + 1).min(USES_MAX);
    }

    #[inline]
    fn evict(&mut self, keys: &[u64]) -> u32 {
        loop {
            if self.small.len >= self.small_rows_max || self.main.len == 0 {
                let slot = self.small.pop(&self.newer);
                if self.uses[slot as usize] < USES_TO_MOVE_ON {
                    self.ghost.insert(keys[slot as usize]);
                    return slot;
                }
                self.uses[slot as usize] = 0;
                self.main.push(&mut self.newer, slot);
            } else {
                let slot = self.main.pop(&self.newer);
                if self.uses[slot as usize] == 0 {
                    return slot;
                }
                self.uses[slot as usize] -= 1;
                self.main.push(&mut self.newer, slot);
            }
        }
    }

    /// The coldest tenth has to prove itself in the small queue.
    fn adopt(&mut self, coldest_first: &[u32], _keys: &[u64]) {
        for (place, &slot) in coldest_first.iter().enumerate() {
            let queue = if place < self.small_rows_max { &mut self.small } else { &mut self.main };
            queue.push(&mut self.newer, slot);
        }
    }

    /// The small queue, then the main one; in each, first those that were not used.
    fn coldest_first(&self) -> Vec<u32> {
        let mut slots = Vec::with_capacity(self.small.len + self.main.len);
        for queue in [&self.small, &self.main] {
            slots.extend(queue.iter(&self.newer).filter(|&slot| self.uses[slot as usize] == 0));
            slots.extend(queue.iter(&self.newer).filter(|&slot| self.uses[slot as usize] > 0));
        }
        slots
    }

    fn metadata_bytes(&self) -> usize {
        self.newer.len() * size_of::<u32>() + self.uses.len() + self.ghost.metadata_bytes()
    }
}
