//! The embedding kernels give the bits of plain loops, at every level of instructions and on any number of threads.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::ops::Range;

use proptest::prelude::*;
use tiermem_core::embedding::{
    Contribution, Instructions, Moments, Noise, OptimizerConfig, PlacedLookup, Pooling, RowShape, RowType, Runtime,
    Scratch, SimdLevel, Slab, Step, Threads, coalesce_and_update, count_non_finite, decode_rows, encode_rows,
    gradient_of_sample_weights, noise_of_table, place_ids, pool_rows, rows_of_ids, squared_gradient_norm,
};
use tiermem_core::rng;

const TYPES: [RowType; 4] = [RowType::Fp32, RowType::Fp16, RowType::Bf16, RowType::Int8];
/// Those that are served, too.
const READ_TYPES: [RowType; 6] =
    [RowType::Fp32, RowType::Fp16, RowType::Bf16, RowType::Int8, RowType::Int8Fp16, RowType::Int4];
const DIMS: [usize; 16] = [1, 2, 15, 16, 17, 20, 31, 32, 33, 48, 64, 100, 127, 128, 129, 160];
/// Sample weights go with a sum or with nothing.
const KINDS: [(Pooling, bool); 5] = [
    (Pooling::Sum, false),
    (Pooling::Mean, false),
    (Pooling::None, false),
    (Pooling::Sum, true),
    (Pooling::None, true),
];
const MOMENTS: Moments = Moments { beta1: 0.9, beta2: 0.97, eps: 1e-6, weight_decay: 0.03 };
const OPTIMIZERS: [OptimizerConfig; 10] = [
    OptimizerConfig::sgd(),
    OptimizerConfig::Sgd { momentum: 0.0, weight_decay: 0.1 },
    OptimizerConfig::Sgd { momentum: 0.9, weight_decay: 0.01 },
    OptimizerConfig::Adagrad { eps: 1e-6, weight_decay: 0.01 },
    OptimizerConfig::rowwise_adagrad(1e-6),
    OptimizerConfig::RowwiseAdagrad { eps: 1e-6, weight_decay: 0.01 },
    OptimizerConfig::Adam(MOMENTS),
    OptimizerConfig::Adam(Moments { weight_decay: 0.0, ..MOMENTS }),
    OptimizerConfig::PartialRowwiseAdam(MOMENTS),
    OptimizerConfig::Lamb(MOMENTS),
];
const LR: f32 = 0.05;
const STEPS: [u64; 2] = [3, 4];

fn scalar() -> Instructions {
    Instructions::at(SimdLevel::Scalar).unwrap()
}

/// Signed values between about 2^-12 and 2^4.
fn floats(seed: u64, count: usize) -> Vec<f32> {
    let float = |bits: u64| rng::unit_symmetric_f32(bits) * 2f32.powi((bits % 16) as i32 - 11);
    (0..count as u64).map(|n| float(rng::draw(seed, n))).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn encoded(instructions: Instructions, row_type: RowType, dim: usize, values: &[f32], noise: Option<u64>) -> Vec<u8> {
    let mut rows = vec![0xaa; values.len() / dim * row_type.row_bytes(dim)];
    encode_rows(instructions, row_type, dim, values, noise, &mut rows);
    rows
}

fn decoded(instructions: Instructions, row_type: RowType, dim: usize, rows: &[u8]) -> Vec<f32> {
    let mut values = vec![7.0; rows.len() / row_type.row_bytes(dim) * dim];
    decode_rows(instructions, row_type, dim, rows, &mut values);
    values
}

/// One lookup and the gradient of its outputs.
#[derive(Debug, Clone)]
struct Part {
    slots: Vec<u32>,
    offsets: Vec<u32>,
    pooling: Pooling,
    factors: Option<Vec<f32>>,
    gradients: Vec<f32>,
}

impl Part {
    fn new(seed: u64, lengths: &[usize], rows: u32, (pooling, is_weighted): (Pooling, bool), dim: usize) -> Self {
        let starts = lengths.iter().scan(0, |end, length| Some(std::mem::replace(end, *end + *length as u32)));
        let count: usize = lengths.iter().sum();
        let slots = (0..count as u64).map(|n| (rng::draw(seed, n) % u64::from(rows)) as u32).collect();
        let mut part = Self { slots, offsets: starts.collect(), pooling, factors: None, gradients: Vec::new() };
        part.factors = is_weighted.then(|| floats(seed ^ 1, count));
        part.gradients = floats(seed ^ 2, part.outputs().len() * dim);
        part
    }

    /// The positions of each output.
    fn outputs(&self) -> Vec<Range<usize>> {
        if self.pooling == Pooling::None {
            return (0..self.slots.len()).map(|position| position..position + 1).collect();
        }
        let ends = self.offsets.iter().skip(1).copied().chain([self.slots.len() as u32]);
        self.offsets.iter().zip(ends).map(|(&start, end)| start as usize..end as usize).collect()
    }

    fn contribution(&self) -> Contribution<'_> {
        let Self { slots, offsets, pooling, factors, gradients } = self;
        Contribution { slots, offsets, pooling: *pooling, sample_weights: factors.as_deref(), gradients }
    }

    /// What each position adds to its row, in order.
    fn added(&self, dim: usize) -> Vec<(u32, Vec<f32>)> {
        let mut added = Vec::new();
        for (output, positions) in self.outputs().into_iter().enumerate() {
            for position in positions.clone() {
                let weighted = |&g: &f32| match (&self.factors, self.pooling) {
                    (Some(factors), _) => factors[position] * g,
                    (None, Pooling::Mean) => g / positions.len() as f32,
                    _ => g,
                };
                let gradient = &self.gradients[output * dim..][..dim];
                added.push((self.slots[position], gradient.iter().map(weighted).collect()));
            }
        }
        added
    }
}

