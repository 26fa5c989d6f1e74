//! Devices that fail: the call says which tier and which rows, nothing is lost, and the store goes on as soon as the
//! device does.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::training::{Batch, Dim, Kind, LR, SUM, all_rows, gradient, scalar_twin, try_all_rows, with_lookups};
use common::{config, tier};
use tiermem_core::ErrorKind;
use tiermem_core::backend::{Backend, RamBackend};
use tiermem_core::embedding::OptimizerConfig;
use tiermem_core::error::Result;
use tiermem_core::store::{Budget, HomeLayout, Lookup, NonFinite, Store, StoreConfig, TierConfig};
use tiermem_core::testkit::FailingBackend;

const DIMS: [Dim; 2] = [(300, 16), (300, 16)];

/// Tries again until it works; gives how often it failed.
fn persist<T>(failures: &mut usize, mut call: impl FnMut() -> Result<T>) -> T {
    loop {
        match call() {
            Ok(value) => return value,
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::Io | ErrorKind::NoSpace), "{error:?}");
                let text = error.to_string();
                assert!(text.contains("tier=") && text.contains("rows="), "{text}");
                *failures += 1;
            }
        }
    }
}

fn batches() -> Vec<Batch> {
    let bag = |step: u64, bag: u64| (0..8).map(|n| (step * 37 + bag * 11 + n * 5) % 300).collect();
    let batch = |step: u64| {
        let lookup = |table: usize| (table, (0..4).map(|number| bag(step + table as u64, number)).collect());
        Batch { kind: Kind::Fused, lookups: vec![lookup(0), lookup(1)], is_copied: step == 7 }
    };
    (0..14).map(batch).collect()
}

/// Trains, trying every call again that fails.
fn train_persistently(store: &Store, batches: &[Batch]) -> (Vec<u32>, usize) {
    let (mut bits, mut failures) = (Vec::new(), 0);
    let mut tickets = std::collections::VecDeque::new();
    let mut ahead = batches.iter();
    for (step, batch) in batches.iter().enumerate() {
        while tickets.len() < 3
            && let Some(next) = ahead.next()
        {
            tickets.push_back(persist(&mut failures, || with_lookups(next, |lookups| store.prefetch(lookups))));
        }
        let ticket = tickets.pop_front().unwrap();
        persist(&mut failures, || store.wait(ticket, &|| false));
        for (position, (table, bags)) in batch.lookups.iter().enumerate() {
            let mut pooled = vec![0.0; bags.len() * DIMS[*table].1];
            store.gather(ticket, position, SUM, &mut pooled).unwrap();
            bits.extend(pooled.iter().map(|value| value.to_bits()));
            store.update(ticket, position, SUM, &gradient(&pooled, step), LR).unwrap();
        }
        // A failed release of an earlier write-back may have given the ticket back already.
        let mut is_first = true;
        persist(&mut failures, || match store.release(ticket) {
            Err(error) if error.kind() == ErrorKind::Input && !is_first => Ok(()),
            other => {
                is_first = false;
                other
            }
        });
        if batch.is_copied {
            persist(&mut failures, || store.flush());
            bits.extend(persist(&mut failures, || try_all_rows(store, &DIMS)));
        }
    }
    persist(&mut failures, || store.flush());
    bits.extend(persist(&mut failures, || try_all_rows(store, &DIMS)));
    (bits, failures)
}

fn tiers(layout: HomeLayout) -> Vec<TierConfig> {
    let mut tiers = vec![
        tier("dram", "dram-ddr4-2933", Some(Budget::Bytes(10 * 68))),
        tier("pmem", "pmem-100", Some(Budget::Bytes(40 * 68))),
        tier("optane", "optane-p4800x", Some(Budget::Bytes(2 * 4096))),
        tier("nand", "nand-p3700", None),
    ];
    tiers[3].layout = layout;
    tiers
}

fn adagrad(tiers: Vec<TierConfig>) -> StoreConfig {
    config(&DIMS, tiers, OptimizerConfig::rowwise_adagrad(1e-8), 1 << 16)
}

#[test]
fn a_failure_at_any_operation_of_any_tier_fails_one_call_and_loses_nothing() {
    let expected = {
        let batches = batches();
        scalar_twin(&DIMS, &batches, OptimizerConfig::rowwise_adagrad(1e-8))
    };
    let log = HomeLayout::Log { segment_bytes: 8192, spare: 0.25, compaction_share: 0.5, paged_index: false };
    for layout in [HomeLayout::InPlace, log] {
        for broken in 0..3 {
            let mut reached = 0;
            for operation in 0..60 {
                let failures = 1 + operation % 3;
                let wrap = |position: usize, inner: Box<dyn Backend>| -> Box<dyn Backend> {
                    if position != broken {
                        return inner;
                    }
                    let ram = RamBackend::new(inner.len_bytes()).unwrap();
                    Box::new(FailingBackend::for_a_while(operation, failures, libc::EIO, ram))
                };
                let store = Store::open_wrapped(adagrad(tiers(layout)), &wrap).unwrap();
                let (bits, failed) = train_persistently(&store, &batches());
                assert!(bits == expected, "operation {operation} of tier {broken} failed {failures} times");
                assert!(failed <= failures as usize, "{failed} of {failures}: each failure is told once");
                reached += usize::from(failed > 0);
                store.close().unwrap();
            }
            assert!(reached > 20, "{reached} of 60 faults were reached on tier {broken}");
        }
    }
}

