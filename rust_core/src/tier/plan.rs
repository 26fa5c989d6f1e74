//! From rows that are needed and rows that have to go down to one job for the I/O thread.
//!
//! A plan is a set of frames, one per home block. A frame has one source (a place on some tier, or
//! fresh contents), row images to put in, and places to write the result to. Since all reads of a
//! job come before its changes and all writes after them, the order of decisions within a plan
//! does not matter, and a block that is evicted from a tier in the plan that brought it there
//! simply loses that destination.

use std::collections::HashMap;

use super::block_cache::BlockCache;
use super::layout::{BlockKey, TableLayout, TableShape};
use super::worker::{Job, Patch, Transfer};
use crate::backend::{AlignedBuffer, Extent, f32_as_bytes};
use crate::bits::BitSet;

/// Adjacent blocks become one request up to this size.
const REQUEST_BYTES_MAX: usize = 128 * 1024;

/// The tiers below the fastest: block caches from fast to slow, then the home tier.
#[derive(Debug)]
pub struct BlockTiers {
    /// Middle tiers.
    pub middle: Vec<BlockCache>,
    /// Layout of each table on the home tier.
    pub layouts: Vec<TableLayout>,
    /// Shape of each table.
    pub shapes: Vec<TableShape>,
    /// For each table, the blocks that exist; a block that does not is fresh by definition.
    pub present: Vec<BitSet>,
}

/// Where a frame's bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A place on a block tier.
    Tier {
        /// Position of the tier.
        tier: usize,
        /// Offset on its device.
        offset: u64,
    },
    /// Nowhere yet: rows get their initial values.
    Fresh,
}

/// One home block in a plan.
#[derive(Debug)]
pub struct Frame {
    /// Which block.
    pub key: BlockKey,
    /// Where its bytes come from.
    pub source: Source,
    /// Where the result goes, as (tier, offset).
    destinations: Vec<(usize, u64)>,
    /// First byte in the job's memory, once the plan is built.
    pub buffer_offset: usize,
}

/// What a plan does, for the counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlanCounts {
    /// Rows found on each block tier.
    pub row_hits: Vec<u64>,
    /// Bytes of these rows.
    pub asked_bytes: Vec<u64>,
    /// Row images written down.
    pub rows_written_back: u64,
    /// Blocks read because a row image replaces a part of them.
    pub read_modify_writes: u64,
}

/// A plan in the making.
pub struct PlanBuilder<'a> {
    tiers: &'a mut BlockTiers,
    frames: Vec<Frame>,
    by_key: HashMap<BlockKey, usize>,
    patches: Vec<(usize, usize, Patch)>,
    images: Vec<u8>,
    /// What the plan does.
    pub counts: PlanCounts,
}

impl BlockTiers {
    /// Position of the home tier among the block tiers.
    pub fn home(&self) -> usize {
        self.middle.len()
    }

    /// Whether the block of a row exists on some block tier.
    pub fn row_is_present(&self, table: usize, row: u64) -> bool {
        self.present[table].contains(self.layouts[table].place(row).0)
    }

    /// Bytes of memory for indices and presence.
    pub fn metadata_bytes(&self) -> usize {
        let middle: usize = self.middle.iter().map(BlockCache::metadata_bytes).sum();
        middle + self.present.iter().map(BitSet::metadata_bytes).sum::<usize>()
    }
}

impl<'a> PlanBuilder<'a> {
    /// An empty plan.
    pub fn new(tiers: &'a mut BlockTiers) -> Self {
        let counts = PlanCounts {
            row_hits: vec![0; tiers.home() + 1],
            asked_bytes: vec![0; tiers.home() + 1],
            ..PlanCounts::default()
        };
        Self { tiers, frames: Vec::new(), by_key: HashMap::new(), patches: Vec::new(), images: Vec::new(), counts }
    }

