//! When requests complete: a small discrete-event simulation of all block devices of a hierarchy.
//!
//! One request travels: host -> media accesses on FIFO units chosen by a hash of the page ->
//! serial controller -> link of its direction -> host. The controller and the link are charged in
//! the order in which the medium completes, not in arrival order: charging at submission loses
//! 30-50 % of the IOPS (reference notes, C3). Writes pass link and controller first, enter a
//! buffer, and are acknowledged while it has room; the buffer drains at the medium's rate.
//!
//! Completion times are computed, never throttled, and a random draw is keyed by (seed, device,
//! request number), so neither threads nor the caller's timing can change a result.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::quantile::QuantileTable;
use super::spec::{DeviceKind, DeviceSpec};
use crate::rng;
use crate::stats::{DeviceCounters, LatencyHistogram};
use crate::units::transfer_ns;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Bytes come from the device.
    Read,
    /// Bytes go to the device.
    Write,
}

/// One request to one device of the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Position of the device in the schedule.
    pub device: usize,
    /// Direction.
    pub operation: Operation,
    /// First byte.
    pub offset: u64,
    /// Length; not zero.
    pub nbytes: u64,
}

/// Handle of requests that were submitted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHandle(u32);

#[derive(Debug, Clone, Copy)]
struct InFlight {
    request: Request,
    batch: u32,
    issued_ns: u64,
}

#[derive(Debug, Default)]
struct Batch {
    /// Requests not yet completed, plus one while a predecessor is unfinished.
    remaining: usize,
    completed_ns: u64,
    /// Nobody will ask: free the batch as it completes.
    detached: bool,
    /// Batches that start when this one completes.
    followers: Vec<(u32, Vec<Request>)>,
}

/// Events of one device in time order: media completions, then completions per direction, which
/// are monotone and so need no heap.
struct DeviceQueue {
    spec: DeviceSpec,
    /// Latency distribution of reads at queue depth 1, or constant.
    quantiles: Option<QuantileTable>,
    fixed_ns: u64,
    media_base_ns: u64,
    draw_key: u64,
    request_number: u64,
    queue_depth: usize,
    unit_free_ns: Vec<u64>,
    controller_free_ns: u64,
    read_link_free_ns: u64,
    write_link_free_ns: u64,
    drain_free_ns: u64,
    outstanding: usize,
    active_since_ns: u64,
    waiting: VecDeque<InFlight>,
    at_controller: BinaryHeap<Reverse<(u64, u64, u32)>>,
    sequence: u64,
    requests: Vec<InFlight>,
    free_requests: Vec<u32>,
    read_done: VecDeque<(u64, u32)>,
    write_done: VecDeque<(u64, u32)>,
    counters: DeviceCounters,
    read_latency: LatencyHistogram,
    write_latency: LatencyHistogram,
}

/// The event queues of all devices of one hierarchy under one clock.
pub struct Schedule {
    devices: Vec<DeviceQueue>,
    batches: Vec<Batch>,
    free_batches: Vec<u32>,
    processed_ns: u64,
}

/// What one device did so far.
#[derive(Debug, Clone, Default)]
pub struct DeviceSnapshot {
    /// Counters.
    pub counters: DeviceCounters,
    /// Latency of reads, from issue to completion.
    pub read_latency: LatencyHistogram,
    /// Latency of writes, from issue to acknowledgement.
    pub write_latency: LatencyHistogram,
}

impl DeviceQueue {
    fn new(spec: DeviceSpec, queue_depth: usize, seed: u64, position: usize) -> Self {
        debug_assert_eq!(spec.kind, DeviceKind::Block, "byte-addressable devices have a batch form");
        let quantiles = (!spec.read.latency_quantiles_ns.is_empty()).then(|| spec.read_quantiles()).flatten();
        let fixed_ns = spec.read_fixed_ns();
        Self {
            media_base_ns: spec.read.latency_ns.saturating_sub(fixed_ns).max(1),
            fixed_ns,
            quantiles,
            draw_key: rng::stream(seed, position as u64),
            request_number: 0,
            queue_depth,
            unit_free_ns: vec![0; spec.units as usize],
            controller_free_ns: 0,
            read_link_free_ns: 0,
            write_link_free_ns: 0,
            drain_free_ns: 0,
            outstanding: 0,
            active_since_ns: 0,
            waiting: VecDeque::new(),
            at_controller: BinaryHeap::new(),
            sequence: 0,
            requests: Vec::new(),
            free_requests: Vec::new(),
            read_done: VecDeque::new(),
            write_done: VecDeque::new(),
            counters: DeviceCounters::default(),
            read_latency: LatencyHistogram::default(),
            write_latency: LatencyHistogram::default(),
            spec,
        }
    }

