//! What an engine is made of, as it comes from Python, and the memory that it takes.

use serde::{Deserialize, Serialize};

use super::layout::RowLayout;
use super::limits::ReadLimits;
use super::residency::{CacheConfig, Placement, ServedTable};
use super::row_cache::{ROWS_MAX, TABLES_MAX};
use super::{SameList, residency};
use crate::cache::PolicyKind;
use crate::device::{DeviceKind, DeviceSpec};
use crate::embedding::RowType;
use crate::error::{Error, ErrorKind, Result};
use crate::units::round_up;

/// Columns that a row may have.
const COLUMNS_MAX: usize = 1 << 20;
/// Of all tables: sums of what goes with them do not overflow.
const TABLES_BYTES_MAX: u128 = 1 << 56;
/// An entry of the map from ids to the rows of a pruned table.
const INDEX_MAP_ENTRY_BYTES: u64 = 4;

/// A table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableConfig {
    /// Its name, for errors.
    pub name: String,
    /// Ids are below it.
    pub ids: u64,
    /// Rows that are stored: as many as ids, or fewer of a pruned table.
    pub rows: u64,
    /// Floats of a row.
    pub columns: usize,
    /// How rows are stored.
    pub row_type: RowType,
    /// Where they are.
    pub placement: Placement,
}

/// The device under the tables that are not in memory, and how it is read.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceUse {
    /// Its numbers.
    pub spec: DeviceSpec,
    /// Devices with a copy of all rows each: 1 or 2.
    pub replicas: usize,
    /// Blocks in which it is read and written; 1 of a byte-addressable one.
    pub block_bytes: u64,
    /// Whether it hands over the bytes of a row alone.
    pub is_sub_block: bool,
    /// Reads outstanding at most.
    pub limits: ReadLimits,
    /// After this long a read is asked of the other device, too.
    pub hedge_after_ns: Option<u64>,
}

/// Memory and what becomes of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryConfig {
    /// All of it: tables in memory, index maps, caches, buffers, updated rows.
    pub total_bytes: u64,
    /// Of what the others leave, the share of pooled results; rows have the rest.
    pub pooled_share: f64,
    /// Room for rows that were updated and not yet written.
    pub update_bytes: u64,
    /// Rows up to this long go to the layout for small rows.
    pub dense_row_bytes_max: usize,
    /// Who leaves among the large rows.
    pub policy: PolicyKind,
    /// Lists shorter than this are not kept as pooled results.
    pub pooled_ids_min: usize,
    /// Which lists are the same.
    pub pooled_match: SameList,
}

/// Everything that decides what is read from where.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServeConfig {
    /// Tables; their position is their number.
    pub tables: Vec<TableConfig>,
    /// Device.
    pub device: DeviceUse,
    /// Memory.
    pub memory: MemoryConfig,
}

/// Where the memory goes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MemoryUse {
    /// What there is.
    pub total_bytes: u64,
    /// Tables in memory.
    pub fixed_bytes: u64,
    /// Maps from ids to rows of pruned tables.
    pub index_map_bytes: u64,
    /// Buffers of reads that are outstanding.
    pub buffer_bytes: u64,
    /// Room for updated rows.
    pub update_bytes: u64,
    /// Pooled results.
    pub pooled_bytes: u64,
    /// Cached rows.
    pub row_cache_bytes: u64,
}

impl TableConfig {
    /// Bytes of a row as it is stored.
    pub fn row_bytes(&self) -> u64 {
        self.row_type.row_bytes(self.columns) as u64
    }

    /// Bytes of the map from ids to rows; none if every id has its row.
    pub(super) fn index_map_bytes(&self) -> u64 {
        if self.ids == self.rows { 0 } else { self.ids * INDEX_MAP_ENTRY_BYTES }
    }

    fn check(&self) -> Result<()> {
        let why = if self.rows == 0 || self.rows > self.ids || self.ids > ROWS_MAX {
            "a table has between one row and 2^36 rows, and no more than it has ids"
        } else if !(1..=COLUMNS_MAX).contains(&self.columns) {
            "a row has between 1 and 1,048,576 columns"
        } else if self.placement == Placement::Fixed && self.rows > u64::from(u32::MAX) {
            let message = "a table in memory has less than 2^32 rows; put it on the device";
            return Err(Error::new(ErrorKind::Capacity, message).with_context("table", &self.name));
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Config, why).with_context("table", &self.name).with_context("rows", self.rows))
    }
}

