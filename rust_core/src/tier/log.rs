//! A log-structured home: rows that leave the tiers above are appended, many to a block, wherever there is room.
//!
//! A *segment* is a run of blocks that is written once from its first to its last block and is free again when no row
//! lives in it. A row's location is a number of 32 bits. A block names its rows, so that compaction can tell which of
//! them still live there; nothing in memory leads from a block back to its rows.

use std::collections::VecDeque;
use std::path::Path;

use super::layout::{BLOCK_HEADER_BYTES, BlockKey, block_size};
use crate::backend::AlignedBuffer;
use crate::error::{Error, ErrorKind, Result};

/// No location is as large as this.
const LOCATIONS_MAX: u64 = u32::MAX as u64 - 1;
/// Segments that one compaction reads at most.
const COMPACTED_SEGMENTS_MAX: usize = 8;
/// Room below which compaction runs in the background, as a share of all segments (in percent), beyond the reserve.
const LOW_WATER_PERCENT: usize = 10;
/// In `live`: the segment is free.
const FREE: u32 = u32::MAX;

/// Where the rows of a part are in their log: four bytes a row, zero for a row that does not exist, so that a table costs
/// nothing before its rows do.
#[derive(Debug)]
pub struct Locations {
    memory: AlignedBuffer,
}

impl Locations {
    /// No row exists. With a directory the kernel may page the memory out to a file there.
    pub fn new(rows: u64, directory: Option<&Path>) -> Result<Self> {
        let nbytes = rows as usize * size_of::<u32>();
        let memory = match directory {
            Some(directory) => AlignedBuffer::try_in_file(directory, nbytes)?,
            None => AlignedBuffer::try_zeroed(nbytes)?,
        };
        Ok(Self { memory })
    }

    /// The location of a row that exists.
    #[inline]
    pub fn get(&self, row: u64) -> Option<u32> {
        let at = row as usize * size_of::<u32>();
        let stored = u32::from_le_bytes(self.memory[at..at + size_of::<u32>()].try_into().ok()?);
        stored.checked_sub(1)
    }

    /// Gives a row a location; gives the one before.
    #[inline]
    pub fn replace(&mut self, row: u64, location: u32) -> Option<u32> {
        let before = self.get(row);
        let at = row as usize * size_of::<u32>();
        self.memory[at..at + size_of::<u32>()].copy_from_slice(&(location + 1).to_le_bytes());
        before
    }

    /// Bytes of memory.
    pub fn nbytes(&self) -> usize {
        self.memory.len()
    }
}

/// A home that is appended to.
#[derive(Debug)]
pub struct RowLog {
    /// First byte on the device.
    first_offset: u64,
    /// Number in the place of a table in block keys.
    number: usize,
    row_bytes: usize,
    rows_per_block: u32,
    block_bytes: u64,
    segment_blocks: u32,
    /// Rows that live in each segment; `FREE` if it is free.
    live: Vec<u32>,
    free: VecDeque<u32>,
    /// Segments without rows, free as soon as the plan that emptied them is built.
    emptied: Vec<u32>,
    /// Segments that compaction has read: they keep their rows' places until it is done with them.
    held: Vec<u32>,
    /// Segments kept for what compaction writes before it has freed any.
    reserve: usize,
    plan_rows_max: u64,
    appends_per_row: u64,
    /// Rows appended so far.
    appended_rows: u64,
    /// The segment that is written to, and the next block in it.
    open: Option<(u32, u32)>,
    /// The block that the plan in the making appends to, and the rows in it.
    appending: Option<(u32, u32)>,
    /// Tiers above that hold its blocks.
    cached_by: Vec<bool>,
}

/// Rows in a block of a log, and its bytes.
pub fn log_block_size(row_bytes: usize) -> (u64, u64) {
    block_size(row_bytes, BLOCK_HEADER_BYTES, size_of::<u64>())
}

/// What a log is for.
#[derive(Debug, Clone)]
pub struct LogShape {
    /// Rows of all tables that live in it.
    pub rows: u64,
    /// Bytes of a row image.
    pub row_bytes: usize,
    /// Bytes of a segment, rounded to whole blocks.
    pub segment_bytes: u64,
    /// Room beyond that of the rows, as a share of it.
    pub spare: f64,
    /// Most rows that one plan takes out of memory.
    pub plan_rows_max: u64,
    /// Rows that may come down for each of them, since every tier that holds rows may push one out.
    pub appends_per_row: u64,
}

