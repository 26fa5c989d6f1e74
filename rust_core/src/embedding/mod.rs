//! What a row means: its type and initial values, pooling, coalesced gradients, optimizers.
#![expect(clippy::inline_always, reason = "a kernel is compiled for each level of instructions by inlining all of it")]

mod coalesce;
mod kernels;
mod lookup;
mod optim;
mod row_type;
mod sort;
mod table;
mod threads;

pub use coalesce::{Contribution, RowOf, Runtime, Scratch, Slab, coalesce_and_update, squared_gradient_norm};
pub use kernels::{Instructions, LANES, SimdLevel};
pub use lookup::{PlacedLookup, Pooling, gradient_of_sample_weights, pool_rows};
pub use optim::{Moments, OptimizerConfig, Step, count_non_finite};
pub use row_type::{Rounding, RowShape, RowType, SCALE_AND_BIAS_BYTES, decode_rows, encode_rows, noise_of_table};
pub use table::{Initialisation, TableConfig, TableInit, initialise_row};
pub use threads::Threads;
