//! Pooling, coalescing with the update, and storing, on rows in memory; each with every level of instructions.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tiermem_core::embedding::{
    Contribution, Instructions, Moments, Noise, OptimizerConfig, PlacedLookup, Pooling, RowShape, RowType, Runtime,
    Scratch, Slab, Step, Threads, coalesce_and_update, count_non_finite, decode_rows, encode_rows,
    gradient_of_sample_weights, place_ids, pool_rows, rows_of_ids, squared_gradient_norm,
};
use tiermem_core::rng::draw;

const ROWS: usize = 100_000;
const IDS: usize = 20_480;
const IDS_PER_BAG: usize = 10;
const DIM: usize = 64;
const MOMENTS: Moments = Moments { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
const ROW_TYPES: [RowType; 4] = [RowType::Fp32, RowType::Fp16, RowType::Bf16, RowType::Int8];

fn slots() -> Vec<u32> {
    (0..IDS as u64).map(|n| (draw(1, n) % ROWS as u64).min(draw(2, n) % ROWS as u64) as u32).collect()
}

fn offsets() -> Vec<u32> {
    (0..IDS / IDS_PER_BAG).map(|bag| (bag * IDS_PER_BAG) as u32).collect()
}

/// Rows of a type with small values.
fn rows(shape: RowShape) -> Vec<u8> {
    let values: Vec<f32> = (0..ROWS * shape.dim).map(|n| (draw(3, n as u64) % 2001) as f32 * 1e-3 - 1.0).collect();
    let mut rows = vec![0; ROWS * shape.weight_bytes()];
    encode_rows(Instructions::best(), shape.row_type, shape.dim, &values, None, &mut rows);
    rows
}

fn pooling(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("row_kernels/pool");
    group.throughput(Throughput::Elements(IDS as u64));
    let (slots, offsets) = (slots(), offsets());
    for dim in [16, DIM, 100, 128] {
        for row_type in ROW_TYPES {
            let shape = RowShape { row_type, dim, state_floats: 0 };
            let weights = rows(shape);
            let mut out = vec![0.0f32; offsets.len() * dim];
            let lookup = PlacedLookup {
                weights: &weights,
                shape,
                slots: &slots,
                offsets: &offsets,
                pooling: Pooling::Sum,
                sample_weights: None,
            };
            for instructions in Instructions::all() {
                let name = format!("{}/dim={dim}/{}", row_type.name(), instructions.level());
                group.bench_function(name, |bencher| {
                    bencher.iter(|| pool_rows(instructions, lookup, 0..offsets.len(), &mut out));
                });
            }
        }
    }
    group.finish();
}

fn sample_weights(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("row_kernels/gradient_of_sample_weights");
    group.throughput(Throughput::Elements(IDS as u64));
    let (slots, offsets) = (slots(), offsets());
    let shape = RowShape { row_type: RowType::Fp32, dim: DIM, state_floats: 0 };
    let weights = rows(shape);
    let gradients = vec![1e-3f32; offsets.len() * DIM];
    let mut out = vec![0.0f32; IDS];
    let lookup = PlacedLookup {
        weights: &weights,
        shape,
        slots: &slots,
        offsets: &offsets,
        pooling: Pooling::Sum,
        sample_weights: None,
    };
    for instructions in Instructions::all() {
        group.bench_function(format!("{}", instructions.level()), |bencher| {
            bencher.iter(|| gradient_of_sample_weights(instructions, lookup, &gradients, &mut out));
        });
    }
    group.finish();
}

fn updates(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("row_kernels/update");
    group.throughput(Throughput::Elements(IDS as u64));
    let (slots, offsets, threads) = (slots(), offsets(), Threads::new(1).expect("one thread"));
    let adagrad = OptimizerConfig::rowwise_adagrad(1e-8);
    let cases = [
        ("sgd", OptimizerConfig::sgd(), RowType::Fp32, false),
        ("momentum", OptimizerConfig::Sgd { momentum: 0.9, weight_decay: 0.0 }, RowType::Fp32, false),
        ("adagrad", OptimizerConfig::Adagrad { eps: 1e-8, weight_decay: 0.0 }, RowType::Fp32, false),
        ("rowwise_adagrad", adagrad, RowType::Fp32, false),
        ("adam", OptimizerConfig::Adam(MOMENTS), RowType::Fp32, false),
        ("partial_rowwise_adam", OptimizerConfig::PartialRowwiseAdam(MOMENTS), RowType::Fp32, false),
        ("lamb", OptimizerConfig::Lamb(MOMENTS), RowType::Fp32, false),
        ("rowwise_adagrad", adagrad, RowType::Fp16, false),
        ("rowwise_adagrad", adagrad, RowType::Fp16, true),
        ("rowwise_adagrad", adagrad, RowType::Bf16, true),
        ("rowwise_adagrad", adagrad, RowType::Int8, true),
    ];
    for (name, optimizer, row_type, is_random) in cases {
        let shape = RowShape { row_type, dim: DIM, state_floats: optimizer.state_floats(DIM) };
        let gradients = vec![1e-3f32; offsets.len() * DIM];
        let contribution = Contribution {
            slots: &slots,
            offsets: &offsets,
            pooling: Pooling::Sum,
            sample_weights: None,
            gradients: &gradients,
        };
        for instructions in Instructions::all() {
            let (mut weights, mut state) = (rows(shape), vec![0.0f32; ROWS * shape.state_floats]);
            let mut scratch = Scratch::default();
            let rounding = if is_random { "stochastic" } else { "nearest" };
            let name = format!("{name}/{}/{rounding}/{}", row_type.name(), instructions.level());
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    let step = Step::new(optimizer, 1e-3, 1);
                    let runtime = Runtime { instructions, threads: &threads };
                    let slab = Slab { weights: &mut weights, state: &mut state, shape };
                    let noise = is_random.then_some(Noise { key: 7, row_of: &|slot| u64::from(slot) });
                    coalesce_and_update(runtime, &[contribution], &step, slab, &mut scratch, noise, None)
                });
            });
        }
    }
    group.finish();
}