impl ServeConfig {
    /// Checks what can be checked without opening anything.
    ///
    /// # Errors
    ///
    /// `Config` names what does not go together, and the table.
    pub fn check(&self) -> Result<()> {
        let refuse = |why: String| Err(Error::new(ErrorKind::Config, why));
        if self.tables.is_empty() || self.tables.len() > TABLES_MAX {
            return refuse(format!("an engine has between 1 and {TABLES_MAX} tables, not {}", self.tables.len()));
        }
        self.tables.iter().try_for_each(TableConfig::check)?;
        let rows_bytes = |table: &TableConfig| u128::from(table.rows) * u128::from(table.row_bytes());
        if self.tables.iter().map(rows_bytes).sum::<u128>() > TABLES_BYTES_MAX {
            return refuse("all tables together have 2^56 bytes at most".into());
        }
        let device = &self.device;
        device.spec.validate()?;
        if !(1..=2).contains(&device.replicas) {
            return refuse(format!("replicas must be 1 or 2, not {}", device.replicas));
        }
        if device.hedge_after_ns.is_some() && device.replicas < 2 {
            return refuse(
                "a read can only be hedged where a second device has a copy; set replicas = 2, or turn hedging off"
                    .into(),
            );
        }
        if device.limits.per_table == 0 || device.limits.total == 0 {
            return refuse("limits on outstanding reads must be at least 1".into());
        }
        let is_block = device.spec.kind == DeviceKind::Block;
        if !device.block_bytes.is_power_of_two() || (is_block && device.block_bytes < 512) {
            return refuse(format!(
                "block_bytes must be a power of two, of a block device from 512 on, not {}",
                device.block_bytes
            ));
        }
        if !(0.0..=1.0).contains(&self.memory.pooled_share) {
            return refuse(format!("pooled_share must lie between 0 and 1, not {}", self.memory.pooled_share));
        }
        Ok(())
    }

    /// Tables that are on the device.
    pub(super) fn is_on_device(&self, table: usize) -> bool {
        self.tables[table].placement != Placement::Fixed
    }

    /// Where the rows of each table lie on the device from `first_byte` on, and the first byte behind all.
    pub(super) fn layouts(&self, first_byte: u64, block_bytes: u64) -> (Vec<RowLayout>, u64) {
        let mut end = first_byte;
        let layout = |(table, config): (usize, &TableConfig)| {
            let rows = if self.is_on_device(table) { config.rows } else { 0 };
            let layout = RowLayout::new(end, rows, config.row_bytes(), block_bytes);
            end = layout.end();
            layout
        };
        let layouts = self.tables.iter().enumerate().map(layout).collect();
        (layouts, end)
    }

    /// Divides the memory. Tables in memory and index maps are there once for each version that is kept.
    ///
    /// # Errors
    ///
    /// `Capacity` with the bytes that are missing.
    pub fn memory(&self, versions: u64) -> Result<MemoryUse> {
        let of = |bytes: &dyn Fn(&TableConfig) -> u64| self.tables.iter().map(bytes).sum::<u64>();
        let fixed =
            |table: &TableConfig| table.rows * table.row_bytes() * u64::from(table.placement == Placement::Fixed);
        let longest = self.tables.iter().map(TableConfig::row_bytes).max().unwrap_or(0);
        let is_on_device = (0..self.tables.len()).any(|table| self.is_on_device(table));
        let block_bytes = self.device.block_bytes;
        let read_bytes = round_up(longest, block_bytes).max(block_bytes) * u64::from(is_on_device);
        let mut memory = MemoryUse {
            total_bytes: self.memory.total_bytes,
            fixed_bytes: versions * of(&fixed),
            index_map_bytes: versions * of(&TableConfig::index_map_bytes),
            buffer_bytes: u64::from(self.device.limits.total) * read_bytes,
            // What waits to be put in its place stays with the version that it is of.
            update_bytes: versions * self.memory.update_bytes,
            ..MemoryUse::default()
        };
        let needed = memory.fixed_bytes + memory.index_map_bytes + memory.buffer_bytes + memory.update_bytes;
        let Some(left) = memory.total_bytes.checked_sub(needed) else {
            return Err(Error::new(
                ErrorKind::Capacity,
                "the memory does not hold the tables that are fixed in it, index maps, buffers and updated rows; give \
                 more of it, put tables on the device, lower the limit on outstanding reads, or keep one version (versions = 1)",
            )
            .with_context("needed_bytes", needed)
            .with_context("total_bytes", memory.total_bytes)
            .with_context("fixed_bytes", memory.fixed_bytes)
            .with_context("index_map_bytes", memory.index_map_bytes)
            .with_context("buffer_bytes", memory.buffer_bytes)
            .with_context("update_bytes", memory.update_bytes));
        };
        if is_on_device {
            memory.pooled_bytes = (left as f64 * self.memory.pooled_share) as u64;
            memory.row_cache_bytes = left - memory.pooled_bytes;
        }
        Ok(memory)
    }

    /// The caches that go into this memory.
    pub(super) fn residency(&self, memory: &MemoryUse, keeps_rows: bool) -> Result<residency::Residency> {
        let MemoryConfig { dense_row_bytes_max, policy, pooled_ids_min, pooled_match, .. } = self.memory;
        let caches = CacheConfig {
            row_bytes: memory.row_cache_bytes,
            dense_row_bytes_max,
            policy,
            pooled_bytes: memory.pooled_bytes,
            pooled_ids_min,
            pooled_match,
        };
        let table = |table: &TableConfig| ServedTable {
            rows: table.rows,
            row_bytes: table.row_bytes() as u32,
            columns: table.columns,
            placement: table.placement,
        };
        residency::Residency::new(&caches, self.tables.iter().map(table).collect(), keeps_rows)
    }
}
