//! One way to train a store, and the same training written down plainly.

use std::collections::{BTreeMap, VecDeque};

use tiermem_core::embedding::{Initialisation, OptimizerConfig, Pooling, initialise_row};
use tiermem_core::error::Result;
use tiermem_core::store::{Lookup, Pooled, Store, TicketId};

use super::SEED;

/// Learning rate.
pub const LR: f32 = 0.1;
/// Pooling.
pub const SUM: Pooled<'static> = Pooled { pooling: Pooling::Sum, sample_weights: None };

/// The rows of a bag.
pub type Bag = Vec<u64>;

/// The bags of a lookup, and the gradient of each.
type Contribution<'a> = (&'a [Bag], Vec<f32>);

/// A table: rows, columns.
pub type Dim = (u64, usize);

/// What happens in a step, apart from the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: forward only.
    Forward,
    /// Each lookup's gradient is applied at once. No table is looked up twice.
    Fused,
    /// Gradients are kept, and one update a row follows.
    Step,
}

/// One batch: lookups as (table, bags of rows).
#[derive(Debug, Clone)]
pub struct Batch {
    /// What it is for.
    pub kind: Kind,
    /// Its lookups.
    pub lookups: Vec<(usize, Vec<Bag>)>,
    /// Whether all rows are copied out after it, as for a snapshot.
    pub is_copied: bool,
}

/// Ids and offsets of bags.
pub fn flatten(bags: &[Bag]) -> (Vec<i64>, Vec<i64>) {
    let mut offsets = Vec::new();
    let mut ids = Vec::new();
    for bag in bags {
        offsets.push(ids.len() as i64);
        ids.extend(bag.iter().map(|&row| row as i64));
    }
    (ids, offsets)
}

/// Calls `with` with the lookups of a batch.
pub fn with_lookups<T>(batch: &Batch, with: impl FnOnce(&[Lookup<'_>]) -> T) -> T {
    let flat: Vec<_> = batch.lookups.iter().map(|(table, bags)| (*table, flatten(bags))).collect();
    let lookups: Vec<Lookup<'_>> =
        flat.iter().map(|(table, (ids, offsets))| Lookup { table: *table, ids, offsets }).collect();
    with(&lookups)
}

/// A gradient that depends on what was gathered, so that one wrong bit spreads.
pub fn gradient(pooled: &[f32], step: usize) -> Vec<f32> {
    pooled.iter().enumerate().map(|(n, value)| (value + 0.01) * (1.0 + ((n * 7 + step * 3) % 5) as f32)).collect()
}

/// The step of a ticket that was waited for; gives the bits of the pooled outputs.
pub fn run_step(store: &Store, dims: &[Dim], batch: &Batch, ticket: TicketId, step: usize) -> Vec<u32> {
    let mut bits = Vec::new();
    for (position, (table, bags)) in batch.lookups.iter().enumerate() {
        let mut pooled = vec![0.0; bags.len() * dims[*table].1];
        store.gather(ticket, position, SUM, &mut pooled).unwrap();
        bits.extend(pooled.iter().map(|value| value.to_bits()));
        let gradient = gradient(&pooled, step);
        match batch.kind {
            Kind::Forward => {}
            Kind::Fused => store.update(ticket, position, SUM, &gradient, LR).unwrap(),
            Kind::Step => store.accumulate(ticket, position, SUM, &gradient).unwrap(),
        }
    }
    store.release(ticket).unwrap();
    if batch.kind == Kind::Step {
        store.step(LR).unwrap();
    }
    if batch.is_copied {
        bits.extend(all_rows(store, dims));
    }
    bits
}

/// Trains with a prefetch distance; gives all pooled outputs, then all weights and state.
pub fn train(store: &Store, dims: &[Dim], batches: &[Batch], distance: usize, announces: usize) -> Vec<u32> {
    let mut bits = Vec::new();
    let mut tickets = VecDeque::new();
    let (mut next, mut announced) = (0, 0);
    for (step, batch) in batches.iter().enumerate() {
        while next < batches.len() && next <= step + distance {
            while announces > 0 && announced < batches.len() && announced <= next + announces {
                with_lookups(&batches[announced], |lookups| store.announce(lookups)).unwrap();
                announced += 1;
            }
            tickets.push_back(with_lookups(&batches[next], |lookups| store.prefetch(lookups)).unwrap());
            next += 1;
        }
        let ticket = tickets.pop_front().unwrap();
        store.wait(ticket, &|| false).unwrap();
        bits.extend(run_step(store, dims, batch, ticket, step));
    }
    bits.extend(all_rows(store, dims));
    bits
}

/// As `train`, with a second thread that fetches.
pub fn train_with_loader(store: &Store, dims: &[Dim], batches: &[Batch]) -> Vec<u32> {
    let mut bits = Vec::new();
    let (sender, receiver) = std::sync::mpsc::sync_channel(2);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for batch in batches {
                sender.send(with_lookups(batch, |lookups| store.prefetch(lookups)).unwrap()).unwrap();
            }
        });
        for (step, (batch, ticket)) in batches.iter().zip(receiver).enumerate() {
            store.wait(ticket, &|| false).unwrap();
            bits.extend(run_step(store, dims, batch, ticket, step));
        }
    });
    bits.extend(all_rows(store, dims));
    bits
}

