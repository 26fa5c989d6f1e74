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

/// Bits of a slot's state, above its uses.
const USES: u8 = 3;
/// In flight, or not in use.
const DETACHED: u8 = 4;
/// Linked in a queue. A detached slot stays linked until the queue comes to it.
const QUEUED: u8 = 8;
/// The queue it is in, or was in last, is the main one.
const IN_MAIN: u8 = 16;

/// Two queues over one array of links, a byte for each slot, and the ghost.
#[derive(Debug, Clone)]
pub struct S3Fifo {
    newer: Vec<u32>,
    state: Vec<u8>,
    queues: [Queue; 2],
    small_rows_max: usize,
    ghost: Ghost,
}

const SMALL: usize = 0;
const MAIN: usize = 1;

#[derive(Debug, Clone)]
struct Queue {
    oldest: u32,
    newest: u32,
    /// Attached slots.
    rows: usize,
}

impl Queue {
    const EMPTY: Self = Self { oldest: NIL, newest: NIL, rows: 0 };

    #[inline]
    fn push(&mut self, newer: &mut [u32], slot: u32) {
        newer[slot as usize] = NIL;
        if self.oldest == NIL {
            self.oldest = slot;
        } else {
            newer[self.newest as usize] = slot;
        }
        self.newest = slot;
        self.rows += 1;
    }

    /// Takes the oldest slot out, attached or not.
    #[inline]
    fn pop(&mut self, newer: &[u32]) -> u32 {
        let slot = self.oldest;
        self.oldest = newer[slot as usize];
        slot
    }

    fn iter<'a>(&self, newer: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
        let next = |slot: u32| (slot != NIL).then_some(slot);
        std::iter::successors(next(self.oldest), move |&slot| next(newer[slot as usize]))
    }
}

impl S3Fifo {
    /// For `rows` attached rows at a time.
    pub fn new(rows: usize) -> Self {
        Self::with_slots(rows, rows)
    }

    /// For `rows` attached rows at a time, in `slots` slots of which others are in flight.
    pub fn with_slots(slots: usize, rows: usize) -> Self {
        let small_rows_max = (rows / SMALL_SHARE).max(1);
        Self {
            newer: vec![NIL; slots],
            state: vec![DETACHED; slots],
            queues: [Queue::EMPTY, Queue::EMPTY],
            small_rows_max,
            ghost: Ghost::new(rows.saturating_sub(small_rows_max)),
        }
    }

    #[inline]
    fn push(&mut self, queue: usize, slot: u32, uses: u8) {
        self.state[slot as usize] = uses | QUEUED | if queue == MAIN { IN_MAIN } else { 0 };
        self.queues[queue].push(&mut self.newer, slot);
    }

    /// The queue that a linked slot is in.
    #[inline]
    fn queue_of(state: u8) -> usize {
        usize::from(state & IN_MAIN != 0)
    }
}

impl Policy for S3Fifo {
    #[inline]
    fn admit(&mut self, slot: u32, key: u64) {
        let queue = usize::from(self.ghost.remove(key));
        let state = self.state[slot as usize];
        if state & QUEUED != 0 {
            // The slot of a row that was forgotten is still linked; the new row takes over its place.
            self.state[slot as usize] = state & (QUEUED | IN_MAIN);
            self.queues[Self::queue_of(state)].rows += 1;
            return;
        }
        self.push(queue, slot, 0);
    }

    #[inline]
    fn hit(&mut self, slot: u32, _key: u64) {
        let state = &mut self.state[slot as usize];
        if *state & USES < USES_MAX {
            *state += 1;
        }
    }

    #[inline]
    fn evict(&mut self, keys: &[u64]) -> u32 {
        loop {
            let small = &self.queues[SMALL];
            let from = if small.rows >= self.small_rows_max || self.queues[MAIN].rows == 0 { SMALL } else { MAIN };
            let slot = self.queues[from].pop(&self.newer);
            let state = self.state[slot as usize];
            if state & DETACHED != 0 {
                self.state[slot as usize] = state & !QUEUED;
                continue;
            }
            self.queues[from].rows -= 1;
            let uses = state & USES;
            let stays = if from == SMALL { uses >= USES_TO_MOVE_ON } else { uses > 0 };
            if stays {
                self.push(MAIN, slot, if from == SMALL { 0 } else { uses - 1 });
                continue;
            }
            self.state[slot as usize] = DETACHED;
            if from == SMALL {
                self.ghost.insert(keys[slot as usize]);
            }
            return slot;
        }
    }

    #[inline]
    fn detach(&mut self, slot: u32) {
        let state = self.state[slot as usize];
        if state & DETACHED == 0 {
            self.state[slot as usize] = state | DETACHED;
            self.queues[Self::queue_of(state)].rows -= 1;
        }
    }

    #[inline]
    fn attach(&mut self, slot: u32) {
        let state = self.state[slot as usize] & !DETACHED;
        if state & QUEUED != 0 {
            self.state[slot as usize] = state;
            self.queues[Self::queue_of(state)].rows += 1;
        } else if state & IN_MAIN != 0 || state & USES < USES_TO_MOVE_ON {
            self.push(Self::queue_of(state), slot, state & USES);
        } else {
            self.push(MAIN, slot, 0);
        }
    }

    #[inline]
    fn is_detached(&self, slot: u32) -> bool {
        self.state[slot as usize] & DETACHED != 0
    }

    fn forget(&mut self, slot: u32) {
        self.detach(slot);
        self.state[slot as usize] &= !USES;
    }

    /// The coldest tenth has to prove itself in the small queue.
    fn adopt(&mut self, coldest_first: &[u32], _keys: &[u64]) {
        for (place, &slot) in coldest_first.iter().enumerate() {
            self.push(usize::from(place >= self.small_rows_max), slot, 0);
        }
    }

    /// The small queue, then the main one; in each, first those that were not used.
    fn coldest_first(&self) -> Vec<u32> {
        let mut slots = Vec::with_capacity(self.queues.iter().map(|queue| queue.rows).sum());
        for queue in &self.queues {
            let attached = |slot: &u32| self.state[*slot as usize] & DETACHED == 0;
            let used = |slot: &u32| self.state[*slot as usize] & USES > 0;
            slots.extend(queue.iter(&self.newer).filter(attached).filter(|slot| !used(slot)));
            slots.extend(queue.iter(&self.newer).filter(attached).filter(used));
        }
        slots
    }

    fn metadata_bytes(&self) -> usize {
        self.newer.len() * size_of::<u32>() + self.state.len() + self.ghost.metadata_bytes()
    }
}
