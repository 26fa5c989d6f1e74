//! Files of rows: what was saved in the middle of training is what training goes on from, on any hierarchy.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::Path;

use common::training::{Batch, Dim, Kind, all_rows, run_step, scalar_twin, with_lookups};
use common::{config, tier};
use tiermem_core::ErrorKind;
use tiermem_core::embedding::{OptimizerConfig, RowType};
use tiermem_core::store::{Budget, HomeLayout, Store, StoreConfig, TierConfig, verify_rows};

const DIMS: [Dim; 2] = [(500, 16), (300, 7)];
const OPTIMIZER: OptimizerConfig = OptimizerConfig::rowwise_adagrad(1e-8);

/// Leaves some rows of both tables alone.
fn batches() -> Vec<Batch> {
    let bag = |rows: u64, step: u64, bag: u64| (0..8).map(|n| (step * 31 + bag * 13 + n * 3) % (rows - 40)).collect();
    let batch = |step: u64| {
        let lookup = |table: usize| (table, (0..4).map(|number| bag(DIMS[table].0, step, number)).collect());
        Batch { kind: Kind::Fused, lookups: vec![lookup(0), lookup(1)], is_copied: false }
    };
    (0..30).map(batch).collect()
}

fn open(tiers: Vec<TierConfig>) -> Store {
    Store::open(StoreConfig { parts: None, ..config(&DIMS, tiers, OPTIMIZER, 1 << 16) }).unwrap()
}

fn resident() -> Store {
    open(vec![tier("dram", "dram-ddr4-2933", None)])
}

fn four_tiers() -> Store {
    let mut tiers = vec![
        tier("dram", "dram-ddr4-2933", Some(Budget::Bytes(12 * 68))),
        tier("pmem", "pmem-100", Some(Budget::Bytes(30 * 68))),
        tier("optane", "optane-p4800x", Some(Budget::Bytes(2 * 4096))),
        tier("nand", "nand-p3700", None),
    ];
    tiers[3].layout = HomeLayout::Log { segment_bytes: 8192, spare: 0.25, compaction_share: 0.5, paged_index: false };
    open(tiers)
}

/// Runs `batches`, two ahead; after `save_after` of them the rows are saved, with the next ones in flight.
fn run(store: &Store, batches: &[Batch], first_step: usize, save: Option<(usize, &Path)>) -> Vec<u32> {
    let mut bits = Vec::new();
    let mut tickets = std::collections::VecDeque::new();
    let mut next = 0;
    for (step, batch) in batches.iter().enumerate() {
        while next < batches.len() && next <= step + 2 {
            tickets.push_back(with_lookups(&batches[next], |lookups| store.prefetch(lookups)).unwrap());
            next += 1;
        }
        let ticket = tickets.pop_front().unwrap();
        store.wait(ticket, &|| false).unwrap();
        bits.extend(run_step(store, &DIMS, batch, ticket, first_step + step));
        if let Some((after, path)) = save
            && step + 1 == after
        {
            store.save_rows(path).unwrap();
        }
    }
    bits.extend(all_rows(store, &DIMS));
    bits
}

#[test]
fn training_goes_on_from_a_file_on_any_hierarchy_and_saving_disturbs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let batches = batches();
    let expected = scalar_twin(&DIMS, &batches, OPTIMIZER);
    for (name, store) in [("resident", resident()), ("tiers", four_tiers())] {
        let path = folder.path().join(name);
        assert!(run(&store, &batches, 0, Some((17, &path))) == expected);
        let undisturbed = if name == "tiers" { four_tiers() } else { resident() };
        run(&undisturbed, &batches, 0, None);
        assert_eq!(store.now_ns(), undisturbed.now_ns(), "saving costs no virtual time");
        let (with, without) = (store.stats().unwrap(), undisturbed.stats().unwrap());
        for (with, without) in with.tiers.iter().zip(&without.tiers) {
            assert_eq!(with.device.counters, without.device.counters);
            assert_eq!((with.probed_rows, with.hit_rows), (without.probed_rows, without.hit_rows));
        }
        for resumed in [resident(), four_tiers()] {
            let rows = resumed.load_rows(&path).unwrap();
            assert!(rows < DIMS[0].0 + DIMS[1].0 - 80, "{rows} rows were saved: only those that exist");
            let found = run(&resumed, &batches[17..], 17, None);
            assert!(expected.ends_with(&found), "from {name}");
            assert_eq!(resumed.steps().unwrap(), store.steps().unwrap(), "steps are counted on from the file");
        }
    }
    let path = folder.path().join("tiers");
    assert_eq!(resident().save_rows(&path).unwrap_err().raw_os_error(), Some(libc::EEXIST));
}

#[test]
fn a_file_that_was_cut_or_changed_anywhere_is_refused_with_its_name_and_an_offset() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows");
    let store = resident();
    run(&store, &batches()[..3], 0, Some((3, &path)));
    let whole = std::fs::read(&path).unwrap();
    let damaged = folder.path().join("damaged");
    let refused = |bytes: &[u8]| {
        std::fs::write(&damaged, bytes).unwrap();
        let error = verify_rows(&damaged).unwrap_err();
        let fresh = resident();
        assert_eq!(fresh.load_rows(&damaged).unwrap_err().kind(), error.kind());
        let text = error.to_string();
        assert!(text.contains(&damaged.display().to_string()), "{text}");
        assert!(error.kind() == ErrorKind::Unsupported || text.contains("offset="), "{text}");
        error.kind()
    };
    for position in (0..whole.len()).step_by(whole.len() / 300).chain(0..60).chain(whole.len() - 40..whole.len()) {
        let mut bytes = whole.clone();
        bytes[position] ^= 1 << (position % 8);
        let kind = refused(&bytes);
        assert!(kind == ErrorKind::Corruption || ((8..12).contains(&position) && kind == ErrorKind::Unsupported));
    }
    for length in (0..whole.len()).step_by(whole.len() / 100).chain([whole.len() - 1]) {
        assert_eq!(refused(&whole[..length]), ErrorKind::Corruption);
    }
    let longer = [&whole[..], &[0]].concat();
    assert_eq!(refused(&longer), ErrorKind::Corruption);
    verify_rows(&path).unwrap();
}

#[test]
fn a_file_of_other_tables_is_refused_before_anything_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows");
    resident().save_rows(&path).unwrap();
    let tiers = || vec![tier("dram", "dram-ddr4-2933", None)];
    let other = Store::open(config(&[(500, 16), (301, 7)], tiers(), OPTIMIZER, 1 << 16)).unwrap();
    let error = other.load_rows(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("it has \"t1\" with 300 rows of 7 columns in fp32"), "{error}");
    let other = Store::open(config(&DIMS, tiers(), OptimizerConfig::sgd(), 1 << 16)).unwrap();
    assert!(other.load_rows(&path).unwrap_err().to_string().contains("1 floats of optimizer state"));
    let mut halves = config(&DIMS, tiers(), OPTIMIZER, 1 << 16);
    halves.tables[0].row_type = RowType::Fp16;
    let error = Store::open(halves).unwrap().load_rows(&path).unwrap_err();
    assert!(error.to_string().contains("in fp32") && error.to_string().contains("in fp16"), "{error}");
}