    /// Whether the block of a row exists on some block tier.
    pub fn row_is_present(&self, table: usize, row: u64) -> bool {
        self.tiers.row_is_present(table, row)
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Needs a row whose block is present. Gives the frame, and the row's offset in its block.
    /// The block is filled into every middle tier above the one where it was found.
    pub fn read_row(&mut self, table: usize, row: u64) -> (usize, usize) {
        let (block, offset) = self.tiers.layouts[table].place(row);
        let key = BlockKey::new(table, block);
        let (frame, found_at) = if let Some(&frame) = self.by_key.get(&key) {
            (frame, self.tier_of(frame))
        } else {
            let (source, found_at) = self.locate(key);
            let frame = self.new_frame(key, source);
            for tier in (0..found_at).rev() {
                self.fill(tier, frame, false);
            }
            (frame, found_at)
        };
        self.counts.row_hits[found_at] += 1;
        self.counts.asked_bytes[found_at] += self.tiers.layouts[table].row_bytes as u64;
        (frame, offset)
    }

    /// Needs a row without changing what any tier holds. Its block is present.
    pub fn peek_row(&mut self, table: usize, row: u64) -> (usize, usize) {
        let (block, offset) = self.tiers.layouts[table].place(row);
        let key = BlockKey::new(table, block);
        let known = self.by_key.get(&key).copied();
        let frame = known.unwrap_or_else(|| {
            let held = self
                .tiers
                .middle
                .iter()
                .enumerate()
                .find_map(|(tier, cache)| cache.peek(key).map(|offset| (tier, offset)));
            let (tier, offset) = held.unwrap_or((self.tiers.home(), self.tiers.layouts[table].block_offset(block)));
            self.new_frame(key, Source::Tier { tier, offset })
        });
        (frame, offset)
    }

    /// Sends a row image down: into the fastest middle tier, or home.
    pub fn write_row(&mut self, table: usize, row: u64, weights: &[f32], state: &[f32]) {
        let (block, offset) = self.tiers.layouts[table].place(row);
        let key = BlockKey::new(table, block);
        let frame = if let Some(&frame) = self.by_key.get(&key) {
            frame
        } else {
            let source = if self.tiers.present[table].insert(block) { Source::Fresh } else { self.locate(key).0 };
            if source != Source::Fresh {
                self.counts.read_modify_writes += 1;
            }
            self.new_frame(key, source)
        };
        let image_offset = self.images.len();
        self.images.extend_from_slice(f32_as_bytes(weights));
        self.images.extend_from_slice(f32_as_bytes(state));
        let patch = Patch { buffer_offset: 0, image_offset, nbytes: self.images.len() - image_offset };
        self.patches.push((frame, offset, patch));
        self.counts.rows_written_back += 1;
        if self.tiers.home() == 0 {
            self.send_home(frame);
        } else {
            self.fill(0, frame, true);
        }
    }

    /// Tier and place of a present block; it becomes the most recently used there.
    fn locate(&mut self, key: BlockKey) -> (Source, usize) {
        let held = self
            .tiers
            .middle
            .iter_mut()
            .enumerate()
            .find_map(|(tier, cache)| cache.touch(key).map(|offset| (tier, offset)));
        let (tier, offset) = held.unwrap_or_else(|| {
            let (table, block) = key.parts();
            (self.tiers.home(), self.tiers.layouts[table].block_offset(block))
        });
        (Source::Tier { tier, offset }, tier)
    }

    fn tier_of(&self, frame: usize) -> usize {
        match self.frames[frame].source {
            Source::Tier { tier, .. } => tier,
            Source::Fresh => self.tiers.home(),
        }
    }

    fn new_frame(&mut self, key: BlockKey, source: Source) -> usize {
        self.frames.push(Frame { key, source, destinations: Vec::new(), buffer_offset: 0 });
        self.by_key.insert(key, self.frames.len() - 1);
        self.frames.len() - 1
    }

    /// Puts a block into a middle tier (it may be there already); who has to leave goes down.
    fn fill(&mut self, tier: usize, frame: usize, dirty: bool) {
        let key = self.frames[frame].key;
        let offset = if let Some(offset) = self.tiers.middle[tier].touch(key) {
            offset
        } else {
            let (offset, evicted) = self.tiers.middle[tier].insert(key);
            if let Some(evicted) = evicted {
                // A faster tier may hold a newer copy of the block, and it has the last word.
                let source = (0..tier)
                    .find_map(|above| self.tiers.middle[above].peek(evicted.key).map(|offset| (above, offset)))
                    .map_or(Source::Tier { tier, offset: evicted.offset }, |(tier, offset)| Source::Tier {
                        tier,
                        offset,
                    });
                let known = self.by_key.get(&evicted.key).copied();
                if let Some(other) = known {
                    self.frames[other].destinations.retain(|&place| place != (tier, evicted.offset));
                }
                if evicted.dirty {
                    let other = known.unwrap_or_else(|| self.new_frame(evicted.key, source));
                    self.send_below(tier, other);
                }
            }
            offset
        };
        if dirty {
            self.tiers.middle[tier].mark_dirty(key);
        }
        let place = (tier, offset);
        if !self.frames[frame].destinations.contains(&place) {
            self.frames[frame].destinations.push(place);
        }
    }

    fn send_below(&mut self, tier: usize, frame: usize) {
        if tier + 1 == self.tiers.home() {
            self.send_home(frame);
        } else {
            self.fill(tier + 1, frame, true);
        }
    }

    fn send_home(&mut self, frame: usize) {
        let (table, block) = self.frames[frame].key.parts();
        let place = (self.tiers.home(), self.tiers.layouts[table].block_offset(block));
        if !self.frames[frame].destinations.contains(&place) {
            self.frames[frame].destinations.push(place);
        }
    }

    /// Lays the frames out in memory and gives the job, with the place of each frame. `initialise`
    /// fills the weights of a row that does not exist yet; its state is zero. What `memory` gives may hold anything.
    pub fn build(
        self,
        submitted_ns: Option<u64>,
        memory: impl FnOnce(usize) -> AlignedBuffer,
        mut initialise: impl FnMut(usize, u64, &mut [f32]),
    ) -> (Job, Vec<usize>, PlanCounts) {
        let Self { tiers, mut frames, patches, images, counts, .. } = self;
        let mut order: Vec<usize> = (0..frames.len()).collect();
        order.sort_unstable_by_key(|&frame| match frames[frame].source {
            Source::Tier { tier, offset } => (tier, offset, frame),
            Source::Fresh => (usize::MAX, frames[frame].key.0, frame),
        });
        let block_bytes = |frame: &Frame| tiers.layouts[frame.key.parts().0].block_bytes as usize;
        let mut total = 0;
        for &frame in &order {
            frames[frame].buffer_offset = total;
            total += block_bytes(&frames[frame]);
        }
        let mut buffer = memory(total);
        let (mut reads, mut writes, mut expected) = (Vec::new(), Vec::new(), Vec::new());
        for &position in &order {
            let frame = &frames[position];
            let nbytes = block_bytes(frame);
            match frame.source {
                Source::Tier { tier, offset } => {
                    let extent = Extent { offset, buffer_offset: frame.buffer_offset, nbytes };
                    reads.push(Transfer { tier, extent });
                    expected.push((frame.key, frame.buffer_offset));
                }
                Source::Fresh => {
                    let block = &mut buffer[frame.buffer_offset..frame.buffer_offset + nbytes];
                    fresh_block(tiers, frame.key, block, &mut initialise);
                }
            }
            for &(tier, offset) in &frame.destinations {
                let extent = Extent { offset, buffer_offset: frame.buffer_offset, nbytes };
                writes.push(Transfer { tier, extent });
            }
        }
        writes.sort_unstable_by_key(|transfer| (transfer.tier, transfer.extent.offset));
        let patches = patches
            .into_iter()
            .map(|(frame, offset, patch)| Patch { buffer_offset: frames[frame].buffer_offset + offset, ..patch })
            .collect();
        let places = frames.iter().map(|frame| frame.buffer_offset).collect();
        let job = Job { buffer, reads: merge(&reads), expected, patches, images, writes: merge(&writes), submitted_ns };
        (job, places, counts)
    }
}

fn fresh_block(
    tiers: &BlockTiers,
    key: BlockKey,
    block: &mut [u8],
    initialise: &mut impl FnMut(usize, u64, &mut [f32]),
) {
    let (table, number) = key.parts();
    let (layout, shape) = (&tiers.layouts[table], &tiers.shapes[table]);
    block.fill(0);
    TableLayout::write_header(key, block);
    let first = number * layout.rows_per_block;
    let mut weights = vec![0.0; shape.weight_floats];
    for row in first..(first + layout.rows_per_block).min(shape.rows) {
        initialise(table, row, &mut weights);
        let offset = layout.place(row).1;
        let bytes = f32_as_bytes(&weights);
        block[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

/// Joins neighbours that are adjacent on the device and in memory.
fn merge(transfers: &[Transfer]) -> Vec<Transfer> {
    let mut merged: Vec<Transfer> = Vec::with_capacity(transfers.len());
    for &transfer in transfers {
        if let Some(last) = merged.last_mut()
            && last.tier == transfer.tier
            && last.extent.offset + last.extent.nbytes as u64 == transfer.extent.offset
            && last.extent.buffer_offset + last.extent.nbytes == transfer.extent.buffer_offset
            && last.extent.nbytes + transfer.extent.nbytes <= REQUEST_BYTES_MAX
        {
            last.extent.nbytes += transfer.extent.nbytes;
        } else {
            merged.push(transfer);
        }
    }
    merged
}