    /// Issues requests while the queue has room.
    fn issue(&mut self, now_ns: u64) {
        while self.outstanding < self.queue_depth {
            let Some(mut entry) = self.waiting.pop_front() else { return };
            entry.issued_ns = now_ns;
            if self.outstanding == 0 {
                self.active_since_ns = now_ns;
            }
            self.outstanding += 1;
            let arrival_ns = now_ns + self.spec.host.submit_ns;
            let ready_ns = match entry.request.operation {
                Operation::Read => self.read_media(entry.request, arrival_ns),
                Operation::Write => arrival_ns,
            };
            let slot = if let Some(slot) = self.free_requests.pop() {
                self.requests[slot as usize] = entry;
                slot
            } else {
                self.requests.push(entry);
                self.requests.len() as u32 - 1
            };
            self.at_controller.push(Reverse((ready_ns, self.sequence, slot)));
            self.sequence += 1;
        }
    }

    /// Media accesses of one read: one per page, each on the unit of its page; the draw of the
    /// request goes to the access that ends last.
    fn read_media(&mut self, request: Request, arrival_ns: u64) -> u64 {
        let media_ns = self.quantiles.as_ref().map_or(self.media_base_ns, |table| {
            table.sample(rng::draw(self.draw_key, self.request_number)).saturating_sub(self.fixed_ns).max(1)
        });
        self.request_number += 1;
        let pages = pages_of(request, self.spec.page_bytes);
        let units = self.unit_free_ns.len() as u64;
        let unit_of = |page: u64| (((u128::from(rng::mix(page)) * u128::from(units)) >> 64) as u64) as usize;
        if pages.start + 1 == pages.end {
            let unit = unit_of(pages.start);
            let end = arrival_ns.max(self.unit_free_ns[unit]) + media_ns;
            self.unit_free_ns[unit] = end;
            self.counters.media_busy_ns += media_ns;
            return end;
        }
        let (mut last_ns, mut last_unit, mut others_ns) = (0, 0, 0);
        for page in pages {
            let unit = unit_of(page);
            let end = arrival_ns.max(self.unit_free_ns[unit]) + self.media_base_ns;
            self.unit_free_ns[unit] = end;
            self.counters.media_busy_ns += self.media_base_ns;
            if end >= last_ns {
                others_ns = last_ns;
                (last_ns, last_unit) = (end, unit);
            } else {
                others_ns = others_ns.max(end);
            }
        }
        // The draw may be shorter than the base: the last unit frees earlier, the read still waits for the others.
        let end = (last_ns + media_ns).saturating_sub(self.media_base_ns).max(arrival_ns + 1);
        self.unit_free_ns[last_unit] = end;
        self.counters.media_busy_ns = (self.counters.media_busy_ns + media_ns).saturating_sub(self.media_base_ns);
        end.max(others_ns)
    }

    /// Time of the next event, if any.
    fn next_event_ns(&self) -> Option<u64> {
        let controller = self.at_controller.peek().map(|Reverse((at, _, _))| *at);
        let read = self.read_done.front().map(|&(at, _)| at);
        let write = self.write_done.front().map(|&(at, _)| at);
        [controller, read, write].into_iter().flatten().min()
    }

