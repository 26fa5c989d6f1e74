//! Where the rows of a served table lie on a device: at fixed offsets, none across two blocks unless it is longer than one.

use crate::units::round_up;

/// The unit in which a device hands over the bytes that were asked for, where it can leave the others out.
const BUS_UNIT_BYTES: u64 = 4;

/// A range of bytes on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) nbytes: u64,
}

/// The places of the rows of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowLayout {
    first_byte: u64,
    rows: u64,
    row_bytes: u64,
    block_bytes: u64,
    rows_per_block: u64,
}

impl RowLayout {
    /// From the first block at or behind `first_byte` on. Of a byte-addressable device blocks have one byte.
    pub(super) fn new(first_byte: u64, rows: u64, row_bytes: u64, block_bytes: u64) -> Self {
        let first_byte = round_up(first_byte, block_bytes);
        Self { first_byte, rows, row_bytes, block_bytes, rows_per_block: block_bytes / row_bytes }
    }

    /// The first byte behind the table.
    pub(super) fn end(&self) -> u64 {
        let blocks = if self.rows_per_block > 0 {
            self.rows.div_ceil(self.rows_per_block)
        } else {
            self.rows * self.row_bytes.div_ceil(self.block_bytes)
        };
        self.first_byte + blocks * self.block_bytes
    }

    /// Bytes of a row.
    pub(super) fn row_bytes(&self) -> u64 {
        self.row_bytes
    }

    /// Where a row begins.
    pub(super) fn offset(&self, row: u64) -> u64 {
        match row.checked_div(self.rows_per_block) {
            Some(block) => {
                let within = row - block * self.rows_per_block;
                self.first_byte + block * self.block_bytes + within * self.row_bytes
            }
            None => self.first_byte + row * round_up(self.row_bytes, self.block_bytes),
        }
    }

    /// The whole blocks that hold a row.
    pub(super) fn blocks(&self, row: u64) -> Span {
        let (begin, end) = (self.offset(row), self.offset(row) + self.row_bytes);
        let offset = begin / self.block_bytes * self.block_bytes;
        Span { offset, nbytes: round_up(end, self.block_bytes) - offset }
    }

    /// What crosses the bus for a row: its bytes alone if the device can leave out the others.
    pub(super) fn read(&self, row: u64, is_sub_block: bool) -> Span {
        if !is_sub_block {
            return self.blocks(row);
        }
        let (begin, end) = (self.offset(row), self.offset(row) + self.row_bytes);
        let offset = begin / BUS_UNIT_BYTES * BUS_UNIT_BYTES;
        Span { offset, nbytes: round_up(end, BUS_UNIT_BYTES) - offset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_are_apart_and_in_their_blocks(
            first in 0u64..10_000,
            rows in 1u64..200,
            row_bytes in 1u64..3000,
            block_bytes in prop::sample::select(&[1u64, 64, 512, 4096]),
        ) {
            let layout = RowLayout::new(first, rows, row_bytes, block_bytes);
            let mut before = first;
            for row in 0..rows {
                let (offset, blocks) = (layout.offset(row), layout.blocks(row));
                prop_assert!(offset >= before, "rows are apart");
                before = offset + row_bytes;
                prop_assert!(blocks.offset % block_bytes == 0 && blocks.nbytes % block_bytes == 0);
                prop_assert!(blocks.offset <= offset && before <= blocks.offset + blocks.nbytes);
                prop_assert_eq!(blocks.nbytes, round_up(row_bytes, block_bytes).max(blocks.nbytes.min(block_bytes)));
                let read = layout.read(row, true);
                prop_assert!(read.offset <= offset && before <= read.offset + read.nbytes);
                prop_assert!(read.nbytes < row_bytes + 2 * BUS_UNIT_BYTES);
                prop_assert_eq!(layout.read(row, false), blocks);
            }
            prop_assert!(before <= layout.end() && layout.end() - before < round_up(row_bytes, block_bytes).max(block_bytes));
        }
    }
}
