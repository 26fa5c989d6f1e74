//! One device as a small discrete-event simulation. Times are picoseconds.
//!
//! A request travels: host -> media accesses on FIFO units -> serial controller -> link of its
//! direction -> host. The controller and the link are charged in the order in which the medium
//! completes, not in arrival order: charging at submission loses 30-50 % of the IOPS (reference
//! notes, C3). Writes pass controller and link first, enter a buffer, and are acknowledged while it
//! has room; the buffer drains at the medium's rate and puts programs on the units.
#![expect(
    clippy::inline_always,
    reason = "a request copied through memory, written in parts and read at once, stalls for longer than its arithmetic takes"
)]

use std::collections::VecDeque;

use super::event_list::EventList;
use super::fault::Storms;
use super::media::Media;
use super::quantile::QuantileTable;
use super::spec::DeviceSpec;
use super::traffic::{DeviceSnapshot, Operation};
use super::write_buffer::WriteBuffer;
use crate::rng;
use crate::stats::{DeviceCounters, LatencyHistogram};
use crate::units::{PS_PER_NS, Rate};

/// Requests outstanding at most.
pub(super) const QUEUE_DEPTH_MAX: usize = EventList::SLOTS_MAX;
/// Latency counts from issue.
pub(super) const AT_ISSUE: u64 = u64::MAX;

/// What a caller asks of a queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) offset: u64,
    /// At most 1 GiB.
    pub(super) nbytes: u32,
    pub(super) operation: Operation,
    /// A later piece of the request before.
    pub(super) continues: bool,
    /// Comes back with the completion.
    pub(super) tag: u32,
    /// When latency begins to count; `AT_ISSUE`: when the request gets its place in the queue.
    pub(super) arrived_ps: u64,
}

/// One completed request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Completion {
    pub(super) tag: u32,
    pub(super) arrived_ps: u64,
    pub(super) completed_ps: u64,
}

/// The numbers of one direction, prepared.
struct Direction {
    command_ps: u64,
    small_bytes: u64,
    small_command_ps: u64,
    small_commands: u64,
    link: Rate,
    link_free_ps: u64,
}

impl Direction {
    /// A request that is ready at `now_ps` passes the controller, which both directions share, and the
    /// link; gives when it is through.
    #[inline(always)]
    fn pass(&mut self, controller_free_ps: &mut u64, now_ps: u64, nbytes: u64) -> u64 {
        let small = nbytes <= self.small_bytes;
        self.small_commands += u64::from(small);
        let command_ps = if small { self.small_command_ps } else { self.command_ps };
        *controller_free_ps = now_ps.max(*controller_free_ps) + command_ps;
        self.link_free_ps = self.link_free_ps.max(*controller_free_ps) + self.link.transfer_ps(nbytes);
        self.link_free_ps
    }

    /// Time for which so many commands kept the controller busy.
    fn controller_busy_ps(&self, commands: u64) -> u64 {
        (commands - self.small_commands) * self.command_ps + self.small_commands * self.small_command_ps
    }
}

/// The event queue of one device. Writes reach the controller and reads leave the link in time order;
/// only media completions and acknowledgements, which are drawn, have to be sorted.
pub(super) struct DeviceQueue {
    spec: DeviceSpec,
    queue_depth: usize,
    submit_ps: u64,
    complete_ps: u64,
    granule_mask: u64,
    /// Latency distribution of reads at queue depth 1, or constant.
    read_quantiles: Option<QuantileTable>,
    /// Host, controller and link time of a reference read.
    fixed_ps: u64,
    media_base_ps: u64,
    /// The medium's time by the size of the request; empty: constant.
    media_by_bytes_ps: Vec<(u64, u64)>,
    acknowledge_quantiles: Option<QuantileTable>,
    draw_key: u64,
    request_number: u64,
    storms: Option<Storms>,

    media: Media,
    controller_free_ps: u64,
    read: Direction,
    write: Direction,
    buffer: WriteBuffer,

    outstanding: usize,
    active_since_ps: u64,
    waiting: VecDeque<Entry>,
    /// Reads whose media accesses end: those that found their unit idle, and those that had to wait.
    /// The first come nearly in order by themselves, the second are fewer: both make short insertions.
    read_ready: [EventList; 2],
    /// Writes that arrive.
    write_ready: VecDeque<(u64, u32)>,
    slots: Vec<Entry>,
    free_slots: Vec<u32>,
    read_done: VecDeque<(u64, u32)>,
    next_read_done_ps: u64,
    write_done: EventList,
    next_write_event_ps: u64,

    counters: DeviceCounters,
    read_latency: LatencyHistogram,
    write_latency: LatencyHistogram,
}

