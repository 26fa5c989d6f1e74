//! What a row means: its initial values, pooling, coalesced gradients, optimizers.

mod coalesce;
mod lookup;
mod optim;
mod table;

pub use coalesce::{Contribution, coalesce_and_update};
pub use lookup::{Pooling, gradient_of_sample_weights, pool_rows};
pub use optim::{LANES, OptimizerConfig, lane_sum_of_squares, rowwise_adagrad, sgd};
pub use table::{Initialisation, TableConfig, initialise_row};
