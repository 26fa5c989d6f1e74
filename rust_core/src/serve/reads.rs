//! What is asked of the devices: the reads of a query under way, started on one, asked of the other one, too, if they take long, and
//! waited for; and what whoever changes tables reads, for which no query waits.
//!
//! The thread of a query watches its own reads: one that takes long is asked for again when the thread has come to wait for it.

use std::ops::Range;
use std::time::Duration;

use super::engine::{Engine, locked};
use super::layout::Span;
use super::residency::Read;
use crate::backend::{InFlight, IoBatch, Operation};
use crate::device::{BatchHandle, Request};
use crate::error::{Error, ErrorKind, Result};

/// Of two real devices one is waited for, and the other one is looked at this often.
const LOOK_EVERY: Duration = Duration::from_micros(100);

/// Spans that are read or written at once for whoever changes tables.
const AT_ONCE: u32 = 256;

/// Reads that one device was asked for together.
struct Copy {
    device: usize,
    in_flight: InFlight,
    /// The same reads on the emulated device.
    timed: Option<BatchHandle>,
}

/// Reads that were started together; of a read that took long there are two copies.
pub(super) struct Started {
    pub(super) numbers: Vec<u32>,
    /// Where in the buffer the span of each begins.
    pub(super) places: Vec<usize>,
    submitted_ns: u64,
    copies: Vec<Copy>,
    /// When the emulated device has the only copy, if it was asked already; its handle is gone then.
    due_ns: Option<u64>,
    /// Whether it was waited for long enough to ask the other device.
    pub(super) is_watched: bool,
}

/// The copy of a read that was not first. Its place is taken until its device is done with it.
pub(super) struct Trailing {
    copy: Copy,
    table: u32,
}

impl Engine {
    /// After this long a read is asked of the other device, too.
    fn hedge_after_ns(&self) -> Option<u64> {
        self.config.serve.device.hedge_after_ns.filter(|_| !self.is_byte_addressable())
    }

    /// Takes places for reads; the first of them goes in any case if `at_least_one`.
    pub(super) fn take_places(&self, waiting: &mut Vec<u32>, reads: &[Read], at_least_one: bool) -> Vec<(u32, usize)> {
        if self.is_byte_addressable() {
            // Loads of the host are not limited.
            return waiting.drain(..).map(|number| (number, 0)).collect();
        }
        self.give_back_trailing();
        self.gate.take(waiting, reads, at_least_one)
    }

    /// Starts reads that have places: those of a device together, each by itself if it may be asked for twice.
    pub(super) fn start(&self, taken: &[(u32, usize)], reads: &[Read]) -> Vec<Started> {
        let of = |device: usize| taken.iter().filter(move |of| of.1 == device).map(|of| of.0);
        let groups: Vec<(usize, Vec<u32>)> = match self.hedge_after_ns() {
            Some(_) => taken.iter().map(|&(number, device)| (device, vec![number])).collect(),
            None => (0..self.backends.len()).map(|device| (device, of(device).collect())).collect(),
        };
        let started = |(device, numbers): (usize, Vec<u32>)| {
            let spans: Vec<Span> = numbers.iter().map(|&number| reads[number as usize].span).collect();
            let submitted_ns = self.clock.now_ns();
            let (copy, places) = self.ask(device, submitted_ns, &spans);
            Started { numbers, places, submitted_ns, copies: vec![copy], due_ns: None, is_watched: false }
        };
        groups.into_iter().filter(|(_, numbers)| !numbers.is_empty()).map(started).collect()
    }

    /// Asks a device; gives where in the buffer each span begins, too.
    fn ask(&self, device: usize, now_ns: u64, spans: &[Span]) -> (Copy, Vec<usize>) {
        let timed = self.timing.as_ref().map(|timing| {
            let request = |&Span { offset, nbytes }| Request { device, operation: Operation::Read, offset, nbytes };
            let requests: Vec<Request> = spans.iter().map(request).collect();
            locked(&timing.schedule).submit(now_ns, &requests)
        });
        let (extents, places, nbytes) = self.extents(spans);
        let backend = &self.backends[device];
        let in_flight = backend.start(Operation::Read, IoBatch { buffer: backend.buffer(nbytes), extents });
        (Copy { device, in_flight, timed }, places)
    }

