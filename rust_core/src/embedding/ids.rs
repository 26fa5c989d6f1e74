//! Ids as they come in, checked and turned into what a store works with.

use super::kernels::{Instructions, Kernel, Simd};

struct Place<'a> {
    ids: &'a [i64],
    first: u32,
    places: &'a mut [u32],
}

impl Kernel for Place<'_> {
    type Output = u64;

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> u64 {
        let mut largest = 0;
        for (place, &id) in self.places.iter_mut().zip(self.ids) {
            // A negative id is a large row.
            largest = largest.max(id as u64);
            *place = self.first.wrapping_add(id as u32);
        }
        largest
    }
}

/// The places of rows that lie one behind the other from place `first` on, and the largest row: a place is one only if its
/// row is a row.
pub fn place_ids(instructions: Instructions, ids: &[i64], first: u32) -> (Vec<u32>, u64) {
    let mut places = vec![0; ids.len()];
    let largest = instructions.run(Place { ids, first, places: &mut places });
    (places, largest)
}

struct Largest<'a>(&'a [i64]);

impl Kernel for Largest<'_> {
    type Output = u64;

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> u64 {
        let mut largest = 0;
        for &id in self.0 {
            largest = largest.max(id as u64);
        }
        largest
    }
}

/// Ids as rows, and the largest one. A negative id is a large row.
pub fn rows_of_ids(instructions: Instructions, ids: &[i64]) -> (Vec<u64>, u64) {
    (ids.iter().map(|&id| id as u64).collect(), instructions.run(Largest(ids)))
}
