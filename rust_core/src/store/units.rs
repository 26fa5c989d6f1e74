//! What the I/O thread has to know of tables: how blocks come into being, and what to call their rows.

use super::StoreConfig;
use super::parts::Part;
use crate::embedding::TableInit;
use crate::tier::{BlockKey, FreshBlocks, Home, LowerTiers, Unit, Units, split_row_key};

/// Units that an error names; of more it gives the number.
const NAMED_MAX: usize = 3;

pub(super) struct StoreUnits {
    tables: Vec<(String, TableInit)>,
    seed: u64,
    /// Table, first row, and blocks.
    parts: Vec<(usize, u64, FreshBlocks)>,
    /// Name of a table that lives in the log, and blocks.
    logs: Vec<(String, FreshBlocks)>,
}

impl StoreUnits {
    pub(super) fn new(config: &StoreConfig, parts: &[Part], lower: &LowerTiers) -> Self {
        let log_blocks = |log: usize| FreshBlocks::Log {
            rows_per_block: lower.logs[log].log.rows_per_block() as usize,
            block_bytes: lower.logs[log].log.block_bytes() as usize,
        };
        let of_part = |(part, tiers): (&Part, &crate::tier::PartTiers)| {
            let blocks = match &tiers.place {
                Home::InPlace { layout, .. } => FreshBlocks::InPlace {
                    layout: *layout,
                    rows: tiers.shape.rows,
                    weight_bytes: tiers.shape.weight_bytes,
                },
                Home::Log { log, .. } => log_blocks(*log),
            };
            (part.table, part.first_row, blocks)
        };
        let of_log = |log: usize| {
            let table = parts[lower.logs[log].first_part].table;
            (config.tables[table].name.clone(), log_blocks(log))
        };
        Self {
            tables: config.tables.iter().map(|table| (table.name.clone(), TableInit::of(table))).collect(),
            seed: config.seed,
            parts: parts.iter().zip(&lower.parts).map(of_part).collect(),
            logs: (0..lower.logs.len()).map(of_log).collect(),
        }
    }

    /// The rows that a block of a log names.
    fn rows_of_log(&self, blocks: &FreshBlocks, bytes: &[u8]) -> Option<String> {
        let rows = blocks.rows_of_log(bytes);
        let name = |&key: &u64| {
            let (part, row) = split_row_key(key);
            let (table, first_row, _) = self.parts.get(part)?;
            Some(format!("{} row {}", self.tables[*table].0, first_row + row))
        };
        let names: Vec<String> = rows.iter().take(NAMED_MAX).filter_map(name).collect();
        let more = if rows.len() > NAMED_MAX { format!(" and {} more", rows.len() - NAMED_MAX) } else { String::new() };
        (!names.is_empty()).then(|| format!("{}{more}", names.join(", ")))
    }

    fn name(&self, unit: Unit, bytes: Option<&[u8]>) -> String {
        match unit {
            Unit::Row(key) => {
                let (part, row) = split_row_key(key);
                let (table, first_row, _) = &self.parts[part];
                format!("{} row {}", self.tables[*table].0, first_row + row)
            }
            Unit::Block(key) => {
                let (number, block) = key.parts();
                if let Some(log) = number.checked_sub(self.parts.len()) {
                    let (table, blocks) = &self.logs[log];
                    let rows = bytes.and_then(|bytes| self.rows_of_log(blocks, bytes));
                    return rows.unwrap_or_else(|| format!("{table} rows in block {block} of its log"));
                }
                let (table, first_row, blocks) = &self.parts[number];
                let FreshBlocks::InPlace { layout, rows, .. } = blocks else { return String::new() };
                let first = block * layout.rows_per_block;
                let end = (first + layout.rows_per_block).min(*rows);
                format!("{} rows {} to {}", self.tables[*table].0, first_row + first, first_row + end - 1)
            }
        }
    }
}

impl Units for StoreUnits {
    fn describe(&self, units: &[(Unit, Option<&[u8]>)]) -> String {
        let mut names: Vec<String> =
            units.iter().take(NAMED_MAX).map(|&(unit, bytes)| self.name(unit, bytes)).collect();
        if units.len() > NAMED_MAX {
            names.push(format!("and {} more", units.len() - NAMED_MAX));
        }
        names.join("; ")
    }

    fn initialise(&self, key: BlockKey, block: &mut [u8]) {
        let number = key.parts().0;
        if let Some(log) = number.checked_sub(self.parts.len()) {
            self.logs[log].1.write(key, block, |_, _| ());
            return;
        }
        let (table, first_row, blocks) = &self.parts[number];
        let init = self.tables[*table].1;
        blocks.write(key, block, |row, weights| init.write(self.seed, *table, first_row + row, weights));
    }
}
