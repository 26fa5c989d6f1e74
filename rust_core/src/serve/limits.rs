//! Limits on the reads that are outstanding, of each table and in all: under a burst a queue on the host is fair among tables,
//! and one in a device is not.

use std::collections::VecDeque;

use serde::Deserialize;

use crate::rng;

/// Reads outstanding at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadLimits {
    /// Of one table.
    pub per_table: u32,
    /// Of all tables together.
    pub total: u32,
}

/// Of one or two devices the one that has less to do; if both have as much, one that depends on the place.
pub(super) fn idlest(outstanding: &[u32], offset: u64) -> usize {
    match *outstanding {
        [first, second] if first == second => rng::mix(offset) as usize % 2,
        [first, second] => usize::from(second < first),
        _ => 0,
    }
}

/// Reads that wait for their turn, table by table.
#[derive(Debug)]
pub(super) struct Limiter {
    free: u32,
    tables: Vec<OfTable>,
    /// Tables that have a read waiting and room for it, in turn.
    ready: VecDeque<u32>,
}

#[derive(Debug)]
struct OfTable {
    free: u32,
    waiting: VecDeque<u32>,
    is_ready: bool,
}

impl Limiter {
    pub(super) fn new(limits: ReadLimits, tables: usize) -> Self {
        let of_table = || OfTable { free: limits.per_table, waiting: VecDeque::new(), is_ready: false };
        Self { free: limits.total, tables: (0..tables).map(|_| of_table()).collect(), ready: VecDeque::new() }
    }

    fn note(&mut self, table: u32) {
        let of_table = &mut self.tables[table as usize];
        if !of_table.is_ready && of_table.free > 0 && !of_table.waiting.is_empty() {
            of_table.is_ready = true;
            self.ready.push_back(table);
        }
    }

    /// A read wants to go.
    pub(super) fn add(&mut self, table: u32, read: u32) {
        self.tables[table as usize].waiting.push_back(read);
        self.note(table);
    }

    /// A read that may go now.
    pub(super) fn next(&mut self) -> Option<u32> {
        if self.free == 0 {
            return None;
        }
        let table = self.ready.pop_front()?;
        let of_table = &mut self.tables[table as usize];
        of_table.is_ready = false;
        of_table.free -= 1;
        self.free -= 1;
        let read = of_table.waiting.pop_front();
        self.note(table);
        read
    }

    /// Whether there is room for a second copy of a read right now; it takes the room.
    pub(super) fn take_room(&mut self, table: u32) -> bool {
        let of_table = &mut self.tables[table as usize];
        let has_room = self.free > 0 && of_table.free > 0;
        if has_room {
            of_table.free -= 1;
            self.free -= 1;
        }
        has_room
    }

    /// A read is done.
    pub(super) fn done(&mut self, table: u32) {
        self.free += 1;
        self.tables[table as usize].free += 1;
        self.note(table);
    }
}
