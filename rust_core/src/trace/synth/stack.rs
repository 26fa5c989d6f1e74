//! Accesses with the stack distances of another trace.
//!
//! The distances of the other trace are computed once. An access then takes one of them: any of those that the other
//! trace had in the same 64th of its length, so that what changes over time there changes here too. A distance is
//! the row that lies so deep in order of use, "the first access" is a new row; both take time in the logarithm of
//! the number of rows.

use std::path::Path;

use super::zipf::{Scatter, below};
use crate::error::{Error, ErrorKind, Result};
use crate::rng;
use crate::trace::recency::RecencyStack;
use crate::trace::stream::{AccessStream, Selection};

/// Parts of the other trace whose distances are kept apart.
const PARTS: u64 = 64;
/// In place of a distance: the first access to a row.
const FIRST: u32 = u32::MAX;

/// One table that repeats the distances of another.
#[derive(Debug)]
pub(super) struct StackTable {
    /// Of the other trace, in order.
    distances: Vec<u32>,
    stack: RecencyStack,
    rows_max: u32,
    accesses: u64,
    done: u64,
    scatter: Scatter,
    key: u64,
}

impl StackTable {
    /// Profiles table number `table` of the trace at `like`; `accesses` of it will be generated.
    pub(super) fn new(like: &Path, table: usize, rows: u64, accesses: u64, key: u64) -> Result<Self> {
        let stream =
            AccessStream::load(like, &Selection { tables: vec![table], block_bytes: 1, ..Selection::default() })?;
        if stream.is_empty() && accesses > 0 {
            return Err(Error::new(ErrorKind::Input, format!("table {table} of the trace to be like has no accesses"))
                .with_context("path", like.display()));
        }
        let mut profile = RecencyStack::new(stream.distinct());
        let distances = stream.rows().iter().map(|&row| profile.touch(row).unwrap_or(FIRST)).collect();
        let rows_max = rows.min(accesses).clamp(1, 1 << 30);
        Ok(Self {
            distances,
            stack: RecencyStack::new(rows_max as usize),
            rows_max: rows_max as u32,
            accesses: accesses.max(1),
            done: 0,
            scatter: Scatter::new(rows, rng::stream(key, super::PLACES)),
            key: rng::stream(key, super::IDS),
        })
    }

    /// The next access.
    pub(super) fn next(&mut self) -> u64 {
        let profiled = self.distances.len() as u64;
        let part =
            (u128::from(self.done) * u128::from(PARTS) / u128::from(self.accesses)).min(u128::from(PARTS) - 1) as u64;
        let (start, end) = (profiled * part / PARTS, profiled * (part + 1) / PARTS);
        // Where the other trace has fewer accesses than parts, all of it is one part.
        let (start, end) = if start == end { (0, profiled) } else { (start, end) };
        let distance = self.distances[(start + below(rng::draw(self.key, self.done), end - start)) as usize];
        self.done += 1;
        let used = self.stack.used();
        let number = if used == 0 || distance == FIRST && used < self.rows_max {
            used
        } else {
            self.stack.at_depth(distance.min(used - 1))
        };
        self.stack.touch(number);
        self.scatter.at(u64::from(number))
    }
}
