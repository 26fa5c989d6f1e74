//! Events in the order of time: the nearest in a short sorted list, the others in a binary heap.
//!
//! What a device finishes next was mostly begun first, so an insertion moves few entries; the heap
//! keeps a long queue from making that dear.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The sorted list holds at most so many events.
const NEAR_MAX: usize = 64;
/// Its buffer: the list creeps upwards and is moved down when it reaches the end.
const BUFFER: usize = 4 * NEAR_MAX;
/// A slot number takes so many bits of an order, what is left counts events.
const SLOT_BITS: u32 = 24;

/// Compares by time, then by insertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Event {
    at_ps: u64,
    order: u64,
}

/// Events, each of a slot, ordered by time and then by insertion.
pub(super) struct EventList {
    near: Box<[Event; BUFFER]>,
    begin: usize,
    end: usize,
    /// No event here is before any in `near`, and there is none while `near` is empty.
    far: BinaryHeap<Reverse<Event>>,
    sequence: u64,
}

impl EventList {
    /// Slot numbers lie below this.
    pub(super) const SLOTS_MAX: usize = 1 << SLOT_BITS;

    pub(super) fn new() -> Self {
        let near = Box::new([Event { at_ps: 0, order: 0 }; BUFFER]);
        Self { near, begin: 0, end: 0, far: BinaryHeap::new(), sequence: 0 }
    }

    /// Adds an event.
    #[inline]
    pub(super) fn insert(&mut self, at_ps: u64, slot: u32) {
        self.sequence += 1;
        let event = Event { at_ps, order: self.sequence << SLOT_BITS | u64::from(slot) };
        let count = self.end - self.begin;
        if count >= NEAR_MAX || !self.far.is_empty() {
            self.insert_beside_far(event);
            return;
        }
        let mut place = self.end;
        while place > self.begin && self.near[place - 1].at_ps > at_ps {
            self.near[place] = self.near[place - 1];
            place -= 1;
        }
        self.near[place] = event;
        self.end += 1;
        self.make_room();
    }

    /// The list is full, or what is behind it is in the heap.
    fn insert_beside_far(&mut self, event: Event) {
        let place = self.begin + self.near[self.begin..self.end].partition_point(|other| *other <= event);
        if place == self.end {
            self.far.push(Reverse(event));
            return;
        }
        if self.end - self.begin >= NEAR_MAX {
            self.end -= 1;
            self.far.push(Reverse(self.near[self.end]));
        }
        self.near.copy_within(place..self.end, place + 1);
        self.near[place] = event;
        self.end += 1;
        self.make_room();
    }

    #[inline]
    fn make_room(&mut self) {
        if self.end == BUFFER {
            self.near.copy_within(self.begin.., 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
    }

    /// Time of the earliest event; `u64::MAX` if there is none.
    #[inline]
    pub(super) fn next_ps(&self) -> u64 {
        if self.begin == self.end { u64::MAX } else { self.near[self.begin].at_ps }
    }

    /// Takes the earliest event; gives its slot.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<u32> {
        if self.begin == self.end {
            return None;
        }
        let event = self.near[self.begin];
        self.begin += 1;
        if self.begin == self.end && !self.far.is_empty() {
            self.refill();
        }
        Some((event.order & ((1 << SLOT_BITS) - 1)) as u32)
    }

    /// The list has run out: half of it comes from the heap.
    fn refill(&mut self) {
        (self.begin, self.end) = (0, 0);
        while self.end < NEAR_MAX / 2
            && let Some(Reverse(event)) = self.far.pop()
        {
            self.near[self.end] = event;
            self.end += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    #[test]
    fn events_come_in_the_order_of_a_binary_heap() {
        for slots in [20u32, 100, 1000] {
            let mut list = EventList::new();
            let mut heap = BinaryHeap::new();
            let mut free: Vec<u32> = (0..slots).rev().collect();
            for step in 0..50_000u64 {
                let bits = rng::draw(3, step);
                if bits.is_multiple_of(2) && !free.is_empty() {
                    let slot = free.pop().unwrap();
                    // Few times, so that many are equal and the order of insertion decides.
                    let at_ps = step / 100 + (bits >> 8) % 50;
                    list.insert(at_ps, slot);
                    heap.push(Reverse((at_ps, step, slot)));
                } else {
                    let expected = heap.pop().map(|Reverse((at_ps, _, slot))| (at_ps, slot));
                    let at_ps = list.next_ps();
                    let found = list.pop().map(|slot| (at_ps, slot));
                    assert_eq!(found, expected);
                    free.extend(found.map(|(_, slot)| slot));
                }
            }
        }
    }
}