fn dims() -> impl Strategy<Value = usize> {
    prop_oneof![3 => prop::sample::select(&DIMS), 1 => 1usize..=300]
}

/// Lengths of bags; some are longer than rows are prefetched ahead.
fn lengths(longest: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![3 => Just(0usize), 12 => 1usize..9, 1 => 17..longest], 0..14)
}

fn lane_sum(terms: impl Iterator<Item = f32>) -> f32 {
    let mut lanes = [0.0f32; 16];
    terms.enumerate().for_each(|(column, term)| lanes[column % 16] += term);
    for half in [8, 4, 2, 1] {
        (0..half).for_each(|lane| lanes[lane] += lanes[lane + half]);
    }
    lanes[0]
}

fn squares(values: &[f32]) -> f32 {
    lane_sum(values.iter().map(|value| value * value))
}

/// The documented rule, on one row of floats.
fn plain_step(optimizer: OptimizerConfig, number: i32, w: &mut [f32], s: &mut [f32], g: &mut [f32]) {
    let (dim, mut lr) = (w.len(), LR);
    let (decay, moments) = match optimizer {
        OptimizerConfig::Sgd { weight_decay, .. }
        | OptimizerConfig::Adagrad { weight_decay, .. }
        | OptimizerConfig::RowwiseAdagrad { weight_decay, .. } => (weight_decay, MOMENTS),
        OptimizerConfig::Adam(of) | OptimizerConfig::PartialRowwiseAdam(of) => (of.weight_decay, of),
        OptimizerConfig::Lamb(moments) => (0.0, moments),
    };
    if decay != 0.0 {
        (0..dim).for_each(|c| g[c] += decay * w[c]);
    }
    let Moments { beta1, beta2, eps, weight_decay } = moments;
    let bias1 = 1.0 - f64::from(beta1).powi(number);
    let root2 = (1.0 / (1.0 - f64::from(beta2).powi(number)).sqrt()) as f32;
    let corrected_lr = (f64::from(LR) / bias1) as f32;
    let mut direction = g.to_vec();
    match optimizer {
        OptimizerConfig::Sgd { momentum: 0.0, .. } => {}
        OptimizerConfig::Sgd { momentum, .. } => {
            (0..dim).for_each(|c| s[c] = momentum * s[c] + g[c]);
            direction.copy_from_slice(s);
        }
        OptimizerConfig::Adagrad { eps, .. } => {
            for c in 0..dim {
                s[c] += g[c] * g[c];
                direction[c] = g[c] / (s[c].sqrt() + eps);
            }
        }
        OptimizerConfig::RowwiseAdagrad { eps, .. } => {
            s[0] += squares(g) / dim as f32;
            lr = LR / (s[0].sqrt() + eps);
        }
        OptimizerConfig::PartialRowwiseAdam(_) => {
            (0..dim).for_each(|c| s[c] = beta1 * s[c] + (1.0 - beta1) * g[c]);
            s[dim] = beta2 * s[dim] + (1.0 - beta2) * (squares(g) / dim as f32);
            lr = corrected_lr / (s[dim].sqrt() * root2 + eps);
            direction.copy_from_slice(&s[..dim]);
        }
        OptimizerConfig::Adam(_) | OptimizerConfig::Lamb(_) => {
            let is_lamb = matches!(optimizer, OptimizerConfig::Lamb(_));
            for c in 0..dim {
                s[c] = beta1 * s[c] + (1.0 - beta1) * g[c];
                s[dim + c] = beta2 * s[dim + c] + (1.0 - beta2) * (g[c] * g[c]);
                let m = if is_lamb { s[c] * (1.0 / bias1) as f32 } else { s[c] };
                direction[c] = m / (s[dim + c].sqrt() * root2 + eps) + if is_lamb { weight_decay * w[c] } else { 0.0 };
            }
            let (norm, of_step) = (squares(w).sqrt(), squares(&direction).sqrt());
            let is_zero = norm == 0.0 || of_step == 0.0;
            lr = if !is_lamb {
                corrected_lr
            } else if is_zero {
                LR
            } else {
                LR * norm / of_step
            };
        }
    }
    (0..dim).for_each(|c| w[c] -= lr * direction[c]);
}

