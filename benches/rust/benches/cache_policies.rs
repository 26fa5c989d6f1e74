//! Replay of the Scarab trace through every policy, beside two caches of others on the same accesses at the
//! same capacity. All of them do what a row cache does: look a key up, and bring it in if it is not there.
#![expect(clippy::unwrap_used, reason = "a bench may panic")]

use std::collections::HashMap;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tiermem_core::cache::{NEVER, PolicyKind, Replay, replay};

/// Accesses of a batch; `lookahead` knows 100 batches.
const BATCH: usize = 1_024;
const DISTINCT: usize = 258_368;

struct Trace {
    keys: Vec<u64>,
    batch_ends: Vec<usize>,
    next_use: Vec<u32>,
}

fn scarab() -> Trace {
    let path = format!("{}/../../python/tiermem/data/traces/scarab-recs.trace.xz", env!("CARGO_MANIFEST_DIR"));
    let mut bytes = Vec::new();
    lzma_rs::xz_decompress(&mut std::io::BufReader::new(std::fs::File::open(path).unwrap()), &mut bytes).unwrap();
    let keys: Vec<u64> = bytes.chunks_exact(8).map(|at| u64::from_be_bytes(at.try_into().unwrap())).collect();
    let mut last = HashMap::new();
    let mut next_use = vec![NEVER; keys.len()];
    for (position, &key) in keys.iter().enumerate() {
        if let Some(before) = last.insert(key, position) {
            next_use[before] = position as u32;
        }
    }
    assert_eq!(last.len(), DISTINCT);
    let batch_ends = (1..=keys.len().div_ceil(BATCH)).map(|batch| (batch * BATCH).min(keys.len())).collect();
    Trace { keys, batch_ends, next_use }
}

fn ours(trace: &Trace, policy: PolicyKind, rows: usize) -> u64 {
    let mut hits = 0;
    let config = Replay { policy, rows, window_batches: 100, seed: 1 };
    replay(&config, &trace.keys, &trace.batch_ends, &trace.next_use, |_, hit| hits += u64::from(hit)).unwrap();
    hits
}

/// S3-FIFO for one thread.
fn quick_cache(trace: &Trace, rows: usize) -> u64 {
    let mut cache = quick_cache::unsync::Cache::new(rows);
    let mut hits = 0;
    for &key in &trace.keys {
        if cache.get(&key).is_some() {
            hits += 1;
        } else {
            cache.insert(key, 0u32);
        }
    }
    hits
}

/// A concurrent cache with an admission filter. It evicts in maintenance runs, so it holds more rows than its capacity in between.
fn moka(trace: &Trace, rows: usize) -> u64 {
    let cache = moka::sync::Cache::new(rows as u64);
    let mut hits = 0;
    for &key in &trace.keys {
        if cache.get(&key).is_some() {
            hits += 1;
        } else {
            cache.insert(key, 0u32);
        }
    }
    hits
}

fn policies(criterion: &mut Criterion) {
    let trace = scarab();
    let mut group = criterion.benchmark_group("cache_policies/scarab");
    group.throughput(Throughput::Elements(trace.keys.len() as u64));
    group.sample_size(10);
    for percent in [1, 10] {
        let rows = (DISTINCT * percent + 50) / 100;
        // Hit rates stand in the names, so that nobody compares speeds of caches that keep different things.
        let mut bench = |name: &str, run: &dyn Fn() -> u64| {
            let rate = 100.0 * run() as f64 / trace.keys.len() as f64;
            let id = BenchmarkId::new(name, format!("{percent}%_hit_rate_{rate:.0}"));
            group.bench_function(id, |bencher| bencher.iter(run));
        };
        for (policy, name) in PolicyKind::ALL {
            bench(name, &|| ours(&trace, policy, rows));
        }
        bench("quick_cache", &|| quick_cache(&trace, rows));
        bench("moka", &|| moka(&trace, rows));
    }
    group.finish();
}

criterion_group!(benches, policies);
criterion_main!(benches);
