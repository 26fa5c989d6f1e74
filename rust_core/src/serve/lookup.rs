//! One query: what of it is in memory, what is being read, and its pooled rows.

use std::collections::VecDeque;
use std::sync::Arc;

use super::engine::{Engine, State, no_version};
use super::reads::Started;
use super::residency::{Missing, Probed, Read, TableBags, reads_of};
use super::version::Version;
use crate::embedding::{Instructions, PlacedLookup, Pooling, RowShape, place_ids, pool_rows, rows_of_ids};
use crate::error::{Error, ErrorKind, Result};

/// The bags of one table.
struct Bags {
    rows: Vec<u64>,
    starts: Vec<u32>,
    /// Of a table in memory, what rows were updated with that are not yet in their place, by their position among `rows`.
    updated: Vec<(u32, Arc<[u8]>)>,
}

/// A row that a read brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    read: u32,
    probed: u32,
    missing: u32,
}

/// A query under way. It sees one version and one state of its updates from begin to end.
pub struct Lookup {
    engine: Arc<Engine>,
    version: Arc<Version>,
    /// The number at which it began.
    number: u64,
    bags: Vec<Bags>,
    /// Tables on the device.
    probed: Vec<Probed>,
    reads: Vec<Read>,
    /// In the order of reads.
    wanted: Vec<Wanted>,
    waiting: Vec<u32>,
    started: VecDeque<Started>,
    has_failed: bool,
}

impl Lookup {
    pub(super) fn begin(engine: &Arc<Engine>, bags: &[(&[i64], &[i64])]) -> Result<Self> {
        let serve = &engine.config.serve;
        if bags.len() != serve.tables.len() {
            let message = format!("a query has bags of each of {} tables, not of {}", serve.tables.len(), bags.len());
            return Err(Error::new(ErrorKind::Input, message));
        }
        let checked = (0..).zip(bags).map(|(table, &(ids, starts))| check(engine, table, ids, starts));
        let bags: Vec<Bags> = checked.collect::<Result<_>>()?;
        let mut state = engine.lock();
        let version = state.version.clone().ok_or_else(no_version)?;
        let mut bags: Vec<Bags> =
            bags.into_iter().enumerate().map(|(table, bags)| stored_rows(&version, table, bags)).collect();
        let mut probed = Vec::new();
        let State { residency, overlay, .. } = &mut *state;
        for (table, bags) in bags.iter_mut().enumerate() {
            if serve.is_on_device(table) {
                let bags = TableBags { table, rows: &bags.rows, starts: &bags.starts };
                probed.push(residency.probe(bags, overlay));
            } else if overlay.has(table) {
                let updated = |(position, &row)| Some((position, Arc::clone(overlay.get(table, row)?)));
                bags.updated = (0..).zip(&bags.rows).filter_map(updated).collect();
            }
        }
        let (reads, asked_bytes) = reads_of(&mut probed, &version.layouts, serve.device.is_sub_block);
        state.traffic.reads += reads.len() as u64;
        state.traffic.asked_bytes += asked_bytes;
        state.traffic.bus_bytes += reads.iter().map(|read| read.span.nbytes).sum::<u64>();
        let number = state.number;
        *state.in_flight.entry(number).or_insert(0) += 1;
        drop(state);
        let mut lookup = Self {
            engine: Arc::clone(engine),
            version,
            number,
            bags,
            wanted: wanted(&probed),
            probed,
            waiting: (0..reads.len() as u32).collect(),
            reads,
            started: VecDeque::new(),
            has_failed: false,
        };
        lookup.start(false);
        Ok(lookup)
    }

    /// Starts what may go now of what waits; one read in any case if `at_least_one`.
    fn start(&mut self, at_least_one: bool) {
        let taken = self.engine.take_places(&mut self.waiting, &self.reads, at_least_one);
        self.started.extend(self.engine.start(&taken, &self.reads));
    }

    /// The number of the version that it sees.
    pub fn version(&self) -> u64 {
        self.version.number
    }

    /// Rows of output of each table.
    pub fn outputs(&self) -> Vec<usize> {
        self.bags.iter().map(|bags| bags.starts.len()).collect()
    }

    /// Columns of a table.
    fn columns(&self, table: usize) -> usize {
        self.engine.config.serve.tables[table].columns
    }

    /// Where in the output each table begins; the last is the length of all.
    fn places(&self) -> Vec<usize> {
        let mut places = vec![0];
        for (table, bags) in self.bags.iter().enumerate() {
            places.push(places[table] + bags.starts.len() * self.columns(table));
        }
        places
    }

