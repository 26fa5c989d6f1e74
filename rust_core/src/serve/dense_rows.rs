//! The layout for small rows: buckets in which keys and rows lie one behind the other, the latest used first. It costs six
//! bytes a row and no index; who leaves a bucket is its least recently used row.

use std::ops::Range;
use std::sync::Arc;

use super::row_cache::{RowKey, check_memory};
use crate::error::Result;
use crate::rng;

/// Bytes of a key in a bucket. An entry without one is the end of the bucket.
const KEY_BYTES: usize = 6;
/// Bytes of a bucket: large enough that a bucket with more rows than the average loses few of them.
const BUCKET_BYTES: usize = 2048;

/// Rows of any width up to a quarter of a bucket.
#[derive(Debug, Clone)]
pub(super) struct DenseRows {
    memory: Vec<u8>,
    buckets: u64,
    /// Of each bucket in `memory`: all of it, or its keys alone where rows are only imagined.
    stride_bytes: usize,
    /// Bytes of a row of each table.
    row_bytes: Arc<[u32]>,
    keeps_rows: bool,
    rows: u64,
}

impl DenseRows {
    /// The longest row that goes in.
    pub(super) const ROW_BYTES_MAX: usize = BUCKET_BYTES / 4 - KEY_BYTES;

    /// As many buckets as fit in `memory_bytes`; `None` if that is none. `shortest` is the least of the rows that come in.
    pub(super) fn new(
        memory_bytes: u64,
        row_bytes: Arc<[u32]>,
        shortest: u32,
        keeps_rows: bool,
    ) -> Result<Option<Self>> {
        let buckets = memory_bytes / BUCKET_BYTES as u64;
        let entries = BUCKET_BYTES / (KEY_BYTES + shortest as usize);
        let stride_bytes = if keeps_rows { BUCKET_BYTES } else { entries * KEY_BYTES };
        check_memory(buckets as usize * stride_bytes)?;
        let memory = vec![0; buckets as usize * stride_bytes];
        Ok((buckets > 0).then_some(Self { memory, buckets, stride_bytes, row_bytes, keeps_rows, rows: 0 }))
    }

    /// Memory that so many rows of this width take, whether rows are kept or imagined.
    pub(super) fn bytes_for(rows: u64, row_bytes: u64) -> u64 {
        let per_bucket = BUCKET_BYTES as u64 / (KEY_BYTES as u64 + row_bytes);
        // Buckets fill unevenly.
        (rows * 5 / 4).div_ceil(per_bucket) * BUCKET_BYTES as u64
    }

    /// What all buckets cost.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.buckets * BUCKET_BYTES as u64
    }

    /// Rows that are cached now.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Where the bucket of a key is in `memory`.
    fn bucket(&self, key: RowKey) -> Range<usize> {
        let bucket = (u128::from(rng::mix(key.packed())) * u128::from(self.buckets)) >> 64;
        let begin = bucket as usize * self.stride_bytes;
        begin..begin + self.stride_bytes
    }

    fn widths(&self) -> Widths<'_> {
        Widths { row_bytes: &self.row_bytes, keeps_rows: self.keeps_rows }
    }

    /// Where an entry is in its bucket.
    fn find(&self, key: RowKey) -> Option<(usize, Entry)> {
        self.widths().entries(&self.memory[self.bucket(key)]).find(|(_, entry)| entry.key == key)
    }

    /// Copies a row out and makes it the latest used of its bucket.
    pub(super) fn get(&mut self, key: RowKey, out: Option<&mut [u8]>) -> bool {
        let Some((at, entry)) = self.find(key) else { return false };
        let place = self.bucket(key);
        let bucket = &mut self.memory[place];
        let end = at + entry.stored_bytes;
        if let Some(out) = out {
            out.copy_from_slice(&bucket[at + KEY_BYTES..end]);
        }
        bucket[..end].rotate_right(entry.stored_bytes);
        true
    }

    /// Puts a row in that is not there, and out whoever there is no room for. `row` is empty where rows are imagined.
    pub(super) fn insert(&mut self, key: RowKey, row: &[u8]) {
        let (new, place) = (self.widths().entry(key), self.bucket(key));
        let (mut keep, mut charged_bytes, mut before, mut kept) = (0, new.charged_bytes, 0, 0);
        for (at, entry) in self.widths().entries(&self.memory[place.clone()]) {
            before += 1;
            charged_bytes += entry.charged_bytes;
            if charged_bytes <= BUCKET_BYTES {
                keep = at + entry.stored_bytes;
                kept += 1;
            }
        }
        let bucket = &mut self.memory[place];
        bucket.copy_within(..keep, new.stored_bytes);
        bucket[..KEY_BYTES].copy_from_slice(&key.packed().to_le_bytes()[..KEY_BYTES]);
        bucket[KEY_BYTES..new.stored_bytes].copy_from_slice(row);
        end_bucket(bucket, keep + new.stored_bytes);
        self.rows = self.rows + 1 + kept - before;
    }

    /// Takes a row out, if it is there.
    pub(super) fn remove(&mut self, key: RowKey) {
        let Some((at, entry)) = self.find(key) else { return };
        let place = self.bucket(key);
        let last = self.widths().entries(&self.memory[place.clone()]).last();
        let end = last.map_or(0, |(at, entry)| at + entry.stored_bytes);
        let bucket = &mut self.memory[place];
        bucket.copy_within(at + entry.stored_bytes..end, at);
        end_bucket(bucket, end - entry.stored_bytes);
        self.rows -= 1;
    }

    /// Takes all rows out.
    pub(super) fn clear(&mut self) {
        self.memory.chunks_exact_mut(self.stride_bytes).for_each(|bucket| end_bucket(bucket, 0));
        self.rows = 0;
    }

    /// All keys, bucket by bucket, the latest used of each first.
    pub(super) fn keys(&self) -> impl Iterator<Item = RowKey> {
        let of = |bucket| self.widths().entries(bucket).map(|(_, entry)| entry.key);
        self.memory.chunks_exact(self.stride_bytes).flat_map(of)
    }
}

/// Ends a bucket behind its last entry.
fn end_bucket(bucket: &mut [u8], end: usize) {
    if let Some(key) = bucket.get_mut(end..end + KEY_BYTES) {
        key.fill(0);
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    key: RowKey,
    stored_bytes: usize,
    /// What it costs, though rows may only be imagined.
    charged_bytes: usize,
}

/// How long entries are.
#[derive(Debug, Clone, Copy)]
struct Widths<'a> {
    row_bytes: &'a [u32],
    keeps_rows: bool,
}

impl<'a> Widths<'a> {
    fn entry(self, key: RowKey) -> Entry {
        let charged_bytes = KEY_BYTES + self.row_bytes[key.table()] as usize;
        Entry { key, stored_bytes: if self.keeps_rows { charged_bytes } else { KEY_BYTES }, charged_bytes }
    }

    /// The entries of a bucket with their places.
    fn entries(self, bucket: &'a [u8]) -> impl Iterator<Item = (usize, Entry)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let mut packed = [0; 8];
            packed[..KEY_BYTES].copy_from_slice(bucket.get(at..at + KEY_BYTES)?);
            let key = RowKey::from_packed(u64::from_le_bytes(packed))?;
            let entry = self.entry(key);
            at += entry.stored_bytes;
            Some((at - entry.stored_bytes, entry))
        })
    }
}
