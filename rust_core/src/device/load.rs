//! A load on one device: where requests go, and when they come.

use serde::Deserialize;

use super::queue::{DeviceQueue, Entry};
use super::spec::{DeviceKind, DeviceSpec};
use super::traffic::Operation;
use crate::error::{Error, ErrorKind, Result};
use crate::rng;

/// Operations of one point at most.
const OPERATIONS_MAX: u64 = 1 << 40;

/// Where requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// Anywhere, aligned to the block size.
    Random,
    /// One after the other.
    Sequential,
}

/// When requests come.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Arrival {
    /// So many are outstanding at any time.
    QueueDepth(u32),
    /// By a Poisson process of this rate, however long earlier ones take.
    RatePerSecond(f64),
}

/// A load.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Where requests go.
    pub pattern: Pattern,
    /// Share of reads, in percent.
    pub read_percent: u32,
    /// Bytes of a request.
    pub block_bytes: u64,
    /// Requests go to the first so many bytes of the device.
    pub span_bytes: u64,
    /// When requests come.
    pub arrival: Arrival,
    /// Operations measured.
    pub operations: u64,
    /// Operations before; `None`: enough to fill queue and write buffer.
    #[serde(default)]
    pub warm_up: Option<u64>,
    /// Seed of places, mix, arrivals and latency draws.
    pub seed: u64,
}

impl Workload {
    pub(super) fn validate(&self, spec: &DeviceSpec) -> Result<()> {
        let fail = |why: &str| Err(Error::new(ErrorKind::Config, why).with_context("device", &spec.name));
        if self.block_bytes == 0 || self.span_bytes < self.block_bytes {
            return fail("a request needs at least one byte, and must fit in the span");
        }
        if self.block_bytes > 1 << 30 {
            return fail("a request has at most 1 GiB");
        }
        if self.span_bytes > spec.capacity_bytes {
            return fail("the span exceeds the capacity of the device");
        }
        if self.read_percent > 100 {
            return fail("the share of reads lies between 0 and 100 %");
        }
        if self.operations == 0 || self.operations > OPERATIONS_MAX || self.warm_up.is_some_and(|n| n > OPERATIONS_MAX)
        {
            return fail("operations must be at least 1, and at most 2^40");
        }
        match self.arrival {
            Arrival::QueueDepth(depth) if depth == 0 || depth > 1 << 20 => {
                fail("the queue depth lies between 1 and 1,048,576")
            }
            Arrival::RatePerSecond(rate) if !(1e-3..=1e12).contains(&rate) => {
                fail("the rate lies between 0.001 and 10^12 operations per second")
            }
            _ => Ok(()),
        }
    }

    /// Pieces of one page in which a request goes to a byte-addressable device; 1 for block devices.
    pub(super) fn pieces(&self, spec: &DeviceSpec) -> u64 {
        if spec.kind == DeviceKind::Byte { self.block_bytes.div_ceil(spec.page_bytes) } else { 1 }
    }

    pub(super) fn queue_depth(&self, spec: &DeviceSpec) -> usize {
        match self.arrival {
            Arrival::QueueDepth(depth) => depth as usize,
            Arrival::RatePerSecond(_) => spec.queue_depth as usize,
        }
    }

    /// The device as the load finds it: with writes in it, the write buffer is full.
    pub(super) fn queue(&self, spec: &DeviceSpec) -> DeviceQueue {
        let mut queue = DeviceQueue::new(spec.clone(), self.queue_depth(spec), self.seed, 0, None);
        if self.read_percent < 100 {
            queue.fill_write_buffer();
        }
        queue
    }

    /// A tenth of the operations, twice the queue, and twice the write buffer if there are writes.
    pub(super) fn warm_up(&self, spec: &DeviceSpec) -> u64 {
        let per_write = self.block_bytes * u64::from(100 - self.read_percent);
        let buffered = (u128::from(spec.write.buffer_bytes) * 100).checked_div(u128::from(per_write)).unwrap_or(0);
        let buffered = u64::try_from(buffered).unwrap_or(u64::MAX).min(OPERATIONS_MAX);
        self.warm_up.unwrap_or(self.operations / 10 + 2 * self.queue_depth(spec) as u64 + 2 * buffered)
    }
}

/// The requests of a load, by number.
pub(super) struct Requests {
    workload: Workload,
    places: u64,
    keys: [u64; 3],
    /// Pieces of a request, and their size.
    pub(super) pieces: u64,
    piece_bytes: u64,
}

impl Requests {
    pub(super) fn new(workload: Workload, spec: &DeviceSpec) -> Self {
        let key = |index: u64| rng::stream(workload.seed, 0x6c6f_6164 + index);
        let pieces = workload.pieces(spec);
        Self {
            workload,
            places: workload.span_bytes / workload.block_bytes,
            keys: [key(0), key(1), key(2)],
            pieces,
            piece_bytes: if pieces == 1 { workload.block_bytes } else { spec.page_bytes },
        }
    }

    /// Piece `number` of the load; a piece is a whole request of a block device.
    #[inline]
    pub(super) fn entry(&self, number: u64, arrived_ps: u64) -> Entry {
        let workload = &self.workload;
        let (request, piece) =
            if self.pieces == 1 { (number, 0) } else { (number / self.pieces, number % self.pieces) };
        let place = match workload.pattern {
            Pattern::Sequential => request % self.places,
            Pattern::Random => ((u128::from(rng::draw(self.keys[0], request)) * u128::from(self.places)) >> 64) as u64,
        };
        let operation = match workload.read_percent {
            100 => Operation::Read,
            0 => Operation::Write,
            percent => {
                let drawn = (u128::from(rng::draw(self.keys[1], request)) * 100) >> 64;
                if drawn < u128::from(percent) { Operation::Read } else { Operation::Write }
            }
        };
        let first = piece * self.piece_bytes;
        Entry {
            operation,
            continues: piece > 0,
            offset: place * workload.block_bytes + first,
            nbytes: (workload.block_bytes - first).min(self.piece_bytes) as u32,
            tag: 0,
            arrived_ps,
        }
    }

    /// Time between arrivals `number` and `number + 1` of an open loop.
    pub(super) fn gap_ps(&self, number: u64, rate_per_s: f64) -> u64 {
        let uniform = ((rng::draw(self.keys[2], number) >> 11) + 1) as f64 / (1u64 << 53) as f64;
        libm::round(-libm::log(uniform) * 1e12 / rate_per_s) as u64
    }
}
