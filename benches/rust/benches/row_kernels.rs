//! Pooling, and coalescing with the update, on rows in memory.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tiermem_core::embedding::{Contribution, OptimizerConfig, Pooling, coalesce_and_update, pool_rows};
use tiermem_core::rng::draw;

const ROWS: usize = 100_000;
const IDS: usize = 20_480;
const IDS_PER_BAG: usize = 10;

fn kernels(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("row_kernels");
    group.throughput(Throughput::Elements(IDS as u64));
    for dim in [16, 64, 128] {
        let mut weights = vec![0.5f32; ROWS * dim];
        let mut state = vec![0.0f32; ROWS];
        let slots: Vec<u32> =
            (0..IDS as u64).map(|n| (draw(1, n) % ROWS as u64).min(draw(2, n) % ROWS as u64) as u32).collect();
        let offsets: Vec<u32> = (0..IDS / IDS_PER_BAG).map(|bag| (bag * IDS_PER_BAG) as u32).collect();
        let mut pooled = vec![0.0f32; offsets.len() * dim];
        group.bench_function(format!("pool/rows={ROWS}/dim={dim}"), |bencher| {
            bencher.iter(|| pool_rows(&weights, dim, &slots, &offsets, Pooling::Sum, None, &mut pooled));
        });
        let gradients = vec![1e-3f32; offsets.len() * dim];
        let optimizer = OptimizerConfig::RowwiseAdagrad { eps: 1e-8 };
        group.bench_function(format!("rowwise_adagrad/rows={ROWS}/dim={dim}"), |bencher| {
            bencher.iter(|| {
                let contribution = Contribution {
                    slots: &slots,
                    offsets: &offsets,
                    pooling: Pooling::Sum,
                    sample_weights: None,
                    gradients: &gradients,
                };
                let mut rows = 0u32;
                coalesce_and_update(&[contribution], dim, optimizer, 1e-3, (&mut weights, &mut state), |_| rows += 1);
                rows
            });
        });
    }
    group.finish();
}

criterion_group!(benches, kernels);
criterion_main!(benches);
