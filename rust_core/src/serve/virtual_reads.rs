//! Reads in virtual time: limits, one or two devices, and second copies of reads that take long.

use serde::Serialize;

use super::layout::Span;
use super::limits::{Limiter, idlest};
use super::residency::Read;
use super::simulate::SimulationConfig;
use crate::device::{DeviceKind, DeviceSnapshot, Operation, Request, Schedule, TimedDevice};

/// What was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ReadCounters {
    /// Reads, second copies not counted.
    pub reads: u64,
    /// Bytes of the different rows of a query that were missing.
    pub asked_bytes: u64,
    /// Bytes that crossed the bus, those of second copies, too.
    pub bus_bytes: u64,
    /// Reads that were asked of a second device.
    pub hedged: u64,
    /// Of these, the second was first.
    pub hedged_won: u64,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    read: Read,
    /// Whoever waits.
    flight: u32,
    device: usize,
    copies: u8,
    is_here: bool,
    /// Tells a read from an earlier one with the same number.
    generation: u64,
}

/// A read whose time is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HedgeTimer {
    pub(super) at_ns: u64,
    pub(super) read: u32,
    generation: u64,
}

/// The devices and all reads under way.
pub(super) struct VirtualReads {
    schedule: Schedule,
    limiter: Limiter,
    /// Whether reads have limits; loads of the host have none.
    pub(super) is_limited: bool,
    hedge_after_ns: Option<u64>,
    replicas: usize,
    outstanding: Vec<u32>,
    pending: Vec<Pending>,
    free: Vec<u32>,
    /// The read of each batch under way, and its device.
    owners: Vec<(u32, usize)>,
    generation: u64,
    pub(super) counters: ReadCounters,
    /// Timers that were set since they were last taken.
    pub(super) timers: Vec<HedgeTimer>,
}

impl VirtualReads {
    pub(super) fn new(config: &SimulationConfig) -> Self {
        let (device, faults) = (&config.serve.device, &config.faults);
        let timed = |number: usize| TimedDevice {
            storms: faults.storms(number as u64),
            ..TimedDevice::new(device.spec.clone())
        };
        let mut schedule = Schedule::new((0..device.replicas).map(timed).collect(), config.seed);
        schedule.report_completions();
        Self {
            schedule,
            limiter: Limiter::new(device.limits, config.serve.tables.len()),
            is_limited: !config.is_mapped && device.spec.kind == DeviceKind::Block,
            hedge_after_ns: device.hedge_after_ns.filter(|_| device.spec.kind == DeviceKind::Block),
            replicas: device.replicas,
            outstanding: vec![0; device.replicas],
            pending: Vec::new(),
            free: Vec::new(),
            owners: Vec::new(),
            generation: 0,
            counters: ReadCounters::default(),
            timers: Vec::new(),
        }
    }

    fn send(&mut self, now_ns: u64, number: u32, device: usize) {
        let Span { offset, nbytes } = self.pending[number as usize].read.span;
        let request = Request { device, operation: Operation::Read, offset, nbytes };
        let batch = self.schedule.submit(now_ns, &[request]).number();
        self.owners.resize(self.owners.len().max(batch + 1), (0, 0));
        self.owners[batch] = (number, device);
        self.outstanding[device] += 1;
        self.counters.bus_bytes += nbytes;
    }

    fn new_pending(&mut self, pending: Pending) -> u32 {
        if let Some(number) = self.free.pop() {
            self.pending[number as usize] = pending;
            return number;
        }
        self.pending.push(pending);
        self.pending.len() as u32 - 1
    }

    /// Takes the reads of a flight; they go as the limits allow.
    pub(super) fn add(&mut self, now_ns: u64, flight: u32, reads: &[Read]) {
        for &read in reads {
            self.generation += 1;
            let pending = Pending { read, flight, device: 0, copies: 1, is_here: false, generation: self.generation };
            let number = self.new_pending(pending);
            self.limiter.add(read.table, number);
        }
        self.counters.reads += reads.len() as u64;
        self.go(now_ns);
    }

