//! A block device that a client drives request by request: it submits, it asks what is due. For clients that this
//! package did not write (fio, NBD). Bytes move as a request is submitted; one thread calls.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::Deserialize;

use super::lateness::Lateness;
use super::queue::{Completion, DeviceQueue, Entry};
use super::spec::{DeviceKind, DeviceSpec};
use super::traffic::Operation;
use super::usage::DeviceStats;
use crate::backend::{AlignedBuffer, Backend, BackendConfig, Extent, IoBatch, open_backend};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{PS_PER_NS, round_up};

/// Requests in flight: the client's queue counts, as with a drive, whose own is longer.
const QUEUE_DEPTH: usize = 4096;
/// One request is at most this long.
const REQUEST_BYTES_MAX: usize = 64 << 20;

/// How to open a device for a client.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiveConfig {
    /// Where its bytes are.
    pub backend: BackendConfig,
    /// Bytes to emulate.
    pub capacity_bytes: u64,
    /// Seed of the latency draws.
    pub seed: u64,
    /// Requests complete at once, as if the device took no time: to measure what client and transport take.
    #[serde(default)]
    pub zero_latency: bool,
    /// What client and transport take by themselves. A request counts as submitted so long before it
    /// came here, so that the client sees the device's latency and not the sum of both.
    #[serde(default)]
    pub transport_ns: u64,
}

/// Moves the bytes of one request at a time between a backend and the client's memory.
pub(super) struct Mover {
    backend: Box<dyn Backend>,
    batch: Option<IoBatch>,
}

impl Mover {
    pub(super) fn new(backend: Box<dyn Backend>) -> Self {
        Self { backend, batch: None }
    }

    /// The memory of one request, kept from one to the next.
    fn batch(&mut self, offset: u64, nbytes: usize) -> IoBatch {
        let mut batch = self.batch.take().filter(|batch| batch.buffer.len() >= nbytes).unwrap_or_else(|| {
            let buffer = self.backend.buffer(nbytes.next_power_of_two());
            IoBatch { buffer, extents: Vec::with_capacity(1) }
        });
        batch.extents.clear();
        batch.extents.push(Extent { offset, buffer_offset: 0, nbytes });
        batch
    }

    /// Reads, and leaves the bytes to `take`.
    pub(super) fn read(&mut self, offset: u64, nbytes: usize, take: impl FnOnce(&[u8])) -> Result<()> {
        let batch = self.batch(offset, nbytes);
        let (batch, result) = self.backend.read(batch);
        if result.is_ok() {
            take(&batch.buffer[..nbytes]);
        }
        self.batch = Some(batch);
        result
    }

    /// Writes what `give` puts into the memory.
    pub(super) fn write(&mut self, offset: u64, nbytes: usize, give: impl FnOnce(&mut [u8])) -> Result<()> {
        let mut batch = self.batch(offset, nbytes);
        give(&mut batch.buffer[..nbytes]);
        let (batch, result) = self.backend.write(batch);
        self.batch = Some(batch);
        result
    }

    /// Writes everywhere once, so that no request pays for a page that the host hands out.
    pub(super) fn touch(&mut self) -> Result<()> {
        const CHUNK_BYTES: u64 = 1 << 20;
        let len_bytes = self.backend.len_bytes();
        let mut offset = 0;
        while offset < len_bytes {
            self.write(offset, CHUNK_BYTES.min(len_bytes - offset) as usize, |memory| memory.fill(0))?;
            offset += CHUNK_BYTES;
        }
        self.batch = None;
        Ok(())
    }
}

/// A block device under a client's requests.
pub struct LiveDevice {
    mover: Mover,
    queue: DeviceQueue,
    spec: DeviceSpec,
    clock: Arc<Clock>,
    capacity_bytes: u64,
    transport_ns: u64,
    zero_latency: bool,
    /// Tags of requests that are due, of a device that takes no time.
    due: VecDeque<u32>,
    outstanding: usize,
    lateness: Lateness,
}

impl LiveDevice {
    /// Opens a device.
    ///
    /// # Errors
    ///
    /// `Config` for a byte-addressable memory, whose accesses no client can time one by one, or for an invalid
    /// specification; `Capacity` if more bytes are asked for than the device has; those of the backend.
    pub fn open(spec: DeviceSpec, config: &LiveConfig, clock: Arc<Clock>) -> Result<Self> {
        spec.validate()?;
        if spec.kind == DeviceKind::Byte {
            let message = "a byte-addressable memory cannot be served request by request; use a block device";
            return Err(Error::new(ErrorKind::Config, message).with_context("device", &spec.name));
        }
        let capacity_bytes = config.capacity_bytes;
        if capacity_bytes == 0 || capacity_bytes > spec.capacity_bytes {
            return Err(Error::new(ErrorKind::Capacity, "the size lies between one byte and the device's capacity")
                .with_context("device", &spec.name)
                .with_context("asked_bytes", capacity_bytes)
                .with_context("capacity_bytes", spec.capacity_bytes));
        }
        let backend = open_backend(&config.backend, capacity_bytes)?;
        if backend.alignment_bytes() > 1 {
            let message = "clients send requests of any alignment; open the backend with direct = \"off\"";
            return Err(Error::new(ErrorKind::Config, message).with_context("device", &spec.name));
        }
        let queue = DeviceQueue::new(spec.clone(), QUEUE_DEPTH, config.seed, 0, None);
        Ok(Self {
            mover: Mover::new(backend),
            queue,
            spec,
            clock,
            capacity_bytes,
            transport_ns: config.transport_ns,
            zero_latency: config.zero_latency,
            due: VecDeque::new(),
            outstanding: 0,
            lateness: Lateness::default(),
        })
    }

