//! Tables and the initial values of their rows.

use serde::Deserialize;

use super::encode::encode_rows;
use super::kernels::Instructions;
use super::row_type::{Rounding, RowType};
use crate::rng;

/// How rows come into being.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Initialisation {
    /// Uniform in `[-bound, bound)`.
    Uniform {
        /// Half the width of the interval.
        bound: f32,
    },
}

/// One embedding table.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableConfig {
    /// Name, for statistics.
    pub name: String,
    /// Number of rows.
    pub rows: u64,
    /// Floats in a row.
    pub dim: usize,
    /// Initial values.
    pub init: Initialisation,
    /// Type of its weights.
    #[serde(default)]
    pub row_type: RowType,
    /// How updated rows are stored in it.
    #[serde(default)]
    pub rounding: Rounding,
}

/// Fills the weights of a row that does not exist yet. They follow from (seed, table, row, column)
/// and from nothing else, so a row may come into being at any time and anywhere.
pub fn initialise_row(init: Initialisation, seed: u64, table: usize, row: u64, weights: &mut [f32]) {
    let Initialisation::Uniform { bound } = init;
    let key = rng::stream(rng::stream(seed, table as u64), row);
    for (column, weight) in weights.iter_mut().enumerate() {
        *weight = bound * rng::unit_symmetric_f32(rng::draw(key, column as u64));
    }
}

/// How the rows of a table come into being, as they are stored.
#[derive(Debug, Clone, Copy)]
pub struct TableInit {
    init: Initialisation,
    row_type: RowType,
    dim: usize,
}

impl TableInit {
    /// That of a table.
    pub fn of(table: &TableConfig) -> Self {
        Self { init: table.init, row_type: table.row_type, dim: table.dim }
    }

    /// Stores the initial values of a row, each rounded to the nearest.
    pub fn write(&self, seed: u64, table: usize, row: u64, stored: &mut [u8]) {
        let mut weights = vec![0.0; self.dim];
        initialise_row(self.init, seed, table, row, &mut weights);
        encode_rows(Instructions::best(), self.row_type, self.dim, &weights, None, stored);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_differ_and_repeat() {
        let init = Initialisation::Uniform { bound: 0.5 };
        let row = |table, row| {
            let mut weights = [0.0; 8];
            initialise_row(init, 1, table, row, &mut weights);
            weights
        };
        assert_eq!(row(0, 3).map(f32::to_bits), row(0, 3).map(f32::to_bits));
        assert_ne!(row(0, 3).map(f32::to_bits), row(0, 4).map(f32::to_bits));
        assert_ne!(row(0, 3).map(f32::to_bits), row(1, 3).map(f32::to_bits));
        assert!(row(0, 3).iter().all(|weight| (-0.5..0.5).contains(weight)));
    }
}
