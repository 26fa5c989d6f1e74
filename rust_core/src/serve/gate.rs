//! The limits on outstanding reads of an engine that moves bytes.

use std::sync::{Mutex, PoisonError};

use super::limits::ReadLimits;
use super::residency::Read;

#[derive(Debug)]
struct Free {
    total: i64,
    tables: Vec<i64>,
}

/// Places for reads. A query that has nothing under way and finds no place sends one read all the same: nobody waits for another
/// query, which may be one of the same thread that comes later. So a limit is exceeded by a read a thread at most.
#[derive(Debug)]
pub(super) struct Gate(Mutex<Free>);

impl Gate {
    pub(super) fn new(limits: ReadLimits, tables: usize) -> Self {
        let tables = vec![i64::from(limits.per_table); tables];
        Self(Mutex::new(Free { total: i64::from(limits.total), tables }))
    }

    /// Those of the waiting reads that may go now; the first of them in any case if `at_least_one`.
    pub(super) fn take(&self, waiting: &mut Vec<u32>, reads: &[Read], at_least_one: bool) -> Vec<u32> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Vec::new();
        let mut is_needed = at_least_one;
        waiting.retain(|&number| {
            let table = reads[number as usize].table as usize;
            let may_go = is_needed || (free.total > 0 && free.tables[table] > 0);
            if may_go {
                free.total -= 1;
                free.tables[table] -= 1;
                taken.push(number);
                is_needed = false;
            }
            !may_go
        });
        taken
    }

    /// Reads are done.
    pub(super) fn give_back(&self, done: &[u32], reads: &[Read]) {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for &number in done {
            free.total += 1;
            free.tables[reads[number as usize].table as usize] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::Span;
    use super::*;

    #[test]
    fn limits_hold_and_nobody_starves() {
        let gate = Gate::new(ReadLimits { per_table: 2, total: 3 }, 2);
        let read = |table| Read { table, span: Span { offset: 0, nbytes: 1 } };
        let reads = [read(0), read(0), read(0), read(1), read(1)];
        let mut waiting = vec![0, 1, 2, 3, 4];
        assert_eq!(gate.take(&mut waiting, &reads, false), [0, 1, 3], "two of a table, three in all");
        assert_eq!(gate.take(&mut waiting, &reads, false), [0; 0]);
        assert_eq!(gate.take(&mut waiting, &reads, true), [2], "one goes in any case");
        gate.give_back(&[0, 1, 3], &reads);
        assert_eq!(gate.take(&mut waiting, &reads, false), [4]);
        gate.give_back(&[2, 4], &reads);
        let mut again = vec![0, 1, 2, 3, 4];
        assert_eq!(gate.take(&mut again, &reads, false), [0, 1, 3], "all places were given back");
    }
}
