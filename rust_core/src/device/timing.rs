//! When requests complete: the devices of a hierarchy under one clock, and the batches that were
//! submitted to them.
//!
//! Completion times are computed, never throttled, and a random draw is keyed by (seed, device,
//! request number), so neither threads nor the caller's timing can change a result. Callers count in
//! nanoseconds; the devices count in picoseconds.

use std::collections::VecDeque;

use super::curve::CurveFamily;
use super::fault::Storms;
use super::queue::{AT_ISSUE, Completion, DeviceQueue, Entry};
use super::spec::{DeviceKind, DeviceSpec};
use super::traffic::{DeviceSnapshot, Operation, Request};
use crate::rng;
use crate::units::PS_PER_NS;

/// A device of a schedule.
#[derive(Debug, Clone)]
pub struct TimedDevice {
    /// Its numbers.
    pub spec: DeviceSpec,
    /// Requests outstanding at most.
    pub queue_depth: usize,
    /// Periods of slowness, if any are injected.
    pub storms: Option<Storms>,
}

impl TimedDevice {
    /// With the queue depth of its specification, and no storms.
    pub fn new(spec: DeviceSpec) -> Self {
        Self { queue_depth: spec.queue_depth as usize, spec, storms: None }
    }
}

/// Handle of requests that were submitted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHandle(u32);

impl BatchHandle {
    /// A small number that no other batch has that is under way.
    pub fn number(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug, Default)]
struct Batch {
    /// Requests not yet completed.
    remaining: usize,
    completed_ps: u64,
    /// Nobody will ask: free the batch as it completes.
    detached: bool,
    /// Batches that start when this one completes.
    followers: Vec<(u32, Vec<Request>)>,
    /// Entries of the log that end with it: device, entry, accesses that are left.
    logged: Vec<(usize, usize, usize)>,
}

/// The requests of one batch to one device, in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferRecord {
    /// Position of the device.
    pub device: usize,
    /// Direction.
    pub operation: Operation,
    /// When they were submitted, in picoseconds.
    pub begin_ps: u64,
    /// When the last of them completed; 0 while they are under way.
    pub end_ps: u64,
    /// Number of requests.
    pub requests: u64,
    /// Bytes of all.
    pub nbytes: u64,
}

/// A device with curves: a batch is served as one, after the batches before it.
struct CurveQueue {
    family: CurveFamily,
    parallelism: u64,
    page_shift: u32,
    free_ps: u64,
    /// End and batch, in order of time.
    ahead: VecDeque<(u64, u32)>,
    snapshot: DeviceSnapshot,
}

impl CurveQueue {
    fn new(spec: &DeviceSpec, parallelism: usize) -> Self {
        Self {
            family: CurveFamily::new(spec),
            parallelism: parallelism as u64,
            page_shift: spec.page_bytes.trailing_zeros(),
            free_ps: 0,
            ahead: VecDeque::new(),
            snapshot: DeviceSnapshot::default(),
        }
    }

    /// Serves `pages` accesses of `nbytes` in all; gives the time of the last.
    fn serve(&mut self, now_ps: u64, operation: Operation, pages: u64, nbytes: u64) -> u64 {
        let (duration_ps, latency_ps) = self.family.batch_ps(operation, pages, self.parallelism);
        self.free_ps = now_ps.max(self.free_ps) + duration_ps;
        let media = pages << self.page_shift;
        let counters = &mut self.snapshot.counters;
        counters.active_ns += duration_ps / PS_PER_NS;
        let latency_ns = latency_ps.div_ceil(PS_PER_NS);
        match operation {
            Operation::Read => {
                counters.reads += pages;
                counters.read_bytes += nbytes;
                counters.media_read_bytes += media;
                counters.read_link_busy_ps += duration_ps;
                self.snapshot.read_latency.record_many(latency_ns, pages);
            }
            Operation::Write => {
                counters.writes += pages;
                counters.write_bytes += nbytes;
                counters.media_write_bytes += media;
                counters.write_link_busy_ps += duration_ps;
                self.snapshot.write_latency.record_many(latency_ns, pages);
            }
        }
        self.free_ps
    }
}

enum Station {
    Events(Box<DeviceQueue>),
    Curve(Box<CurveQueue>),
}

impl Station {
    fn next_event_ps(&self) -> u64 {
        match self {
            Self::Events(queue) => queue.next_event_ps(),
            Self::Curve(queue) => queue.ahead.front().map_or(u64::MAX, |&(end_ps, _)| end_ps),
        }
    }
}

