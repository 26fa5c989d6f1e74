//! One device by itself: bytes in a backend, time from the model.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

use super::fault::FaultSpec;
use super::lateness::{Debt, Lateness};
use super::spec::{DeviceKind, DeviceSpec};
use super::timing::{Schedule, TimedDevice};
use super::traffic::{Operation, Request};
use super::usage::DeviceStats;
use crate::backend::{AlignedBuffer, Backend, BackendConfig, Extent, IoBatch, open_backend};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::rng;
use crate::units::round_up;

/// Accesses with which the host's own speed is tried before it imitates a memory.
const TRIAL_ACCESSES: u64 = 4096;
/// Memory of the trial at most.
const TRIAL_BYTES_MAX: u64 = 64 << 20;
/// Trials, of which the fastest counts: an interrupt must not refuse a device.
const TRIALS: usize = 5;

/// How to open a device.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// Where its bytes are.
    pub backend: BackendConfig,
    /// Bytes to emulate.
    pub capacity_bytes: u64,
    /// Replaces the specification's.
    pub queue_depth: Option<u32>,
    /// Seed of the latency draws.
    pub seed: u64,
    /// Injected faults.
    #[serde(default)]
    pub faults: FaultSpec,
}

/// One device by itself.
pub struct EmulatedDevice {
    spec: DeviceSpec,
    capacity_bytes: u64,
    backend: Box<dyn Backend>,
    clock: Arc<Clock>,
    state: Mutex<DeviceState>,
}

struct DeviceState {
    schedule: Schedule,
    lateness: Lateness,
    debt: Debt,
}

impl EmulatedDevice {
    /// Opens a device.
    pub fn open(mut spec: DeviceSpec, config: &DeviceConfig, clock: Arc<Clock>) -> Result<Self> {
        spec.queue_depth = config.queue_depth.unwrap_or(spec.queue_depth);
        spec.validate()?;
        config.faults.validate()?;
        let capacity_bytes = config.capacity_bytes;
        if capacity_bytes > spec.capacity_bytes {
            return Err(Error::new(ErrorKind::Capacity, "the capacity asked for exceeds that of the device")
                .with_context("device", &spec.name)
                .with_context("asked_bytes", capacity_bytes)
                .with_context("capacity_bytes", spec.capacity_bytes));
        }
        // The last block of a file that is read past the page cache is whole.
        let len_bytes = round_up(capacity_bytes, AlignedBuffer::ALIGNMENT_BYTES as u64);
        let backend = open_backend(&config.backend, len_bytes)?;
        let timed = TimedDevice { storms: config.faults.storms(0), ..TimedDevice::new(spec.clone()) };
        let state = DeviceState {
            schedule: Schedule::new(vec![timed], config.seed),
            lateness: Lateness::default(),
            debt: Debt::default(),
        };
        let mut device = Self { spec, capacity_bytes, backend, clock, state: Mutex::new(state) };
        if device.spec.kind == DeviceKind::Byte && !device.clock.is_virtual() {
            device.refuse_if_the_host_is_slower()?;
        }
        // Last, so that the trial meets no faults and uses none up.
        device.backend = config.faults.over(0, device.backend);
        Ok(device)
    }