/// The bits of all weights and state.
pub fn all_rows(store: &Store, dims: &[Dim]) -> Vec<u32> {
    try_all_rows(store, dims).unwrap()
}

/// As `all_rows`, where a tier may fail.
pub fn try_all_rows(store: &Store, dims: &[Dim]) -> Result<Vec<u32>> {
    let mut bits = Vec::new();
    for (table, &(rows, dim)) in dims.iter().enumerate() {
        let (mut weights, mut state) =
            (vec![0.0; rows as usize * dim], vec![0.0; rows as usize * store.state_floats(table).unwrap()]);
        store.read_rows(table, 0, &mut weights, &mut state)?;
        bits.extend(weights.iter().chain(&state).map(|value| value.to_bits()));
    }
    Ok(bits)
}

/// Weights and state of plain tables.
struct Plain {
    dims: Vec<Dim>,
    optimizer: OptimizerConfig,
    weights: Vec<Vec<f32>>,
    state: Vec<Vec<f32>>,
}

impl Plain {
    fn new(dims: &[Dim], optimizer: OptimizerConfig) -> Self {
        let weights = dims.iter().enumerate().map(|(table, &(rows, dim))| {
            let mut all = vec![0.0; rows as usize * dim];
            all.chunks_mut(dim).enumerate().for_each(|(row, out)| {
                initialise_row(Initialisation::Uniform { bound: 0.1 }, SEED, table, row as u64, out);
            });
            all
        });
        let state = dims.iter().map(|&(rows, dim)| vec![0.0; rows as usize * optimizer.state_floats(dim)]).collect();
        Self { dims: dims.to_vec(), optimizer, weights: weights.collect(), state }
    }

    fn bits(&self) -> Vec<u32> {
        let tables = self.weights.iter().zip(&self.state);
        tables.flat_map(|(weights, state)| weights.iter().chain(state)).map(|value| value.to_bits()).collect()
    }

    fn pool(&self, table: usize, bags: &[Bag]) -> Vec<f32> {
        let dim = self.dims[table].1;
        let mut pooled = vec![0.0f32; bags.len() * dim];
        for (bag, rows) in bags.iter().enumerate() {
            for &row in rows {
                for column in 0..dim {
                    pooled[bag * dim + column] += self.weights[table][row as usize * dim + column];
                }
            }
        }
        pooled
    }

    /// One update a row, contributions added in the order of the lookups, bags and positions.
    fn update(&mut self, table: usize, lookups: &[Contribution<'_>]) {
        let dim = self.dims[table].1;
        let mut sums: BTreeMap<u64, Vec<f32>> = BTreeMap::new();
        for (bags, gradient) in lookups {
            for (bag, rows) in bags.iter().enumerate() {
                for &row in rows {
                    let sum = sums.entry(row).or_insert_with(|| vec![0.0; dim]);
                    for (column, sum) in sum.iter_mut().enumerate() {
                        *sum += gradient[bag * dim + column];
                    }
                }
            }
        }
        for (row, sum) in sums {
            let mut step = LR;
            if let OptimizerConfig::RowwiseAdagrad { eps, .. } = self.optimizer {
                let mut lanes = [0.0f32; 16];
                for (column, value) in sum.iter().enumerate() {
                    lanes[column % 16] += value * value;
                }
                for half in [8, 4, 2, 1] {
                    for lane in 0..half {
                        lanes[lane] += lanes[lane + half];
                    }
                }
                let accumulator = &mut self.state[table][row as usize];
                *accumulator += lanes[0] / dim as f32;
                step = LR / (accumulator.sqrt() + eps);
            }
            for (column, sum) in sum.iter().enumerate() {
                self.weights[table][row as usize * dim + column] -= step * sum;
            }
        }
    }
}

/// The same training, written down plainly, in the documented order of additions.
pub fn scalar_twin(dims: &[Dim], batches: &[Batch], optimizer: OptimizerConfig) -> Vec<u32> {
    let mut plain = Plain::new(dims, optimizer);
    let mut bits = Vec::new();
    for (step, batch) in batches.iter().enumerate() {
        let mut kept: BTreeMap<usize, Vec<Contribution<'_>>> = BTreeMap::new();
        for (table, bags) in &batch.lookups {
            let pooled = plain.pool(*table, bags);
            bits.extend(pooled.iter().map(|value| value.to_bits()));
            let gradient = gradient(&pooled, step);
            match batch.kind {
                Kind::Forward => {}
                Kind::Fused => plain.update(*table, &[(bags, gradient)]),
                Kind::Step => kept.entry(*table).or_default().push((bags, gradient)),
            }
        }
        for (table, lookups) in kept {
            plain.update(table, &lookups);
        }
        if batch.is_copied {
            bits.extend(plain.bits());
        }
    }
    bits.extend(plain.bits());
    bits
}