    fn check_output(&self, out: &[f32]) -> Result<Vec<usize>> {
        let places = self.places();
        let wanted = places[self.bags.len()];
        if out.len() == wanted {
            return Ok(places);
        }
        let message = format!("the output has {} floats; the query has {wanted}", out.len());
        Err(Error::new(ErrorKind::Input, message))
    }

    /// Pools the tables that are fixed in memory, each into its part of `out`: one table behind the other, a row for each bag.
    ///
    /// # Errors
    ///
    /// `Input` if `out` has another length.
    pub fn pool_memory(&self, out: &mut [f32]) -> Result<()> {
        let places = self.check_output(out)?;
        for (table, bags) in self.bags.iter().enumerate() {
            let Some(memory) = self.version.fixed(table) else { continue };
            let out = &mut out[places[table]..places[table + 1]];
            let shape = self.shape(table);
            if bags.updated.is_empty() {
                let slots: Vec<u32> = bags.rows.iter().map(|&row| row as u32).collect();
                pool(self.engine.instructions, &memory, shape, &slots, &bags.starts, out);
                continue;
            }
            let row_bytes = shape.weight_bytes();
            let mut gathered = Vec::with_capacity(bags.rows.len() * row_bytes);
            let mut updated = bags.updated.iter().peekable();
            for (position, &row) in (0..).zip(&bags.rows) {
                let begin = row as usize * row_bytes;
                let new = updated.next_if(|(at, _)| *at == position).map(|(_, stored)| &**stored);
                gathered.extend_from_slice(new.unwrap_or(&memory[begin..begin + row_bytes]));
            }
            let slots: Vec<u32> = (0..bags.rows.len() as u32).collect();
            pool(self.engine.instructions, &gathered, shape, &slots, &bags.starts, out);
        }
        Ok(())
    }

    fn shape(&self, table: usize) -> RowShape {
        let of = &self.engine.config.serve.tables[table];
        RowShape { row_type: of.row_type, dim: of.columns, state_floats: 0 }
    }

    /// Waits for the reads.
    ///
    /// # Errors
    ///
    /// Those of the device, whose name is with them; a query that has failed stays so.
    pub fn wait(&mut self) -> Result<()> {
        if self.has_failed {
            return Err(Error::new(ErrorKind::Closed, "a read of this query has failed before; ask again"));
        }
        let waited = self.wait_for_reads();
        self.has_failed = waited.is_err();
        waited
    }

    fn wait_for_reads(&mut self) -> Result<()> {
        loop {
            // Those that were started last were not watched yet.
            let new = self.started.iter_mut().rev().take_while(|started| !started.is_watched);
            new.for_each(|started| self.engine.hedge(started, &self.reads));
            let Some(started) = self.started.pop_front() else {
                if self.waiting.is_empty() {
                    return Ok(());
                }
                self.start(true);
                continue;
            };
            self.take(started)?;
            if !self.waiting.is_empty() {
                self.start(false);
            }
        }
    }

    /// Waits for the reads, and pools the tables on the device, each into its part of `out`.
    ///
    /// # Errors
    ///
    /// `Input` if `out` has another length; those of the device, whose name is with them.
    pub fn finish(mut self, out: &mut [f32]) -> Result<()> {
        let places = self.check_output(out)?;
        self.wait()?;
        for probed in &self.probed {
            let table = probed.table;
            let columns = self.columns(table);
            let out = &mut out[places[table]..places[table + 1]];
            let slots: Vec<u32> = (0..probed.rows).collect();
            let mut pooled = vec![0.0; probed.bags.len() * columns];
            pool(self.engine.instructions, &probed.stored, self.shape(table), &slots, &probed.starts, &mut pooled);
            let known = probed.pooled_bags.iter().zip(probed.pooled.chunks_exact(columns));
            for (&bag, row) in probed.bags.iter().zip(pooled.chunks_exact(columns)).chain(known) {
                out[bag as usize * columns..(bag as usize + 1) * columns].copy_from_slice(row);
            }
        }
        self.fill(out, &places);
        Ok(())
    }

    /// Waits for reads and copies the rows that they brought to where they are needed.
    fn take(&mut self, started: Started) -> Result<()> {
        let places: Vec<(u32, usize)> = started.numbers.iter().copied().zip(started.places.iter().copied()).collect();
        let (batch, result) = self.engine.settle(started, &self.reads);
        result.map_err(|error| self.engine.on_device(error))?;
        for (number, place) in places {
            let first = self.wanted.partition_point(|wanted| wanted.read < number);
            for wanted in self.wanted[first..].iter().take_while(|wanted| wanted.read == number) {
                let probed = &mut self.probed[wanted.probed as usize];
                let row_bytes = self.engine.config.serve.tables[probed.table].row_bytes() as usize;
                let missing = probed.missing[wanted.missing as usize];
                let offset = self.version.layouts[probed.table].offset(missing.row);
                let begin = place + (offset - self.reads[number as usize].span.offset) as usize;
                let to = missing.position as usize * row_bytes;
                probed.stored[to..to + row_bytes].copy_from_slice(&batch.buffer[begin..begin + row_bytes]);
            }
        }
        Ok(())
    }