impl DeviceQueue {
    pub(super) fn new(
        spec: DeviceSpec,
        queue_depth: usize,
        seed: u64,
        position: usize,
        storms: Option<Storms>,
    ) -> Self {
        debug_assert!(!spec.has_curves(), "devices with curves have a batch form");
        let draw_key = rng::stream(seed, position as u64);
        let fixed_ns = spec.read_fixed_ns(spec.read.reference_bytes);
        Self {
            queue_depth: queue_depth.clamp(1, QUEUE_DEPTH_MAX),
            submit_ps: spec.host.submit_ns * PS_PER_NS,
            complete_ps: spec.host.complete_ns * PS_PER_NS,
            granule_mask: spec.granule_bytes - 1,
            read_quantiles: (!spec.read.latency_quantiles_ns.is_empty()).then(|| spec.read_quantiles()).flatten(),
            fixed_ps: fixed_ns * PS_PER_NS,
            media_base_ps: spec.read.latency_ns.saturating_sub(fixed_ns).max(1) * PS_PER_NS,
            media_by_bytes_ps: spec.media_by_bytes_ns().iter().map(|&(bytes, ns)| (bytes, ns * PS_PER_NS)).collect(),
            acknowledge_quantiles: (!spec.write.acknowledge_quantiles_ns.is_empty())
                .then(|| spec.acknowledge_quantiles())
                .flatten(),
            draw_key,
            request_number: 0,
            storms,
            media: Media::new(&spec, rng::mix(draw_key ^ 1)),
            controller_free_ps: 0,
            read: Direction {
                command_ps: spec.read.command_ns * PS_PER_NS,
                small_bytes: spec.read.small_bytes,
                small_command_ps: spec.read.small_command_ns * PS_PER_NS,
                link: Rate::new(spec.read.bandwidth_bytes_per_s),
                small_commands: 0,
                link_free_ps: 0,
            },
            write: Direction {
                command_ps: spec.write.command_ns * PS_PER_NS,
                small_bytes: spec.write.small_bytes,
                small_command_ps: spec.write.small_command_ns * PS_PER_NS,
                link: Rate::new(spec.write.bandwidth_bytes_per_s),
                small_commands: 0,
                link_free_ps: 0,
            },
            buffer: WriteBuffer::new(&spec),
            outstanding: 0,
            active_since_ps: 0,
            waiting: VecDeque::new(),
            read_ready: [EventList::new(), EventList::new()],
            write_ready: VecDeque::new(),
            slots: Vec::new(),
            free_slots: Vec::new(),
            read_done: VecDeque::new(),
            next_read_done_ps: u64::MAX,
            write_done: EventList::new(),
            next_write_event_ps: u64::MAX,
            counters: DeviceCounters::default(),
            read_latency: LatencyHistogram::default(),
            write_latency: LatencyHistogram::default(),
            spec,
        }
    }

    /// Takes a request: it starts now if the queue has room, and waits for its turn otherwise.
    #[inline(always)]
    pub(super) fn submit(&mut self, now_ps: u64, entry: Entry) {
        debug_assert!(entry.nbytes > 0, "a request moves bytes");
        if self.outstanding < self.queue_depth && self.waiting.is_empty() {
            self.start(now_ps, entry);
        } else {
            self.waiting.push_back(entry);
        }
    }

    /// Takes many requests at once.
    pub(super) fn submit_all(&mut self, now_ps: u64, entries: impl ExactSizeIterator<Item = Entry>) {
        let mut entries = entries;
        while self.outstanding < self.queue_depth && self.waiting.is_empty() {
            let Some(entry) = entries.next() else { return };
            self.start(now_ps, entry);
        }
        self.waiting.extend(entries);
    }

