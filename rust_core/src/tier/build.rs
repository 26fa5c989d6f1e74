//! From a plan to the job that the I/O thread runs.

use super::job::{Copy, Job, PlacedUnit, Transfer};
use super::layout::{BLOCK_HEADER_BYTES, BlockKey, TableLayout};
use super::log::RowLog;
use super::plan::{Frame, ImageSource, Piece, PlanBuilder, Source, Unit};
use crate::backend::Extent;
use crate::units::round_up;

/// Adjacent units become one request up to this size.
const REQUEST_BYTES_MAX: usize = 128 * 1024;
/// Rows follow blocks in a job's memory, each at an address that vectors like.
const ROW_ALIGNMENT_BYTES: u64 = 4;

/// Bytes of whole granules that a range touches.
pub(super) fn granules(offset: u64, nbytes: usize, granule_bytes: u64) -> u64 {
    let granule_bytes = granule_bytes.max(1);
    let (first, end) = (offset / granule_bytes, (offset + nbytes as u64).div_ceil(granule_bytes));
    (end - first) * granule_bytes
}

/// A range of a frame that the outcome of the job keeps: frame, first byte in it, length.
pub type Kept = (usize, usize, usize);

impl PlanBuilder<'_> {
    /// Lays the frames out in memory and gives the job, which keeps these ranges.
    pub fn build(mut self, submitted_ns: Option<u64>, kept: &[Kept]) -> Job {
        self.end_logs();
        let order = self.order();
        let mut places = vec![0; self.frames.len()];
        let mut total = 0;
        for &frame in &order {
            places[frame as usize] = total;
            total += round_up(self.frames[frame as usize].nbytes as u64, ROW_ALIGNMENT_BYTES) as usize;
        }
        let (mut reads, mut writes, mut units, mut fresh) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for &position in &order {
            let (frame, buffer_offset) = (&self.frames[position as usize], places[position as usize]);
            let is_read = matches!(frame.source, Source::Tier { .. });
            match (frame.source, frame.unit) {
                (Source::Tier { tier, offset }, _) => {
                    let extent = Extent { offset, buffer_offset, nbytes: frame.nbytes };
                    reads.push(Transfer { tier, extent });
                }
                (_, Unit::Block(key)) if frame.has_header => fresh.push((key, buffer_offset)),
                _ => {}
            }
            units.push(PlacedUnit { unit: frame.unit, buffer_offset, is_checked: is_read && frame.has_header });
            for piece in &frame.destinations {
                let extent =
                    Extent { offset: piece.offset, buffer_offset: buffer_offset + piece.from, nbytes: piece.nbytes };
                writes.push(Transfer { tier: piece.tier, extent });
                if self.is_counted {
                    let media_bytes = granules(piece.offset, piece.nbytes, self.tiers.granule_bytes[piece.tier]);
                    let counts = self.tiers.counts_of(frame.part, piece.tier);
                    counts.writes += 1;
                    counts.written_bytes += piece.nbytes as u64;
                    counts.media_bytes += media_bytes;
                }
            }
        }
        sort(&mut reads);
        sort(&mut writes);
        let moves = self.sparse_moves(kept, &places, &mut units, &order);
        let copies = self.patches.iter().map(|patch| {
            let to = places[patch.frame] + patch.offset;
            match patch.from {
                ImageSource::Image(from) => Copy { from_images: true, from, to, nbytes: patch.nbytes },
                ImageSource::Frame(frame, offset) => {
                    Copy { from_images: false, from: places[frame] + offset, to, nbytes: patch.nbytes }
                }
            }
        });
        let copies = copies.collect();
        let kept = kept.iter().map(|&(frame, offset, nbytes)| (places[frame] + offset, nbytes)).collect();
        let (reads, writes) = (merge(&reads), merge(&writes));
        Job { nbytes: total, reads, fresh, units, copies, images: self.images, writes, moves, kept, submitted_ns }
    }

    /// The frames in the order of their memory: blocks first, so that each begins where the device wants it.
    fn order(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.frames.len() as u32).collect();
        order.sort_unstable_by_key(|&frame| {
            let Frame { source, has_header, .. } = self.frames[frame as usize];
            match source {
                Source::Tier { tier, offset } => (!has_header, tier, offset, frame),
                Source::Fresh | Source::Empty => (!has_header, usize::MAX, 0, frame),
            }
        });
        order
    }

    /// Where a backend moves single bytes, a block that stays in its place, or is only looked at, moves no more than the
    /// bytes that are needed. What the device is charged for stays the same.
    fn sparse_moves(
        &self,
        kept: &[Kept],
        places: &[usize],
        units: &mut [PlacedUnit],
        order: &[u32],
    ) -> Option<(Vec<Transfer>, Vec<Transfer>)> {
        let stays = |frame: &Frame| match frame.source {
            Source::Tier { tier, offset } => {
                let is_own_place = |piece: &Piece| (piece.tier, piece.offset) == (tier, offset);
                let is_sparse = self.tiers.moves_bytes[tier] && frame.has_header;
                (is_sparse && frame.destinations.iter().all(is_own_place)).then_some((tier, offset))
            }
            Source::Fresh | Source::Empty => None,
        };
        let mut sparse: Vec<Option<(usize, u64)>> = self.frames.iter().map(stays).collect();
        for patch in &self.patches {
            if let ImageSource::Frame(frame, _) = patch.from {
                sparse[frame] = None;
            }
        }
        if sparse.iter().all(Option::is_none) {
            return None;
        }
        let transfer = |frame: usize, (tier, offset): (usize, u64), within: usize, nbytes: usize| {
            let extent = Extent { offset: offset + within as u64, buffer_offset: places[frame] + within, nbytes };
            Transfer { tier, extent }
        };
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        let mut is_read = vec![false; self.frames.len()];
        for &(frame, within, nbytes) in kept {
            if let Some(place) = sparse[frame] {
                reads.push(transfer(frame, place, within, nbytes));
                if !std::mem::replace(&mut is_read[frame], true) && within >= BLOCK_HEADER_BYTES {
                    reads.push(transfer(frame, place, 0, BLOCK_HEADER_BYTES));
                }
            }
        }
        for patch in &self.patches {
            if let Some(place) = sparse[patch.frame] {
                writes.push(transfer(patch.frame, place, patch.offset, patch.nbytes));
            }
        }
        for (unit, &frame) in units.iter_mut().zip(order) {
            let number = frame as usize;
            if sparse[number].is_some() {
                unit.is_checked &= is_read[number];
                continue;
            }
            let frame = &self.frames[number];
            if let Source::Tier { tier, offset } = frame.source {
                reads.push(transfer(number, (tier, offset), 0, frame.nbytes));
            }
            for piece in &frame.destinations {
                writes.push(Transfer {
                    tier: piece.tier,
                    extent: Extent {
                        offset: piece.offset,
                        buffer_offset: places[number] + piece.from,
                        nbytes: piece.nbytes,
                    },
                });
            }
        }
        sort(&mut reads);
        sort(&mut writes);
        Some((reads, writes))
    }
}