impl RowLog {
    /// An empty log from `first_offset` on.
    ///
    /// # Errors
    ///
    /// `Capacity` if its rows have no 32-bit locations.
    pub fn new(shape: &LogShape, first_offset: u64, number: usize, cached_by: Vec<bool>) -> Result<Self> {
        let (rows_per_block, block_bytes) = log_block_size(shape.row_bytes);
        let segment_blocks = (shape.segment_bytes / block_bytes).max(1);
        let rows_per_segment = rows_per_block * segment_blocks;
        let full = shape.rows as f64 * (1.0 + shape.spare);
        let plan_rows_max = shape.plan_rows_max.min(shape.rows) * shape.appends_per_row;
        // Room for what one plan appends, twice (it and the compaction that follows it), and for compaction itself.
        let working = 2 * plan_rows_max.div_ceil(rows_per_segment) + COMPACTED_SEGMENTS_MAX as u64 + 2;
        let segments = (libm::ceil(full / rows_per_segment as f64) as u64).saturating_add(working);
        if segments.saturating_mul(rows_per_segment) >= LOCATIONS_MAX {
            return Err(Error::new(
                ErrorKind::Capacity,
                "a log holds fewer than 2^32 rows; use layout = \"in_place\", or more tables",
            )
            .with_context("rows", shape.rows));
        }
        Ok(Self {
            first_offset,
            number,
            row_bytes: shape.row_bytes,
            rows_per_block: rows_per_block as u32,
            block_bytes,
            segment_blocks: segment_blocks as u32,
            live: vec![FREE; segments as usize],
            free: (0..segments as u32).collect(),
            emptied: Vec::new(),
            held: Vec::new(),
            reserve: COMPACTED_SEGMENTS_MAX,
            plan_rows_max,
            appends_per_row: shape.appends_per_row,
            appended_rows: 0,
            open: None,
            appending: None,
            cached_by,
        })
    }

    /// First byte behind the log.
    pub fn end_offset(&self) -> u64 {
        self.first_offset + self.live.len() as u64 * u64::from(self.segment_blocks) * self.block_bytes
    }

    /// Bytes of one block.
    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// Rows in one block.
    pub fn rows_per_block(&self) -> u32 {
        self.rows_per_block
    }

    /// Bytes of memory, without the locations of the rows.
    pub fn metadata_bytes(&self) -> usize {
        self.live.len() * 2 * size_of::<u32>()
    }

    /// Tiers above that hold its blocks.
    pub fn cached_by(&self) -> &[bool] {
        &self.cached_by
    }

    /// Rows appended so far, those of compaction included.
    pub fn appended_rows(&self) -> u64 {
        self.appended_rows
    }

    /// Whether compaction should run in the background.
    pub fn is_low(&self) -> bool {
        self.free.len() < self.reserve + self.live.len() * LOW_WATER_PERCENT / 100
    }

    fn key(&self, block: u32) -> BlockKey {
        BlockKey::new(self.number, u64::from(block))
    }

    /// The block of a location, and the row's offset in it.
    #[inline]
    pub fn place(&self, location: u32) -> (BlockKey, usize) {
        let (block, within) = (location / self.rows_per_block, (location % self.rows_per_block) as usize);
        (self.key(block), self.row_offset(within))
    }

    fn row_offset(&self, within: usize) -> usize {
        BLOCK_HEADER_BYTES + self.rows_per_block as usize * size_of::<u64>() + within * self.row_bytes
    }

    /// Where the key of a block's row is.
    pub fn key_offset(within: usize) -> usize {
        BLOCK_HEADER_BYTES + within * size_of::<u64>()
    }

    /// Offset of a block on the device.
    pub fn block_offset(&self, block: u64) -> u64 {
        self.first_offset + block * self.block_bytes
    }

    /// Gives a row a new location: whether its block is new in this plan, and the row's place within the block. `None`
    /// if no segment is free.
    pub fn append(&mut self) -> Option<(u32, bool, usize)> {
        let (block, within, is_new) = match self.appending {
            Some((block, rows)) if rows < self.rows_per_block => (block, rows, false),
            _ => (self.next_block()?, 0, true),
        };
        self.appending = Some((block, within + 1));
        self.live[(block / self.segment_blocks) as usize] += 1;
        self.appended_rows += 1;
        Some((block * self.rows_per_block + within, is_new, within as usize))
    }

