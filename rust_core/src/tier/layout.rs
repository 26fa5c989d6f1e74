//! Row -> (block, offset) on a block device.
//!
//! A home block is a header and as many whole rows as fit; a row image is its weights followed by
//! its optimizer state. A row never straddles two home blocks, so a row costs one read.

use crate::error::{Error, ErrorKind, Result};
use crate::units::{checked_bytes, round_up};

/// Header of a home block: magic (4), format version (2), flags (2), table (4), generation (4),
/// block (8), checksum (8). Generation and checksum are zero until crash safety is built.
pub const BLOCK_HEADER_BYTES: usize = 32;
const MAGIC: u32 = 0x3142_4d54; // "TMB1"
const FORMAT_VERSION: u16 = 1;
/// A home block is a multiple of this: the granule of the block devices that we know, and what `O_DIRECT` asks for.
const BLOCK_UNIT_BYTES: u64 = 4096;
/// The largest home block considered, in units.
const BLOCK_UNITS_MAX: u64 = 64;
/// A block size is good enough when it wastes at most this share (in percent).
const WASTE_PERCENT_MAX: u64 = 10;

/// Bits of a row in a key.
pub const ROW_BITS: u32 = 44;

/// The identity of a home block: table in the upper bits, block in the lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey(pub u64);

impl BlockKey {
    /// Of block `block` of table `table`.
    pub fn new(table: usize, block: u64) -> Self {
        Self(row_key(table, block))
    }

    /// Table and block.
    pub fn parts(self) -> (usize, u64) {
        split_row_key(self.0)
    }
}

/// The identity of a row in one number.
#[inline]
pub fn row_key(table: usize, row: u64) -> u64 {
    ((table as u64) << ROW_BITS) | row
}

/// Table and row of a key.
#[inline]
pub fn split_row_key(key: u64) -> (usize, u64) {
    ((key >> ROW_BITS) as usize, key & ((1 << ROW_BITS) - 1))
}

/// What a tier needs to know of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableShape {
    /// Number of rows.
    pub rows: u64,
    /// Bytes of weights in a row.
    pub weight_bytes: usize,
    /// Floats of optimizer state in a row.
    pub state_floats: usize,
}

impl TableShape {
    /// Bytes of a row image.
    pub fn row_bytes(&self) -> usize {
        self.weight_bytes + self.state_floats * size_of::<f32>()
    }

    /// Refuses sizes that the keys cannot tell apart.
    pub fn check(&self, table: usize) -> Result<()> {
        if self.rows == 0 || self.weight_bytes == 0 {
            return Err(Error::new(ErrorKind::Config, "a table needs at least one row and one column")
                .with_context("table", table));
        }
        if self.rows >= 1 << ROW_BITS || table >= 1 << (64 - ROW_BITS) {
            return Err(Error::new(ErrorKind::Capacity, "a store holds at most 1,048,576 tables of 2^44 rows")
                .with_context("table", table));
        }
        Ok(())
    }
}

/// Where the rows of one table are on its home device, in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableLayout {
    /// Rows in one home block; 1 on a byte-addressable device.
    pub rows_per_block: u64,
    /// Bytes of one home block; those of a row image on a byte-addressable device.
    pub block_bytes: u64,
    /// Number of home blocks.
    pub blocks: u64,
    /// First byte on the device.
    pub first_offset: u64,
    /// Bytes of a row image.
    pub row_bytes: usize,
    /// Bytes in front of the first row of a block.
    pub header_bytes: usize,
}

impl TableLayout {
    /// Lays a table out in blocks from `first_offset` on.
    pub fn in_blocks(shape: &TableShape, first_offset: u64) -> Result<Self> {
        let row_bytes = shape.row_bytes();
        let (rows_per_block, block_bytes) = block_size(row_bytes, BLOCK_HEADER_BYTES, 0);
        let blocks = shape.rows.div_ceil(rows_per_block);
        checked_bytes("a table", blocks, block_bytes)?;
        let header_bytes = BLOCK_HEADER_BYTES;
        Ok(Self { rows_per_block, block_bytes, blocks, first_offset, row_bytes, header_bytes })
    }

