//! A trace as one stream of rows, in memory: what stack distances, replays and counts work on.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasherDefault;
use std::path::Path;
use std::sync::OnceLock;

use super::format::{Bags, Description};
use super::reader::TraceReader;
use crate::cache::NEVER;
use crate::error::{Error, ErrorKind, Result};
use crate::rng::{self, MixHasher};
use crate::tier::row_key;

/// What of a trace is looked at.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Numbers of tables; empty: all.
    pub tables: Vec<usize>,
    /// A row counts once per batch, as for a store that deduplicates.
    pub dedupe: bool,
    /// Only rows whose hash is in a share of all hashes.
    pub sample: Option<Sample>,
    /// Bytes of a block of the device below; rows do not straddle blocks.
    pub block_bytes: u64,
}

/// Spatial sampling: a row is in the sample in all of its accesses or in none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Share of the rows, above 0 and at most 1.
    pub rate: f64,
    /// Another seed, another sample.
    pub seed: u64,
}

impl Sample {
    fn threshold(self) -> u64 {
        (self.rate * (u64::MAX as f64)) as u64
    }

    fn key(self) -> u64 {
        rng::stream(self.seed, 1)
    }
}

/// Accesses in order, with the ends of batches.
#[derive(Debug)]
pub struct AccessStream {
    pub(super) keys: Vec<u64>,
    /// The rows of `keys`, numbered by first appearance.
    pub(super) rows: Vec<u32>,
    pub(super) batch_ends: Vec<usize>,
    /// Bytes of each row.
    pub(super) row_bytes: Vec<u32>,
    /// The block of each row, numbered by first appearance, and the blocks that one row takes.
    pub(super) blocks: Vec<(u32, u32)>,
    pub(super) block_count: usize,
    pub(super) block_bytes: u64,
    pub(super) sample: Option<Sample>,
    /// Accesses of the selection, sampled or not.
    pub(super) accesses_all: u64,
    /// For a sample: the number of each access among all of the selection.
    pub(super) numbers_in_all: Vec<u64>,
    next_use: OnceLock<Vec<u32>>,
}

type Numbers = HashMap<u64, u32, BuildHasherDefault<MixHasher>>;

impl AccessStream {
    /// Reads the selected part of a trace.
    ///
    /// # Errors
    ///
    /// Those of [`TraceReader`]; `Config` if a selected table does not exist or the rate is not a share;
    /// `Capacity` if more than 2^32 - 2 accesses are selected.
    pub fn load(path: &Path, selection: &Selection) -> Result<Self> {
        let mut reader = TraceReader::open(path)?;
        let mut loader = Loader::new(reader.description(), selection)?;
        let mut batch = Vec::new();
        while reader.read(&mut batch)? {
            loader.add(&batch)?;
        }
        Ok(loader.done())
    }

    /// Accesses that are in memory: those of the sample, if there is one.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether nothing was selected.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Accesses of the selection, sampled or not.
    pub fn accesses_all(&self) -> u64 {
        self.accesses_all
    }

    /// Rows that are accessed at all, among those of the sample.
    pub fn distinct(&self) -> usize {
        self.row_bytes.len()
    }

    /// The rows of the accesses, numbered by first appearance.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// The keys of the accesses.
    pub fn keys(&self) -> &[u64] {
        &self.keys
    }

    /// Where batches end; the last one at `len()`.
    pub fn batch_ends(&self) -> &[usize] {
        &self.batch_ends
    }

    /// When the row of each access is asked for again, or [`NEVER`]. Only `min` asks; computed when it first does.
    pub fn next_use(&self) -> &[u32] {
        self.next_use.get_or_init(|| {
            let mut last = vec![NEVER; self.distinct()];
            let mut next_use = vec![NEVER; self.len()];
            for (position, &row) in self.rows.iter().enumerate().rev() {
                next_use[position] = std::mem::replace(&mut last[row as usize], position as u32);
            }
            next_use
        })
    }

    /// Accesses of each row.
    pub fn counts(&self) -> Vec<u32> {
        let mut counts = vec![0; self.distinct()];
        for &row in &self.rows {
            counts[row as usize] += 1;
        }
        counts
    }
}

