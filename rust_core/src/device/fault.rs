//! Faults, as a seeded overlay on a backend and on the timing model. Off unless asked for.
//!
//! The fault model:
//!
//! * A *latent read error* belongs to a place: a 4 KiB block is bad or good from (seed, device, block).
//!   Reading any of it fails with EIO until one write has covered all of it, which cures it.
//! * A *bit flip* happens at rest, in silence: one bit of a 4 KiB block is stored inverted.
//! * A *torn write* is acknowledged, but only its first sectors are stored; a sector (512 bytes, or
//!   what the backend aligns to) is stored whole. A *dropped write* is acknowledged, but not stored.
//! * A *latency storm* is a period in which every read's media access takes longer. Periods come once
//!   in each interval, at a drawn place in it.
//! * The device *goes away* with a given request: it and all later ones fail with ENODEV.
//! * The device becomes *read-only* once so many bytes have been written: writes fail with EROFS.
//!
//! Draws are keyed by (seed, device, request number), or by the block where a fault belongs to a
//! place, so one caller that issues the same requests meets the same faults. A request that fails takes no time. What is not modelled:
//! faults of metadata, misdirected writes, and failures that depend on temperature or age.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

use crate::backend::{Backend, Extent, InFlight, IoBatch, Operation, Overlay};
use crate::error::{Error, ErrorKind, Result};
use crate::rng;
use crate::units::PS_PER_NS;

/// Latent errors and bit flips are drawn for blocks of this size.
const BLOCK_BYTES: u64 = 4096;
/// A sector is stored whole or not at all.
const SECTOR_BYTES: usize = 512;

/// Which faults a device has. The default has none.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultSpec {
    /// Seed of all draws.
    pub seed: u64,
    /// Share of 4 KiB blocks with a latent read error.
    pub latent_error_share: f64,
    /// Probability that one bit of a 4 KiB block is stored inverted when it is written.
    pub bit_flip_probability: f64,
    /// Probability that a write is torn.
    pub torn_write_probability: f64,
    /// Probability that a write is dropped.
    pub dropped_write_probability: f64,
    /// Length of the intervals with one storm each. 0: no storms.
    pub storm_every_ns: u64,
    /// Length of a storm.
    pub storm_duration_ns: u64,
    /// What a storm adds to the media time of a read.
    pub storm_extra_ns: u64,
    /// Requests served before the device goes away.
    pub gone_after_requests: Option<u64>,
    /// Bytes written before the device becomes read-only.
    pub read_only_after_bytes: Option<u64>,
}

impl FaultSpec {
    /// Refuses shares that are none, and storms longer than their interval.
    pub fn validate(&self) -> Result<()> {
        for (key, value) in [
            ("latent_error_share", self.latent_error_share),
            ("bit_flip_probability", self.bit_flip_probability),
            ("torn_write_probability", self.torn_write_probability),
            ("dropped_write_probability", self.dropped_write_probability),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!("faults.{key} must lie between 0 and 1, got {value}"),
                ));
            }
        }
        for (key, value, most_ns, most) in [
            ("storm_every_ns", self.storm_every_ns, 86_400_000_000_000, "a day"),
            ("storm_extra_ns", self.storm_extra_ns, 4_000_000_000, "4 s"),
        ] {
            if value > most_ns {
                return Err(Error::new(ErrorKind::Config, format!("faults.{key} must be at most {most}")));
            }
        }
        if self.storm_duration_ns > self.storm_every_ns {
            return Err(Error::new(
                ErrorKind::Config,
                "faults.storm_duration_ns must not exceed faults.storm_every_ns",
            ));
        }
        Ok(())
    }

    /// Whether nothing is injected.
    pub fn is_off(&self) -> bool {
        *self == Self { seed: self.seed, ..Self::default() }
    }

    /// The storms of device number `device`, if there are any.
    pub fn storms(&self, device: u64) -> Option<Storms> {
        (self.storm_every_ns > 0).then(|| Storms {
            key: rng::stream(self.seed, 4 * device),
            every_ps: self.storm_every_ns * PS_PER_NS,
            duration_ps: self.storm_duration_ns * PS_PER_NS,
            extra_ps: self.storm_extra_ns * PS_PER_NS,
        })
    }

    /// Puts the faults of bytes over the backend of device number `device`.
    pub fn over(&self, device: u64, inner: Box<dyn Backend>) -> Box<dyn Backend> {
        if self.is_off() {
            return inner;
        }
        Box::new(FaultyBackend {
            places: rng::stream(self.seed, 4 * device + 1),
            requests: rng::stream(self.seed, 4 * device + 2),
            spec: self.clone(),
            inner,
            state: Mutex::new(FaultState::default()),
        })
    }
}