/// The event queues of all devices of one hierarchy under one clock.
pub struct Schedule {
    stations: Vec<Station>,
    /// Page size of the devices that split a request into accesses of one page each; 0: whole requests.
    split_bytes: Vec<u64>,
    batches: Vec<Batch>,
    free_batches: Vec<u32>,
    processed_ps: u64,
    /// What was submitted, if it is to be remembered.
    log: Option<Vec<TransferRecord>>,
    /// Batches that completed and were not yet given to a caller who asks for each.
    completed: Option<VecDeque<u32>>,
}

impl Schedule {
    /// Idle devices.
    pub fn new(devices: Vec<TimedDevice>, seed: u64) -> Self {
        let split_bytes = devices
            .iter()
            .map(|device| if device.spec.kind == DeviceKind::Byte { device.spec.page_bytes } else { 0 })
            .collect();
        let station = |(position, device): (usize, TimedDevice)| {
            if device.spec.has_curves() {
                return Station::Curve(Box::new(CurveQueue::new(&device.spec, device.queue_depth)));
            }
            let TimedDevice { spec, queue_depth, storms } = device;
            Station::Events(Box::new(DeviceQueue::new(spec, queue_depth, seed, position, storms)))
        };
        let stations = devices.into_iter().enumerate().map(station).collect();
        Self {
            stations,
            split_bytes,
            batches: Vec::new(),
            free_batches: Vec::new(),
            processed_ps: 0,
            log: None,
            completed: None,
        }
    }

    /// Remembers every transfer from now on.
    pub fn start_log(&mut self) {
        self.log.get_or_insert_default();
    }

    /// What was remembered, in order of submission; transfers under way have no end yet.
    pub fn log(&self) -> &[TransferRecord] {
        self.log.as_deref().unwrap_or_default()
    }

    /// Submits requests at one instant. The handle must be given to `finish` or to `detach`.
    pub fn submit(&mut self, now_ns: u64, requests: &[Request]) -> BatchHandle {
        self.advance_to(now_ns);
        let batch = self.new_batch();
        self.enqueue(batch, now_ns * PS_PER_NS, requests);
        BatchHandle(batch)
    }

    /// Submits requests at the instant at which all of `predecessor` has completed, and no earlier than now.
    pub fn submit_after(&mut self, predecessor: BatchHandle, now_ns: u64, requests: Vec<Request>) -> BatchHandle {
        self.advance_to(now_ns);
        let batch = self.new_batch();
        let before = &mut self.batches[predecessor.0 as usize];
        if before.remaining == 0 {
            let begin_ps = before.completed_ps.max(now_ns * PS_PER_NS);
            self.enqueue(batch, begin_ps, &requests);
        } else {
            before.followers.push((batch, requests));
            // Not complete before it has begun.
            self.batches[batch as usize].remaining = 1;
        }
        BatchHandle(batch)
    }

    /// Submits `count` requests of `nbytes` at random places of a device and runs until they have
    /// completed; gives that time. For the rows of a byte-addressable tier, whose places do not matter.
    pub fn run_scattered(&mut self, device: usize, now_ns: u64, operation: Operation, count: u64, nbytes: u64) -> u64 {
        if count == 0 || nbytes == 0 {
            return now_ns;
        }
        if let Station::Curve(queue) = &mut self.stations[device] {
            let pages = count * nbytes.div_ceil(1 << queue.page_shift);
            return queue.serve(now_ns * PS_PER_NS, operation, pages, count * nbytes).div_ceil(PS_PER_NS);
        }
        let stride = nbytes.next_multiple_of(self.split_bytes[device].max(1));
        let place = |number: u64| rng::mix(now_ns ^ number << 32) >> 34;
        let requests: Vec<Request> =
            (0..count).map(|number| Request { device, operation, offset: place(number) * stride, nbytes }).collect();
        let handle = self.submit(now_ns, &requests);
        self.finish(handle)
    }

    /// Runs until all requests of the batch have completed; gives that time and frees the handle.
    pub fn finish(&mut self, handle: BatchHandle) -> u64 {
        let found = self.first_of(&[handle], u64::MAX);
        debug_assert!(found.is_some(), "an unfinished batch has an event ahead");
        found.map_or(self.processed_ps.div_ceil(PS_PER_NS), |(_, at_ns)| at_ns)
    }

