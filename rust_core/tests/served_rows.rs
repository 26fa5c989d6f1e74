//! Rows of the types that are served lie and round as documented, at every level of instructions.

#![expect(clippy::float_cmp, reason = "bits are the subject")]

use proptest::prelude::*;
use tiermem_core::embedding::{Instructions, RowType, decode_rows, encode_rows};

/// The value of a half, by its definition.
fn value_of_half(half: u16) -> f64 {
    let magnitude = match (i32::from(half >> 10 & 0x1f), f64::from(half & 0x3ff)) {
        (0, mantissa) => mantissa * 2f64.powi(-24),
        (31, 0.0) => f64::INFINITY,
        (31, _) => f64::NAN,
        (exponent, mantissa) => (1.0 + mantissa / 1024.0) * 2f64.powi(exponent - 15),
    };
    if half >> 15 == 1 { -magnitude } else { magnitude }
}

/// The nearest finite half, ties to even.
fn nearest_half(value: f64) -> f64 {
    let halves = (0..=0x7bffu16).map(|half| (value_of_half(half), half));
    let distance = |&(half, bits): &(f64, u16)| ((half - value.abs()).abs(), bits & 1);
    let nearest = halves.min_by(|a, b| distance(a).partial_cmp(&distance(b)).unwrap_or(std::cmp::Ordering::Equal));
    nearest.map_or(0.0, |(half, _)| half).copysign(value)
}

fn encoded(instructions: Instructions, row_type: RowType, values: &[f32]) -> Vec<u8> {
    let mut row = vec![0xaa; row_type.row_bytes(values.len())];
    encode_rows(instructions, row_type, values.len(), values, None, &mut row);
    row
}

fn codes(row_type: RowType, row: &[u8], dim: usize) -> Vec<u8> {
    if row_type == RowType::Int8Fp16 {
        return row[..dim].to_vec();
    }
    row[..dim.div_ceil(2)].iter().flat_map(|byte| [byte & 15, byte >> 4]).take(dim).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]
    #[test]
    fn codes_scale_and_bias_are_the_documented_ones(
        values in prop::collection::vec(prop_oneof![4 => -2f32..2.0, 1 => -3000f32..3000.0, 1 => Just(0.25)], 1..70),
        is_constant: bool,
    ) {
        let values = if is_constant { vec![values[0]; values.len()] } else { values };
        let dim = values.len();
        let (low, high) = values.iter().fold((values[0], values[0]), |(a, b), &v| (a.min(v), b.max(v)));
        for (row_type, row_bytes, largest) in
            [(RowType::Int8Fp16, dim + 4, 255.0f32), (RowType::Int4, dim.div_ceil(2) + 4, 15.0)]
        {
            let row = encoded(Instructions::all()[0], row_type, &values);
            prop_assert_eq!(row.len(), row_bytes);
            let half = |at: usize| value_of_half(u16::from_le_bytes([row[at], row[at + 1]])) as f32;
            let (scale, bias) = (half(row_bytes - 4), half(row_bytes - 2));
            prop_assert_eq!(bias, nearest_half(f64::from(low)) as f32);
            prop_assert_eq!(scale, nearest_half(f64::from((high - bias) / largest)) as f32);
            let inverse = if scale > 0.0 && (1.0 / scale).is_finite() { 1.0 / scale } else { 0.0 };
            let mut decoded = vec![7.0; dim];
            for instructions in Instructions::all() {
                prop_assert_eq!(&encoded(instructions, row_type, &values), &row, "{:?}", instructions);
                decode_rows(instructions, row_type, dim, &row, &mut decoded);
                for ((&code, &value), &found) in codes(row_type, &row, dim).iter().zip(&values).zip(&decoded) {
                    let nearest = ((value - bias) * inverse).round_ties_even().clamp(0.0, largest);
                    prop_assert_eq!(f32::from(code), nearest);
                    prop_assert_eq!(found, f32::from(code) * scale + bias);
                    // Half a step; and the largest value may lie beyond the last code by what the scale was rounded.
                    let rounding = (high - low).abs() / 1024.0 + low.abs() / 1024.0 + 1e-7 * largest;
                    prop_assert!((found - value).abs() <= scale / 2.0 + rounding, "{} for {}", found, value);
                }
            }
            if row_type == RowType::Int4 && dim % 2 == 1 {
                prop_assert_eq!(row[dim / 2] >> 4, 0, "the half byte behind the last column is zero");
            }
        }
    }

    #[test]
    fn a_row_that_is_not_finite_stays_so(at in 0usize..40, dim in 1usize..40, value in prop::sample::select(&[
        f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30,
    ])) {
        let mut values = vec![0.5f32; dim];
        values[at % dim] = value;
        for row_type in [RowType::Int8Fp16, RowType::Int4] {
            for instructions in Instructions::all() {
                let mut decoded = vec![7.0; dim];
                decode_rows(instructions, row_type, dim, &encoded(instructions, row_type, &values), &mut decoded);
                prop_assert!(decoded.iter().all(|value| value.is_nan()), "{:?} {:?}", row_type, decoded);
            }
        }
    }
}
