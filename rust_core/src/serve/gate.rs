//! The limits on outstanding reads of an engine that moves bytes, and which device a read is asked of.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::limits::{ReadLimits, idlest};
use super::residency::Read;

#[derive(Debug)]
struct Places {
    free: i64,
    of_tables: Vec<i64>,
    /// Reads that each device has.
    outstanding: Vec<u32>,
}

impl Places {
    fn take(&mut self, table: u32, device: usize) {
        self.free -= 1;
        self.of_tables[table as usize] -= 1;
        self.outstanding[device] += 1;
    }

    fn has_room(&self, table: u32) -> bool {
        self.free > 0 && self.of_tables[table as usize] > 0
    }
}

/// Places for reads. A query that has nothing under way and finds no place sends one read all the same: nobody waits for another
/// query, which may be one of the same thread that comes later. So a limit is exceeded by a read a thread at most.
#[derive(Debug)]
pub(super) struct Gate(Mutex<Places>);

impl Gate {
    pub(super) fn new(limits: ReadLimits, tables: usize, devices: usize) -> Self {
        let of_tables = vec![i64::from(limits.per_table); tables];
        Self(Mutex::new(Places { free: i64::from(limits.total), of_tables, outstanding: vec![0; devices] }))
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of the waiting reads that may go now, each with the device to ask; the first of them in any case if `at_least_one`.
    pub(super) fn take(&self, waiting: &mut Vec<u32>, reads: &[Read], at_least_one: bool) -> Vec<(u32, usize)> {
        let mut places = self.lock();
        let mut taken = Vec::new();
        let mut is_needed = at_least_one;
        waiting.retain(|&number| {
            let Read { table, span } = reads[number as usize];
            let may_go = is_needed || places.has_room(table);
            if may_go {
                let device = idlest(&places.outstanding, span.offset);
                places.take(table, device);
                taken.push((number, device));
                is_needed = false;
            }
            !may_go
        });
        taken
    }

    /// Whether there is room for a second copy of a read right now; it takes the room.
    pub(super) fn take_room(&self, table: u32, device: usize) -> bool {
        let mut places = self.lock();
        let has_room = places.has_room(table);
        if has_room {
            places.take(table, device);
        }
        has_room
    }

    /// Takes a place whether there is room or not.
    pub(super) fn take_anyway(&self, table: u32, device: usize) {
        self.lock().take(table, device);
    }

    /// A device is done with a read.
    pub(super) fn give_back(&self, table: u32, device: usize) {
        let mut places = self.lock();
        places.free += 1;
        places.of_tables[table as usize] += 1;
        places.outstanding[device] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::Span;
    use super::*;

    #[test]
    fn limits_hold_and_nobody_starves() {
        let gate = Gate::new(ReadLimits { per_table: 2, total: 3 }, 2, 1);
        let read = |table| Read { table, span: Span { offset: 0, nbytes: 1 } };
        let reads = [read(0), read(0), read(0), read(1), read(1)];
        let mut waiting = vec![0, 1, 2, 3, 4];
        let first = [(0, 0), (1, 0), (3, 0)];
        assert_eq!(gate.take(&mut waiting, &reads, false), first, "two of a table, three in all");
        assert_eq!(gate.take(&mut waiting, &reads, false), []);
        assert!(!gate.take_room(1, 0), "a second copy needs a place, too");
        assert_eq!(gate.take(&mut waiting, &reads, true), [(2, 0)], "one goes in any case");
        [0, 0, 1].into_iter().for_each(|table| gate.give_back(table, 0));
        assert_eq!(gate.take(&mut waiting, &reads, false), [(4, 0)]);
        assert!(gate.take_room(1, 0));
        [0, 1, 1].into_iter().for_each(|table| gate.give_back(table, 0));
        let mut again = vec![0, 1, 2, 3, 4];
        assert_eq!(gate.take(&mut again, &reads, false), first, "all places were given back");
    }

    #[test]
    fn of_two_devices_the_one_with_less_to_do_is_asked() {
        let gate = Gate::new(ReadLimits { per_table: 8, total: 8 }, 1, 2);
        let reads: Vec<Read> =
            (0..6).map(|row| Read { table: 0, span: Span { offset: row * 512, nbytes: 512 } }).collect();
        let mut waiting = (0..6).collect();
        let taken = gate.take(&mut waiting, &reads, false);
        let of = |device| taken.iter().filter(|of| of.1 == device).count();
        assert_eq!((of(0), of(1)), (3, 3));
        [0; 3].into_iter().for_each(|device| gate.give_back(0, device));
        let mut more = vec![0, 1, 2];
        assert!(gate.take(&mut more, &reads, false).iter().all(|&(_, device)| device == 0));
    }
}
