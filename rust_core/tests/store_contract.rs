//! What a store promises besides exactness: refusals, order, failures, budgets.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::float_cmp, reason = "bits are the subject")]

mod common;

use common::{config, tier};
use tiermem_core::ErrorKind;
use tiermem_core::backend::RamBackend;
use tiermem_core::device::DeviceSpec;
use tiermem_core::embedding::{OptimizerConfig, Pooling};
use tiermem_core::store::{Budget, Lookup, PartConfig, Pooled, Store, StoreConfig, TierConfig};

const SUM: Pooled<'static> = Pooled { pooling: Pooling::Sum, sample_weights: None };

fn small(tiers: Vec<TierConfig>, staging_bytes: u64) -> StoreConfig {
    config(&[(10_000, 16)], tiers, OptimizerConfig::sgd(), staging_bytes)
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
        store.wait(ticket, &|| false).unwrap();
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
    store.wait(first, &|| false).unwrap();
    // The third would fit, since its rows are in flight, but the second comes first.
    assert_eq!(store.wait(third, &|| false).unwrap_err().kind(), ErrorKind::Capacity);
    assert_eq!(store.wait(second, &|| false).unwrap_err().kind(), ErrorKind::Capacity);
    store.release(first).unwrap();
    store.wait(second, &|| false).unwrap();
    store.release(second).unwrap();
    store.wait(third, &|| false).unwrap();
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
fn gradients_of_two_lookups_are_one_update_and_keep_the_rows() {
    let open = |tiers| Store::open(config(&[(100, 4)], tiers, OptimizerConfig::rowwise_adagrad(0.0), 1 << 16)).unwrap();
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
        store.wait(ticket, &|| false).unwrap();
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
    store.wait(ticket, &|| false).unwrap();
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

#[test]
fn a_shared_row_is_ready_when_the_transfer_that_brings_it_is() {
    let store = Store::open(small(two_tiers(4), 1 << 16)).unwrap();
    store.write_rows(0, 500, &[7.0; 16], None).unwrap();
    let prefetch = || store.prefetch(&[Lookup { table: 0, ids: &[500], offsets: &[0] }]).unwrap();
    let (first, second) = (prefetch(), prefetch());
    let mut pooled = [0.0; 16];
    assert_eq!(store.gather(second, 0, SUM, &mut pooled).unwrap_err().kind(), ErrorKind::Input, "nobody waited");
    store.wait(second, &|| false).unwrap();
    assert!(store.now_ns() > 50_000, "it took as long as the read: {}", store.now_ns());
    store.gather(second, 0, SUM, &mut pooled).unwrap();
    assert_eq!(pooled, [7.0; 16]);
    let waited = store.now_ns();
    store.wait(first, &|| false).unwrap();
    assert_eq!(store.now_ns(), waited);
}

#[test]
fn small_tables_get_staging_and_budgets_are_never_exceeded() {
    let tables = [(20, 4), (1_000_000, 64), (50_000, 16)];
    let open = |cache: u64, staging: u64| {
        let tiers = vec![tier("dram", "dram-ddr4-2933", Some(Budget::Bytes(cache))), tier("nand", "nand-p3700", None)];
        Store::open(config(&tables, tiers, OptimizerConfig::sgd(), staging))
    };
    let store = open(1 << 20, 1 << 20).unwrap();
    let ids: Vec<i64> = (0..20).collect();
    store.prefetch(&[Lookup { table: 0, ids: &ids, offsets: &[0] }]).unwrap();
    // One row of each width is 16 + 256 + 64 bytes.
    for budget in [336u64, 1000, 12_345, 1 << 20] {
        let memory = open(budget, budget).unwrap().stats().unwrap().memory;
        assert!(memory.cached_bytes <= budget && memory.staging_bytes <= budget, "{budget}: {memory:?}");
    }
    assert_eq!(open(335, 1 << 20).map(drop).unwrap_err().kind(), ErrorKind::Capacity);
    assert_eq!(open(1 << 20, 335).map(drop).unwrap_err().kind(), ErrorKind::Capacity);
}

#[test]
fn sizes_that_no_host_has_are_refused_before_memory_is_asked_for() {
    let refused = |rows, dim, kind: ErrorKind| {
        for tiers in [vec![tier("dram", "dram-ddr4-2933", None)], two_tiers(1 << 40)] {
            let error =
                Store::open(config(&[(rows, dim)], tiers, OptimizerConfig::sgd(), 1 << 60)).map(drop).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
        }
    };
    refused(1 << 31, 4096, ErrorKind::Capacity);
    refused(10, 1 << 50, ErrorKind::Config);
    refused(1 << 43, 1 << 20, ErrorKind::Capacity);
    assert_eq!(RamBackend::new(u64::MAX).map(drop).unwrap_err().kind(), ErrorKind::Capacity);
}

#[test]
fn a_device_with_numbers_that_the_model_cannot_use_is_refused() {
    for spoil in [
        (|spec: &mut DeviceSpec| spec.units = 0) as fn(&mut DeviceSpec),
        |spec| spec.page_bytes = 0,
        |spec| spec.granule_bytes = 0,
        |spec| spec.queue_depth = 0,
        |spec| spec.read.latency_max_ns = 1,
    ] {
        let mut tiers = two_tiers(8);
        spoil(&mut tiers[1].device);
        assert_eq!(Store::open(small(tiers, 1 << 16)).map(drop).unwrap_err().kind(), ErrorKind::Config);
    }
}

#[test]
fn rows_that_memory_does_not_cache_leave_with_their_batch() {
    let part = |first_row, cached_by: &[usize]| PartConfig {
        table: 0,
        first_row,
        rows: 5_000,
        home: 1,
        cached_by: cached_by.to_vec(),
        exclusive: false,
    };
    let parts = Some(vec![part(0, &[]), part(5_000, &[0])]);
    let store = Store::open(StoreConfig { parts, ..small(two_tiers(100), 1 << 16) }).unwrap();
    let ids: Vec<i64> = (4_990..5_010).collect();
    for _ in 0..2 {
        let ticket = store.prefetch(&[Lookup { table: 0, ids: &ids, offsets: &[0] }]).unwrap();
        store.wait(ticket, &|| false).unwrap();
        store.update(ticket, 0, SUM, &[1.0; 16], 0.1).unwrap();
        store.release(ticket).unwrap();
        assert_eq!(store.stats().unwrap().tiers[0].held, 10, "those of the second range stay");
    }
    assert_eq!(store.stats().unwrap().tiers[1].hit_rows, 10, "those of the first are read again");
}