    /// Lays a table out row by row from `first_offset` on, for a device that is addressed by bytes.
    pub fn in_rows(shape: &TableShape, first_offset: u64) -> Result<Self> {
        let row_bytes = shape.row_bytes();
        checked_bytes("a table", shape.rows, row_bytes as u64)?;
        let (blocks, block_bytes) = (shape.rows, row_bytes as u64);
        Ok(Self { rows_per_block: 1, block_bytes, blocks, first_offset, row_bytes, header_bytes: 0 })
    }

    /// First byte behind the table.
    pub fn end_offset(&self) -> u64 {
        self.first_offset + self.blocks * self.block_bytes
    }

    /// The block of a row, and the row's offset in it.
    #[inline]
    pub fn place(&self, row: u64) -> (u64, usize) {
        let within = (row % self.rows_per_block) as usize;
        (row / self.rows_per_block, self.header_bytes + within * self.row_bytes)
    }

    /// Offset of a block on the device.
    pub fn block_offset(&self, block: u64) -> u64 {
        self.first_offset + block * self.block_bytes
    }
}

/// Rows in a block, and its bytes: the smallest block that wastes little. In front of the rows are `header_bytes`, and
/// `bytes_per_row` more for each.
pub(super) fn block_size(row_bytes: usize, header_bytes: usize, bytes_per_row: usize) -> (u64, u64) {
    let (row_bytes, header) = ((row_bytes + bytes_per_row) as u64, header_bytes as u64);
    let rows_in = |units: u64| (units * BLOCK_UNIT_BYTES).saturating_sub(header) / row_bytes;
    let waste = |units: u64| units * BLOCK_UNIT_BYTES - rows_in(units) * row_bytes;
    let units = (1..=BLOCK_UNITS_MAX)
        .find(|&units| rows_in(units) > 0 && waste(units) * 100 <= units * BLOCK_UNIT_BYTES * WASTE_PERCENT_MAX)
        .unwrap_or_else(|| round_up(row_bytes + header, BLOCK_UNIT_BYTES) / BLOCK_UNIT_BYTES);
    (rows_in(units), units * BLOCK_UNIT_BYTES)
}

impl BlockKey {
    /// Writes the header of a fresh block.
    pub fn write_header(self, block: &mut [u8]) {
        let (table, number) = self.parts();
        block[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        block[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        block[6..8].fill(0);
        block[8..12].copy_from_slice(&(table as u32).to_le_bytes());
        block[12..16].fill(0);
        block[16..24].copy_from_slice(&number.to_le_bytes());
        block[24..BLOCK_HEADER_BYTES].fill(0);
    }

    /// Refuses a block that is not the one that was asked for.
    pub fn check_header(self, block: &[u8]) -> Result<()> {
        let mut expected = [0u8; BLOCK_HEADER_BYTES];
        self.write_header(&mut expected);
        if block[..BLOCK_HEADER_BYTES] == expected {
            return Ok(());
        }
        let (table, number) = self.parts();
        Err(Error::new(
            ErrorKind::Corruption,
            "a block read from a tier is not the block that was written there; discard the store",
        )
        .with_context("table", table)
        .with_context("block", number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(rows: u64, weight_floats: usize, state_floats: usize) -> TableLayout {
        TableLayout::in_blocks(&TableShape { rows, weight_bytes: weight_floats * 4, state_floats }, 0).unwrap()
    }

    #[test]
    fn small_rows_share_a_block_and_large_rows_get_blocks_that_fit() {
        let small = layout(1000, 16, 1);
        assert_eq!((small.rows_per_block, small.block_bytes, small.blocks), (59, 4096, 17));
        assert_eq!(small.place(60), (1, BLOCK_HEADER_BYTES + 68));
        // A row of 4 KiB and a header do not fit in 4 KiB; eleven of them waste less than a tenth of twelve.
        let large = layout(10, 1024, 1);
        assert!(large.block_bytes.is_multiple_of(4096));
        let used = large.rows_per_block * large.row_bytes as u64;
        assert!(used * 10 >= large.block_bytes * 9, "{large:?}");
        let huge = layout(2, 200_000, 0);
        assert_eq!(huge.rows_per_block, 1);
    }

    #[test]
    fn a_foreign_block_is_corruption() {
        let mut block = vec![0; 4096];
        BlockKey::new(1, 7).write_header(&mut block);
        assert!(BlockKey::new(1, 7).check_header(&block).is_ok());
        let error = BlockKey::new(1, 8).check_header(&block).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corruption);
    }
}
