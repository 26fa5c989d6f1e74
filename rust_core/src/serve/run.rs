//! One run of a simulation: the events, in order of time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use super::flight::{Flight, Stage, new_flight};
use super::layout::Span;
use super::mapped::MappedPages;
use super::overlay::Overlay;
use super::residency::{Read, reads_of};
use super::simulate::{Caches, Load, Simulation, SimulationReport, difference, fill, pages_of, probe};
use super::virtual_reads::{HedgeTimer, VirtualReads};
use crate::rng;
use crate::stats::LatencyHistogram;
use crate::trace::unit;
use crate::units::PS_PER_NS;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A query arrives.
    Arrival,
    /// A thread is done with a part of a flight.
    Part(u32),
    /// A read takes long.
    Hedge(HedgeTimer),
    /// Rows are updated.
    Update,
}

/// A run under way.
pub(super) struct Run<'a> {
    simulation: &'a Simulation,
    caches: Caches,
    reads: VirtualReads,
    /// Tables that are on the device.
    on_device: Vec<usize>,
    load: Load,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    next_query: u64,
    /// Queries that wait for a thread: number and time of arrival.
    arrived: VecDeque<(u64, u64)>,
    /// Flights whose reads are here and that wait for a thread.
    to_go_on: VecDeque<u32>,
    flights: Vec<Flight>,
    free_flights: Vec<u32>,
    idle_threads: u32,
    latency: LatencyHistogram,
    busy_ps: u64,
    now_ns: u64,
    answered: u64,
    updates: u64,
    gave_up: bool,
}

impl<'a> Run<'a> {
    pub(super) fn new(simulation: &'a Simulation, caches: Caches, load: Load) -> Self {
        let config = &simulation.config;
        let tables = 0..config.serve.tables.len();
        Self {
            simulation,
            caches,
            reads: VirtualReads::new(config),
            on_device: tables.filter(|&table| config.serve.is_on_device(table)).collect(),
            load,
            events: BinaryHeap::new(),
            sequence: 0,
            next_query: 0,
            arrived: VecDeque::new(),
            to_go_on: VecDeque::new(),
            flights: Vec::new(),
            free_flights: Vec::new(),
            idle_threads: config.threads,
            latency: LatencyHistogram::default(),
            busy_ps: 0,
            now_ns: 0,
            answered: 0,
            updates: 0,
            gave_up: false,
        }
    }

