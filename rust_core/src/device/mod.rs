//! How long it takes: device specifications, the timing model, and a single emulated device.

mod quantile;
mod spec;
mod timing;

use std::sync::{Arc, Mutex, PoisonError};

pub use quantile::QuantileTable;
pub use spec::{DeviceKind, DeviceSpec};
pub use timing::{BatchHandle, DeviceSnapshot, Operation, Request, Schedule, byte_batch_ns};

use crate::backend::{AlignedBuffer, Backend, BackendConfig, BackendInfo, Extent, IoBatch, open_backend};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::stats::{DeviceCounters, LatencyHistogram};
use crate::units::round_up;

/// A request is late when it is delivered more than this after it was due ...
const LATE_NS_MIN: u64 = 2_000;
/// ... or more than this share of its model latency, whichever is larger.
const LATE_PERCENT: u64 = 2;

/// What one device did, and what follows from it and its specification.
#[derive(Debug, Clone)]
pub struct DeviceStats {
    /// Name of the specification.
    pub name: String,
    /// What runs underneath.
    pub backend: BackendInfo,
    /// Counters.
    pub counters: DeviceCounters,
    /// Latency of reads, from issue to completion, by the model.
    pub read_latency: LatencyHistogram,
    /// Latency of writes, from issue to acknowledgement, by the model.
    pub write_latency: LatencyHistogram,
    /// Time over which the counters were collected.
    pub elapsed_ns: u64,
    /// Share of the elapsed time for which the busiest stage (units, controller, a link) was busy.
    pub utilisation: f64,
    /// Idle power over the elapsed time, plus active power for the time that the bytes take at full bandwidth.
    pub energy_joules: f64,
}

impl DeviceStats {
    /// Derives utilisation and energy. `elapsed_ns` may be zero.
    pub fn new(spec: &DeviceSpec, backend: BackendInfo, snapshot: DeviceSnapshot, elapsed_ns: u64) -> Self {
        let counters = snapshot.counters;
        let units = f64::from(spec.units.max(1));
        let busiest_ns = (counters.media_busy_ns as f64 / units)
            .max(counters.controller_busy_ns as f64)
            .max(counters.read_link_busy_ns as f64)
            .max(counters.write_link_busy_ns as f64);
        let power = &spec.power;
        let above_idle = |milliwatts: u64| milliwatts.saturating_sub(power.idle_milliwatts) as f64;
        let milliwatt_ns = power.idle_milliwatts as f64 * elapsed_ns as f64
            + above_idle(power.read_milliwatts) * counters.read_link_busy_ns as f64
            + above_idle(power.write_milliwatts) * counters.write_link_busy_ns as f64;
        Self {
            name: spec.name.clone(),
            backend,
            counters,
            read_latency: snapshot.read_latency,
            write_latency: snapshot.write_latency,
            elapsed_ns,
            utilisation: if elapsed_ns == 0 { 0.0 } else { (busiest_ns / elapsed_ns as f64).min(1.0) },
            energy_joules: milliwatt_ns * 1e-12,
        }
    }
}

/// How punctual a wall-clock run was. Every request of a batch counts as delivered with its batch.
#[derive(Debug, Clone, Default)]
pub struct Lateness {
    /// Requests delivered.
    pub requests: u64,
    /// Requests delivered too late.
    pub late_requests: u64,
    /// Delivery minus due time, of batches.
    pub late_by: LatencyHistogram,
}

impl Lateness {
    /// A run with more late requests than this share is invalid.
    pub const SHARE_MAX: f64 = 0.01;

    /// Records one batch that was due at `due_ns`, submitted at `submitted_ns` and delivered at `delivered_ns`.
    pub fn record(&mut self, requests: u64, submitted_ns: u64, due_ns: u64, delivered_ns: u64) {
        if requests == 0 {
            return;
        }
        let model_ns = due_ns.saturating_sub(submitted_ns);
        let late_ns = delivered_ns.saturating_sub(due_ns);
        self.requests += requests;
        self.late_by.record(late_ns);
        if late_ns > LATE_NS_MIN.max(model_ns * LATE_PERCENT / 100) {
            self.late_requests += requests;
        }
    }

    /// Share of late requests.
    pub fn late_share(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.late_requests as f64 / self.requests as f64 }
    }
}

