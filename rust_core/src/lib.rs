//! The core of tiermem: emulated storage-class memory and an exact tiered embedding store.
//!
//! No Python in here. Modules depend downwards only:
//! `store | serve > embedding | snapshot | trace > tier > cache | nbd > device > backend > stats > error units clock rng bits planted`.

pub mod backend;
pub mod bits;
pub mod cache;
pub mod clock;
pub mod device;
pub mod embedding;
pub mod error;
pub mod nbd;
pub mod planted;
pub mod rng;
pub mod serve;
pub mod snapshot;
pub mod stats;
pub mod store;
mod sync;
#[cfg(any(test, feature = "test-utils"))]
pub mod testkit;
pub mod tier;
pub mod trace;
pub mod units;

pub use error::{Error, ErrorKind, Result};