    /// Keeps what was read and pooled, if its version is still served.
    fn fill(&self, out: &[f32], places: &[usize]) {
        let mut state = self.engine.lock();
        if state.version.as_ref().is_none_or(|served| served.number != self.version.number) {
            return;
        }
        for probed in &self.probed {
            let table = probed.table;
            let (columns, row_bytes) = (self.columns(table), self.shape(table).weight_bytes());
            for missing in &probed.missing {
                let begin = missing.position as usize * row_bytes;
                state.residency.fill(table, missing.row, &probed.stored[begin..begin + row_bytes]);
            }
            let bags = TableBags { table, rows: &self.bags[table].rows, starts: &self.bags[table].starts };
            for (&bag, _) in probed.bags.iter().zip(&probed.keeps).filter(|(_, keeps)| **keeps) {
                let begin = places[table] + bag as usize * columns;
                state.residency.fill_pooled(table, bags.bag(bag as usize), &out[begin..begin + columns]);
            }
        }
    }
}

impl Drop for Lookup {
    /// Nothing is left behind: reads under way are waited for, places are given back, and whoever waits for this query goes on.
    fn drop(&mut self) {
        while let Some(started) = self.started.pop_front() {
            self.engine.abandon(started, &self.reads);
        }
        let mut state = self.engine.lock();
        if let Some(count) = state.in_flight.get_mut(&self.number) {
            *count -= 1;
            if *count == 0 {
                state.in_flight.remove(&self.number);
            }
        }
        drop(state);
        self.engine.done.notify_all();
    }
}

/// Which rows each read brings.
fn wanted(probed: &[Probed]) -> Vec<Wanted> {
    let of = |(number, probed): (u32, &Probed)| -> Vec<Wanted> {
        let wanted = |(missing, row): (u32, &Missing)| Wanted { read: row.read, probed: number, missing };
        (0..).zip(&probed.missing).map(wanted).collect()
    };
    let mut wanted: Vec<Wanted> = (0..).zip(probed).flat_map(of).collect();
    wanted.sort_unstable();
    wanted
}

/// Sums of bags.
fn pool(instructions: Instructions, weights: &[u8], shape: RowShape, slots: &[u32], offsets: &[u32], out: &mut [f32]) {
    let lookup = PlacedLookup { weights, shape, slots, offsets, pooling: Pooling::Sum, sample_weights: None };
    pool_rows(instructions, lookup, 0..offsets.len(), out);
}

/// Ids and beginnings of bags, checked.
fn check(engine: &Engine, table: usize, ids: &[i64], starts: &[i64]) -> Result<Bags> {
    let of = &engine.config.serve.tables[table];
    let (rows, largest) = rows_of_ids(engine.instructions, ids);
    if !ids.is_empty() && largest >= of.ids {
        let wrong = ids.iter().find(|&&id| id as u64 >= of.ids).copied().unwrap_or(0);
        return Err(Error::new(ErrorKind::Input, "an id of a query is not one of its table")
            .with_context("table", &of.name)
            .with_context("id", wrong)
            .with_context("ids", of.ids));
    }
    let (starts_u32, last) = place_ids(engine.instructions, starts, 0);
    let is_whole = starts.first().is_none_or(|&first| first == 0) && starts.is_sorted() && last <= ids.len() as u64;
    if !is_whole || (starts.is_empty() && !ids.is_empty()) || ids.len() > u32::MAX as usize {
        return Err(Error::new(ErrorKind::Input, "bags begin at 0, one behind the other, and end with the ids")
            .with_context("table", &of.name));
    }
    Ok(Bags { rows, starts: starts_u32, updated: Vec::new() })
}

/// Ids of a pruned table as the rows that are there.
fn stored_rows(version: &Version, table: usize, bags: Bags) -> Bags {
    if !version.is_pruned(table) {
        return bags;
    }
    let (rows, starts) = (Vec::with_capacity(bags.rows.len()), Vec::with_capacity(bags.starts.len()));
    let mut stored = Bags { rows, starts, updated: Vec::new() };
    let ends = bags.starts.iter().skip(1).copied().chain([bags.rows.len() as u32]);
    for (&start, end) in bags.starts.iter().zip(ends) {
        stored.starts.push(stored.rows.len() as u32);
        let ids = &bags.rows[start as usize..end as usize];
        stored.rows.extend(ids.iter().filter_map(|&id| version.row_of(table, id)));
    }
    stored
}