    /// Takes the memory of the whole device from the host now, so that no request pays for it later.
    pub fn touch(&mut self) -> Result<()> {
        self.mover.touch()
    }

    /// Capacity in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    /// Requests that were submitted and not given back by `poll`.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Submits a read; `out` is filled now, and `tag` comes back from `poll` when it is due.
    pub fn read(&mut self, tag: u32, offset: u64, out: &mut [u8]) -> Result<()> {
        let now_ns = self.clock.now_ns();
        self.check(offset, out.len())?;
        self.mover.read(offset, out.len(), |bytes| out.copy_from_slice(bytes))?;
        self.submit(Operation::Read, tag, offset, out.len(), now_ns);
        Ok(())
    }

    /// Submits a write; `data` is stored now, and `tag` comes back from `poll` when it is acknowledged.
    pub fn write(&mut self, tag: u32, offset: u64, data: &[u8]) -> Result<()> {
        let now_ns = self.clock.now_ns();
        self.check(offset, data.len())?;
        self.mover.write(offset, data.len(), |memory| memory.copy_from_slice(data))?;
        self.submit(Operation::Write, tag, offset, data.len(), now_ns);
        Ok(())
    }

    fn check(&self, offset: u64, nbytes: usize) -> Result<()> {
        let problem = if nbytes == 0 || nbytes > REQUEST_BYTES_MAX {
            "a request moves between one byte and 64 MiB"
        } else if offset.checked_add(nbytes as u64).is_none_or(|end| end > self.capacity_bytes) {
            "a request ends behind the end of the device"
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Input, problem)
            .with_context("offset", offset)
            .with_context("nbytes", nbytes)
            .with_context("capacity_bytes", self.capacity_bytes))
    }

    /// The time of arrival is that before the bytes were moved: what the host spends on them is part of the
    /// latency, not on top of it.
    fn submit(&mut self, operation: Operation, tag: u32, offset: u64, nbytes: usize, now_ns: u64) {
        self.outstanding += 1;
        if self.zero_latency {
            self.due.push_back(tag);
            return;
        }
        let arrived_ps = now_ns.saturating_sub(self.transport_ns) * PS_PER_NS;
        let entry = Entry { operation, offset, nbytes: nbytes as u32, continues: false, tag, arrived_ps };
        self.queue.submit(arrived_ps, entry);
    }

    /// A request that is due, if there is one.
    pub fn poll(&mut self) -> Option<u32> {
        self.poll_at(self.clock.now_ns())
    }

    /// The requests that are due, as many as `tags` takes; gives their number. Reads the clock once, since a
    /// client that spins waits for nothing else.
    pub fn poll_many(&mut self, tags: &mut [u32]) -> usize {
        let (now_ns, mut count) = (self.clock.now_ns(), 0);
        while count < tags.len()
            && let Some(tag) = self.poll_at(now_ns)
        {
            tags[count] = tag;
            count += 1;
        }
        count
    }

    #[inline]
    fn poll_at(&mut self, now_ns: u64) -> Option<u32> {
        let tag = if self.zero_latency {
            self.due.pop_front()?
        } else {
            let Completion { tag, arrived_ps, completed_ps } = self.queue.next_completion(now_ns * PS_PER_NS)?;
            self.lateness.record(1, arrived_ps / PS_PER_NS, completed_ps / PS_PER_NS, now_ns);
            tag
        };
        self.outstanding -= 1;
        Some(tag)
    }

    /// Nothing is due before this time of the clock; `None` if nothing is outstanding.
    pub fn next_event_ns(&self) -> Option<u64> {
        if !self.due.is_empty() {
            return Some(0);
        }
        let at_ps = self.queue.next_event_ps();
        (self.outstanding > 0 && at_ps != u64::MAX).then(|| at_ps.div_ceil(PS_PER_NS))
    }

    /// Makes a range read as zeros; takes no time of the model.
    pub fn discard(&mut self, offset: u64, nbytes: u64) -> Result<()> {
        self.mover.backend.discard(offset, nbytes)
    }

    /// Everything that was acknowledged is as durable as the backend can make it; takes no time of the model, since
    /// the drives that are modelled acknowledge from a buffer that survives the loss of power.
    pub fn sync(&self) -> Result<()> {
        self.mover.backend.sync()
    }

    /// What the device did so far.
    pub fn stats(&self) -> DeviceStats {
        let now_ns = self.clock.now_ns();
        let snapshot = self.queue.snapshot(now_ns * PS_PER_NS);
        DeviceStats::new(&self.spec, self.mover.backend.info(), snapshot, now_ns, self.capacity_bytes)
    }

    /// How punctual it was.
    pub fn lateness(&self) -> &Lateness {
        &self.lateness
    }
}

/// A backend of `len_bytes` in memory, all of it taken from the host, for runs in real time.
pub(super) fn touched_memory(len_bytes: u64) -> Result<Mover> {
    let len_bytes = round_up(len_bytes, AlignedBuffer::ALIGNMENT_BYTES as u64);
    let mut mover = Mover::new(open_backend(&BackendConfig::ram(), len_bytes)?);
    mover.touch()?;
    Ok(mover)
}
