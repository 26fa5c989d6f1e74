//! The pipeline under many interleavings of a loader, a trainer, a reader and the I/O thread, with tiers that fail now and
//! then. `cargo test -p tiermem-core --features shuttle --lib interleavings` runs it.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use shuttle::sync::mpsc::channel;
use shuttle::thread;

use super::{Budget, ClockMode, HomeLayout, Lookup, NonFinite, Pooled, Store, StoreConfig, TierConfig};
use crate::backend::{Backend, BackendConfig, RamBackend};
use crate::cache::PolicyKind;
use crate::device::{DeviceSpec, FaultSpec};
use crate::embedding::{Initialisation, OptimizerConfig, Pooling, Rounding, RowType, TableConfig, initialise_row};
use crate::error::{ErrorKind, Result};
use crate::sync::Arc;
use crate::testkit::FailingBackend;

const ROWS: u64 = 24;
const DIM: usize = 4;
const INIT: Initialisation = Initialisation::Uniform { bound: 1.0 };
const SUM: Pooled<'static> = Pooled { pooling: Pooling::Sum, sample_weights: None };

fn tier(name: &str, cache: Option<Budget>) -> TierConfig {
    let path = format!("{}/../emulator_configs/devices/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    TierConfig {
        name: name.into(),
        device: DeviceSpec::from_toml(&std::fs::read_to_string(path).unwrap()).unwrap(),
        backend: BackendConfig::ram(),
        cache,
        policy: PolicyKind::Lru,
        layout: HomeLayout::InPlace,
        faults: FaultSpec::default(),
    }
}

fn open(failures: u64, is_log: bool) -> Store {
    let rows = |count: u64| Some(Budget::Bytes(count * DIM as u64 * 4));
    let mut tiers = vec![tier("dram-ddr4-2933", rows(2)), tier("pmem-100", rows(3)), tier("nand-p3700", None)];
    if is_log {
        tiers[2].layout =
            HomeLayout::Log { segment_bytes: 4096, spare: 0.25, compaction_share: 0.5, paged_index: false };
    }
    let config = StoreConfig {
        tables: vec![TableConfig {
            name: "t".into(),
            rows: ROWS,
            dim: DIM,
            init: INIT,
            row_type: RowType::Fp32,
            rounding: Rounding::Nearest,
        }],
        tiers,
        parts: None,
        optimizer: OptimizerConfig::sgd(),
        // Two batches: the third one waits.
        staging_bytes: 8 * DIM as u64 * 4,
        memory_limit_bytes: None,
        clock: ClockMode::Virtual,
        seed: 1,
        non_finite_gradients: NonFinite::Pass,
        timeline: false,
        threads: 1,
        simd: None,
    };
    let wrap = |position: usize, inner: Box<dyn Backend>| -> Box<dyn Backend> {
        let ram = RamBackend::new(inner.len_bytes()).unwrap();
        Box::new(FailingBackend::for_a_while(2 + position as u64, failures, libc::EIO, ram))
    };
    Store::open_wrapped(config, &wrap).unwrap()
}

fn batches() -> Vec<Vec<i64>> {
    (0..6).map(|step: i64| (0..4).map(|n| (step * 5 + n * 3) % ROWS as i64).collect()).collect()
}

/// Tries again what a tier failed.
fn persist<T>(mut call: impl FnMut() -> Result<T>) -> T {
    loop {
        match call() {
            Ok(value) => return value,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Io, "{error}"),
        }
    }
}

fn explore(failures: u64, is_log: bool, has_reader: bool) {
    let store = Arc::new(open(failures, is_log));
    let (sender, receiver) = channel();
    let loader = {
        let store = Arc::clone(&store);
        thread::spawn(move || {
            for ids in batches() {
                sender.send(persist(|| store.prefetch(&[Lookup { table: 0, ids: &ids, offsets: &[0] }]))).unwrap();
            }
        })
    };
    let reader = has_reader.then(|| {
        let store = Arc::clone(&store);
        thread::spawn(move || {
            let mut rows = [0.0; ROWS as usize * DIM];
            persist(|| store.read_rows(0, 0, &mut rows, &mut []));
            persist(|| store.flush());
            persist(|| store.stats().map(drop));
        })
    });
    let mut expected = vec![[0.0f32; DIM]; ROWS as usize];
    for (row, weights) in expected.iter_mut().enumerate() {
        initialise_row(INIT, 1, 0, row as u64, weights);
    }
    for ids in batches() {
        let ticket = receiver.recv().unwrap();
        persist(|| store.wait(ticket, &|| false));
        let mut pooled = [0.0; DIM];
        store.gather(ticket, 0, SUM, &mut pooled).unwrap();
        let mut sum = [0.0f32; DIM];
        for &id in &ids {
            sum.iter_mut().zip(&expected[id as usize]).for_each(|(sum, value)| *sum += value);
        }
        assert_eq!(pooled.map(f32::to_bits), sum.map(f32::to_bits), "rows of a batch are those of all steps before it");
        store.update(ticket, 0, SUM, &[0.5; DIM], 0.1).unwrap();
        for &id in &ids {
            // Each row is in a batch once.
            expected[id as usize].iter_mut().for_each(|value| *value -= 0.1 * 0.5);
        }
        let mut is_again = false;
        persist(|| match store.release(ticket) {
            // A failed release is finished by whoever comes next.
            Err(error) if error.kind() == ErrorKind::Input && is_again => Ok(()),
            other => {
                is_again = true;
                other
            }
        });
    }
    loader.join().unwrap();
    if let Some(reader) = reader {
        reader.join().unwrap();
    }
    let mut rows = [0.0; ROWS as usize * DIM];
    persist(|| store.read_rows(0, 0, &mut rows, &mut []));
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&rows), bits(expected.as_flattened()));
    persist(|| store.flush());
    assert_eq!(store.stats().unwrap().open_tickets, 0);
}

#[test]
fn a_loader_and_a_trainer_give_the_bits_of_one_thread() {
    shuttle::check_random(|| explore(0, false, false), 2_000);
    shuttle::check_pct(|| explore(0, false, false), 500, 3);
}

#[test]
fn readers_and_flushes_in_between_change_nothing() {
    shuttle::check_random(|| explore(0, true, true), 1_500);
    shuttle::check_pct(|| explore(0, false, true), 500, 3);
}

#[test]
fn tiers_that_fail_now_and_then_lose_nothing_in_any_interleaving() {
    shuttle::check_random(|| explore(3, false, true), 1_500);
    shuttle::check_pct(|| explore(2, true, true), 500, 3);
}