    /// Runs until one of the batches has completed, but no further than `limit_ns`; gives its position and that time, and
    /// frees its handle. The other handles are as they were.
    pub fn first_of(&mut self, handles: &[BatchHandle], limit_ns: u64) -> Option<(usize, u64)> {
        let limit_ps = limit_ns.saturating_mul(PS_PER_NS);
        loop {
            let of = |handle: &BatchHandle| &self.batches[handle.0 as usize];
            let done = handles.iter().enumerate().filter(|(_, handle)| of(handle).remaining == 0);
            let first = done.map(|(position, handle)| (of(handle).completed_ps, position)).min();
            if let Some((at_ps, position)) = first.filter(|&(at_ps, _)| at_ps <= limit_ps) {
                self.free_batches.push(handles[position].0);
                return Some((position, at_ps.div_ceil(PS_PER_NS)));
            }
            let (at_ps, device, until_ps) = self.next_event();
            if at_ps > limit_ps || at_ps == u64::MAX {
                return None;
            }
            self.process(device, until_ps.min(limit_ps));
        }
    }

    /// From now on `next_completion` gives every batch that is not detached; `finish` is for nobody then.
    pub fn report_completions(&mut self) {
        self.completed.get_or_insert_default();
    }

    /// The next batch that completes and when it did, if that is no later than `limit_ns`; frees its handle.
    pub fn next_completion(&mut self, limit_ns: u64) -> Option<(BatchHandle, u64)> {
        let limit_ps = limit_ns.saturating_mul(PS_PER_NS);
        loop {
            if let Some(batch) = self.completed.as_mut().and_then(VecDeque::pop_front) {
                self.free_batches.push(batch);
                return Some((BatchHandle(batch), self.batches[batch as usize].completed_ps.div_ceil(PS_PER_NS)));
            }
            let (at_ps, device, until_ps) = self.next_event();
            if at_ps > limit_ps || at_ps == u64::MAX {
                return None;
            }
            self.process(device, until_ps.min(limit_ps));
        }
    }

    /// Nobody will ask for this batch; it is forgotten as it completes.
    pub fn detach(&mut self, handle: BatchHandle) {
        let batch = &mut self.batches[handle.0 as usize];
        batch.detached = true;
        if batch.remaining == 0 {
            self.free_batches.push(handle.0);
        }
    }

    /// Processes all events up to `now_ns`.
    pub fn advance_to(&mut self, now_ns: u64) {
        let now_ps = now_ns * PS_PER_NS;
        loop {
            let (at_ps, device, limit_ps) = self.next_event();
            if at_ps > now_ps {
                break;
            }
            self.process(device, limit_ps.min(now_ps));
        }
        self.processed_ps = self.processed_ps.max(now_ps);
    }

    /// Runs until nothing is in flight; gives the time of the last event in nanoseconds.
    pub fn drain(&mut self) -> u64 {
        loop {
            let (at_ps, device, limit_ps) = self.next_event();
            if at_ps == u64::MAX {
                return self.processed_ps.div_ceil(PS_PER_NS);
            }
            self.process(device, limit_ps);
        }
    }

    /// What a device did so far.
    pub fn snapshot(&self, device: usize) -> DeviceSnapshot {
        match &self.stations[device] {
            Station::Events(queue) => queue.snapshot(self.processed_ps),
            Station::Curve(queue) => queue.snapshot.clone(),
        }
    }

    fn new_batch(&mut self) -> u32 {
        if let Some(slot) = self.free_batches.pop() {
            self.batches[slot as usize] = Batch::default();
            slot
        } else {
            self.batches.push(Batch::default());
            self.batches.len() as u32 - 1
        }
    }

