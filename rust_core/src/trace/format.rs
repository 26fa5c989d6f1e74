//! The bytes of a trace file; docs/traces.md has the table. All numbers are little-endian.
//!
//! ```text
//! file   = magic "tmtrace\n" | version u32 | length of the description u32 | description (JSON) | CRC-32 u32 | frames
//! frame  = kind u32 | CRC-32 u32 | length of the payload u64 | payload
//! ```
//!
//! The CRC of the description covers all before it, that of a frame its kind, its length and its payload. The
//! payload of a batch is, for each table: form u8, bags u32, ids u32, lengths (form 0: one u32 that holds for all
//! bags; form 1: one u32 for each), ids (u32 each, or u64 where the table has more than 2^32 rows). The last frame
//! counts batches, bags and ids, so that a file that was cut short is told from one that is short.

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

pub(super) const MAGIC: [u8; 8] = *b"tmtrace\n";
/// Version of the format that this code writes, and the only one that it reads.
pub(super) const VERSION: u32 = 1;
pub(super) const FRAME_BATCH: u32 = u32::from_le_bytes(*b"BATC");
pub(super) const FRAME_END: u32 = u32::from_le_bytes(*b"END.");
pub(super) const FRAME_HEADER_BYTES: usize = 16;
pub(super) const FORM_UNIFORM: u8 = 0;
pub(super) const FORM_LENGTHS: u8 = 1;
/// A description longer than this is not one.
pub(super) const DESCRIPTION_BYTES_MAX: usize = 64 << 20;
/// Rows that a table of a trace may have: ids and the number of the table share 64 bits in the analyses.
pub(super) const TRACE_ROWS_MAX: u64 = 1 << 40;
/// Tables that a trace may have.
pub(super) const TRACE_TABLES_MAX: usize = 1 << 20;

/// Bags that a batch may have, those of all tables together.
pub(super) const TRACE_BAGS_MAX: usize = 1 << 26;

/// What a trace says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// In the order in which batches hold them.
    pub tables: Vec<TraceTable>,
    /// Where the accesses come from, for people.
    pub origin: String,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceTable {
    /// Its name.
    pub name: String,
    /// Ids are below it.
    pub rows: u64,
    /// Bytes of one row's image.
    pub row_bytes: u64,
}

impl TraceTable {
    pub(super) fn id_bytes(&self) -> usize {
        if self.rows > 1 << 32 { 8 } else { 4 }
    }
}

impl Description {
    /// Checks names and sizes.
    ///
    /// # Errors
    ///
    /// `Config` names the table and the value.
    pub fn check(&self) -> Result<()> {
        let refuse = |text: String| Err(Error::new(ErrorKind::Config, text));
        if self.tables.is_empty() || self.tables.len() > TRACE_TABLES_MAX {
            return refuse(format!("a trace has from 1 to {TRACE_TABLES_MAX} tables, not {}", self.tables.len()));
        }
        let mut names = std::collections::HashSet::new();
        for table in &self.tables {
            let TraceTable { name, rows, row_bytes } = table;
            if *rows == 0 || *rows > TRACE_ROWS_MAX {
                return refuse(format!("table \"{name}\" has {rows} rows; from 1 to 2^40 are possible"));
            }
            if *row_bytes == 0 || *row_bytes > 1 << 30 {
                return refuse(format!("rows of table \"{name}\" have {row_bytes} bytes; from 1 to 2^30 are possible"));
            }
            if !names.insert(name) {
                return refuse(format!("two tables are called \"{name}\"; give each a name of its own"));
            }
        }
        Ok(())
    }
}

/// The bags of one table in one batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bags {
    /// Ids of each bag; a bag may be empty.
    pub lengths: Vec<u32>,
    /// Bag after bag.
    pub ids: Vec<u64>,
}

impl Bags {
    /// From signed numbers, as numpy and torch have them.
    ///
    /// # Errors
    ///
    /// `Input` names the first length or id that is negative or too large.
    pub fn from_signed(lengths: &[i64], ids: &[i64]) -> Result<Self> {
        let refuse = |what: &str, at: usize, value: i64, most: u64| {
            Err(Error::new(ErrorKind::Input, format!("{what} {at} is {value}; from 0 to {most} is possible")))
        };
        if let Some(bag) = lengths.iter().position(|&length| u32::try_from(length).is_err()) {
            return refuse("the length of bag", bag, lengths[bag], u64::from(u32::MAX));
        }
        if let Some(position) = ids.iter().position(|&id| id < 0) {
            return refuse("the id at position", position, ids[position], TRACE_ROWS_MAX - 1);
        }
        Ok(Self {
            lengths: lengths.iter().map(|&length| length as u32).collect(),
            ids: ids.iter().map(|&id| id as u64).collect(),
        })
    }

    /// Lengths and ids as the bytes of int64 values of this host.
    pub fn to_signed_bytes(&self) -> (Vec<u8>, Vec<u8>) {
        let lengths = self.lengths.iter().flat_map(|&length| i64::from(length).to_ne_bytes()).collect();
        (lengths, self.ids.iter().flat_map(|&id| (id as i64).to_ne_bytes()).collect())
    }
}

/// What a trace holds in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Batches.
    pub batches: u64,
    /// Bags of all tables.
    pub bags: u64,
    /// Ids of all tables.
    pub ids: u64,
}

/// The checksum of a frame.
pub(super) fn frame_crc(kind: u32, payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&kind.to_le_bytes());
    crc.update(&(payload.len() as u64).to_le_bytes());
    crc.update(payload);
    crc.finalize()
}