    fn lock(&self) -> MutexGuard<'_, DeviceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waiting can only add time: a memory that is faster than this host's cannot be imitated.
    fn refuse_if_the_host_is_slower(&self) -> Result<()> {
        let nbytes = self.spec.page_bytes.min(self.capacity_bytes).max(1);
        let places = (self.capacity_bytes / nbytes).max(1);
        let accesses = (TRIAL_BYTES_MAX / nbytes).clamp(1, TRIAL_ACCESSES);
        let offsets: Vec<u64> = (0..accesses).map(|n| rng::draw(1, n) % places * nbytes).collect();
        let mut out = vec![0; (accesses * nbytes) as usize];
        let timed = TimedDevice::new(self.spec.clone());
        let model_ns = Schedule::new(vec![timed], 0).run_scattered(0, 0, Operation::Read, accesses, nbytes);
        let mut host_ns = u64::MAX;
        for _ in 0..TRIALS {
            let began_ns = self.clock.now_ns();
            self.copy_out(&offsets, nbytes as usize, &mut out)?;
            host_ns = host_ns.min(self.clock.now_ns() - began_ns);
        }
        if host_ns <= model_ns {
            return Ok(());
        }
        let message = "this host moves bytes more slowly than the device would; use the virtual clock";
        Err(Error::new(ErrorKind::Config, message)
            .with_context("device", &self.spec.name)
            .with_context("accesses", accesses)
            .with_context("host_ns", host_ns)
            .with_context("device_ns", model_ns))
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
        let submitted_ns = self.clock.now_ns();
        self.copy_out(offsets, nbytes, out)?;
        Ok(self.account(Operation::Read, submitted_ns, offsets, nbytes))
    }

    fn copy_out(&self, offsets: &[u64], nbytes: usize, out: &mut [u8]) -> Result<()> {
        let alignment = self.backend.alignment_bytes() as u64;
        let mut extents = Vec::with_capacity(offsets.len());
        let mut total = 0usize;
        for &offset in offsets {
            let start = offset / alignment * alignment;
            let length = (round_up(offset + nbytes as u64, alignment) - start) as usize;
            extents.push(Extent { offset: start, buffer_offset: total, nbytes: length });
            total += length;
        }
        let batch = IoBatch { buffer: self.backend.buffer(total), extents };
        let (batch, result) = self.backend.read(batch);
        result?;
        for (position, (extent, &offset)) in batch.extents.iter().zip(offsets).enumerate() {
            let from = extent.buffer_offset + (offset - extent.offset) as usize;
            out[position * nbytes..(position + 1) * nbytes].copy_from_slice(&batch.buffer[from..from + nbytes]);
        }
        Ok(())
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
        let mut buffer = self.backend.buffer(data.len());
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

    /// Gives the batch to the model and waits until it is due; gives its time by the model.
    fn account(&self, operation: Operation, submitted_ns: u64, offsets: &[u64], nbytes: usize) -> u64 {
        let nbytes = nbytes as u64;
        let requests: Vec<Request> =
            offsets.iter().map(|&offset| Request { device: 0, operation, offset, nbytes }).collect();
        let mut state = self.lock();
        // While a debt is open, the model's time is behind this clock by as much.
        let model_now_ns = submitted_ns.saturating_sub(state.debt.outstanding_ns);
        let handle = state.schedule.submit(model_now_ns, &requests);
        let due_ns = state.schedule.finish(handle);
        let model_ns = due_ns.saturating_sub(model_now_ns);
        if self.clock.is_virtual() {
            drop(state);
            self.clock.wait_until(due_ns);
            return model_ns;
        }
        let now_ns = self.clock.now_ns();
        let wait_ns = match self.spec.kind {
            DeviceKind::Block => due_ns.saturating_sub(now_ns),
            DeviceKind::Byte => state.debt.settle(model_ns, now_ns.saturating_sub(submitted_ns)),
        };
        drop(state);
        self.clock.wait_until(now_ns + wait_ns);
        let delivered_ns = self.clock.now_ns();
        self.lock().lateness.record(offsets.len() as u64, submitted_ns, due_ns, delivered_ns);
        model_ns
    }

    /// What the device did so far.
    pub fn stats(&self) -> DeviceStats {
        let (snapshot, now_ns) = {
            let mut state = self.lock();
            let now_ns = self.clock.now_ns();
            state.schedule.advance_to(now_ns);
            (state.schedule.snapshot(0), now_ns)
        };
        DeviceStats::new(&self.spec, self.backend.info(), snapshot, now_ns, self.capacity_bytes)
    }

    /// How punctual the device was; empty on a virtual clock.
    pub fn lateness(&self) -> Lateness {
        self.lock().lateness.clone()
    }

    /// What the host was too slow by; zero on a virtual clock and for block devices.
    pub fn debt(&self) -> Debt {
        self.lock().debt
    }
}