    fn next_block(&mut self) -> Option<u32> {
        let (segment, next) = match self.open {
            Some((segment, next)) if next < self.segment_blocks => (segment, next),
            before => {
                let segment = self.free.pop_front()?;
                if let Some((full, _)) = before
                    && self.live[full as usize] == 0
                {
                    self.emptied.push(full);
                }
                self.live[segment as usize] = 0;
                (segment, 0)
            }
        };
        self.open = Some((segment, next + 1));
        Some(segment * self.segment_blocks + next)
    }

    /// No row is at this location any more.
    pub fn forget(&mut self, location: u32) {
        let segment = location / self.rows_per_block / self.segment_blocks;
        self.live[segment as usize] -= 1;
        if self.live[segment as usize] == 0 && self.open.is_none_or(|(open, _)| open != segment) {
            self.emptied.push(segment);
        }
    }

    /// The plan is built: its last block is closed, and what it emptied is free. Gives the blocks of those segments.
    pub fn end_plan(&mut self) -> Vec<BlockKey> {
        self.appending = None;
        let mut blocks = Vec::new();
        let (kept, emptied) = std::mem::take(&mut self.emptied).into_iter().partition(|it| self.held.contains(it));
        self.emptied = kept;
        for segment in emptied {
            self.live[segment as usize] = FREE;
            self.free.push_back(segment);
            blocks.extend(self.blocks_of(segment));
        }
        blocks
    }

    fn rows_per_segment(&self) -> u64 {
        u64::from(self.rows_per_block) * u64::from(self.segment_blocks)
    }

    /// Whether a plan can take so many rows out of memory, and compaction still finds its reserve.
    pub fn has_room(&self, rows: u64) -> bool {
        let rows = (rows * self.appends_per_row).min(self.plan_rows_max);
        let segments = self.free.len().saturating_sub(self.reserve) as u64;
        // The open segment may be nearly full, and the open block padded.
        segments * self.rows_per_segment() >= rows + u64::from(self.rows_per_block)
    }

    /// Chooses the segments with the fewest rows, until together they leave room for one more, and holds them. Gives
    /// their blocks; none if the log has no gaps.
    pub fn begin_compaction(&mut self) -> Vec<BlockKey> {
        let open = self.open.map(|(segment, _)| segment);
        let mut written: Vec<(u32, u32)> = self
            .live
            .iter()
            .enumerate()
            .filter(|&(segment, &live)| live != FREE && live > 0 && Some(segment as u32) != open)
            .map(|(segment, &live)| (live, segment as u32))
            .collect();
        let few = COMPACTED_SEGMENTS_MAX.min(written.len());
        if few == 0 {
            return Vec::new();
        }
        written.select_nth_unstable(few - 1);
        written.truncate(few);
        written.sort_unstable();
        let mut gaps = 0;
        for &(live, segment) in &written {
            if gaps >= self.rows_per_segment() {
                break;
            }
            gaps += self.rows_per_segment() - u64::from(live);
            self.held.push(segment);
        }
        if gaps == 0 {
            self.held.clear();
        }
        self.held.iter().flat_map(|&segment| self.blocks_of(segment)).collect()
    }

    /// What was held is free as it is emptied.
    pub fn end_compaction(&mut self) {
        self.held.clear();
    }

    /// The blocks of a segment.
    fn blocks_of(&self, segment: u32) -> impl Iterator<Item = BlockKey> + '_ {
        let first = segment * self.segment_blocks;
        (first..first + self.segment_blocks).map(|block| self.key(block))
    }

    /// The rows that a block names, with their locations and their offsets in the block.
    pub fn rows_in<'a>(&'a self, key: BlockKey, block: &'a [u8]) -> impl Iterator<Item = (u64, u32, usize)> + 'a {
        let first = key.parts().1 as u32 * self.rows_per_block;
        (0..self.rows_per_block as usize).filter_map(move |within| {
            let at = Self::key_offset(within);
            let bytes = block[at..at + size_of::<u64>()].try_into().ok()?;
            let row = u64::from_le_bytes(bytes);
            (row != u64::MAX).then(|| (row, first + within as u32, self.row_offset(within)))
        })
    }
}