fn sort(transfers: &mut [Transfer]) {
    transfers.sort_unstable_by_key(|transfer| (transfer.tier, transfer.extent.offset));
}

/// How the blocks of a table or of a log come into being.
#[derive(Debug, Clone, Copy)]
pub enum FreshBlocks {
    /// Every row has its initial values.
    InPlace {
        /// Where the rows are.
        layout: TableLayout,
        /// Number of rows.
        rows: u64,
        /// Bytes of weights in a row.
        weight_bytes: usize,
    },
    /// Nobody lives there yet.
    Log {
        /// Rows in a block.
        rows_per_block: usize,
        /// Bytes of a block.
        block_bytes: usize,
    },
}

impl FreshBlocks {
    /// Keys of the rows that a block of a log names.
    pub fn rows_of_log(&self, block: &[u8]) -> Vec<u64> {
        let Self::Log { rows_per_block, .. } = self else { return Vec::new() };
        let keys = &block[RowLog::key_offset(0)..RowLog::key_offset(*rows_per_block)];
        let (keys, _) = keys.as_chunks();
        keys.iter().map(|&key| u64::from_le_bytes(key)).take_while(|&key| key != u64::MAX).collect()
    }

    /// Writes a block; `initialise` fills the weights of a row, the state is zero.
    pub fn write(&self, key: BlockKey, block: &mut [u8], mut initialise: impl FnMut(u64, &mut [u8])) {
        match *self {
            Self::InPlace { layout, rows, weight_bytes } => {
                let block = &mut block[..layout.block_bytes as usize];
                block.fill(0);
                key.write_header(block);
                let first = key.parts().1 * layout.rows_per_block;
                for row in first..(first + layout.rows_per_block).min(rows) {
                    let offset = layout.place(row).1;
                    initialise(row, &mut block[offset..offset + weight_bytes]);
                }
            }
            Self::Log { rows_per_block, block_bytes } => {
                let block = &mut block[..block_bytes];
                block.fill(0);
                key.write_header(block);
                block[RowLog::key_offset(0)..RowLog::key_offset(rows_per_block)].fill(u8::MAX);
            }
        }
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
