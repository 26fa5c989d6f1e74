//! Steps of training on a store, for profilers: `cargo run --release -p tiermem-benches --example store_step -- MODE STEPS`,
//! where MODE is `resident`, `cached` (every row hits) or `tiered` (a cache of 1 %).

use std::time::Instant;

use tiermem_core::backend::BackendConfig;
use tiermem_core::cache::PolicyKind;
use tiermem_core::device::{DeviceSpec, FaultSpec};
use tiermem_core::embedding::{Initialisation, OptimizerConfig, Pooling, Rounding, RowType, TableConfig};
use tiermem_core::rng;
use tiermem_core::store::{
    Budget, ClockMode, HomeLayout, Lookup, NonFinite, Pooled, Store, StoreConfig, TicketId, TierConfig,
};

const TABLES: usize = 4;
const ROWS: u64 = 250_000;
const DIM: usize = 32;
const BAGS: usize = 512;
const IDS: usize = 2048;

fn tier(name: &str, cache: Option<Budget>) -> TierConfig {
    let path = format!("{}/../../emulator_configs/devices/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("a shipped device");
    TierConfig {
        name: name.into(),
        device: DeviceSpec::from_toml(&text).expect("a valid device"),
        backend: BackendConfig::ram(),
        cache,
        policy: PolicyKind::S3Fifo,
        layout: HomeLayout::InPlace,
        faults: FaultSpec::default(),
    }
}

fn open(mode: &str) -> Store {
    let share = if mode == "cached" { 1.0 } else { 0.01 };
    let tiers = match mode {
        "resident" => vec![tier("dram-ddr4-2933", None)],
        _ => vec![tier("dram-ddr4-2933", Some(Budget::Fraction(share))), tier("nand-p3700", None)],
    };
    let table = |n: usize| TableConfig {
        name: format!("t{n}"),
        rows: ROWS,
        dim: DIM,
        init: Initialisation::Uniform { bound: 0.01 },
        row_type: RowType::Fp32,
        rounding: Rounding::Nearest,
    };
    let config = StoreConfig {
        tables: (0..TABLES).map(table).collect(),
        tiers,
        parts: None,
        optimizer: OptimizerConfig::rowwise_adagrad(1e-8),
        staging_bytes: 64 << 20,
        memory_limit_bytes: None,
        clock: ClockMode::Virtual,
        seed: 1,
        non_finite_gradients: NonFinite::Pass,
        timeline: false,
        threads: 1,
        simd: None,
    };
    Store::open(config).expect("a valid store")
}

/// Skewed ids: a power of a uniform draw.
fn ids(step: u64, table: u64) -> Vec<i64> {
    let draw = |n: u64| rng::draw(step * 64 + table, n) as f64 / u64::MAX as f64;
    (0..IDS as u64).map(|n| (draw(n).powi(8) * ROWS as f64) as i64).collect()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let mode = arguments.get(1).map_or("tiered", String::as_str);
    let steps: u64 = arguments.get(2).and_then(|text| text.parse().ok()).unwrap_or(400);
    let store = open(mode);
    let offsets: Vec<i64> = (0..BAGS as i64).map(|bag| bag * (IDS / BAGS) as i64).collect();
    let batches: Vec<Vec<Vec<i64>>> =
        (0..64).map(|step| (0..TABLES as u64).map(|table| ids(step, table)).collect()).collect();
    let prefetch = |step: u64| -> TicketId {
        let batch = &batches[(step % 64) as usize];
        let lookups: Vec<Lookup<'_>> =
            batch.iter().enumerate().map(|(table, ids)| Lookup { table, ids, offsets: &offsets }).collect();
        store.prefetch(&lookups).expect("staging has room")
    };
    let pooled = Pooled { pooling: Pooling::Sum, sample_weights: None };
    let mut out = vec![0.0; BAGS * DIM];
    let mut tickets: std::collections::VecDeque<TicketId> = (0..2).map(prefetch).collect();
    let mut spent = [0.0; 5];
    for step in 0..steps + 64 {
        if step == 64 {
            spent = [0.0; 5];
        }
        let mut began = Instant::now();
        let mut lap = |stage: usize| {
            spent[stage] += began.elapsed().as_secs_f64();
            began = Instant::now();
        };
        tickets.push_back(prefetch(step + 2));
        lap(0);
        let ticket = tickets.pop_front().expect("two ahead");
        store.wait(ticket, &|| false).expect("ram does not fail");
        lap(1);
        for table in 0..TABLES {
            store.gather(ticket, table, pooled, &mut out).expect("waited for");
        }
        lap(2);
        for table in 0..TABLES {
            store.update(ticket, table, pooled, &out, 1e-6).expect("waited for");
        }
        lap(3);
        store.release(ticket).expect("ram does not fail");
        lap(4);
    }
    let stats = store.stats().expect("open");
    let per_step = |seconds: f64| seconds / steps as f64 * 1e6;
    #[expect(clippy::print_stdout, reason = "a command prints")]
    {
        let names = ["prefetch", "wait", "gather", "update", "release"];
        for (name, seconds) in names.iter().zip(spent) {
            println!("{name:>9} {:8.1} us a step", per_step(seconds));
        }
        let steps = (steps + 64) as f64;
        println!(
            "    total {:8.1} us a step; {:.0} distinct rows, {:.0} hits, {:.0} written back",
            per_step(spent.iter().sum()),
            stats.unique_rows as f64 / steps,
            stats.tiers[0].hit_rows as f64 / steps,
            stats.rows_written_back as f64 / steps,
        );
    }
}
