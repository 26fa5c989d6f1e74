//! Training through any hierarchy gives the bits of training in memory, and a plain scalar twin agrees.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{SEED, config, tier};
use proptest::prelude::*;
use tiermem_core::embedding::{Initialisation, OptimizerConfig, Pooling, initialise_row};
use tiermem_core::store::{Budget, Lookup, Pooled, Store};

const LR: f32 = 0.1;
const SUM: Pooled<'static> = Pooled { pooling: Pooling::Sum, sample_weights: None };

/// One batch: for each table, bags of rows.
type Batch = Vec<Vec<Vec<u64>>>;

fn flatten(bags: &[Vec<u64>]) -> (Vec<i64>, Vec<i64>) {
    let mut offsets = Vec::new();
    let mut ids = Vec::new();
    for bag in bags {
        offsets.push(ids.len() as i64);
        ids.extend(bag.iter().map(|&row| row as i64));
    }
    (ids, offsets)
}

/// A gradient that depends on what was gathered, so that one wrong bit spreads.
fn gradient(pooled: &[f32], step: usize) -> Vec<f32> {
    pooled.iter().enumerate().map(|(n, value)| (value + 0.01) * (1.0 + ((n * 7 + step * 3) % 5) as f32)).collect()
}

/// Trains with a prefetch distance; gives all pooled outputs, then all weights and state.
fn train(store: &Store, dims: &[(u64, usize)], batches: &[Batch], distance: usize) -> Vec<u32> {
    let mut bits = Vec::new();
    let mut tickets = std::collections::VecDeque::new();
    let prefetch = |batch: &Batch| {
        let flat: Vec<_> = batch.iter().map(|bags| flatten(bags)).collect();
        let lookups: Vec<Lookup<'_>> =
            flat.iter().enumerate().map(|(table, (ids, offsets))| Lookup { table, ids, offsets }).collect();
        store.prefetch(&lookups).unwrap()
    };
    let mut next = 0;
    for (step, batch) in batches.iter().enumerate() {
        while next < batches.len() && next <= step + distance {
            tickets.push_back(prefetch(&batches[next]));
            next += 1;
        }
        let ticket = tickets.pop_front().unwrap();
        store.wait(ticket).unwrap();
        for (table, bags) in batch.iter().enumerate() {
            let mut pooled = vec![0.0; bags.len() * dims[table].1];
            store.gather(ticket, table, SUM, &mut pooled).unwrap();
            bits.extend(pooled.iter().map(|value| value.to_bits()));
            store.update(ticket, table, SUM, &gradient(&pooled, step), LR).unwrap();
        }
        store.release(ticket).unwrap();
    }
    for (table, &(rows, dim)) in dims.iter().enumerate() {
        let (mut weights, mut state) =
            (vec![0.0; rows as usize * dim], vec![0.0; rows as usize * store.state_floats()]);
        store.read_rows(table, 0, &mut weights, &mut state).unwrap();
        bits.extend(weights.iter().chain(&state).map(|value| value.to_bits()));
    }
    bits
}

