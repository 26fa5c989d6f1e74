//! Would the tests notice? Each fault is planted in turn, and training then differs from the plain twin.
//! `cargo test -p tiermem-core --features planted-faults --test planted_faults` runs it.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use common::training::{Batch, Dim, Kind, scalar_twin, train};
use common::{config, tier};
use tiermem_core::embedding::OptimizerConfig;
use tiermem_core::planted::{Fault, plant};
use tiermem_core::store::{Budget, HomeLayout, Store};

const DIMS: [Dim; 1] = [(300, 16)];
const OPTIMIZER: OptimizerConfig = OptimizerConfig::rowwise_adagrad(1e-8);

/// One fault at a time in this process.
static ONE: Mutex<()> = Mutex::new(());

/// Half of each batch is that of the batch before it; the rest goes through all rows.
fn batches() -> Vec<Batch> {
    let bag = |step: u64| {
        let shared = (0..12).map(move |n| (step / 2 * 17 + n * 5) % 300);
        let other = (0..12).map(move |n| (step * 12 + n) % 300);
        shared.chain(other).collect()
    };
    let batch = |step: u64| Batch { kind: Kind::Fused, lookups: vec![(0, vec![bag(step)])], is_copied: false };
    (0..80).map(batch).collect()
}

/// Whether training with this fault goes another way than the plain twin.
fn is_noticed(fault: Option<Fault>, layout: HomeLayout, has_block_cache: bool) -> bool {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut tiers = vec![tier("dram", "dram-ddr4-2933", Some(Budget::Bytes(6 * 68)))];
    if has_block_cache {
        tiers.push(tier("optane", "optane-p4800x", Some(Budget::Bytes(3 * 4096))));
    }
    tiers.push(tier("nand", "nand-p3700", None));
    let home = tiers.len() - 1;
    tiers[home].layout = layout;
    let store = Store::open(config(&DIMS, tiers, OPTIMIZER, 1 << 16)).unwrap();
    plant(fault);
    let outcome = catch_unwind(AssertUnwindSafe(|| train(&store, &DIMS, &batches(), 2, 0)));
    plant(None);
    outcome.map_or(true, |bits| bits != scalar_twin(&DIMS, &batches(), OPTIMIZER))
}

const LOG: HomeLayout = HomeLayout::Log { segment_bytes: 4096, spare: 0.2, compaction_share: 0.5, paged_index: false };

#[test]
fn without_a_fault_nothing_differs() {
    for layout in [HomeLayout::InPlace, LOG] {
        for has_block_cache in [false, true] {
            assert!(!is_noticed(None, layout, has_block_cache));
        }
    }
}

#[test]
fn a_skipped_dirty_bit_is_noticed() {
    for layout in [HomeLayout::InPlace, LOG] {
        assert!(is_noticed(Some(Fault::SkippedDirtyBit), layout, false));
        assert!(is_noticed(Some(Fault::SkippedDirtyBit), layout, true));
    }
}

#[test]
fn a_stale_read_during_write_back_is_noticed() {
    assert!(is_noticed(Some(Fault::StaleRead), HomeLayout::InPlace, false));
    assert!(is_noticed(Some(Fault::StaleRead), HomeLayout::InPlace, true));
}

#[test]
fn a_lost_pin_is_noticed() {
    for layout in [HomeLayout::InPlace, LOG] {
        assert!(is_noticed(Some(Fault::LostPin), layout, false));
    }
}
