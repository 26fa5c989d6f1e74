//! Training through any hierarchy gives the bits of training in memory, and a plain scalar twin agrees.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::float_cmp, reason = "bits are the subject")]

use proptest::prelude::*;
use tiermem_core::ErrorKind;
use tiermem_core::backend::{Backend, BackendConfig, RamBackend};
use tiermem_core::device::DeviceSpec;
use tiermem_core::embedding::{Initialisation, OptimizerConfig, Pooling, TableConfig, initialise_row};
use tiermem_core::store::{Budget, ClockMode, Lookup, Pooled, Store, StoreConfig, TierConfig};
use tiermem_core::testkit::FailingBackend;

const SEED: u64 = 11;
const LR: f32 = 0.1;
const SUM: Pooled<'static> = Pooled { pooling: Pooling::Sum, sample_weights: None };

fn tier(name: &str, device: &str, cache: Option<Budget>) -> TierConfig {
    let path = format!("{}/../emulator_configs/devices/{device}.toml", env!("CARGO_MANIFEST_DIR"));
    let device = DeviceSpec::from_toml(&std::fs::read_to_string(path).unwrap()).unwrap();
    TierConfig { name: name.into(), device, backend: BackendConfig::ram(), cache }
}

fn config(
    tables: &[(u64, usize)],
    tiers: Vec<TierConfig>,
    optimizer: OptimizerConfig,
    staging_bytes: u64,
) -> StoreConfig {
    let tables = tables.iter().enumerate().map(|(n, &(rows, dim))| TableConfig {
        name: format!("t{n}"),
        rows,
        dim,
        init: Initialisation::Uniform { bound: 0.1 },
    });
    StoreConfig {
        tables: tables.collect(),
        tiers,
        optimizer,
        staging_bytes,
        memory_limit_bytes: None,
        clock: ClockMode::Virtual,
        seed: SEED,
    }
}

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

/// Touches every row of both tables twice, so that every cache here overflows down to the home tier and back.
fn churn() -> Vec<Batch> {
    let batch = |step: u64| {
        (0..2)
            .map(|_| (0..6).map(|bag| (0..17).map(|n| (step * 100 + bag * 17 + n) % 400).collect()).collect())
            .collect()
    };
    (0..8).map(batch).collect()
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
        middle_blocks in prop::collection::vec(1u64..6, 0..4),
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

fn small(tiers: Vec<TierConfig>, staging_bytes: u64) -> StoreConfig {
    config(&[(10_000, 16)], tiers, OptimizerConfig::Sgd, staging_bytes)
}

fn two_tiers(cache_rows: u64) -> Vec<TierConfig> {
    vec![tier("dram", "dram-ddr4-2933", Some(Budget::Bytes(cache_rows * 64))), tier("nand", "nand-p3700", None)]
}

#[test]
fn clean_rows_are_never_written_back_and_absent_rows_cost_no_read() {
    let store = Store::open(small(two_tiers(8), 1 << 16)).unwrap();
    for start in 0..50 {
        let ids: Vec<i64> = (start * 20..start * 20 + 20).collect();
        let ticket = store.prefetch(&[Lookup { table: 0, ids: &ids, offsets: &[0] }]).unwrap();
        store.wait(ticket).unwrap();
        store.gather(ticket, 0, SUM, &mut [0.0; 16]).unwrap();
        store.release(ticket).unwrap();
    }
    let stats = store.stats().unwrap();
    assert_eq!((stats.rows_written_back, stats.initialised_rows), (0, 1000));
    assert_eq!(stats.tiers[1].device.counters, tiermem_core::stats::DeviceCounters::default());
    assert_eq!(stats.tiers[0].held, 8);
}

#[test]
fn a_batch_larger_than_staging_says_how_much_it_needs() {
    let store = Store::open(small(two_tiers(8), 64 * 10)).unwrap();
    let ids: Vec<i64> = (0..11).collect();
    let error = store.prefetch(&[Lookup { table: 0, ids: &ids, offsets: &[0] }]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Capacity);
    assert!(error.to_string().contains("needed_bytes=704, staging_bytes=640"), "{error}");
    // Duplicates do not count.
    let ids = vec![3i64; 100];
    assert!(store.prefetch(&[Lookup { table: 0, ids: &ids, offsets: &[0] }]).is_ok());
}

#[test]
fn tickets_queue_for_staging_memory_and_are_admitted_in_order() {
    let store = Store::open(small(two_tiers(8), 64 * 10)).unwrap();
    let ids = |start: i64| (start..start + 8).collect::<Vec<i64>>();
    let prefetch = |ids: &[i64]| store.prefetch(&[Lookup { table: 0, ids, offsets: &[0] }]).unwrap();
    let (first, second, third) = (prefetch(&ids(0)), prefetch(&ids(100)), prefetch(&ids(0)));
    store.wait(first).unwrap();
    // The third would fit, since its rows are in flight, but the second comes first.
    assert_eq!(store.wait(third).unwrap_err().kind(), ErrorKind::Capacity);
    assert_eq!(store.wait(second).unwrap_err().kind(), ErrorKind::Capacity);
    store.release(first).unwrap();
    store.wait(second).unwrap();
    store.release(second).unwrap();
    store.wait(third).unwrap();
    store.release(third).unwrap();
    assert_eq!(store.release(third).unwrap_err().kind(), ErrorKind::Input);
}

#[test]
fn wrong_input_is_named() {
    let store = Store::open(small(two_tiers(8), 1 << 16)).unwrap();
    let message =
        |ids: &[i64], offsets: &[i64]| store.prefetch(&[Lookup { table: 0, ids, offsets }]).unwrap_err().to_string();
    assert!(message(&[1, 10_000], &[0]).contains("id 10000 is out of range; ids are 0 to 9999"));
    assert!(message(&[-1], &[0]).contains("id -1 is out of range"));
    assert!(message(&[1, 2, 3], &[0, 2, 1]).contains("ascend"));
    assert!(message(&[1], &[1]).contains("start at 0"));
    assert!(message(&[1], &[0, 2]).contains("stay within"));
    assert!(
        store
            .prefetch(&[Lookup { table: 1, ids: &[], offsets: &[] }])
            .unwrap_err()
            .to_string()
            .contains("table 1 does not exist")
    );
}

#[test]
fn a_device_smaller_than_the_table_and_a_memory_limit_are_capacity_errors() {
    let mut tiers = two_tiers(8);
    tiers[1].device.capacity_bytes = 4096;
    let error = Store::open(small(tiers, 1 << 16)).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Capacity);
    assert!(error.to_string().contains("tier=nand"), "{error}");
    let mut limited = small(two_tiers(8), 1 << 16);
    limited.memory_limit_bytes = Some(1000);
    assert_eq!(Store::open(limited).map(drop).unwrap_err().kind(), ErrorKind::Capacity);
}