    #[inline(always)]
    fn start(&mut self, now_ps: u64, entry: Entry) {
        if self.outstanding == 0 {
            self.active_since_ps = now_ps;
        }
        self.outstanding += 1;
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots.push(entry);
            self.slots.len() as u32 - 1
        });
        self.start_in(slot, now_ps, entry);
    }

    /// Starts a request in a slot that is free.
    #[inline(always)]
    fn start_in(&mut self, slot: u32, now_ps: u64, entry: Entry) {
        let place = &mut self.slots[slot as usize];
        place.offset = entry.offset;
        place.nbytes = entry.nbytes;
        place.operation = entry.operation;
        place.continues = entry.continues;
        place.tag = entry.tag;
        place.arrived_ps = if entry.arrived_ps == AT_ISSUE { now_ps } else { entry.arrived_ps };
        let arrival_ps = now_ps + self.submit_ps;
        match entry.operation {
            Operation::Read => {
                let (ready_ps, waited) = self.read_media(arrival_ps, entry.offset, u64::from(entry.nbytes));
                self.read_ready[usize::from(waited)].insert(ready_ps, slot);
            }
            Operation::Write => {
                self.write_ready.push_back((arrival_ps, slot));
                self.note_next_write();
            }
        }
    }

    #[inline]
    fn read_media(&mut self, arrival_ps: u64, offset: u64, nbytes: u64) -> (u64, bool) {
        let mut draw_ps = match &self.read_quantiles {
            None => self.media_base_ps,
            Some(table) => {
                let latency_ns = table.sample(rng::draw(self.draw_key, self.request_number));
                (latency_ns * PS_PER_NS).saturating_sub(self.fixed_ps).max(PS_PER_NS)
            }
        };
        let mut base_ps = self.media_base_ps;
        if !self.media_by_bytes_ps.is_empty() {
            // The table moves the whole distribution by the difference to a reference read.
            let media_ps = interpolate(&self.media_by_bytes_ps, nbytes);
            draw_ps = (draw_ps + media_ps).saturating_sub(self.media_base_ps).max(PS_PER_NS);
            base_ps = media_ps;
        }
        if let Some(storms) = &self.storms {
            draw_ps += storms.extra_ps(arrival_ps);
        }
        self.request_number += 1;
        self.media.read(arrival_ps, offset, nbytes, base_ps, draw_ps)
    }

    /// Time of the next event; `u64::MAX` if there is none.
    #[inline]
    pub(super) fn next_event_ps(&self) -> u64 {
        let [idle, waited] = &self.read_ready;
        idle.next_ps().min(waited.next_ps()).min(self.next_read_done_ps).min(self.next_write_event_ps)
    }

    /// Keeps the time of the next event that reads alone never cause.
    fn note_next_write(&mut self) {
        let ready_ps = self.write_ready.front().map_or(u64::MAX, |ready| ready.0);
        self.next_write_event_ps = ready_ps.min(self.write_done.next_ps()).min(self.media.next_work_ps());
    }

    /// Processes events up to `limit_ps` until a request completes. At one instant completions come
    /// first, since they free a place in the queue.
    #[inline(always)]
    pub(super) fn next_completion(&mut self, limit_ps: u64) -> Option<Completion> {
        loop {
            let ready_ps = [self.read_ready[0].next_ps(), self.read_ready[1].next_ps()];
            let read_ready_ps = ready_ps[0].min(ready_ps[1]);
            let read_done_ps = self.next_read_done_ps;
            let write_ps = self.next_write_event_ps;
            if read_ready_ps < write_ps && read_ready_ps < read_done_ps {
                if read_ready_ps > limit_ps {
                    return None;
                }
                let slot = self.read_ready[usize::from(ready_ps[1] < ready_ps[0])].pop()?;
                let done_ps = self.send_read(read_ready_ps, slot);
                // Reads leave in the order in which they are sent, and what one starts as it leaves is
                // ready later than what is ready now. So nothing that is still ahead changes this one,
                // and it can leave at once, unless somebody else may act before.
                if read_done_ps == u64::MAX && done_ps < write_ps && done_ps <= limit_ps {
                    return Some(self.complete(done_ps, slot));
                }
                if read_done_ps == u64::MAX {
                    self.next_read_done_ps = done_ps;
                }
                self.read_done.push_back((done_ps, slot));
            } else if read_done_ps <= write_ps {
                if read_done_ps > limit_ps || read_done_ps == u64::MAX {
                    return None;
                }
                let (_, slot) = self.read_done.pop_front()?;
                self.next_read_done_ps = self.read_done.front().map_or(u64::MAX, |done| done.0);
                return Some(self.complete(read_done_ps, slot));
            } else {
                if write_ps > limit_ps {
                    return None;
                }
                if let Some(completion) = self.write_event(write_ps) {
                    return Some(completion);
                }
            }
        }
    }

    fn write_event(&mut self, now_ps: u64) -> Option<Completion> {
        let completion = if self.write_done.next_ps() == now_ps {
            self.write_done.pop().map(|slot| self.complete(now_ps, slot))
        } else if self.media.next_work_ps() == now_ps {
            self.media.start_work();
            None
        } else {
            let (_, slot) = self.write_ready.pop_front()?;
            self.take_write(now_ps, slot);
            None
        };
        self.note_next_write();
        completion
    }

    #[inline(always)]
    fn complete(&mut self, now_ps: u64, slot: u32) -> Completion {
        let entry = self.slots[slot as usize];
        let latency_ns = (now_ps - entry.arrived_ps).div_ceil(PS_PER_NS);
        match entry.operation {
            Operation::Read => self.read_latency.record(latency_ns),
            Operation::Write => self.write_latency.record(latency_ns),
        }
        if let Some(next) = self.waiting.pop_front() {
            self.start_in(slot, now_ps, next);
        } else {
            self.free_slots.push(slot);
            self.outstanding -= 1;
            if self.outstanding == 0 {
                self.counters.active_ns += (now_ps - self.active_since_ps) / PS_PER_NS;
            }
        }
        Completion { tag: entry.tag, arrived_ps: entry.arrived_ps, completed_ps: now_ps }
    }

    #[inline(always)]
    fn send_read(&mut self, now_ps: u64, slot: u32) -> u64 {
        let Entry { offset, nbytes, .. } = self.slots[slot as usize];
        let nbytes = u64::from(nbytes);
        let end_ps = self.read.pass(&mut self.controller_free_ps, now_ps, nbytes);
        self.counters.reads += 1;
        self.counters.read_bytes += nbytes;
        self.counters.media_read_bytes += self.media_bytes(offset, nbytes);
        end_ps + self.complete_ps
    }

    fn take_write(&mut self, now_ps: u64, slot: u32) {
        let Entry { offset, nbytes, continues, .. } = self.slots[slot as usize];
        let nbytes = u64::from(nbytes);
        let received_ps = self.write.pass(&mut self.controller_free_ps, now_ps, nbytes);
        let media_bytes = self.media_bytes(offset, nbytes);
        let buffered = self.buffer.take(received_ps, offset, nbytes, media_bytes, continues);
        let acknowledge_ps = PS_PER_NS
            * match &self.acknowledge_quantiles {
                None => self.spec.write.acknowledge_ns,
                Some(table) => table.sample(rng::draw(self.draw_key, self.request_number)),
            };
        self.request_number += 1;
        self.write_done.insert(buffered.room_ps + acknowledge_ps + self.complete_ps, slot);
        let random_bytes = if buffered.sequential { 0 } else { nbytes };
        self.media.drained(buffered.drained_ps, buffered.amplified_bytes, random_bytes);

        self.counters.writes += 1;
        self.counters.write_bytes += nbytes;
        self.counters.media_write_bytes += buffered.amplified_bytes;
        self.counters.drain_busy_ps += buffered.drain_ps;
    }

    #[inline]
    fn media_bytes(&self, offset: u64, nbytes: u64) -> u64 {
        let first = offset & !self.granule_mask;
        let end = (offset + nbytes + self.granule_mask) & !self.granule_mask;
        end - first
    }

    /// What the device did up to `now_ps`.
    pub(super) fn snapshot(&self, now_ps: u64) -> DeviceSnapshot {
        let mut counters = self.counters();
        if self.outstanding > 0 {
            counters.active_ns += now_ps.saturating_sub(self.active_since_ps) / PS_PER_NS;
        }
        DeviceSnapshot { counters, read_latency: self.read_latency.clone(), write_latency: self.write_latency.clone() }
    }

    /// Begins as after a long time of random writing.
    pub(super) fn fill_write_buffer(&mut self) {
        self.buffer.fill();
    }

    /// Requests that wait for a place in the queue.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// A measured window begins: latencies so far do not count.
    pub(super) fn forget_latencies(&mut self) {
        self.read_latency = LatencyHistogram::default();
        self.write_latency = LatencyHistogram::default();
    }

    /// The counters alone.
    pub(super) fn counters(&self) -> DeviceCounters {
        DeviceCounters {
            media_read_busy_ps: self.media.read_busy_ps,
            media_background_busy_ps: self.media.background_busy_ps,
            read_controller_busy_ps: self.read.controller_busy_ps(self.counters.reads),
            write_controller_busy_ps: self.write.controller_busy_ps(self.counters.writes),
            read_link_busy_ps: self.read.link.transfer_ps(self.counters.read_bytes),
            write_link_busy_ps: self.write.link.transfer_ps(self.counters.write_bytes),
            ..self.counters
        }
    }
}

/// Straight lines between points that ascend in the first number, constant outside.
fn interpolate(points: &[(u64, u64)], at: u64) -> u64 {
    let upper = points.partition_point(|&(bytes, _)| bytes < at);
    let Some(&(x1, y1)) = points.get(upper) else { return points[points.len() - 1].1 };
    if upper == 0 {
        return y1;
    }
    let (x0, y0) = points[upper - 1];
    let rise = u128::from(y1.abs_diff(y0)) * u128::from(at - x0) / u128::from(x1 - x0);
    if y1 >= y0 { y0 + rise as u64 } else { y0 - rise as u64 }
}