    fn go(&mut self, now_ns: u64) {
        while let Some(number) = self.limiter.next() {
            let Pending { read, generation, .. } = self.pending[number as usize];
            let device = idlest(&self.outstanding, read.span.offset);
            self.pending[number as usize].device = device;
            self.send(now_ns, number, device);
            if let Some(after_ns) = self.hedge_after_ns {
                self.timers.push(HedgeTimer { at_ns: now_ns + after_ns, read: number, generation });
            }
        }
    }

    /// Takes the reads of a flight as one batch of loads, beyond all limits.
    pub(super) fn add_loads(&mut self, now_ns: u64, flight: u32, reads: &[Read]) {
        let Some(&read) = reads.first() else { return };
        self.generation += 1;
        let pending = Pending { read, flight, device: 0, copies: 1, is_here: false, generation: self.generation };
        let number = self.new_pending(pending);
        let request = |read: &Read| Request {
            device: 0,
            operation: Operation::Read,
            offset: read.span.offset,
            nbytes: read.span.nbytes,
        };
        let batch = self.schedule.submit(now_ns, &reads.iter().map(request).collect::<Vec<_>>()).number();
        self.owners.resize(self.owners.len().max(batch + 1), (0, 0));
        self.owners[batch] = (number, 0);
        self.outstanding[0] += 1;
        self.counters.reads += reads.len() as u64;
        self.counters.bus_bytes += reads.iter().map(|read| read.span.nbytes).sum::<u64>();
    }

    /// Asks the other device if the read is still not here and there is room.
    pub(super) fn hedge(&mut self, timer: HedgeTimer) {
        let Pending { generation, is_here, copies, device, read, .. } = self.pending[timer.read as usize];
        let is_late = generation == timer.generation && !is_here && copies == 1;
        if is_late && self.limiter.take_room(read.table) {
            self.pending[timer.read as usize].copies = 2;
            self.counters.hedged += 1;
            self.send(timer.at_ns, timer.read, 1 - device);
        }
    }

    /// Reads from the first device and writes to all; nobody waits for it.
    pub(super) fn read_and_write(&mut self, now_ns: u64, span: Span) {
        let writes = (0..self.replicas).map(|device| (device, Operation::Write));
        for (device, operation) in std::iter::once((0, Operation::Read)).chain(writes) {
            let request = Request { device, operation, offset: span.offset, nbytes: span.nbytes };
            let batch = self.schedule.submit(now_ns, &[request]);
            self.schedule.detach(batch);
        }
    }

    /// The next read that arrives no later than `limit_ns`: when, and who waits for it. Nobody does if it is a second copy; it is given all
    /// the same where other reads went in its place, whose timers are due before what comes next.
    pub(super) fn next(&mut self, limit_ns: u64) -> Option<(u64, Option<u32>)> {
        loop {
            let (batch, at_ns) = self.schedule.next_completion(limit_ns)?;
            let (number, device) = self.owners[batch.number()];
            self.outstanding[device] -= 1;
            let pending = &mut self.pending[number as usize];
            pending.copies -= 1;
            let (is_first, flight) = (!pending.is_here, pending.flight);
            pending.is_here = true;
            self.counters.hedged_won += u64::from(is_first && device != pending.device);
            // The last copy gives its number back. The other copy of a read that is here still holds its place.
            let (table, is_over) = (pending.read.table, pending.copies == 0);
            if is_over {
                self.free.push(number);
            }
            if self.is_limited {
                self.limiter.done(table);
                self.go(at_ns);
            }
            if is_first || !self.timers.is_empty() {
                return Some((at_ns, is_first.then_some(flight)));
            }
        }
    }

    /// What a device did.
    pub(super) fn snapshot(&self, device: usize) -> DeviceSnapshot {
        self.schedule.snapshot(device)
    }
}