struct Loader<'a> {
    stream: AccessStream,
    numbers: Numbers,
    block_numbers: Numbers,
    /// The batch that last asked for a row, for deduplication.
    asked_in: Vec<u32>,
    /// Rows of the batch that are not in the sample; counted once each.
    unsampled: std::collections::HashSet<u64, BuildHasherDefault<MixHasher>>,
    tables: Vec<(usize, u64)>,
    table_count: usize,
    selection: &'a Selection,
    batch: u32,
}

impl<'a> Loader<'a> {
    fn new(description: &Description, selection: &'a Selection) -> Result<Self> {
        let count = description.tables.len();
        let chosen = if selection.tables.is_empty() { (0..count).collect() } else { selection.tables.clone() };
        if let Some(missing) = chosen.iter().find(|&&table| table >= count) {
            return Err(Error::new(ErrorKind::Config, format!("there is no table {missing}; the trace has {count}")));
        }
        if let Some(Sample { rate, .. }) = selection.sample
            && !(rate > 0.0 && rate <= 1.0)
        {
            return Err(Error::new(
                ErrorKind::Config,
                format!("a sampling rate of {rate} is not a share; give one above 0 and at most 1"),
            ));
        }
        let stream = AccessStream {
            keys: Vec::new(),
            rows: Vec::new(),
            batch_ends: Vec::new(),
            row_bytes: Vec::new(),
            blocks: Vec::new(),
            block_count: 0,
            block_bytes: selection.block_bytes.max(1),
            sample: selection.sample,
            accesses_all: 0,
            numbers_in_all: Vec::new(),
            next_use: OnceLock::new(),
        };
        Ok(Self {
            stream,
            numbers: Numbers::default(),
            block_numbers: Numbers::default(),
            asked_in: Vec::new(),
            unsampled: std::collections::HashSet::default(),
            tables: chosen.into_iter().map(|table| (table, description.tables[table].row_bytes)).collect(),
            table_count: count,
            selection,
            batch: 0,
        })
    }

    fn add(&mut self, batch: &[Bags]) -> Result<()> {
        debug_assert_eq!(batch.len(), self.table_count);
        self.batch += 1;
        self.unsampled.clear();
        for (table, row_bytes) in self.tables.clone() {
            self.add_table(table, row_bytes, &batch[table].ids);
        }
        let len = self.stream.keys.len();
        if len >= NEVER as usize || self.stream.row_bytes.len() > super::recency::IDS_MAX {
            return Err(Error::new(
                ErrorKind::Capacity,
                format!(
                    "more than {} accesses or {} rows do not fit; look at fewer tables, or at a sample",
                    NEVER - 1,
                    super::recency::IDS_MAX
                ),
            ));
        }
        // A batch without any of these accesses is a batch still: lookahead counts them.
        self.stream.batch_ends.push(len);
        Ok(())
    }

    fn add_table(&mut self, table: usize, row_bytes: u64, ids: &[u64]) {
        let (threshold, salt) =
            self.selection.sample.map_or((u64::MAX, 0), |sample| (sample.threshold(), sample.key()));
        for &id in ids {
            let key = row_key(table, id);
            if rng::mix(key ^ salt) > threshold {
                let counts = !self.selection.dedupe || self.unsampled.insert(key);
                self.stream.accesses_all += u64::from(counts);
                continue;
            }
            let row = self.number(table, id, key, row_bytes);
            if self.selection.dedupe && std::mem::replace(&mut self.asked_in[row as usize], self.batch) == self.batch {
                continue;
            }
            if self.selection.sample.is_some() {
                self.stream.numbers_in_all.push(self.stream.accesses_all);
            }
            self.stream.accesses_all += 1;
            self.stream.keys.push(key);
            self.stream.rows.push(row);
        }
    }

    fn number(&mut self, table: usize, id: u64, key: u64, row_bytes: u64) -> u32 {
        let stream = &mut self.stream;
        match self.numbers.entry(key) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                let row = stream.row_bytes.len() as u32;
                entry.insert(row);
                stream.row_bytes.push(row_bytes as u32);
                let rows_per_block = (stream.block_bytes / row_bytes).max(1);
                let blocks = self.block_numbers.len() as u32;
                let block = *self.block_numbers.entry(row_key(table, id / rows_per_block)).or_insert(blocks);
                stream.blocks.push((block, row_bytes.div_ceil(stream.block_bytes) as u32));
                self.asked_in.push(0);
                row
            }
        }
    }

    fn done(mut self) -> AccessStream {
        self.stream.block_count = self.block_numbers.len();
        self.stream
    }
}