    /// Processes the next event, which is at `now_ns`. Returns the batch of a completed request.
    fn step(&mut self, now_ns: u64) -> Option<u32> {
        // Completions first: they free a place in the queue at the same instant.
        let done = [&mut self.read_done, &mut self.write_done]
            .into_iter()
            .find(|queue| queue.front().is_some_and(|&(at, _)| at == now_ns))
            .and_then(VecDeque::pop_front);
        if let Some((_, slot)) = done {
            let entry = self.requests[slot as usize];
            self.free_requests.push(slot);
            let latency_ns = now_ns - entry.issued_ns;
            match entry.request.operation {
                Operation::Read => self.read_latency.record(latency_ns),
                Operation::Write => self.write_latency.record(latency_ns),
            }
            self.outstanding -= 1;
            if self.outstanding == 0 {
                self.counters.active_ns += now_ns - self.active_since_ns;
            }
            self.issue(now_ns);
            return Some(entry.batch);
        }
        let Reverse((_, _, slot)) = self.at_controller.pop()?;
        let request = self.requests[slot as usize].request;
        match request.operation {
            Operation::Read => {
                let transfer = transfer_ns(request.nbytes, self.spec.read.bandwidth_bytes_per_s);
                let commanded = now_ns.max(self.controller_free_ns) + self.spec.read.command_ns;
                let end = commanded.max(self.read_link_free_ns) + transfer;
                self.controller_free_ns = commanded;
                self.read_link_free_ns = end;
                self.read_done.push_back((end + self.spec.host.complete_ns, slot));
                self.counters.reads += 1;
                self.counters.read_bytes += request.nbytes;
                self.counters.media_read_bytes += media_bytes(request, self.spec.granule_bytes);
                self.counters.read_link_busy_ns += transfer;
                self.counters.controller_busy_ns += self.spec.read.command_ns;
            }
            Operation::Write => {
                let write = &self.spec.write;
                let media = media_bytes(request, self.spec.granule_bytes);
                let transfer = transfer_ns(request.nbytes, write.bandwidth_bytes_per_s);
                let commanded = now_ns.max(self.controller_free_ns) + write.command_ns;
                let buffered = commanded.max(self.write_link_free_ns) + transfer;
                self.controller_free_ns = commanded;
                self.write_link_free_ns = buffered;
                let drain = transfer_ns(media, write.drain_bytes_per_s);
                self.drain_free_ns = buffered.max(self.drain_free_ns) + drain;
                // There is room once all but the buffer's capacity of what came so far has drained.
                let room_ns =
                    self.drain_free_ns.saturating_sub(transfer_ns(write.buffer_bytes, write.drain_bytes_per_s));
                let done = buffered.max(room_ns) + write.acknowledge_ns + self.spec.host.complete_ns;
                self.write_done.push_back((done, slot));
                self.counters.writes += 1;
                self.counters.write_bytes += request.nbytes;
                self.counters.media_write_bytes += media;
                self.counters.write_link_busy_ns += transfer;
                self.counters.controller_busy_ns += write.command_ns;
            }
        }
        None
    }
}

fn pages_of(request: Request, page_bytes: u64) -> std::ops::Range<u64> {
    request.offset / page_bytes..(request.offset + request.nbytes).div_ceil(page_bytes)
}

fn media_bytes(request: Request, granule_bytes: u64) -> u64 {
    let first = request.offset / granule_bytes;
    let end = (request.offset + request.nbytes).div_ceil(granule_bytes);
    (end - first) * granule_bytes
}

impl Schedule {
    /// Idle devices, each a specification with the most requests outstanding.
    pub fn new(devices: Vec<(DeviceSpec, usize)>, seed: u64) -> Self {
        let devices = devices
            .into_iter()
            .enumerate()
            .map(|(position, (spec, queue_depth))| DeviceQueue::new(spec, queue_depth, seed, position))
            .collect();
        Self { devices, batches: Vec::new(), free_batches: Vec::new(), processed_ns: 0 }
    }

    /// Submits requests at one instant. The handle must be given to `finish` or to `detach`.
    pub fn submit(&mut self, now_ns: u64, requests: &[Request]) -> BatchHandle {
        self.advance_to(now_ns);
        let batch = self.new_batch(requests.len());
        self.enqueue(batch, now_ns, requests);
        BatchHandle(batch)
    }

    /// Submits requests at the instant at which all of `predecessor` has completed, and no earlier than now.
    pub fn submit_after(&mut self, predecessor: BatchHandle, now_ns: u64, requests: Vec<Request>) -> BatchHandle {
        self.advance_to(now_ns);
        let batch = self.new_batch(requests.len());
        let before = &mut self.batches[predecessor.0 as usize];
        if before.remaining == 0 {
            self.enqueue(batch, now_ns, &requests);
        } else {
            before.followers.push((batch, requests));
        }
        BatchHandle(batch)
    }