/// A table and some steps on it.
struct Training {
    shape: RowShape,
    optimizer: OptimizerConfig,
    parts: Vec<Part>,
    weights: Vec<u8>,
    state: Vec<f32>,
    is_random: bool,
    /// The number in its table of the row at each slot.
    numbers: Vec<u64>,
}

/// Weights, bits of the state, touched slots and their number.
type Trained = (Vec<u8>, Vec<u32>, Vec<u32>, usize);

impl Training {
    fn new(parts: &[Part], rows: u32, dim: usize, row_type: RowType, optimizer: OptimizerConfig) -> Self {
        let shape = RowShape { row_type, dim, state_floats: optimizer.state_floats(dim) };
        let weights = encoded(scalar(), row_type, dim, &floats(5, rows as usize * dim), None);
        let state = floats(6, rows as usize * shape.state_floats).iter().map(|value| value.abs()).collect();
        let numbers = (0..u64::from(rows)).map(|slot| slot * 7 + 3).collect();
        Self { shape, optimizer, parts: parts.to_vec(), weights, state, is_random: false, numbers }
    }

    fn run(&self, instructions: Instructions, threads: &Threads) -> Trained {
        let (mut weights, mut state, mut touched, mut count) = (self.weights.clone(), self.state.clone(), vec![], 0);
        let contributions: Vec<_> = self.parts.iter().map(Part::contribution).collect();
        let row_of = |slot: u32| self.numbers[slot as usize];
        let mut scratch = Scratch::default();
        for number in STEPS {
            let step = Step::new(self.optimizer, LR, number);
            let slab = Slab { weights: &mut weights, state: &mut state, shape: self.shape };
            let noise = self.is_random.then_some(Noise { key: noise_of_table(9, number, 1), row_of: &row_of });
            let runtime = Runtime { instructions, threads };
            count += coalesce_and_update(runtime, &contributions, &step, slab, &mut scratch, noise, Some(&mut touched));
        }
        (weights, bits(&state), touched, count)
    }

    /// The same, plainly, each row alone and with the noise of its number. Encoding is tested on its own.
    fn run_plainly(&self) -> Trained {
        let RowShape { row_type, dim, state_floats } = self.shape;
        let row_bytes = self.shape.weight_bytes();
        let mut sums: BTreeMap<u32, Vec<f32>> = BTreeMap::new();
        for (slot, added) in self.parts.iter().flat_map(|part| part.added(dim)) {
            let sum = sums.entry(slot).or_insert_with(|| vec![0.0; dim]);
            (0..dim).for_each(|c| sum[c] += added[c]);
        }
        let (mut weights, mut state, mut touched) = (self.weights.clone(), self.state.clone(), vec![]);
        for number in STEPS {
            for (&slot, sum) in &sums {
                let stored = &mut weights[slot as usize * row_bytes..][..row_bytes];
                let state = &mut state[slot as usize * state_floats..][..state_floats];
                let mut row = decoded(scalar(), row_type, dim, stored);
                plain_step(self.optimizer, number as i32, &mut row, state, &mut sum.clone());
                let key = rng::stream(noise_of_table(9, number, 1), self.numbers[slot as usize]);
                stored.copy_from_slice(&encoded(scalar(), row_type, dim, &row, self.is_random.then_some(key)));
                touched.push(slot);
            }
        }
        let count = touched.len();
        (weights, bits(&state), touched, count)
    }
}