/// The same training, written down plainly, in the documented order of additions.
fn scalar_twin(dims: &[(u64, usize)], batches: &[Batch], optimizer: OptimizerConfig) -> Vec<u32> {
    let state_floats = optimizer.state_floats();
    let mut weights: Vec<Vec<f32>> = Vec::new();
    for (table, &(rows, dim)) in dims.iter().enumerate() {
        let mut all = vec![0.0; rows as usize * dim];
        all.chunks_mut(dim).enumerate().for_each(|(row, out)| {
            initialise_row(Initialisation::Uniform { bound: 0.1 }, SEED, table, row as u64, out);
        });
        weights.push(all);
    }
    let mut state: Vec<Vec<f32>> = dims.iter().map(|&(rows, _)| vec![0.0; rows as usize * state_floats]).collect();
    let mut bits = Vec::new();
    for (step, batch) in batches.iter().enumerate() {
        for (table, bags) in batch.iter().enumerate() {
            let dim = dims[table].1;
            let mut pooled = vec![0.0f32; bags.len() * dim];
            for (bag, rows) in bags.iter().enumerate() {
                for &row in rows {
                    for column in 0..dim {
                        pooled[bag * dim + column] += weights[table][row as usize * dim + column];
                    }
                }
            }
            bits.extend(pooled.iter().map(|value| value.to_bits()));
            let gradient = gradient(&pooled, step);
            let mut sums: std::collections::BTreeMap<u64, Vec<f32>> = std::collections::BTreeMap::new();
            for (bag, rows) in bags.iter().enumerate() {
                for &row in rows {
                    let sum = sums.entry(row).or_insert_with(|| vec![0.0; dim]);
                    for column in 0..dim {
                        sum[column] += gradient[bag * dim + column];
                    }
                }
            }
            for (row, sum) in sums {
                let mut step = LR;
                if let OptimizerConfig::RowwiseAdagrad { eps } = optimizer {
                    let mut lanes = [0.0f32; 16];
                    for (column, value) in sum.iter().enumerate() {
                        lanes[column % 16] += value * value;
                    }
                    for half in [8, 4, 2, 1] {
                        for lane in 0..half {
                            lanes[lane] += lanes[lane + half];
                        }
                    }
                    let accumulator = &mut state[table][row as usize];
                    *accumulator += lanes[0] / dim as f32;
                    step = LR / (accumulator.sqrt() + eps);
                }
                for column in 0..dim {
                    weights[table][row as usize * dim + column] -= step * sum[column];
                }
            }
        }
    }
    for (weights, state) in weights.iter().zip(&state) {
        bits.extend(weights.iter().chain(state).map(|value| value.to_bits()));
    }
    bits
}

fn batches(tables: usize, count: usize) -> impl Strategy<Value = Vec<Batch>> {
    let bag = prop::collection::vec(0u64..400, 0..4);
    let table = prop::collection::vec(bag, 6);
    prop::collection::vec(prop::collection::vec(table, tables), count)
}

/// Touches every row of both tables three times, in batches so small that those in flight hold half
/// of the rows at most: every cache here overflows down to the home tier and back.
fn churn() -> Vec<Batch> {
    let bag = |step: u64, bag: u64| (0..8).map(|n| (step * 48 + bag * 8 + n) % 400).collect();
    let batch = |step: u64| (0..2).map(|_| (0..6).map(|number| bag(step, number)).collect()).collect();
    (0..25).map(batch).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]
    #[test]
    fn tiers_do_not_change_a_bit(
        batches in batches(2, 12),
        same_dim in any::<bool>(),
        adagrad in any::<bool>(),
        distance in 0usize..4,
        cache_rows in 1u64..40,
        middle_blocks in prop::collection::vec(1u64..3, 0..4),
    ) {
        let batches = [batches, churn()].concat();
        let dims = [(400, 16), (400, if same_dim { 16 } else { 5 })];
        let optimizer = if adagrad { OptimizerConfig::RowwiseAdagrad { eps: 1e-8 } } else { OptimizerConfig::Sgd };
        let memory = Store::open(config(&dims, vec![tier("dram", "dram-ddr4-2933", None)], optimizer, 1 << 20)).unwrap();
        let expected = train(&memory, &dims, &batches, 0);
        prop_assert_eq!(&expected, &scalar_twin(&dims, &batches, optimizer));

        let mut tiers = vec![tier("dram", "dram-ddr4-2933", Some(Budget::Bytes(cache_rows * 2 * 68)))];
        for (position, blocks) in middle_blocks.iter().enumerate() {
            let budget = Some(Budget::Bytes(blocks * 4096));
            tiers.push(tier(&format!("optane{position}"), "optane-p4800x", budget));
        }
        tiers.push(tier("nand", "nand-p3700", None));
        let tiered = Store::open(config(&dims, tiers, optimizer, 1 << 16)).unwrap();
        prop_assert_eq!(&expected, &train(&tiered, &dims, &batches, distance));
        let stats = tiered.stats().unwrap();
        prop_assert_eq!(stats.open_tickets, 0);
        for tier in &stats.tiers[1..] {
            prop_assert!(tier.device.counters.writes > 0, "{} was written", &tier.name);
            prop_assert!(tier.device.counters.reads > 0, "{} was read", &tier.name);
        }
    }
}
