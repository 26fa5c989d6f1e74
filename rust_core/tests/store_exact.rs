//! Training through any hierarchy gives the bits of training in memory, and a plain scalar twin agrees.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::training::{Batch, Dim, Kind, all_rows, scalar_twin, train, train_with_loader};
use common::{config, tier};
use proptest::prelude::*;
use tiermem_core::cache::PolicyKind;
use tiermem_core::device::DeviceKind;
use tiermem_core::embedding::OptimizerConfig;
use tiermem_core::store::{Budget, HomeLayout, PartConfig, Store, StoreConfig, StoreStats, TierConfig};

const ROWS: u64 = 400;
const POLICIES: [PolicyKind; 8] = [
    PolicyKind::Lru,
    PolicyKind::Lfu,
    PolicyKind::Clock,
    PolicyKind::S3Fifo,
    PolicyKind::Sieve,
    PolicyKind::Lookahead,
    PolicyKind::Auto,
    PolicyKind::Random,
];

/// A hierarchy and a placement.
#[derive(Debug, Clone)]
struct Shape {
    /// Middle tiers: whether they hold rows, and how many rows or blocks.
    middle: Vec<(bool, u64)>,
    /// Home: 0 in rows, 1 in place, 2 log.
    home: u8,
    cache_rows: u64,
    policies: Vec<PolicyKind>,
    /// For each part: its home, as a choice among the tiers, which tiers cache it, and whether exclusively.
    placement: Option<Vec<(usize, Vec<bool>, bool)>>,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let part = (0usize..8, prop::collection::vec(any::<bool>(), 4), any::<bool>());
    (
        prop::collection::vec((any::<bool>(), 1u64..40), 0..3),
        0u8..3,
        1u64..40,
        prop::collection::vec(prop::sample::select(&POLICIES), 4),
        prop::option::of(prop::collection::vec(part, 5)),
    )
        .prop_map(|(mut middle, home, cache_rows, policies, placement)| {
            if home == 0 {
                middle.iter_mut().for_each(|(holds_rows, _)| *holds_rows = true);
            }
            middle.sort_by_key(|&(holds_rows, _)| !holds_rows);
            Shape { middle, home, cache_rows, policies, placement }
        })
}

impl Shape {
    fn tiers(&self) -> Vec<TierConfig> {
        let mut tiers = vec![tier("dram", "dram-ddr4-2933", Some(Budget::Bytes(self.cache_rows * 2 * 84)))];
        for (position, &(holds_rows, count)) in self.middle.iter().enumerate() {
            tiers.push(if holds_rows {
                tier(&format!("pmem{position}"), "pmem-100", Some(Budget::Bytes((count + 1) * 2 * 84)))
            } else {
                tier(&format!("optane{position}"), "optane-p4800x", Some(Budget::Bytes((1 + count % 3) * 4096)))
            });
        }
        tiers.push(match self.home {
            0 => tier("cxl", "cxl-asic", None),
            _ => tier("nand", "nand-p3700", None),
        });
        for (tier, &policy) in tiers.iter_mut().zip(&self.policies) {
            tier.policy = policy;
        }
        if self.home == 2 {
            let home = tiers.len() - 1;
            tiers[home].layout =
                HomeLayout::Log { segment_bytes: 8192, spare: 0.25, compaction_share: 0.5, paged_index: false };
        }
        tiers
    }

    /// Table 0 in three ranges, the others whole. Its first range is resident now and then.
    fn parts(&self, dims: &[Dim], tiers: &[TierConfig]) -> Option<Vec<PartConfig>> {
        let placement = self.placement.as_ref()?;
        let ranges = [(0, 0, 90), (0, 90, 200), (0, 290, 110), (1, 0, dims[1].0), (2, 0, dims[2].0)];
        let last = tiers.len() - 1;
        let part = |(&(table, first_row, rows), (home, cached, exclusive)): (_, &(usize, Vec<bool>, bool))| {
            // Half of all parts are at home in the last tier; table 1 always is.
            let home = if *home >= 4 || table == 1 { last } else { home % (last + 1) };
            let cached_by = (0..home).filter(|&tier| cached[tier] || table == 1).collect();
            PartConfig { table, first_row, rows, home, cached_by, exclusive: *exclusive }
        };
        Some(ranges.iter().zip(placement).map(part).collect())
    }

    fn config(&self, dims: &[Dim], optimizer: OptimizerConfig) -> StoreConfig {
        let tiers = self.tiers();
        let parts = self.parts(dims, &tiers);
        StoreConfig { parts, ..config(dims, tiers, optimizer, 1 << 16) }
    }
}

fn batches(count: usize) -> impl Strategy<Value = Vec<Batch>> {
    let bags = |rows: u64| prop::collection::vec(prop::collection::vec(0..rows, 0..4), 6);
    let kind = prop_oneof![1 => Just(Kind::Forward), 2 => Just(Kind::Fused), 1 => Just(Kind::Step)];
    let batch = (kind, bags(ROWS), bags(ROWS), bags(ROWS), bags(3), prop::bool::weighted(0.2)).prop_map(
        |(kind, first, second, again, tiny, is_copied)| {
            let mut lookups = vec![(0, first), (1, second), (2, tiny)];
            if kind != Kind::Fused {
                // A table that is looked up twice in a step.
                lookups.push((0, again));
            }
            Batch { kind, lookups, is_copied }
        },
    );
    prop::collection::vec(batch, count)
}