/// Output rows as documented: additions in the order of positions, column by column.
fn plain_pool(part: &Part, rows: &[f32], dim: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for positions in part.outputs() {
        let mut sums = vec![0.0f32; dim];
        for position in positions.clone() {
            let row = &rows[part.slots[position] as usize * dim..][..dim];
            for c in 0..dim {
                sums[c] += part.factors.as_ref().map_or(row[c], |factors| factors[position] * row[c]);
            }
        }
        let is_mean = part.pooling == Pooling::Mean && !positions.is_empty();
        out.extend(sums.iter().map(|sum| if is_mean { sum / positions.len() as f32 } else { *sum }));
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]
    #[test]
    fn pooling_is_a_plain_loop(dim in dims(), lengths in lengths(200), rows in 1u32..200, seed: u64, cut: u64) {
        for row_type in READ_TYPES {
            let weights = encoded(scalar(), row_type, dim, &floats(seed, rows as usize * dim), None);
            let shape = RowShape { row_type, dim, state_floats: 0 };
            let floats = decoded(scalar(), row_type, dim, &weights);
            for kind in KINDS.into_iter().chain([(Pooling::Mean, true)]) {
                let part = Part::new(seed, &lengths, rows, kind, dim);
                let Part { slots, offsets, pooling, factors, gradients } = &part;
                let (pooling, sample_weights) = (*pooling, factors.as_deref());
                let lookup = PlacedLookup { weights: &weights, shape, slots, offsets, pooling, sample_weights };
                let expected = bits(&plain_pool(&part, &floats, dim));
                let dots: Vec<f32> = part.outputs().into_iter().enumerate().flat_map(|(output, positions)| {
                    let gradient = &gradients[output * dim..][..dim];
                    let row = |slot: u32| floats[slot as usize * dim..][..dim].iter();
                    slots[positions].iter().map(move |&slot| lane_sum(row(slot).zip(gradient).map(|(w, g)| w * g)))
                }).collect();
                let outputs = lookup.outputs();
                let cut = (cut % (outputs as u64 + 1)) as usize;
                for instructions in Instructions::all() {
                    let (mut out, mut of_weights) = (vec![7.0; outputs * dim], vec![7.0; slots.len()]);
                    let (before, after) = out.split_at_mut(cut * dim);
                    pool_rows(instructions, lookup, cut..outputs, after);
                    pool_rows(instructions, lookup, 0..cut, before);
                    prop_assert!(bits(&out) == expected, "{:?} {:?} {:?}", instructions, row_type, kind);
                    gradient_of_sample_weights(instructions, lookup, gradients, &mut of_weights);
                    prop_assert!(bits(&of_weights) == bits(&dots), "{:?} {:?} {:?}", instructions, row_type, kind);
                }
            }
        }
    }

    #[test]
    fn updates_are_the_documented_rules(
        dim in dims(),
        lookups in prop::collection::vec((lengths(60), prop::sample::select(&KINDS)), 1..4),
        rows in 1u32..100,
        seed: u64,
        count in 1usize..4,
    ) {
        let part = |(n, (lengths, kind)): (u64, &(Vec<usize>, _))| Part::new(seed ^ n << 8, lengths, rows, *kind, dim);
        let parts: Vec<Part> = (0..).zip(&lookups).map(part).collect();
        let (alone, threads) = (Threads::new(1).unwrap(), Threads::new(count).unwrap());
        for (optimizer, row_type) in OPTIMIZERS.into_iter().flat_map(|of| TYPES.map(|row_type| (of, row_type))) {
            for is_random in [false, true] {
                let training = Training { is_random, ..Training::new(&parts, rows, dim, row_type, optimizer) };
                let expected = training.run_plainly();
                for instructions in Instructions::all() {
                    let is_same = training.run(instructions, &alone) == expected;
                    prop_assert!(is_same, "{:?} {:?} {:?} {}", instructions, optimizer, row_type, is_random);
                }
                prop_assert!(training.run(Instructions::best(), &threads) == expected, "{} threads", count);
            }
        }
    }

    #[test]
    fn norms_and_ids_are_plain_loops(dim in dims(), lengths in lengths(60), seed: u64, rows in 1u32..50, first: u32) {
        // Outputs of a position each: rows have different sources. Every row's sum counts once.
        let parts = [2, 4].map(|kind| Part::new(seed ^ kind as u64, &lengths, rows, KINDS[kind], dim));
        let mut sums: Vec<(u32, Vec<f32>)> = Vec::new();
        for (slot, added) in parts.iter().flat_map(|part| part.added(dim)) {
            match sums.iter_mut().find(|(of, _)| *of == slot) {
                Some((_, sum)) => (0..dim).for_each(|c| sum[c] += added[c]),
                None => sums.push((slot, added.iter().map(|value| 0.0 + value).collect())),
            }
        }
        let norm: f64 = sums.iter().map(|(_, sum)| f64::from(squares(sum))).sum();
        let contributions: Vec<_> = parts.iter().map(Part::contribution).collect();
        let mut values = floats(seed, dim);
        values.iter_mut().zip(&parts[0].slots).for_each(|(value, slot)| {
            *value = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -f32::NAN, 1e-40][*slot as usize % 6];
        });
        let ids: Vec<i64> = (0..dim as u64).map(|n| rng::draw(seed, n) as i64 >> (seed % 60)).collect();
        let places: Vec<u32> = ids.iter().map(|&id| first.wrapping_add(id as u32)).collect();
        let unsigned: Vec<u64> = ids.iter().map(|&id| id as u64).collect();
        let largest = unsigned.iter().copied().max().unwrap_or(0);
        for instructions in Instructions::all() {
            let found = squared_gradient_norm(instructions, &contributions, dim, &mut Scratch::default());
            prop_assert_eq!(found.to_bits(), norm.to_bits());
            let non_finite = values.iter().filter(|value| !value.is_finite()).count() as u64;
            prop_assert_eq!(count_non_finite(instructions, &values), non_finite);
            prop_assert_eq!(place_ids(instructions, &ids, first), (places.clone(), largest));
            prop_assert_eq!(rows_of_ids(instructions, &ids), (unsigned.clone(), largest));
        }
    }
}

