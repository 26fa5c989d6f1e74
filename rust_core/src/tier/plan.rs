//! From rows that are needed and rows that have to go down to one job for the I/O thread.
//!
//! A plan is a set of frames: home blocks, and rows on their way between tiers that hold rows. A frame has one source (a
//! place on some tier, fresh contents, or an image from memory), images to put in, and places to write the result
//! to. Since all reads of a job come before its changes and all writes after them, the order of decisions within a
//! plan does not matter, and what leaves a tier in the plan that brought it there simply loses that destination.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use super::layout::{BlockKey, row_key, split_row_key};
use super::lower::{LowerTiers, TierCache};
use crate::backend::f32_as_bytes;
use crate::rng::MixHasher;

type Map<K, V> = HashMap<K, V, BuildHasherDefault<MixHasher>>;

/// Where a frame's bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A place on a tier.
    Tier {
        /// Position of the tier.
        tier: usize,
        /// Offset on its device.
        offset: u64,
    },
    /// A block that does not exist yet: its rows get their initial values.
    Fresh,
    /// An empty block of a log, or a row that an image replaces as a whole.
    Empty,
}

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// One row image.
    Row(u64),
    /// One home block.
    Block(BlockKey),
}

/// A part of a frame that is written to a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) tier: usize,
    pub(super) offset: u64,
    /// First byte in the frame.
    pub(super) from: usize,
    pub(super) nbytes: usize,
}

/// One unit in a plan.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) unit: Unit,
    /// The part whose row was asked for first; what is written is counted for it.
    pub(super) part: usize,
    pub(super) nbytes: usize,
    pub(super) source: Source,
    pub(super) has_header: bool,
    pub(super) destinations: Vec<Piece>,
}

/// Bytes that replace a part of a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct FramePatch {
    pub(super) frame: usize,
    pub(super) offset: usize,
    pub(super) nbytes: usize,
    pub(super) from: ImageSource,
}

/// Where the bytes of a row image are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ImageSource {
    /// In the plan's images, from this byte on.
    Image(usize),
    /// In a frame, from this byte on.
    Frame(usize, usize),
}

/// Where a row that was asked for will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowPlace {
    /// Which frame.
    pub frame: usize,
    /// First byte in it.
    pub offset: usize,
    /// The row left the tier that held it, and is newer than what is below.
    pub is_dirty: bool,
}

/// A plan in the making.
pub struct PlanBuilder<'a> {
    pub(super) tiers: &'a mut LowerTiers,
    pub(super) frames: Vec<Frame>,
    pub(super) blocks: Map<BlockKey, usize>,
    /// Which frame is written to a place of a cache.
    writers: Map<(usize, u64), usize>,
    pub(super) patches: Vec<FramePatch>,
    pub(super) images: Vec<u8>,
    /// Bytes of all frames.
    frame_bytes: usize,
    /// Whether what it does is counted.
    pub(super) is_counted: bool,
}

impl<'a> PlanBuilder<'a> {
    /// An empty plan.
    pub fn new(tiers: &'a mut LowerTiers) -> Self {
        Self { is_counted: true, ..Self::uncounted(tiers) }
    }

