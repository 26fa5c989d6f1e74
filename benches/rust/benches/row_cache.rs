//! Hits, misses and evictions of the row cache.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tiermem_core::cache::{PolicyKind, Slots};
use tiermem_core::rng::draw;

/// Skewed keys: the minimum of two uniform draws, squared in rank.
fn keys(count: u64, distinct: u64) -> Vec<u64> {
    (0..count).map(|n| (draw(1, n) % distinct).min(draw(2, n) % distinct).min(draw(3, n) % distinct)).collect()
}

fn lru(criterion: &mut Criterion) {
    const ACCESSES: u64 = 100_000;
    let mut group = criterion.benchmark_group("row_cache/lru");
    group.throughput(Throughput::Elements(ACCESSES));
    for capacity in [1_000usize, 100_000] {
        let keys = keys(ACCESSES, capacity as u64 * 10);
        let Ok(mut slots) = Slots::new(PolicyKind::Lru, capacity + 1, capacity, 1) else { continue };
        group.bench_function(format!("capacity={capacity}"), |bencher| {
            bencher.iter(|| {
                let mut hits = 0u64;
                for &key in &keys {
                    if let Some(slot) = slots.get(key) {
                        slots.hit(slot, key);
                        hits += 1;
                    } else if slots.insert(key).is_some() && slots.cached() > capacity {
                        slots.evict();
                    }
                }
                hits
            });
        });
    }
    group.finish();
}

criterion_group!(benches, lru);
criterion_main!(benches);