    /// Waits until a read is here or takes long, and asks the other device if it does and there is room.
    pub(super) fn hedge(&self, started: &mut Started, reads: &[Read]) {
        started.is_watched = true;
        let Some(after_ns) = self.hedge_after_ns() else { return };
        let (&[number], [copy]) = (&*started.numbers, &*started.copies) else { return };
        let now_ns = self.clock.now_ns();
        let late_ns = started.submitted_ns.saturating_add(after_ns).max(now_ns);
        if let (Some(timing), Some(batch)) = (&self.timing, copy.timed) {
            let found = locked(&timing.schedule).first_of(&[batch], late_ns);
            started.due_ns = found.map(|(_, due_ns)| due_ns);
            if started.due_ns.is_some() {
                return;
            }
            self.clock.wait_until(late_ns);
        } else if copy.in_flight.wait_for(Duration::from_nanos(late_ns - now_ns)) {
            return;
        }
        let (Read { table, span }, other) = (reads[number as usize], 1 - copy.device);
        if self.gate.take_room(table, other) {
            started.copies.push(self.ask(other, self.clock.now_ns(), &[span]).0);
            let mut state = self.lock();
            state.traffic.hedged += 1;
            state.traffic.bus_bytes += span.nbytes;
        }
    }

    /// Waits for the copy that is here first, or, if it failed, for the other one; a device that was not asked is asked then.
    pub(super) fn settle(&self, started: Started, reads: &[Read]) -> (IoBatch, Result<()>) {
        let Started { numbers, places, submitted_ns, mut copies, mut due_ns, .. } = started;
        let (first_device, asked) = (copies[0].device, copies.len());
        loop {
            let position = self.wait_for_first(&copies, numbers.len(), submitted_ns, due_ns.take());
            let Copy { device, in_flight, .. } = copies.swap_remove(position);
            let (batch, result) = in_flight.wait();
            self.give_back(&numbers, reads, device);
            if result.is_err() && asked < self.backends.len() {
                return match self.fail_over(&numbers, &places, reads, 1 - device) {
                    Some(found) => (found, Ok(())),
                    None => (batch, result),
                };
            }
            if result.is_ok() || copies.is_empty() {
                if device != first_device {
                    self.lock().traffic.hedged_won += 1;
                }
                let table = |copy| Trailing { copy, table: reads[numbers[0] as usize].table };
                locked(&self.trailing).extend(copies.into_iter().map(table));
                return (batch, result);
            }
        }
    }

    /// Asks a device for what the other one could not read together: all of it, and if that fails, too, each read by itself of either.
    fn fail_over(&self, numbers: &[u32], places: &[usize], reads: &[Read], device: usize) -> Option<IoBatch> {
        let spans: Vec<Span> = numbers.iter().map(|&number| reads[number as usize].span).collect();
        if !self.is_byte_addressable() {
            numbers.iter().for_each(|&number| self.gate.take_anyway(reads[number as usize].table, device));
        }
        let submitted_ns = self.clock.now_ns();
        let (copy, _) = self.ask(device, submitted_ns, &spans);
        let copies = [copy];
        self.wait_for_first(&copies, numbers.len(), submitted_ns, None);
        let [Copy { in_flight, .. }] = copies;
        let (mut batch, result) = in_flight.wait();
        self.give_back(numbers, reads, device);
        let mut state = self.lock();
        state.traffic.failed_over += numbers.len() as u64;
        state.traffic.bus_bytes += spans.iter().map(|span| span.nbytes).sum::<u64>();
        drop(state);
        if result.is_ok() {
            return Some(batch);
        }
        for (span, &place) in spans.iter().zip(places).filter(|_| spans.len() > 1) {
            let (found, at) = self.read_spans(0..self.backends.len(), &[*span]).ok()?;
            let nbytes = span.nbytes as usize;
            batch.buffer[place..place + nbytes].copy_from_slice(&found.buffer[at[0]..at[0] + nbytes]);
        }
        (spans.len() > 1).then_some(batch)
    }

