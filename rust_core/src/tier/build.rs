//! From a plan to the job that the I/O thread runs.

use super::layout::{BlockKey, TableLayout, split_row_key};
use super::log::RowLog;
use super::lower::LowerTiers;
use super::plan::{Frame, ImageSource, PlanBuilder, Source, Unit};
use super::worker::{Copy, Job, PlacedUnit, Transfer};
use crate::backend::{Extent, f32_as_bytes};
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

impl PlanBuilder<'_> {
    /// Lays the frames out in memory and gives the job, with the place of each frame.
    pub fn build(mut self, submitted_ns: Option<u64>) -> (Job, Vec<usize>) {
        self.end_logs();
        let Self { tiers, frames, patches, images, is_counted, .. } = self;
        // Blocks come first, so that each begins where the device wants it.
        let mut order: Vec<u32> = (0..frames.len() as u32).collect();
        order.sort_unstable_by_key(|&frame| {
            let Frame { source, has_header, .. } = frames[frame as usize];
            match source {
                Source::Tier { tier, offset } => (!has_header, tier, offset, frame),
                Source::Fresh | Source::Empty => (!has_header, usize::MAX, 0, frame),
            }
        });
        let mut places = vec![0; frames.len()];
        let mut total = 0;
        for &frame in &order {
            places[frame as usize] = total;
            total += round_up(frames[frame as usize].nbytes as u64, ROW_ALIGNMENT_BYTES) as usize;
        }
        let (mut reads, mut writes, mut units, mut fresh) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for &position in &order {
            let (frame, buffer_offset) = (&frames[position as usize], places[position as usize]);
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
                if !is_counted {
                    continue;
                }
                let media_bytes = granules(piece.offset, piece.nbytes, tiers.granule_bytes[piece.tier]);
                let counts = tiers.counts_of(part_of(tiers, frame.unit), piece.tier);
                counts.writes += 1;
                counts.written_bytes += piece.nbytes as u64;
                counts.media_bytes += media_bytes;
            }
        }
        reads.sort_unstable_by_key(|transfer| (transfer.tier, transfer.extent.offset));
        writes.sort_unstable_by_key(|transfer| (transfer.tier, transfer.extent.offset));
        let copies = patches
            .into_iter()
            .map(|patch| {
                let to = places[patch.frame] + patch.offset;
                match patch.from {
                    ImageSource::Image(from) => Copy { from_images: true, from, to, nbytes: patch.nbytes },
                    ImageSource::Frame(frame, offset) => {
                        Copy { from_images: false, from: places[frame] + offset, to, nbytes: patch.nbytes }
                    }
                }
            })
            .collect();
        let (reads, writes) = (merge(&reads), merge(&writes));
        let job = Job { nbytes: total, reads, fresh, units, copies, images, writes, kept: Vec::new(), submitted_ns };
        (job, places)
    }
}

fn part_of(tiers: &LowerTiers, unit: Unit) -> usize {
    match unit {
        Unit::Row(key) => split_row_key(key).0,
        Unit::Block(key) => tiers.part_of(key),
    }
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
        /// Floats of weights in a row.
        weight_floats: usize,
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
    /// Writes a block; `initialise` fills the weights of a row, the state is zero.
    pub fn write(&self, key: BlockKey, block: &mut [u8], mut initialise: impl FnMut(u64, &mut [f32])) {
        match *self {
            Self::InPlace { layout, rows, weight_floats } => {
                let block = &mut block[..layout.block_bytes as usize];
                block.fill(0);
                key.write_header(block);
                let first = key.parts().1 * layout.rows_per_block;
                let mut weights = vec![0.0; weight_floats];
                for row in first..(first + layout.rows_per_block).min(rows) {
                    initialise(row, &mut weights);
                    let offset = layout.place(row).1;
                    let bytes = f32_as_bytes(&weights);
                    block[offset..offset + bytes.len()].copy_from_slice(bytes);
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