/// One device by itself: bytes in a backend, time from the model.
pub struct EmulatedDevice {
    spec: DeviceSpec,
    capacity_bytes: u64,
    backend: Box<dyn Backend>,
    clock: Arc<Clock>,
    state: Mutex<DeviceState>,
}

struct DeviceState {
    schedule: Schedule,
    byte_form: DeviceSnapshot,
    lateness: Lateness,
}

impl EmulatedDevice {
    /// Opens a device of `capacity_bytes`. `queue_depth` replaces the specification's.
    pub fn open(
        mut spec: DeviceSpec,
        backend: &BackendConfig,
        capacity_bytes: u64,
        clock: Arc<Clock>,
        queue_depth: Option<u32>,
        seed: u64,
    ) -> Result<Self> {
        spec.queue_depth = queue_depth.unwrap_or(spec.queue_depth);
        spec.validate()?;
        if capacity_bytes > spec.capacity_bytes {
            return Err(Error::new(ErrorKind::Capacity, "the capacity asked for exceeds that of the device")
                .with_context("device", &spec.name)
                .with_context("asked_bytes", capacity_bytes)
                .with_context("capacity_bytes", spec.capacity_bytes));
        }
        if spec.kind == DeviceKind::Byte && !clock.is_virtual() {
            let message = "a byte-addressable device is faster than this host can wait; use the virtual clock";
            return Err(Error::new(ErrorKind::Config, message).with_context("device", &spec.name));
        }
        // The last block of a file that is read past the page cache is whole.
        let backend = open_backend(backend, round_up(capacity_bytes, AlignedBuffer::ALIGNMENT_BYTES as u64))?;
        let timed = match spec.kind {
            DeviceKind::Block => vec![(spec.clone(), spec.queue_depth as usize)],
            DeviceKind::Byte => Vec::new(),
        };
        let state = DeviceState {
            schedule: Schedule::new(timed, seed),
            byte_form: DeviceSnapshot::default(),
            lateness: Lateness::default(),
        };
        Ok(Self { spec, capacity_bytes, backend, clock, state: Mutex::new(state) })
    }

    /// Capacity in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// Requests outstanding at most.
    pub fn queue_depth(&self) -> usize {
        self.spec.queue_depth as usize
    }

    /// Reads `nbytes` at each offset into `out`, one after the other; all are submitted at one
    /// instant, and the call returns when the last is due. Gives the time that took, in nanoseconds.
    pub fn read_batch(&self, offsets: &[u64], nbytes: usize, out: &mut [u8]) -> Result<u64> {
        self.check(offsets, nbytes, out.len())?;
        let alignment = self.backend.alignment_bytes() as u64;
        let mut extents = Vec::with_capacity(offsets.len());
        let mut total = 0usize;
        for &offset in offsets {
            let start = offset / alignment * alignment;
            let length = (round_up(offset + nbytes as u64, alignment) - start) as usize;
            extents.push(Extent { offset: start, buffer_offset: total, nbytes: length });
            total += length;
        }
        let batch = IoBatch { buffer: AlignedBuffer::zeroed(total), extents };
        let submitted_ns = self.clock.now_ns();
        let (batch, result) = self.backend.read(batch);
        result?;
        for (position, (extent, &offset)) in batch.extents.iter().zip(offsets).enumerate() {
            let from = extent.buffer_offset + (offset - extent.offset) as usize;
            out[position * nbytes..(position + 1) * nbytes].copy_from_slice(&batch.buffer[from..from + nbytes]);
        }
        Ok(self.account(Operation::Read, submitted_ns, offsets, nbytes))
    }

    /// Writes `nbytes` of `data` at each offset; returns when the last is acknowledged, as `read_batch`.
    pub fn write_batch(&self, offsets: &[u64], nbytes: usize, data: &[u8]) -> Result<u64> {
        self.check(offsets, nbytes, data.len())?;
        let alignment = self.backend.alignment_bytes() as u64;
        if let Some(offset) =
            offsets.iter().find(|&&at| !at.is_multiple_of(alignment) || !(nbytes as u64).is_multiple_of(alignment))
        {
            let message =
                "a write past the page cache must be aligned; align it, or open the backend with direct = \"off\"";
            return Err(Error::new(ErrorKind::Input, message)
                .with_context("offset", offset)
                .with_context("nbytes", nbytes)
                .with_context("alignment_bytes", alignment));
        }
        let mut buffer = AlignedBuffer::zeroed(data.len());
        buffer.copy_from_slice(data);
        let extents =
            offsets.iter().enumerate().map(|(n, &offset)| Extent { offset, buffer_offset: n * nbytes, nbytes });
        let batch = IoBatch { buffer, extents: extents.collect() };
        let submitted_ns = self.clock.now_ns();
        let (_, result) = self.backend.write(batch);
        result?;
        Ok(self.account(Operation::Write, submitted_ns, offsets, nbytes))
    }

