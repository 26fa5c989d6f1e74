//! What a row means: its type and initial values, pooling, coalesced gradients, optimizers.
#![expect(clippy::inline_always, reason = "a kernel is compiled for each level of instructions by inlining all of it")]

mod coalesce;
mod columns;
mod encode;
mod ids;
mod kernels;
mod lookup;
mod occurrences;
mod optim;
mod row_type;
mod rowwise;
mod sort;
mod table;
mod threads;

pub use coalesce::{Noise, Runtime, Slab, coalesce_and_update, squared_gradient_norm};
pub use encode::{encode_rows, noise_of_table};
pub use ids::{place_ids, rows_of_ids};
pub use kernels::{Instructions, LANES, SimdLevel};
pub use lookup::{PlacedLookup, Pooling, gradient_of_sample_weights, pool_rows};
pub use occurrences::{Contribution, Scratch};
pub use optim::{Moments, OptimizerConfig, Step, count_non_finite};
pub use row_type::{Rounding, RowShape, RowType, decode_rows};
pub use table::{Initialisation, TableConfig, TableInit, initialise_row};
pub use threads::Threads;
