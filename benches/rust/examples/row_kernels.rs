//! One kernel over and over, for profilers: `cargo run --release -p tiermem-benches --example row_kernels -- pool|update TYPE
//! nearest|stochastic ROWS BATCHES`. 20,480 skewed ids in bags of 10, 64 columns, row-wise `AdaGrad`.

use std::time::Instant;

use tiermem_core::backend::AlignedBuffer;
use tiermem_core::embedding::{
    Contribution, Instructions, Noise, OptimizerConfig, PlacedLookup, Pooling, RowShape, RowType, Runtime, Scratch,
    Slab, Step, Threads, coalesce_and_update, pool_rows,
};
use tiermem_core::rng;

const IDS: usize = 20_480;
const IDS_PER_BAG: usize = 10;
const DIM: usize = 64;
const BATCHES: u64 = 64;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let argument = |at: usize, otherwise: &str| arguments.get(at).cloned().unwrap_or_else(|| otherwise.into());
    let is_update = argument(1, "pool") == "update";
    let row_type: RowType = serde_json::from_value(argument(2, "fp32").into()).expect("fp32, fp16, bf16 or int8");
    let noise = (argument(3, "nearest") == "stochastic").then_some(7);
    let rows: usize = argument(4, "1000000").parse().expect("a number of rows");
    let repeated: u64 = argument(5, "5000").parse().expect("a number of batches");
    let shape = RowShape { row_type, dim: DIM, state_floats: 1 };
    let mut weights = AlignedBuffer::zeroed(rows * shape.weight_bytes());
    let mut state = AlignedBuffer::zeroed(rows * 4);
    weights.fill(1);
    let offsets: Vec<u32> = (0..IDS / IDS_PER_BAG).map(|bag| (bag * IDS_PER_BAG) as u32).collect();
    // Zipf's law with exponent 1.05, by the inverse of its continuous form, spread over the table.
    let power = 1.0 - 1.05;
    let draw = |batch: u64, n: u64| {
        let share = rng::draw(batch, n) as f64 / u64::MAX as f64;
        let rank = (share * ((rows as f64).powf(power) - 1.0) + 1.0).powf(1.0 / power);
        (rng::mix(rank as u64) % rows as u64) as u32
    };
    let batches: Vec<Vec<u32>> = (0..BATCHES).map(|batch| (0..IDS as u64).map(|n| draw(batch, n)).collect()).collect();
    let mut out = vec![1e-3f32; offsets.len() * DIM];
    let (threads, instructions) = (Threads::new(1).expect("one thread"), Instructions::best());
    let mut scratch = Scratch::default();
    let began = Instant::now();
    for count in 0..repeated {
        let slots = &batches[(count % BATCHES) as usize];
        if is_update {
            let contribution =
                Contribution { slots, offsets: &offsets, pooling: Pooling::Sum, sample_weights: None, gradients: &out };
            let step = Step::new(OptimizerConfig::rowwise_adagrad(1e-8), 1e-3, 1);
            let slab = Slab { weights: &mut weights, state: state.as_f32_mut(), shape };
            let noise = noise.map(|key| Noise { key, row_of: &|slot| u64::from(slot) });
            let runtime = Runtime { instructions, threads: &threads };
            coalesce_and_update(runtime, &[contribution], &step, slab, &mut scratch, noise, None);
        } else {
            let lookup = PlacedLookup {
                weights: &weights,
                shape,
                slots,
                offsets: &offsets,
                pooling: Pooling::Sum,
                sample_weights: None,
            };
            pool_rows(instructions, lookup, 0..offsets.len(), &mut out);
        }
    }
    let per_batch = began.elapsed().as_secs_f64() / repeated as f64;
    #[expect(clippy::print_stdout, reason = "a command prints")]
    {
        println!("{:.1} us a batch, {:.2} ns an id", per_batch * 1e6, per_batch * 1e9 / IDS as f64);
    }
}