#[test]
fn a_failed_read_names_the_tier_and_the_rows_and_leaves_other_rows_usable() {
    let wrap = |position: usize, inner: Box<dyn Backend>| -> Box<dyn Backend> {
        // The second operation is the read of what the first one wrote.
        if position == 0 {
            Box::new(FailingBackend::for_a_while(1, 2, libc::EIO, RamBackend::new(1 << 24).unwrap()))
        } else {
            inner
        }
    };
    let tiers = vec![tier("dram", "dram-ddr4-2933", Some(Budget::Bytes(68))), tier("nand", "nand-p3700", None)];
    let store = Store::open_wrapped(adagrad(tiers), &wrap).unwrap();
    store.write_rows(0, 100, &[7.0; 16], None).unwrap();
    let ids = [100i64];
    let ticket = store.prefetch(&[Lookup { table: 0, ids: &ids, offsets: &[0] }]).unwrap();
    let error = store.wait(ticket, &|| false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    let text = error.to_string();
    assert!(text.contains("tier=nand, operation=reading, rows=t0 rows 59 to 117"), "{text}");
    // The ticket is still open, and nothing of it can be used yet.
    assert_eq!(store.gather(ticket, 0, SUM, &mut [0.0; 16]).unwrap_err().kind(), ErrorKind::Input);
    assert_eq!(store.wait(ticket, &|| false).unwrap_err().kind(), ErrorKind::Io, "the second failure");
    store.wait(ticket, &|| false).unwrap();
    let mut pooled = [0.0; 16];
    store.gather(ticket, 0, SUM, &mut pooled).unwrap();
    assert!(pooled.iter().all(|&value| value.to_bits() == 7.0f32.to_bits()));
    store.release(ticket).unwrap();
}

#[test]
fn tickets_released_while_a_tier_fails_are_given_back_when_it_works_again() {
    let wrap = |_: usize, _: Box<dyn Backend>| -> Box<dyn Backend> {
        Box::new(FailingBackend::for_a_while(1, 8, libc::EIO, RamBackend::new(1 << 24).unwrap()))
    };
    let tiers = vec![tier("dram", "dram-ddr4-2933", Some(Budget::Bytes(68))), tier("nand", "nand-p3700", None)];
    // Staging holds twenty rows.
    let config = config(&DIMS, tiers, OptimizerConfig::rowwise_adagrad(1e-8), 20 * 68);
    let store = Store::open_wrapped(config, &wrap).unwrap();
    store.write_rows(0, 0, &vec![7.0; 16 * 300], None).unwrap();
    let mut failures = 0;
    for step in 0..20i64 {
        let ids: Vec<i64> = (step * 10..step * 10 + 10).collect();
        let Ok(ticket) = store.prefetch(&[Lookup { table: 0, ids: &ids, offsets: &[0] }]) else { continue };
        let waited = store.wait(ticket, &|| false);
        // As a caller does that gives up on a batch.
        let released = store.release(ticket);
        failures += usize::from(waited.is_err() || released.is_err());
    }
    assert!((1..=8).contains(&failures), "{failures} steps failed");
    assert_eq!(store.stats().unwrap().open_tickets, 0);
    assert!(all_rows(&store, &DIMS).starts_with(&[7.0f32.to_bits(); 16]));
}

#[test]
fn a_release_that_failed_gives_its_room_back_to_whoever_waits_once_the_tier_works() {
    for flushes_between in [false, true] {
        let wrap = |_: usize, _: Box<dyn Backend>| -> Box<dyn Backend> {
            Box::new(FailingBackend::for_a_while(1, 1, libc::EIO, RamBackend::new(1 << 24).unwrap()))
        };
        let tiers = vec![tier("dram", "dram-ddr4-2933", Some(Budget::Bytes(68))), tier("nand", "nand-p3700", None)];
        let config = config(&DIMS, tiers, OptimizerConfig::rowwise_adagrad(1e-8), 10 * 68);
        let store = Store::open_wrapped(config, &wrap).unwrap();
        store.write_rows(0, 0, &vec![7.0; 16 * 300], None).unwrap();
        let prefetch = |start: i64| {
            let ids: Vec<i64> = (start..start + 10).collect();
            store.prefetch(&[Lookup { table: 0, ids: &ids, offsets: &[0] }]).unwrap()
        };
        let (first, second) = (prefetch(0), prefetch(100));
        assert_eq!(store.release(first).unwrap_err().kind(), ErrorKind::Io);
        let refused = store.gather(first, 0, SUM, &mut [0.0; 16]).unwrap_err();
        assert!(refused.to_string().contains("was released"), "{refused}");
        if flushes_between {
            store.flush().unwrap();
        }
        // Only this thread is there, and it holds nothing.
        store.wait(second, &|| false).unwrap();
        store.release(second).unwrap();
        assert_eq!(store.stats().unwrap().open_tickets, 0);
    }
}

#[test]
fn a_full_device_fails_the_step_that_waits_for_it_and_keeps_what_was_trained() {
    let wrap = |_: usize, _: Box<dyn Backend>| -> Box<dyn Backend> {
        Box::new(FailingBackend::for_a_while(0, 1, libc::ENOSPC, RamBackend::new(1 << 24).unwrap()))
    };
    let tiers = vec![tier("dram", "dram-ddr4-2933", Some(Budget::Bytes(68))), tier("nand", "nand-p3700", None)];
    let config = config(&DIMS, tiers, OptimizerConfig::sgd(), 1 << 16);
    let store = Store::open_wrapped(config, &wrap).unwrap();
    let ids: Vec<i64> = (0..50).collect();
    let ticket = store.prefetch(&[Lookup { table: 0, ids: &ids, offsets: &[0] }]).unwrap();
    store.wait(ticket, &|| false).unwrap();
    let before = all_rows(&store, &DIMS);
    store.update(ticket, 0, SUM, &[1.0; 16], LR).unwrap();
    let trained = all_rows(&store, &DIMS);
    assert!(before != trained);
    // The write-back runs behind the release; whoever comes next is told.
    store.release(ticket).unwrap();
    let error = store.read_rows(0, 0, &mut [0.0; 16], &mut []).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert!(error.to_string().contains("tier=nand, operation=writing, rows=t0 rows 0 to"), "{error}");
    assert!(all_rows(&store, &DIMS) == trained);
}

#[test]
fn a_device_that_never_works_again_fails_every_call_that_needs_it_and_close() {
    let wrap = |_: usize, _: Box<dyn Backend>| -> Box<dyn Backend> {
        Box::new(FailingBackend::after(0, libc::ENODEV, RamBackend::new(1 << 24).unwrap()))
    };
    let tiers = vec![tier("dram", "dram-ddr4-2933", Some(Budget::Bytes(68))), tier("nand", "nand-p3700", None)];
    let store = Store::open_wrapped(adagrad(tiers), &wrap).unwrap();
    let ids: Vec<i64> = (0..50).collect();
    let ticket = store.prefetch(&[Lookup { table: 0, ids: &ids, offsets: &[0] }]).unwrap();
    store.wait(ticket, &|| false).unwrap();
    store.update(ticket, 0, SUM, &[1.0; 16], LR).unwrap();
    store.release(ticket).unwrap();
    for _ in 0..3 {
        assert_eq!(store.flush().unwrap_err().kind(), ErrorKind::Io);
    }
    assert_eq!(store.close().unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(store.flush().unwrap_err().kind(), ErrorKind::Closed);
}

#[test]
fn gradients_that_are_not_finite_are_counted_and_refused_if_asked_for() {
    for (policy, is_refused) in [(NonFinite::Pass, false), (NonFinite::Refuse, true)] {
        let mut config = adagrad(tiers(HomeLayout::InPlace));
        config.non_finite_gradients = policy;
        let store = Store::open(config).unwrap();
        let ticket = store.prefetch(&[Lookup { table: 1, ids: &[3, 4], offsets: &[0, 1] }]).unwrap();
        store.wait(ticket, &|| false).unwrap();
        let before = all_rows(&store, &DIMS);
        let mut gradients = [1.0; 32];
        gradients[18] = f32::NAN;
        gradients[31] = f32::INFINITY;
        let outcome = store.update(ticket, 0, SUM, &gradients, LR);
        assert_eq!(store.stats().unwrap().non_finite_values, 2);
        if is_refused {
            let text = outcome.unwrap_err().to_string();
            assert!(text.contains("2 gradient values") && text.contains("table=t1, bag=1, column=2"), "{text}");
            assert!(all_rows(&store, &DIMS) == before);
            assert_eq!(store.accumulate(ticket, 0, SUM, &gradients).unwrap_err().kind(), ErrorKind::Input);
        } else {
            outcome.unwrap();
            assert!(all_rows(&store, &DIMS) != before);
        }
        store.release(ticket).unwrap();
    }
}