    /// Runs until all requests of the batch have completed; gives that time and frees the handle.
    pub fn finish(&mut self, handle: BatchHandle) -> u64 {
        while self.batches[handle.0 as usize].remaining > 0 {
            let next = self.next_event();
            let (at_ns, device) = next.expect("an unfinished batch has an event ahead");
            self.process(at_ns, device);
        }
        self.free_batches.push(handle.0);
        self.batches[handle.0 as usize].completed_ns
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
        while let Some((at_ns, device)) = self.next_event() {
            if at_ns > now_ns {
                break;
            }
            self.process(at_ns, device);
        }
        self.processed_ns = self.processed_ns.max(now_ns);
    }

    /// Runs until nothing is in flight; gives the time of the last event.
    pub fn drain(&mut self) -> u64 {
        while let Some((at_ns, device)) = self.next_event() {
            self.process(at_ns, device);
        }
        self.processed_ns
    }

    /// What a device did so far.
    pub fn snapshot(&self, device: usize) -> DeviceSnapshot {
        let queue = &self.devices[device];
        let mut counters = queue.counters;
        if queue.outstanding > 0 {
            counters.active_ns += self.processed_ns.saturating_sub(queue.active_since_ns);
        }
        DeviceSnapshot {
            counters,
            read_latency: queue.read_latency.clone(),
            write_latency: queue.write_latency.clone(),
        }
    }

    fn new_batch(&mut self, remaining: usize) -> u32 {
        let batch = Batch { remaining, ..Batch::default() };
        if let Some(slot) = self.free_batches.pop() {
            self.batches[slot as usize] = batch;
            slot
        } else {
            self.batches.push(batch);
            self.batches.len() as u32 - 1
        }
    }

    fn enqueue(&mut self, batch: u32, now_ns: u64, requests: &[Request]) {
        // On a wall clock events may have been processed ahead of now to find a due time. The units
        // and links remember when they are free, so a submission "in their past" still queues.
        self.batches[batch as usize].completed_ns = now_ns;
        for &request in requests {
            debug_assert!(request.nbytes > 0, "a request moves bytes");
            self.devices[request.device].waiting.push_back(InFlight { request, batch, issued_ns: 0 });
        }
        for device in &mut self.devices {
            device.issue(now_ns);
        }
    }

    fn next_event(&self) -> Option<(u64, usize)> {
        let events = self.devices.iter().enumerate();
        events.filter_map(|(device, queue)| queue.next_event_ns().map(|at| (at, device))).min()
    }

    fn process(&mut self, at_ns: u64, device: usize) {
        self.processed_ns = self.processed_ns.max(at_ns);
        let Some(completed) = self.devices[device].step(at_ns) else { return };
        let batch = &mut self.batches[completed as usize];
        batch.remaining -= 1;
        if batch.remaining > 0 {
            return;
        }
        batch.completed_ns = at_ns;
        let followers = std::mem::take(&mut batch.followers);
        if batch.detached {
            self.free_batches.push(completed);
        }
        for (follower, requests) in followers {
            self.enqueue(follower, at_ns, &requests);
            debug_assert!(!requests.is_empty(), "a follower moves bytes");
        }
    }
}

/// Time of one batch on a byte-addressable device: `count` accesses of `nbytes_each`, with at most
/// `queue_depth` in flight (the memory-level parallelism), bounded by latency or by bandwidth.
///
/// `latency + max((count - 1) * latency / parallelism, bytes / bandwidth)`, with bytes rounded up to granules.
pub fn byte_batch_ns(spec: &DeviceSpec, operation: Operation, count: u64, nbytes_each: u64) -> u64 {
    if count == 0 {
        return 0;
    }
    let (latency_ns, bandwidth) = match operation {
        Operation::Read => (spec.read.latency_ns, spec.read.bandwidth_bytes_per_s),
        Operation::Write => (spec.write.acknowledge_ns, spec.write.bandwidth_bytes_per_s),
    };
    let bytes = count * crate::units::round_up(nbytes_each, spec.granule_bytes);
    let serial_ns = (count - 1) * latency_ns / u64::from(spec.queue_depth);
    latency_ns + serial_ns.max(transfer_ns(bytes, bandwidth))
}