    /// An empty plan of maintenance, which no counter knows of.
    pub fn uncounted(tiers: &'a mut LowerTiers) -> Self {
        Self {
            is_counted: false,
            tiers,
            frames: Vec::new(),
            blocks: Map::default(),
            writers: Map::default(),
            patches: Vec::new(),
            images: Vec::new(),
            frame_bytes: 0,
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes that the job will need.
    pub fn nbytes(&self) -> usize {
        self.frame_bytes + self.images.len()
    }

    /// Needs a row; `None` if it does not exist yet. It is filled into every tier above the one where it was found that
    /// caches it inclusively; out of a tier that caches it exclusively it is taken.
    pub fn read_row(&mut self, part: usize, row: u64) -> Option<RowPlace> {
        let key = row_key(part, row);
        let (class, home, exclusive) = {
            let part = &self.tiers.parts[part];
            (part.class, part.home, part.exclusive)
        };
        for tier in 0..home {
            if !self.tiers.parts[part].cached_by[tier] {
                continue;
            }
            let TierCache::Rows(classes) = &mut self.tiers.caches[tier] else { break };
            let (offset, is_dirty) = if exclusive {
                let Some(taken) = classes[class].take(key) else { continue };
                (taken.offset, taken.dirty)
            } else {
                let Some(offset) = classes[class].touch(key) else { continue };
                (offset, false)
            };
            let frame = self.slot_frame(part, key, tier, offset);
            self.fill_rows(part, row, tier, frame);
            self.count_hit(part, tier);
            return Some(RowPlace { frame: frame.0, offset: frame.1, is_dirty });
        }
        if !self.tiers.is_at_home(part, row) {
            return None;
        }
        let (block, offset) = self.tiers.block_of(part, row);
        let frame = if let Some(&frame) = self.blocks.get(&block) {
            frame
        } else {
            let (source, found_at) = self.locate(block);
            let frame = self.new_block(block, source, part);
            if !exclusive {
                for tier in (0..found_at).rev() {
                    if matches!(self.tiers.caches[tier], TierCache::Blocks(_)) && self.tiers.is_cached_by(block, tier) {
                        self.fill_block(tier, frame, false);
                    }
                }
            }
            frame
        };
        let found_at = self.tier_of(frame);
        self.fill_rows(part, row, found_at, (frame, offset));
        self.count_hit(part, found_at);
        Some(RowPlace { frame, offset, is_dirty: false })
    }

    /// Needs a row without changing what any tier holds; `None` if it does not exist yet.
    pub fn peek_row(&mut self, part: usize, row: u64) -> Option<RowPlace> {
        let key = row_key(part, row);
        let class = self.tiers.parts[part].class;
        for tier in 0..self.tiers.parts[part].home {
            if self.tiers.parts[part].cached_by[tier]
                && let TierCache::Rows(classes) = &self.tiers.caches[tier]
                && let Some(offset) = classes[class].peek(key)
            {
                let (frame, offset) = self.slot_frame(part, key, tier, offset);
                return Some(RowPlace { frame, offset, is_dirty: false });
            }
        }
        if !self.tiers.is_at_home(part, row) {
            return None;
        }
        let (block, offset) = self.tiers.block_of(part, row);
        let frame = self.peek_block(block, part);
        Some(RowPlace { frame, offset, is_dirty: false })
    }

    /// Needs a block without changing what any tier holds.
    pub fn peek_block(&mut self, block: BlockKey, part: usize) -> usize {
        if let Some(&frame) = self.blocks.get(&block) {
            return frame;
        }
        let held = self.tiers.caches.iter().enumerate().find_map(|(tier, cache)| match cache {
            TierCache::Blocks(cache) => cache.peek(block.0).map(|offset| (tier, offset)),
            _ => None,
        });
        let place = self.tiers.place_of(block);
        let (tier, offset) = held.unwrap_or((place.tier, place.offset));
        self.new_block(block, Source::Tier { tier, offset }, part)
    }

    /// Sends a row image down from memory: to the fastest tier that caches it, or home. A clean one goes only to a
    /// tier that holds rows exclusively.
    pub fn write_row(&mut self, part: usize, row: u64, weights: &[u8], state: &[f32], is_dirty: bool) {
        let image = self.images.len();
        self.images.extend_from_slice(weights);
        self.images.extend_from_slice(f32_as_bytes(state));
        self.tiers.rows_written_back[part] += u64::from(is_dirty && self.is_counted);
        self.descend(part, row, 0, ImageSource::Image(image), is_dirty);
    }

    /// Moves a row of a log to a new place in it.
    pub fn relocate(&mut self, part: usize, row: u64, image: &[u8]) {
        let at = self.images.len();
        self.images.extend_from_slice(image);
        let (frame, offset) = self.home_block(part, row);
        self.patch(part, frame, offset, ImageSource::Image(at));
        self.send_home(frame);
    }

    fn count_hit(&mut self, part: usize, tier: usize) {
        for above in 0..tier {
            if self.tiers.parts[part].cached_by[above] {
                self.tiers.counts_of(part, above).probed_rows += 1;
            }
        }
        let row_bytes = self.tiers.parts[part].shape.row_bytes() as u64;
        let counts = self.tiers.counts_of(part, tier);
        counts.probed_rows += 1;
        counts.hit_rows += 1;
        counts.asked_bytes += row_bytes;
    }

    pub(super) fn count_read(&mut self, part: usize, tier: usize, offset: u64, nbytes: usize) {
        if !self.is_counted {
            return;
        }
        let media_bytes = super::build::granules(offset, nbytes, self.tiers.granule_bytes[tier]);
        let counts = self.tiers.counts_of(part, tier);
        counts.reads += 1;
        counts.read_bytes += nbytes as u64;
        counts.media_bytes += media_bytes;
    }

    /// The frame of a row in a slot of a tier that holds rows, and the row's offset in it.
    pub(super) fn slot_frame(&mut self, part: usize, key: u64, tier: usize, offset: u64) -> (usize, usize) {
        if let Some(&writer) = self.writers.get(&(tier, offset)) {
            let piece =
                self.frames[writer].destinations.iter().find(|piece| (piece.tier, piece.offset) == (tier, offset));
            return (writer, piece.map_or(0, |piece| piece.from));
        }
        let nbytes = self.tiers.parts[part].shape.row_bytes();
        self.count_read(part, tier, offset, nbytes);
        let source = Source::Tier { tier, offset };
        (self.push(Unit::Row(key), part, nbytes, source, false), 0)
    }

    pub(super) fn new_block(&mut self, key: BlockKey, source: Source, part: usize) -> usize {
        let place = self.tiers.place_of(key);
        if let Source::Tier { tier, offset } = source {
            self.count_read(part, tier, offset, place.nbytes);
        }
        let frame = self.push(Unit::Block(key), part, place.nbytes, source, place.has_header);
        self.blocks.insert(key, frame);
        frame
    }

    pub(super) fn push(&mut self, unit: Unit, part: usize, nbytes: usize, source: Source, has_header: bool) -> usize {
        self.frames.push(Frame { unit, part, nbytes, source, has_header, destinations: Vec::new() });
        self.frame_bytes += nbytes;
        self.frames.len() - 1
    }

    /// Place and tier of a present block; the policy of a tier that has it is told.
    pub(super) fn locate(&mut self, key: BlockKey) -> (Source, usize) {
        let place = self.tiers.place_of(key);
        for tier in 0..place.tier {
            if self.tiers.is_cached_by(key, tier)
                && let TierCache::Blocks(cache) = &mut self.tiers.caches[tier]
                && let Some(offset) = cache.touch(key.0)
            {
                return (Source::Tier { tier, offset }, tier);
            }
        }
        (Source::Tier { tier: place.tier, offset: place.offset }, place.tier)
    }

    pub(super) fn tier_of(&self, frame: usize) -> usize {
        match (self.frames[frame].source, self.frames[frame].unit) {
            (Source::Tier { tier, .. }, _) => tier,
            (_, Unit::Block(key)) => self.tiers.place_of(key).tier,
            (_, Unit::Row(key)) => self.tiers.parts[split_row_key(key).0].home,
        }
    }

    /// Writes a part of a frame to a place of a tier, and nothing else there.
    pub(super) fn write_to(&mut self, frame: usize, piece: Piece, is_cache: bool) {
        if is_cache {
            self.unwrite(piece.tier, piece.offset);
            self.writers.insert((piece.tier, piece.offset), frame);
        } else if self.frames[frame].destinations.contains(&piece) {
            return;
        }
        self.frames[frame].destinations.push(piece);
    }

    pub(super) fn unwrite(&mut self, tier: usize, offset: u64) {
        if let Some(writer) = self.writers.remove(&(tier, offset)) {
            self.frames[writer].destinations.retain(|piece| (piece.tier, piece.offset) != (tier, offset));
        }
    }

    /// What a log lost in this plan is free: no tier holds its blocks any more.
    pub(super) fn end_logs(&mut self) {
        for log in 0..self.tiers.logs.len() {
            for block in self.tiers.logs[log].log.end_plan() {
                for tier in 0..self.tiers.len() {
                    if let TierCache::Blocks(cache) = &mut self.tiers.caches[tier]
                        && let Some(taken) = cache.take(block.0)
                    {
                        self.unwrite(tier, taken.offset);
                    }
                }
            }
        }
    }

    /// What a compaction of this log held is free as it is emptied.
    pub fn end_compaction(&mut self, log: usize) {
        self.tiers.logs[log].log.end_compaction();
    }
}