#[test]
fn every_failure_of_a_backend_is_an_error_and_stops_the_store() {
    for operations in 0..12 {
        let wrap = |_: usize, _: Box<dyn Backend>| -> Box<dyn Backend> {
            Box::new(FailingBackend::after(operations, libc::EIO, RamBackend::new(1 << 24).unwrap()))
        };
        let store = Store::open_wrapped(small(two_tiers(4), 64 * 64), &wrap).unwrap();
        let mut failure = None;
        for step in 0..60i64 {
            let ids: Vec<i64> = (0..16).map(|n| (step * 7 + n * 61) % 500).collect();
            let outcome = store.prefetch(&[Lookup { table: 0, ids: &ids, offsets: &[0] }]).and_then(|ticket| {
                store.wait(ticket)?;
                store.update(ticket, 0, SUM, &[1.0; 16], LR)?;
                store.release(ticket)
            });
            if let Err(error) = outcome {
                failure = Some(error);
                break;
            }
        }
        let error = failure.expect("the fault is reached");
        assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::Closed), "{error}");
        assert_eq!(store.prefetch(&[]).unwrap_err().kind(), ErrorKind::Closed);
    }
}

#[test]
fn gradients_of_two_lookups_are_one_update_and_keep_the_rows() {
    let open =
        |tiers| Store::open(config(&[(100, 4)], tiers, OptimizerConfig::RowwiseAdagrad { eps: 0.0 }, 1 << 16)).unwrap();
    let two = open(vec![tier("dram", "dram-ddr4-2933", Some(Budget::Bytes(20))), tier("nand", "nand-p3700", None)]);
    let one = open(vec![tier("dram", "dram-ddr4-2933", None)]);
    let rows = |store: &Store| {
        let (mut weights, mut state) = (vec![0.0; 400], vec![0.0; 100]);
        store.read_rows(0, 0, &mut weights, &mut state).unwrap();
        (weights, state)
    };
    let (before, _) = rows(&one);
    for store in [&one, &two] {
        let lookups = [Lookup { table: 0, ids: &[5, 6], offsets: &[0] }, Lookup { table: 0, ids: &[6], offsets: &[0] }];
        let ticket = store.prefetch(&lookups).unwrap();
        store.wait(ticket).unwrap();
        // Backward runs the other way round; the order of additions is that of the lookups.
        store.accumulate(ticket, 1, SUM, &[2.0; 4]).unwrap();
        store.accumulate(ticket, 0, SUM, &[1.0; 4]).unwrap();
        store.release(ticket).unwrap();
        assert_eq!(store.stats().unwrap().open_tickets, 1, "rows stay until the step");
        store.step(0.5).unwrap();
        assert_eq!(store.stats().unwrap().open_tickets, 0);
    }
    let (weights, state) = rows(&one);
    assert_eq!(rows(&two), (weights.clone(), state.clone()));
    assert_eq!((state[5], state[6]), (1.0, 9.0));
    assert_eq!(weights[6 * 4], before[6 * 4] - 0.5);
    assert_eq!(weights[7 * 4], before[7 * 4], "untouched rows never change");
}

#[test]
fn rows_that_were_written_are_read_wherever_they_are() {
    let store = Store::open(small(two_tiers(4), 1 << 16)).unwrap();
    let values: Vec<f32> = (0..300 * 16).map(|n| n as f32).collect();
    store.write_rows(0, 100, &values, None).unwrap();
    let ticket = store.prefetch(&[Lookup { table: 0, ids: &[150], offsets: &[0] }]).unwrap();
    store.wait(ticket).unwrap();
    store.update(ticket, 0, SUM, &[1.0; 16], 1.0).unwrap();
    store.release(ticket).unwrap();
    store.flush().unwrap();
    let mut back = vec![0.0; 300 * 16];
    store.read_rows(0, 100, &mut back, &mut []).unwrap();
    for (n, (found, written)) in back.iter().zip(&values).enumerate() {
        let expected = if n / 16 == 50 { written - 1.0 } else { *written };
        assert_eq!(*found, expected, "value {n}");
    }
    store.close().unwrap();
    store.close().unwrap();
    assert!(store.now_ns() > 0);
    assert_eq!(store.prefetch(&[]).unwrap_err().kind(), ErrorKind::Closed);
}