/// Touches every row of the large tables several times, in batches so small that those in flight hold half
/// of the rows at most: every cache here overflows down to the home tier and back. The small table is in flight as a whole.
fn churn() -> Vec<Batch> {
    let bag = |step: u64, bag: u64| (0..8).map(|n| (step * 48 + bag * 8 + n) % ROWS).collect();
    let batch = |step: u64| {
        let large = |table: usize| (table, (0..6).map(|number| bag(step, number)).collect());
        let tiny = (2, vec![vec![0, 1, 2], vec![2]]);
        Batch { kind: Kind::Fused, lookups: vec![large(0), large(1), tiny], is_copied: false }
    };
    (0..60).map(batch).collect()
}

fn dims(same_dim: bool) -> [Dim; 3] {
    [(ROWS, 16), (ROWS, if same_dim { 16 } else { 24 }), (3, 16)]
}

/// Every tier that has something to do was read and written.
fn check_traffic(stats: &StoreStats, shape: &Shape, config: &StoreConfig) -> Result<(), TestCaseError> {
    prop_assert_eq!(stats.open_tickets, 0);
    for (position, tier) in stats.tiers.iter().enumerate().skip(1) {
        // Table 1 lives in the last tier and is cached by all others; an exclusive tier of blocks gets written blocks only.
        prop_assert!(tier.device.counters.writes > 0, "{} was written", &tier.name);
        prop_assert!(tier.device.counters.reads > 0, "{} was read: {:?} {:?}", &tier.name, shape, position);
        prop_assert!(tier.held > 0 || config.tiers[position].cache.is_none());
    }
    prop_assert!(stats.rows_written_back > 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]
    #[test]
    fn tiers_do_not_change_a_bit(
        batches in batches(12),
        shape in shapes(),
        same_dim in any::<bool>(),
        adagrad in any::<bool>(),
        distance in 0usize..5,
        announces in 0usize..4,
        has_loader in any::<bool>(),
    ) {
        let batches = [batches, churn()].concat();
        let dims = dims(same_dim);
        let optimizer = if adagrad { OptimizerConfig::rowwise_adagrad(1e-8) } else { OptimizerConfig::sgd() };
        let expected = scalar_twin(&dims, &batches, optimizer);
        let config = shape.config(&dims, optimizer);
        let tiered = Store::open(config.clone()).unwrap();
        let found = if has_loader {
            train_with_loader(&tiered, &dims, &batches)
        } else {
            train(&tiered, &dims, &batches, distance, announces)
        };
        prop_assert!(expected == found, "{} of {} bits differ", expected.iter().zip(&found).filter(|(a, b)| a != b).count(), expected.len());
        // Write-backs that the devices have not completed yet are not in their counters.
        tiered.advance(1_000_000_000_000);
        check_traffic(&tiered.stats().unwrap(), &shape, &config)?;
        tiered.flush().unwrap();
        let rows = all_rows(&tiered, &dims);
        prop_assert!(expected.ends_with(&rows), "a flush changes nothing");
    }
}

#[test]
fn memory_alone_agrees_with_the_plain_twin() {
    for optimizer in [OptimizerConfig::sgd(), OptimizerConfig::rowwise_adagrad(1e-8)] {
        let dims = dims(false);
        let memory =
            Store::open(config(&dims, vec![tier("dram", "dram-ddr4-2933", None)], optimizer, 1 << 20)).unwrap();
        assert_eq!(memory.stats().unwrap().tiers.len(), 1);
        assert!(train(&memory, &dims, &churn(), 0, 0) == scalar_twin(&dims, &churn(), optimizer));
    }
}

#[test]
fn a_log_that_is_written_over_and_over_is_compacted_and_keeps_its_rows() {
    let dims = dims(true);
    let optimizer = OptimizerConfig::rowwise_adagrad(1e-8);
    let mut tiers = vec![tier("dram", "dram-ddr4-2933", Some(Budget::Bytes(4 * 68))), tier("nand", "nand-p3700", None)];
    assert_eq!(tiers[1].device.kind, DeviceKind::Block);
    tiers[1].layout = HomeLayout::Log { segment_bytes: 8192, spare: 0.2, compaction_share: 0.5, paged_index: false };
    let store = Store::open(config(&dims, tiers, optimizer, 1 << 16)).unwrap();
    // A part of each batch is written again and again, the rest seldom: segments become sparse, not empty.
    let batches: Vec<Batch> = (0..400u64)
        .map(|step| {
            let hot = (0..40).map(|n| (step * 7 + n * 3) % 120).collect();
            let cold = (0..8).map(|n| (step * 8 + n) % ROWS).collect();
            Batch { kind: Kind::Fused, lookups: vec![(0, vec![hot, cold])], is_copied: step % 50 == 0 }
        })
        .collect();
    assert!(train(&store, &dims, &batches, 2, 0) == scalar_twin(&dims, &batches, optimizer));
    let stats = store.stats().unwrap();
    assert!(stats.rows_compacted > 100, "{} rows were compacted", stats.rows_compacted);
    assert_eq!(stats.read_modify_writes, 0);
}