/// Periods of slowness.
#[derive(Debug, Clone, Copy)]
pub struct Storms {
    key: u64,
    every_ps: u64,
    duration_ps: u64,
    extra_ps: u64,
}

impl Storms {
    /// What is added to a media access that begins at `at_ps`.
    pub(super) fn extra_ps(&self, at_ps: u64) -> u64 {
        let interval = at_ps / self.every_ps;
        let slack = u128::from(self.every_ps - self.duration_ps);
        let begin_ps = ((u128::from(rng::draw(self.key, interval)) * slack) >> 64) as u64;
        let within_ps = at_ps % self.every_ps;
        if (begin_ps..begin_ps + self.duration_ps).contains(&within_ps) { self.extra_ps } else { 0 }
    }
}

#[derive(Default)]
struct FaultState {
    requests: u64,
    written_bytes: u64,
    /// Bad blocks that were written over.
    cured: HashSet<u64>,
}

/// A backend whose bytes can be lost.
struct FaultyBackend {
    spec: FaultSpec,
    places: u64,
    requests: u64,
    inner: Box<dyn Backend>,
    state: Mutex<FaultState>,
}

/// Whether an event of this probability happens with these random bits.
fn happens(probability: f64, bits: u64) -> bool {
    // 53 bits, as many as a double holds.
    ((bits >> 11) as f64) < probability * (1u64 << 53) as f64
}

fn refusal(what: &'static str, errno: i32, operation: &str, extent: &Extent) -> Error {
    Error::io(operation, std::io::Error::from_raw_os_error(errno))
        .with_context("injected", what)
        .with_context("offset", extent.offset)
        .with_context("nbytes", extent.nbytes)
}

impl FaultyBackend {
    fn lock(&self) -> MutexGuard<'_, FaultState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many requests of a batch are served before the one with which the device goes away.
    fn served(&self, state: &FaultState, extents: &[Extent]) -> usize {
        let left = self.spec.gone_after_requests.map_or(u64::MAX, |limit| limit.saturating_sub(state.requests));
        extents.len().min(usize::try_from(left).unwrap_or(usize::MAX))
    }

    fn blocks_of(extent: &Extent) -> std::ops::Range<u64> {
        extent.offset / BLOCK_BYTES..(extent.offset + extent.nbytes as u64).div_ceil(BLOCK_BYTES)
    }

    fn is_bad(&self, state: &FaultState, block: u64) -> bool {
        happens(self.spec.latent_error_share, rng::draw(self.places, block)) && !state.cured.contains(&block)
    }

    /// Blocks that lie wholly inside a write are good afterwards.
    fn cure(&self, state: &mut FaultState, extent: &Extent) {
        if self.spec.latent_error_share == 0.0 {
            return;
        }
        let first = extent.offset.div_ceil(BLOCK_BYTES);
        let end = (extent.offset + extent.nbytes as u64) / BLOCK_BYTES;
        for block in first..end {
            if self.is_bad(state, block) {
                state.cured.insert(block);
            }
        }
    }