    fn check(&self, offsets: &[u64], nbytes: usize, buffer_bytes: usize) -> Result<()> {
        if nbytes == 0 || offsets.len().checked_mul(nbytes) != Some(buffer_bytes) {
            return Err(Error::new(
                ErrorKind::Input,
                "the buffer must hold one request of at least one byte for each offset",
            )
            .with_context("offsets", offsets.len())
            .with_context("nbytes", nbytes)
            .with_context("buffer_bytes", buffer_bytes));
        }
        let capacity = self.len_bytes();
        match offsets.iter().find(|&&offset| offset.checked_add(nbytes as u64).is_none_or(|end| end > capacity)) {
            None => Ok(()),
            Some(offset) => Err(Error::new(ErrorKind::Input, "a request ends behind the end of the device")
                .with_context("offset", offset)
                .with_context("nbytes", nbytes)
                .with_context("capacity_bytes", capacity)),
        }
    }

    fn account(&self, operation: Operation, submitted_ns: u64, offsets: &[u64], nbytes: usize) -> u64 {
        let nbytes = nbytes as u64;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let due_ns = match self.spec.kind {
            DeviceKind::Block => {
                let requests: Vec<Request> =
                    offsets.iter().map(|&offset| Request { device: 0, operation, offset, nbytes }).collect();
                let handle = state.schedule.submit(submitted_ns, &requests);
                state.schedule.finish(handle)
            }
            DeviceKind::Byte => {
                let duration_ns = byte_batch_ns(&self.spec, operation, offsets.len() as u64, nbytes);
                count_byte_batch(
                    &mut state.byte_form,
                    &self.spec,
                    operation,
                    offsets.len() as u64,
                    nbytes,
                    duration_ns,
                );
                submitted_ns + duration_ns
            }
        };
        drop(state);
        self.clock.wait_until(due_ns);
        if !self.clock.is_virtual() {
            let delivered_ns = self.clock.now_ns();
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.lateness.record(offsets.len() as u64, submitted_ns, due_ns, delivered_ns);
        }
        due_ns.saturating_sub(submitted_ns)
    }

    /// What the device did so far.
    pub fn stats(&self) -> DeviceStats {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot =
            if self.spec.kind == DeviceKind::Block { state.schedule.snapshot(0) } else { state.byte_form.clone() };
        DeviceStats::new(&self.spec, self.backend.info(), snapshot, self.clock.now_ns())
    }

    /// How punctual the device was; empty on a virtual clock.
    pub fn lateness(&self) -> Lateness {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).lateness.clone()
    }
}

/// Adds one batch to the counters of a byte-addressable device.
pub fn count_byte_batch(
    snapshot: &mut DeviceSnapshot,
    spec: &DeviceSpec,
    operation: Operation,
    count: u64,
    nbytes_each: u64,
    duration_ns: u64,
) {
    if count == 0 {
        return;
    }
    let asked = count * nbytes_each;
    let media = count * round_up(nbytes_each, spec.granule_bytes);
    let counters = &mut snapshot.counters;
    counters.active_ns += duration_ns;
    match operation {
        Operation::Read => {
            counters.reads += count;
            counters.read_bytes += asked;
            counters.media_read_bytes += media;
            counters.read_link_busy_ns += crate::units::transfer_ns(media, spec.read.bandwidth_bytes_per_s);
            snapshot.read_latency.record(duration_ns);
        }
        Operation::Write => {
            counters.writes += count;
            counters.write_bytes += asked;
            counters.media_write_bytes += media;
            counters.write_link_busy_ns += crate::units::transfer_ns(media, spec.write.bandwidth_bytes_per_s);
            snapshot.write_latency.record(duration_ns);
        }
    }
}