    fn wait_for_first(&self, copies: &[Copy], requests: usize, submitted_ns: u64, due_ns: Option<u64>) -> usize {
        let Some(timing) = &self.timing else {
            return match copies {
                [first, second] => loop {
                    if second.in_flight.wait_for(LOOK_EVERY) {
                        return 1;
                    }
                    if first.in_flight.wait_for(Duration::ZERO) {
                        return 0;
                    }
                },
                _ => 0,
            };
        };
        let handles: Vec<BatchHandle> = copies.iter().filter_map(|copy| copy.timed).collect();
        let known = due_ns.map(|due_ns| (0, due_ns));
        let found = known.or_else(|| locked(&timing.schedule).first_of(&handles, u64::MAX));
        let (position, due_ns) = found.unwrap_or((0, submitted_ns));
        self.clock.wait_until(due_ns);
        let now_ns = if self.clock.is_virtual() { due_ns } else { self.clock.now_ns() };
        locked(&timing.lateness).record(requests as u64, submitted_ns, due_ns, now_ns);
        position
    }

    fn give_back(&self, numbers: &[u32], reads: &[Read], device: usize) {
        if !self.is_byte_addressable() {
            numbers.iter().for_each(|&number| self.gate.give_back(reads[number as usize].table, device));
        }
    }

    /// Places of copies that were not first, of devices that are done with them by now.
    fn give_back_trailing(&self) {
        let mut trailing = locked(&self.trailing);
        if trailing.is_empty() {
            return;
        }
        let now_ns = self.clock.now_ns();
        let is_over = |copy: &Copy| match (&self.timing, copy.timed) {
            (Some(timing), Some(batch)) => locked(&timing.schedule).first_of(&[batch], now_ns).is_some(),
            _ => copy.in_flight.wait_for(Duration::ZERO),
        };
        trailing.retain(|Trailing { copy, table }| {
            let is_over = is_over(copy);
            if is_over {
                self.gate.give_back(*table, copy.device);
            }
            !is_over
        });
    }

    /// Nobody wants these any more: waits for them and gives their places back.
    pub(super) fn abandon(&self, started: Started, reads: &[Read]) {
        let Started { numbers, copies, due_ns, .. } = started;
        for Copy { device, in_flight, timed } in copies {
            drop(in_flight.wait());
            if let (Some(timing), Some(batch), None) = (&self.timing, timed, due_ns) {
                locked(&timing.schedule).detach(batch);
            }
            self.give_back(&numbers, reads, device);
        }
    }

    /// As many spans as buffers have room for, for whoever changes tables.
    pub(super) fn at_once(&self) -> usize {
        self.config.serve.device.limits.total.min(AT_ONCE) as usize
    }

    /// Reads spans from the first of the devices that can; gives where in the buffer each begins.
    pub(super) fn read_spans(&self, devices: Range<usize>, spans: &[Span]) -> Result<(IoBatch, Vec<usize>)> {
        let (mut extents, places, nbytes) = self.extents(spans);
        let mut failed = None;
        for device in devices {
            let buffer = self.backends[device].buffer(nbytes);
            let (batch, result) = self.backends[device].read(IoBatch { buffer, extents });
            let Err(error) = result else {
                self.account(Operation::Read, device..device + 1, spans);
                return Ok((batch, places));
            };
            failed = failed.or(Some(error));
            extents = batch.extents;
        }
        let error = failed.unwrap_or_else(|| Error::new(ErrorKind::Config, "there is no device"));
        Err(self.on_device(error))
    }

    /// Time of the model for what nobody waits for.
    pub(super) fn account(&self, operation: Operation, devices: Range<usize>, spans: &[Span]) {
        if let Some(timing) = &self.timing
            && !spans.is_empty()
        {
            let request =
                |device: usize, span: &Span| Request { device, operation, offset: span.offset, nbytes: span.nbytes };
            let requests: Vec<Request> =
                devices.flat_map(|device| spans.iter().map(move |span| request(device, span))).collect();
            let mut schedule = locked(&timing.schedule);
            let batch = schedule.submit(self.clock.now_ns(), &requests);
            schedule.detach(batch);
        }
    }
}