    /// Places in the buffer, as (byte, mask), of the bits of one write that are stored inverted.
    fn flips(&self, number: u64, extent: &Extent, flips: &mut Vec<(usize, u8)>) {
        if self.spec.bit_flip_probability == 0.0 {
            return;
        }
        for block in 0..(extent.nbytes as u64).div_ceil(BLOCK_BYTES) {
            let bits = rng::draw(rng::stream(self.requests, number), 2 * block + 2);
            if happens(self.spec.bit_flip_probability, bits) {
                let first = (block * BLOCK_BYTES) as usize;
                let bytes = (extent.nbytes - first).min(BLOCK_BYTES as usize);
                let place = rng::draw(rng::stream(self.requests, number), 2 * block + 3);
                let byte = first + (place >> 3) as usize % bytes;
                flips.push((extent.buffer_offset + byte, 1 << (place & 7)));
            }
        }
    }

    /// What of a write is stored.
    fn stored(&self, number: u64, extent: &Extent) -> Option<Extent> {
        let key = rng::stream(self.requests, number);
        if happens(self.spec.dropped_write_probability, rng::draw(key, 0)) {
            return None;
        }
        let sector = SECTOR_BYTES.max(self.inner.alignment_bytes());
        let sectors = extent.nbytes / sector;
        if sectors > 1 && happens(self.spec.torn_write_probability, rng::draw(key, 1)) {
            let kept = 1 + (rng::mix(key) % (sectors as u64 - 1)) as usize;
            return Some(Extent { nbytes: kept * sector, ..*extent });
        }
        Some(*extent)
    }

    fn read_some(&self, batch: IoBatch) -> (IoBatch, Result<()>) {
        let mut state = self.lock();
        let served = self.served(&state, &batch.extents);
        state.requests += served as u64;
        if let Some(extent) = batch.extents.get(served) {
            let error = refusal("the device has gone away", libc::ENODEV, "reading", extent);
            return (batch, Err(error));
        }
        if self.spec.latent_error_share > 0.0 {
            let bad = |extent: &&Extent| Self::blocks_of(extent).any(|block| self.is_bad(&state, block));
            if let Some(extent) = batch.extents.iter().find(bad) {
                let error = refusal("a latent read error", libc::EIO, "reading", extent);
                return (batch, Err(error));
            }
        }
        drop(state);
        self.inner.read(batch)
    }

    fn write_some(&self, mut batch: IoBatch) -> (IoBatch, Result<()>) {
        let mut state = self.lock();
        let served = self.served(&state, &batch.extents);
        let (mut kept, mut flips) = (Vec::with_capacity(batch.extents.len()), Vec::new());
        let mut failure = batch
            .extents
            .get(served)
            .map(|extent| refusal("the device has gone away", libc::ENODEV, "writing", extent));
        for extent in &batch.extents[..served] {
            if self.spec.read_only_after_bytes.is_some_and(|limit| state.written_bytes >= limit) {
                failure = Some(refusal("the device is worn out and read-only", libc::EROFS, "writing", extent));
                break;
            }
            state.written_bytes += extent.nbytes as u64;
            let number = state.requests;
            state.requests += 1;
            if let Some(stored) = self.stored(number, extent) {
                self.flips(number, &stored, &mut flips);
                kept.push(stored);
            }
        }
        // What came before a request that fails is stored, as on a device.
        let invert = |buffer: &mut [u8]| flips.iter().for_each(|&(byte, mask)| buffer[byte] ^= mask);
        invert(&mut batch.buffer);
        let asked = std::mem::replace(&mut batch.extents, kept);
        let (mut batch, result) = self.inner.write(batch);
        if result.is_ok() {
            batch.extents.iter().for_each(|stored| self.cure(&mut state, stored));
        }
        // The caller's memory is as it was; only what is stored differs.
        invert(&mut batch.buffer);
        batch.extents = asked;
        (batch, result.and(failure.map_or(Ok(()), Err)))
    }
}

impl Overlay for FaultyBackend {
    fn below(&self) -> &dyn Backend {
        self.inner.as_ref()
    }

    fn start(&self, operation: Operation, batch: IoBatch) -> InFlight {
        let (batch, result) = match operation {
            Operation::Read => self.read_some(batch),
            Operation::Write => self.write_some(batch),
        };
        InFlight::done(batch, result)
    }
}