    fn enqueue(&mut self, batch: u32, now_ps: u64, requests: &[Request]) {
        // On a wall clock events may have been processed ahead of now to find a due time. The units
        // and links remember when they are free, so a submission "in their past" still queues.
        self.batches[batch as usize].completed_ps = now_ps;
        let mut accesses = 0;
        for group in requests.chunk_by(|a, b| (a.device, a.operation) == (b.device, b.operation)) {
            let Request { device, operation, .. } = group[0];
            let accesses_before = accesses;
            let split_bytes = self.split_bytes[device];
            match &mut self.stations[device] {
                Station::Curve(queue) => {
                    let page = |offset: u64| offset >> queue.page_shift;
                    let pages = group.iter().map(|r| page(r.offset + r.nbytes - 1) - page(r.offset) + 1).sum();
                    let end_ps = queue.serve(now_ps, operation, pages, group.iter().map(|r| r.nbytes).sum());
                    queue.ahead.push_back((end_ps, batch));
                    accesses += 1;
                }
                Station::Events(queue) if split_bytes == 0 => {
                    accesses += group.len();
                    queue.submit_all(now_ps, group.iter().map(|request| entry(request, batch)));
                }
                Station::Events(queue) => {
                    for request in group {
                        accesses += submit_split(queue, now_ps, request, split_bytes, batch);
                    }
                }
            }
            if let Some(log) = &mut self.log {
                let nbytes = group.iter().map(|request| request.nbytes).sum();
                self.batches[batch as usize].logged.push((device, log.len(), accesses - accesses_before));
                let requests = group.len() as u64;
                log.push(TransferRecord { device, operation, begin_ps: now_ps, end_ps: 0, requests, nbytes });
            }
        }
        self.batches[batch as usize].remaining = accesses;
    }

    /// The device with the next event, and how far it can run before another device has one.
    #[inline]
    fn next_event(&self) -> (u64, usize, u64) {
        let (mut at_ps, mut device, mut limit_ps) = (u64::MAX, 0, u64::MAX);
        for (position, station) in self.stations.iter().enumerate() {
            let next_ps = station.next_event_ps();
            if next_ps < at_ps {
                (at_ps, device, limit_ps) = (next_ps, position, at_ps);
            } else if next_ps < limit_ps {
                limit_ps = next_ps;
            }
        }
        (at_ps, device, limit_ps)
    }

    /// Runs one device up to `limit_ps`, or until a batch completes, which may start another.
    #[inline]
    fn process(&mut self, device: usize, limit_ps: u64) {
        loop {
            let (at_ps, batch) = match &mut self.stations[device] {
                Station::Events(queue) => match queue.next_completion(limit_ps) {
                    None => return,
                    Some(Completion { tag, completed_ps, .. }) => (completed_ps, tag),
                },
                Station::Curve(queue) => match queue.ahead.pop_front() {
                    None => return,
                    Some((end_ps, batch)) => (end_ps, batch),
                },
            };
            let entry = &mut self.batches[batch as usize];
            let is_of_device = |entry: &&mut (usize, usize, usize)| entry.0 == device && entry.2 > 0;
            if let Some(log) = &mut self.log
                && let Some((_, at, left)) = entry.logged.iter_mut().find(is_of_device)
            {
                *left -= 1;
                if *left == 0 {
                    log[*at].end_ps = at_ps;
                }
            }
            entry.remaining -= 1;
            if entry.remaining == 0 {
                self.processed_ps = self.processed_ps.max(at_ps);
                self.complete(batch, at_ps);
                return;
            }
            if matches!(self.stations[device], Station::Curve(_)) {
                return;
            }
        }
    }

    fn complete(&mut self, batch: u32, at_ps: u64) {
        let entry = &mut self.batches[batch as usize];
        entry.completed_ps = at_ps;
        let followers = std::mem::take(&mut entry.followers);
        if entry.detached {
            self.free_batches.push(batch);
        } else if let Some(completed) = &mut self.completed {
            completed.push_back(batch);
        }
        for (follower, requests) in followers {
            debug_assert!(!requests.is_empty(), "a follower moves bytes");
            self.enqueue(follower, at_ps, &requests);
        }
    }
}

fn entry(request: &Request, tag: u32) -> Entry {
    let Request { operation, offset, nbytes, .. } = *request;
    debug_assert!(nbytes > 0, "a request moves bytes");
    Entry { operation, offset, nbytes: nbytes as u32, continues: false, tag, arrived_ps: AT_ISSUE }
}

/// Submits a request, split into accesses of one page; gives their number.
fn submit_split(queue: &mut DeviceQueue, now_ps: u64, request: &Request, page_bytes: u64, tag: u32) -> usize {
    let (mut at, end, mut pieces) = (request.offset, request.offset + request.nbytes, 0);
    while at < end {
        let next = (at / page_bytes + 1) * page_bytes;
        let piece = Request { offset: at, nbytes: next.min(end) - at, ..*request };
        queue.submit(now_ps, Entry { continues: pieces > 0, ..entry(&piece, tag) });
        at = next;
        pieces += 1;
    }
    pieces
}