fn storing(criterion: &mut Criterion) {
    const COUNT: usize = 4096;
    let mut group = criterion.benchmark_group("row_kernels/store");
    group.throughput(Throughput::Elements(COUNT as u64));
    let mut values: Vec<f32> = (0..COUNT * DIM).map(|n| (draw(4, n as u64) % 2001) as f32 * 1e-3 - 1.0).collect();
    for instructions in Instructions::all() {
        group.bench_function(format!("count_non_finite/{}", instructions.level()), |bencher| {
            bencher.iter(|| count_non_finite(instructions, &values));
        });
    }
    for row_type in ROW_TYPES {
        let mut rows = vec![0; COUNT * row_type.row_bytes(DIM)];
        for instructions in Instructions::all() {
            let level = instructions.level();
            for (rounding, noise) in [("nearest", None), ("stochastic", Some(7))] {
                group.bench_function(format!("encode/{}/{rounding}/{level}", row_type.name()), |bencher| {
                    bencher.iter(|| encode_rows(instructions, row_type, DIM, &values, noise, &mut rows));
                });
            }
            group.bench_function(format!("decode/{}/{level}", row_type.name()), |bencher| {
                bencher.iter(|| decode_rows(instructions, row_type, DIM, &rows, &mut values));
            });
        }
    }
    group.finish();
}

fn ids_and_norms(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("row_kernels/ids");
    group.throughput(Throughput::Elements(IDS as u64));
    let (slots, offsets) = (slots(), offsets());
    let ids: Vec<i64> = slots.iter().map(|&slot| i64::from(slot)).collect();
    let gradients = vec![1e-3f32; offsets.len() * DIM];
    let contribution = Contribution {
        slots: &slots,
        offsets: &offsets,
        pooling: Pooling::Sum,
        sample_weights: None,
        gradients: &gradients,
    };
    let mut scratch = Scratch::default();
    for instructions in Instructions::all() {
        let level = instructions.level();
        group.bench_function(format!("place_ids/{level}"), |bencher| bencher.iter(|| place_ids(instructions, &ids, 0)));
        group
            .bench_function(format!("rows_of_ids/{level}"), |bencher| bencher.iter(|| rows_of_ids(instructions, &ids)));
        group.bench_function(format!("squared_gradient_norm/{level}"), |bencher| {
            bencher.iter(|| squared_gradient_norm(instructions, &[contribution], DIM, &mut scratch));
        });
    }
    group.finish();
}

criterion_group!(benches, pooling, sample_weights, updates, storing, ids_and_norms);
criterion_main!(benches);