#[test]
fn threads_change_no_bit() {
    // So many occurrences that threads share the sort, too.
    for (dim, row_type, optimizer) in
        [(20, RowType::Int8, 4), (64, RowType::Fp16, 4), (33, RowType::Fp32, 4), (17, RowType::Bf16, 9)]
    {
        let parts: Vec<Part> =
            (0..3).map(|n| Part::new(n as u64, &[7; 1000], 4000, KINDS[[0, 1, 3][n]], dim)).collect();
        let new = Training::new(&parts, 4000, dim, row_type, OPTIMIZERS[optimizer]);
        let training = Training { is_random: true, ..new };
        let expected = training.run(Instructions::best(), &Threads::new(1).unwrap());
        assert!(expected.3 > 7000, "{} rows are many", expected.3);
        for count in [2, 3, 5] {
            assert!(training.run(Instructions::best(), &Threads::new(count).unwrap()) == expected, "{count} threads");
        }
    }
}

#[test]
fn the_norm_does_not_depend_on_the_placement() {
    let norm = |slots: [u32; 3]| {
        let mut part = Part::new(0, &[3, 1, 1, 1], 3, (Pooling::Sum, false), 1);
        part.slots = slots.repeat(2);
        part.gradients = vec![0.0, 1.0, 1.25 * 2f32.powi(-27), 1.25 * 2f32.powi(-27)];
        squared_gradient_norm(scalar(), &[part.contribution()], 1, &mut Scratch::default()).to_bits()
    };
    assert_eq!(norm([0, 1, 2]), norm([2, 0, 1]));
}