    fn at(&mut self, at_ns: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at_ns, self.sequence, event)));
    }

    /// Exponential gaps: what arrives does not look at who is still waiting.
    fn gap_ns(&self, stream: u64, number: u64, rate: f64) -> u64 {
        let uniform = 1.0 - unit(rng::draw(rng::stream(self.simulation.config.seed, stream), number));
        (-libm::log(uniform) * 1e9 / rate) as u64
    }

    /// Until all queries are answered, or one took too long.
    pub(super) fn go(&mut self) {
        self.at(0, Event::Arrival);
        // Rows in memory are updated there.
        if self.simulation.config.writes.updates_per_s > 0 && !self.on_device.is_empty() {
            self.at(0, Event::Update);
        }
        while self.answered < self.load.queries && !self.gave_up {
            let next_ns = self.events.peek().map_or(u64::MAX, |Reverse((at_ns, _, _))| *at_ns);
            if let Some((at_ns, flight)) = self.reads.next(next_ns) {
                self.now_ns = at_ns;
                flight.into_iter().for_each(|flight| self.read_arrived(flight));
            } else if let Some(Reverse((at_ns, _, event))) = self.events.pop() {
                self.now_ns = at_ns;
                match event {
                    Event::Arrival => self.arrival(),
                    Event::Part(flight) => self.part_done(flight),
                    Event::Hedge(timer) => self.reads.hedge(timer),
                    Event::Update => self.update(),
                }
            } else {
                debug_assert!(false, "a query under way has an event ahead");
                break;
            }
            for timer in std::mem::take(&mut self.reads.timers) {
                self.at(timer.at_ns, Event::Hedge(timer));
            }
        }
    }

    fn arrival(&mut self) {
        self.arrived.push_back((self.load.first_query + self.next_query, self.now_ns));
        let gap_ns = self.gap_ns(0x6172_7269, self.next_query, self.load.queries_per_s);
        self.next_query += 1;
        if self.next_query < self.load.queries {
            self.at(self.now_ns + gap_ns, Event::Arrival);
        }
        let oldest = self.arrived.front().map_or(self.now_ns, |&(_, arrived_ns)| arrived_ns);
        self.give_up_after(oldest);
        self.dispatch();
    }

    fn give_up_after(&mut self, arrived_ns: u64) {
        self.gave_up |= self.load.give_up_ns > 0 && self.now_ns - arrived_ns > self.load.give_up_ns;
    }

    /// A row of a table on the device is updated. It waits in the overlay until that is full; a block is written in any case, so that
    /// the device's time is that of writes spread evenly.
    fn update(&mut self) {
        let Simulation { config, .. } = self.simulation;
        let (writes, serve) = (config.writes, &config.serve);
        let draws = rng::stream(self.simulation.config.seed ^ 0x7570_6461, self.updates);
        let table = self.on_device[rng::draw(draws, 0) as usize % self.on_device.len()];
        let row = rng::draw(draws, 1) % serve.tables[table].rows;
        let row_bytes = serve.tables[table].row_bytes();
        if self.caches.overlay.memory_bytes() + Overlay::bytes_for(1, row_bytes) > serve.memory.update_bytes {
            self.caches.flush();
        }
        self.caches.overlay.put(table, row, Arc::default(), row_bytes, 0);
        let places = (self.simulation.device_bytes / writes.nbytes.max(1)).max(1);
        let span = Span { offset: rng::draw(draws, 2) % places * writes.nbytes, nbytes: writes.nbytes };
        self.reads.read_and_write(self.now_ns, span);
        let gap_ns = self.gap_ns(0x7772_6974, self.updates, writes.updates_per_s as f64);
        self.updates += 1;
        self.at(self.now_ns + gap_ns.max(1), Event::Update);
    }

    /// Threads take flights that can go on first, then new queries.
    fn dispatch(&mut self) {
        while self.idle_threads > 0 {
            if let Some(flight) = self.to_go_on.pop_front() {
                self.idle_threads -= 1;
                self.after_reads(flight);
            } else if let Some((number, arrived_ns)) = self.arrived.pop_front() {
                self.idle_threads -= 1;
                self.begin(number, arrived_ns);
            } else {
                return;
            }
        }
    }

    fn free_thread(&mut self) {
        self.idle_threads += 1;
        self.dispatch();
    }

    /// A thread works on a flight for so long.
    fn work(&mut self, flight: u32, ps: u64) {
        self.busy_ps += ps;
        self.at(self.now_ns + ps.div_ceil(PS_PER_NS), Event::Part(flight));
    }

    fn begin(&mut self, number: u64, arrived_ns: u64) {
        let Simulation { config, layouts, .. } = self.simulation;
        let slot = self.free_flights.pop();
        let query = slot.map(|slot| std::mem::take(&mut self.flights[slot as usize].query)).unwrap_or_default();
        let mut flight = new_flight(arrived_ns, query);
        self.simulation.fill(number, &mut flight.query);
        let mut ps = config.host.query_ns * PS_PER_NS;
        if config.is_mapped {
            flight.pages = pages_of(&config.serve, layouts, &flight.query);
            flight.pages.reverse();
        } else {
            let before = self.caches.residency.counters;
            probe(&config.serve, &mut self.caches, &mut flight);
            let probes = difference(self.caches.residency.counters, before);
            ps += (probes.rows + probes.lists) * config.host.probe_ps;
            let (reads, asked_bytes) = reads_of(&mut flight.probed, layouts, config.serve.device.is_sub_block);
            flight.reads = reads;
            self.reads.counters.asked_bytes += asked_bytes;
            ps += if self.reads.is_limited { flight.reads.len() as u64 * config.host.submit_ps } else { 0 };
        }
        let slot = if let Some(slot) = slot {
            self.flights[slot as usize] = flight;
            slot
        } else {
            self.flights.push(flight);
            self.flights.len() as u32 - 1
        };
        self.work(slot, ps);
    }

    /// A thread is done with what it did for a flight.
    fn part_done(&mut self, slot: u32) {
        let config = &self.simulation.config;
        match self.flights[slot as usize].stage {
            Stage::Probing if config.is_mapped => self.touch_pages(slot),
            Stage::Probing => self.submit(slot),
            Stage::Items => {
                self.flights[slot as usize].is_item_side_done = true;
                self.wait_or_finish(slot);
            }
            // A page fault was handled.
            Stage::Waiting => self.touch_pages(slot),
            Stage::Finishing => {
                let Flight { arrived_ns, .. } = self.flights[slot as usize];
                self.latency.record(self.now_ns - arrived_ns);
                self.answered += 1;
                self.give_up_after(arrived_ns);
                self.free_flights.push(slot);
                self.free_thread();
            }
        }
    }

    fn submit(&mut self, slot: u32) {
        let config = &self.simulation.config;
        let is_limited = self.reads.is_limited;
        let flight = &mut self.flights[slot as usize];
        if is_limited {
            flight.reads_left = flight.reads.len() as u32;
            self.reads.add(self.now_ns, slot, &flight.reads);
        } else {
            // Loads of the thread itself, which has nothing else to do meanwhile.
            flight.reads_left = u32::from(!flight.reads.is_empty());
            self.reads.add_loads(self.now_ns, slot, &flight.reads);
        }
        if config.is_overlapped && is_limited {
            self.items(slot);
        } else {
            self.wait_or_finish(slot);
        }
    }

    fn items(&mut self, slot: u32) {
        let Simulation { config, costs, .. } = self.simulation;
        let flight = &mut self.flights[slot as usize];
        flight.stage = Stage::Items;
        let ps = config.host.lower_ns * PS_PER_NS + costs.lists_ps(&flight.query, true);
        self.work(slot, ps);
    }

    fn wait_or_finish(&mut self, slot: u32) {
        let flight = &mut self.flights[slot as usize];
        if flight.reads_left > 0 {
            flight.stage = Stage::Waiting;
            if self.reads.is_limited {
                self.free_thread();
            }
        } else {
            self.after_reads(slot);
        }
    }

    fn read_arrived(&mut self, slot: u32) {
        let flight = &mut self.flights[slot as usize];
        flight.reads_left -= 1;
        if flight.reads_left > 0 || flight.stage != Stage::Waiting {
            return;
        }
        if self.simulation.config.is_mapped {
            // The thread that waited handles the rest of the fault.
            self.work(slot, self.simulation.config.host.fault_ps);
        } else if self.reads.is_limited {
            self.to_go_on.push_back(slot);
            self.dispatch();
        } else {
            self.after_reads(slot);
        }
    }

    /// All rows are here: what is left of a flight is done in one go.
    fn after_reads(&mut self, slot: u32) {
        let Simulation { config, costs, .. } = self.simulation;
        let host = &config.host;
        let flight = &mut self.flights[slot as usize];
        flight.stage = Stage::Finishing;
        let mut ps = host.upper_ns * PS_PER_NS;
        if !flight.is_item_side_done {
            ps += host.lower_ns * PS_PER_NS + costs.lists_ps(&flight.query, true);
        }
        if config.is_mapped {
            ps += costs.lists_ps(&flight.query, false);
        } else {
            ps += costs.gathered_ps(&flight.probed);
            ps += if self.reads.is_limited { flight.reads.len() as u64 * host.complete_ps } else { 0 };
            fill(&mut self.caches.residency, flight);
        }
        self.work(slot, ps);
    }

    /// Touches pages until one is not there, or none is left.
    fn touch_pages(&mut self, slot: u32) {
        let flight = &mut self.flights[slot as usize];
        while let Some(page) = flight.pages.pop() {
            if self.caches.mapped.as_mut().is_some_and(|mapped| !mapped.touch(page)) {
                flight.stage = Stage::Waiting;
                flight.reads_left = 1;
                let read = Read { table: 0, span: MappedPages::span(page) };
                self.reads.add_loads(self.now_ns, slot, &[read]);
                return;
            }
        }
        self.after_reads(slot);
    }

    /// What it found.
    pub(super) fn report(mut self) -> SimulationReport {
        let devices = 0..self.simulation.config.serve.device.replicas;
        SimulationReport {
            queries: self.answered,
            elapsed_ns: self.now_ns,
            gave_up: self.gave_up,
            busy_ns: self.busy_ps / PS_PER_NS,
            caches: self.caches.residency.counters,
            reads: self.reads.counters,
            pages: self.caches.pages(),
            devices: devices.map(|device| self.reads.snapshot(device)).collect(),
            cached_bytes: self.caches.residency.memory_bytes(),
            latency: std::mem::take(&mut self.latency),
        }
    }
}
