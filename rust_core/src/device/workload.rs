//! Synthetic load on one device, in virtual time or in real time: closed loop at a queue depth, or
//! open loop with Poisson arrivals. Throughput and latency come from the measured window alone,
//! which begins after a warm-up and ends with the last measured completion, under load throughout.

use serde::Deserialize;

use super::curve::CurveFamily;
use super::lateness::Lateness;
use super::queue::{AT_ISSUE, Completion, DeviceQueue, Entry};
use super::spec::{DeviceKind, DeviceSpec};
use super::traffic::{DeviceSnapshot, Operation};
use super::usage::DeviceStats;
use crate::backend::{AlignedBuffer, Backend, BackendConfig, BackendInfo, Extent, IoBatch, open_backend};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::rng;
use crate::stats::{DeviceCounters, LatencyHistogram};
use crate::units::{PS_PER_NS, round_up};

/// The caller is asked whether to go on after so many media accesses.
const ACCESSES_PER_QUESTION: u64 = 1 << 20;
/// Operations of one point at most.
const OPERATIONS_MAX: u64 = 1 << 40;
/// Virtual time ends here, at 53 days: an arrival or a completion beyond would leave its 64 bits.
const TIME_PS_MAX: u64 = 1 << 62;
/// More requests than this may not wait for a place in the queue of a device.
const WAITING_MAX: usize = 1 << 22;
/// An open loop does not keep up if so many requests wait at once: this share of all, and this many queues.
const BACKLOG_SHARE: u64 = 200;
const BACKLOG_QUEUES: u64 = 4;

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

/// What one load did to one device.
#[derive(Debug, Clone)]
pub struct PointResult {
    /// Counters, latencies by direction, wear and energy of the measured window.
    pub stats: DeviceStats,
    /// Latency of all operations: by the model in virtual time, as delivered in real time.
    pub latency: LatencyHistogram,
    /// Operations in the window.
    pub operations: u64,
    /// Accesses of one page that an operation on a byte-addressable device makes, each with its own
    /// latency and its own place in the queue; 1 for block devices.
    pub accesses_per_operation: u64,
    /// Length of the window.
    pub elapsed_ps: u64,
    /// Whether requests arrived faster than the device serves them: a backlog grew.
    pub saturated: bool,
    /// How punctual a run in real time was.
    pub lateness: Lateness,
}

impl PointResult {
    /// Operations per second.
    pub fn iops(&self) -> f64 {
        if self.elapsed_ps == 0 { 0.0 } else { self.operations as f64 * 1e12 / self.elapsed_ps as f64 }
    }
}

impl Workload {
    fn validate(&self, spec: &DeviceSpec) -> Result<()> {
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
    fn pieces(&self, spec: &DeviceSpec) -> u64 {
        if spec.kind == DeviceKind::Byte { self.block_bytes.div_ceil(spec.page_bytes) } else { 1 }
    }

    fn queue_depth(&self, spec: &DeviceSpec) -> usize {
        match self.arrival {
            Arrival::QueueDepth(depth) => depth as usize,
            Arrival::RatePerSecond(_) => spec.queue_depth as usize,
        }
    }

    /// The device as the load finds it: with writes in it, the write buffer is full.
    fn queue(&self, spec: &DeviceSpec) -> DeviceQueue {
        let mut queue = DeviceQueue::new(spec.clone(), self.queue_depth(spec), self.seed, 0, None);
        if self.read_percent < 100 {
            queue.fill_write_buffer();
        }
        queue
    }

    /// A tenth of the operations, twice the queue, and twice the write buffer if there are writes.
    fn warm_up(&self, spec: &DeviceSpec) -> u64 {
        let per_write = self.block_bytes * u64::from(100 - self.read_percent);
        let buffered = (u128::from(spec.write.buffer_bytes) * 100).checked_div(u128::from(per_write)).unwrap_or(0);
        let buffered = u64::try_from(buffered).unwrap_or(u64::MAX).min(OPERATIONS_MAX);
        self.warm_up.unwrap_or(self.operations / 10 + 2 * self.queue_depth(spec) as u64 + 2 * buffered)
    }
}

/// The requests of a load, by number.
struct Requests {
    workload: Workload,
    places: u64,
    keys: [u64; 3],
    /// Pieces of a request, and their size.
    pieces: u64,
    piece_bytes: u64,
}

impl Requests {
    fn new(workload: Workload, spec: &DeviceSpec) -> Self {
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
    fn entry(&self, number: u64, arrived_ps: u64) -> Entry {
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
    fn gap_ps(&self, number: u64, rate_per_s: f64) -> u64 {
        let uniform = ((rng::draw(self.keys[2], number) >> 11) + 1) as f64 / (1u64 << 53) as f64;
        libm::round(-libm::log(uniform) * 1e12 / rate_per_s) as u64
    }
}

/// The measured window of a run.
struct Window {
    warm_up: u64,
    operations: u64,
    completed: u64,
    begin_ps: u64,
    end_ps: u64,
    counters: DeviceCounters,
    /// Most requests that waited for a place in the queue at once.
    backlog: u64,
}

impl Window {
    fn new(workload: &Workload, spec: &DeviceSpec) -> Self {
        Self {
            warm_up: workload.warm_up(spec) * workload.pieces(spec),
            operations: workload.operations * workload.pieces(spec),
            completed: 0,
            begin_ps: 0,
            end_ps: 0,
            counters: DeviceCounters::default(),
            backlog: 0,
        }
    }

    /// Arrivals beyond these cannot complete within the window.
    fn arrivals_max(&self, queue_depth: usize) -> u64 {
        self.warm_up + self.operations + queue_depth as u64
    }

    /// Notes how many requests wait.
    fn note_backlog(&mut self, waiting: usize, spec: &DeviceSpec) -> Result<()> {
        self.backlog = self.backlog.max(waiting as u64);
        if waiting <= WAITING_MAX {
            return Ok(());
        }
        let message = "requests arrive so much faster than the device serves them that too many wait; lower the rate";
        Err(Error::new(ErrorKind::Config, message).with_context("device", &spec.name).with_context("waiting", waiting))
    }

    fn is_open(&self) -> bool {
        self.completed >= self.warm_up
    }

    fn is_over(&self) -> bool {
        self.completed >= self.warm_up + self.operations
    }

    /// One completion; gives whether the window is over.
    #[inline]
    fn count(&mut self, queue: &mut DeviceQueue, at_ps: u64) -> bool {
        self.completed += 1;
        if self.completed == self.warm_up {
            self.begin_ps = at_ps;
            self.counters = queue.counters();
            queue.forget_latencies();
        }
        self.end_ps = at_ps;
        self.is_over()
    }
}

/// Asked now and then whether to go on; an `Err` ends the run with it.
pub type KeepGoing<'a> = &'a mut dyn FnMut() -> Result<()>;

/// Asks after so much work, counted in media accesses.
struct Ask<'a> {
    keep_going: KeepGoing<'a>,
    accesses: u64,
    left: u64,
}

impl<'a> Ask<'a> {
    fn new(spec: &DeviceSpec, workload: &Workload, keep_going: KeepGoing<'a>) -> Self {
        let accesses = workload.block_bytes.div_ceil(spec.page_bytes).max(1);
        Self { keep_going, accesses, left: ACCESSES_PER_QUESTION }
    }

    #[inline]
    fn now_and_then(&mut self) -> Result<()> {
        self.left = self.left.saturating_sub(self.accesses);
        if self.left > 0 {
            return Ok(());
        }
        self.left = ACCESSES_PER_QUESTION;
        (self.keep_going)()
    }
}

/// Runs a load in virtual time.
pub fn run_virtual(spec: &DeviceSpec, workload: &Workload, keep_going: KeepGoing<'_>) -> Result<PointResult> {
    workload.validate(spec)?;
    if spec.has_curves() {
        return Ok(run_curve(spec, workload));
    }
    let requests = Requests::new(*workload, spec);
    let mut queue = workload.queue(spec);
    let mut window = Window::new(workload, spec);
    let mut number = 0;
    let mut ask = Ask::new(spec, workload, keep_going);
    match workload.arrival {
        Arrival::QueueDepth(depth) => {
            while number < u64::from(depth) {
                queue.submit(0, requests.entry(number, AT_ISSUE));
                number += 1;
            }
            while let Some(completion) = queue.next_completion(TIME_PS_MAX) {
                queue.submit(completion.completed_ps, requests.entry(number, AT_ISSUE));
                number += 1;
                if window.count(&mut queue, completion.completed_ps) {
                    break;
                }
                ask.now_and_then()?;
            }
        }
        Arrival::RatePerSecond(rate) => {
            let arrivals = window.arrivals_max(workload.queue_depth(spec));
            let mut arrival_ps = requests.gap_ps(0, rate);
            while !window.is_over() {
                let Some(completion) = queue.next_completion(arrival_ps.min(TIME_PS_MAX)) else {
                    if arrival_ps > TIME_PS_MAX {
                        break;
                    }
                    for _ in 0..requests.pieces {
                        queue.submit(arrival_ps, requests.entry(number, arrival_ps));
                        number += 1;
                    }
                    window.note_backlog(queue.waiting(), spec)?;
                    arrival_ps += requests.gap_ps(number, rate);
                    if number >= arrivals {
                        arrival_ps = u64::MAX;
                    }
                    ask.now_and_then()?;
                    continue;
                };
                window.count(&mut queue, completion.completed_ps);
                ask.now_and_then()?;
            }
        }
    }
    if !window.is_over() {
        let message = "the load takes more virtual time than 53 days; use fewer operations or a higher rate";
        return Err(Error::new(ErrorKind::Config, message).with_context("device", &spec.name));
    }
    let snapshot = queue.snapshot(window.end_ps);
    let mut latency = snapshot.read_latency.clone();
    latency.merge(&snapshot.write_latency);
    Ok(result(spec, workload, &window, snapshot, latency, Lateness::default(), "phantom"))
}

/// A device with curves has no events: its working point follows from the load.
fn run_curve(spec: &DeviceSpec, workload: &Workload) -> PointResult {
    let family = CurveFamily::new(spec);
    let read_share = f64::from(workload.read_percent) / 100.0;
    let pages = workload.block_bytes.div_ceil(spec.page_bytes);
    let media_bytes = (pages * spec.page_bytes) as f64;
    let point = match workload.arrival {
        Arrival::QueueDepth(depth) => family.closed(read_share, u64::from(depth)),
        Arrival::RatePerSecond(rate) => family.open(read_share, rate * media_bytes * 1e-9),
    };
    let per_ns = point.bytes_per_ns / media_bytes;
    let operations = workload.operations;
    let elapsed_ps = libm::round(operations as f64 / per_ns * PS_PER_NS as f64) as u64;
    let reads = operations * u64::from(workload.read_percent) / 100;
    let writes = operations - reads;
    let latency_ns = libm::round(point.latency_ns) as u64;
    let share = |count: u64| (count as f64 / operations as f64 * elapsed_ps as f64) as u64;
    let top = family.open(read_share, f64::MAX).bytes_per_ns;
    let busy = |count: u64| (share(count) as f64 * point.bytes_per_ns / top) as u64;
    let mut snapshot = DeviceSnapshot {
        counters: DeviceCounters {
            reads,
            writes,
            read_bytes: reads * workload.block_bytes,
            write_bytes: writes * workload.block_bytes,
            media_read_bytes: reads * pages * spec.page_bytes,
            media_write_bytes: writes * pages * spec.page_bytes,
            read_link_busy_ps: busy(reads),
            write_link_busy_ps: busy(writes),
            active_ns: elapsed_ps / PS_PER_NS,
            ..DeviceCounters::default()
        },
        ..DeviceSnapshot::default()
    };
    snapshot.read_latency.record_many(latency_ns, reads);
    snapshot.write_latency.record_many(latency_ns, writes);
    let mut latency = LatencyHistogram::default();
    latency.record_many(latency_ns, operations);
    let info = BackendInfo { engine: "phantom", direct: false, fallback_reason: String::new() };
    PointResult {
        stats: DeviceStats::new(spec, info, snapshot, elapsed_ps / PS_PER_NS, workload.span_bytes),
        latency,
        operations,
        accesses_per_operation: pages,
        elapsed_ps,
        saturated: point.saturated && matches!(workload.arrival, Arrival::RatePerSecond(_)),
        lateness: Lateness::default(),
    }
}

/// Runs a load in real time on one thread that spins: bytes move as a request is submitted, and it
/// is delivered when the model says so, or as soon after as this thread comes to it.
pub fn run_wall(spec: &DeviceSpec, workload: &Workload, keep_going: KeepGoing<'_>) -> Result<PointResult> {
    workload.validate(spec)?;
    if spec.kind == DeviceKind::Byte {
        let message =
            "a byte-addressable device cannot be imitated access by access in real time; use the virtual clock";
        return Err(Error::new(ErrorKind::Config, message).with_context("device", &spec.name));
    }
    let alignment = AlignedBuffer::ALIGNMENT_BYTES as u64;
    let backend = open_backend(&BackendConfig::ram(), round_up(workload.span_bytes, alignment))?;
    let mut mover = Mover { backend, batch: Some(empty_batch(workload.block_bytes)) };
    let requests = Requests::new(*workload, spec);
    let mut queue = workload.queue(spec);
    let mut window = Window::new(workload, spec);
    let (mut latency, mut lateness) = (LatencyHistogram::default(), Lateness::default());
    let clock = Clock::new_wall();
    let mut number = 0;
    let mut arrival_ps = u64::MAX;
    let mut rate = 0.0;
    match workload.arrival {
        Arrival::QueueDepth(depth) => {
            while number < u64::from(depth) {
                submit(&mut queue, &mut mover, requests.entry(number, AT_ISSUE), clock.now_ns() * PS_PER_NS)?;
                number += 1;
            }
        }
        Arrival::RatePerSecond(asked) => {
            rate = asked;
            arrival_ps = clock.now_ns() * PS_PER_NS + requests.gap_ps(0, rate);
        }
    }
    let mut question_ns = clock.now_ns();
    loop {
        let now_ns = clock.now_ns();
        if now_ns > question_ns + 50_000_000 {
            question_ns = now_ns;
            keep_going()?;
        }
        let at_ps = queue.next_event_ps();
        if arrival_ps < at_ps.min(now_ns * PS_PER_NS) {
            // By the model it arrives on time, however late this thread comes to it; the lag shows as lateness.
            submit(&mut queue, &mut mover, requests.entry(number, arrival_ps), arrival_ps)?;
            number += 1;
            window.note_backlog(queue.waiting(), spec)?;
            arrival_ps += requests.gap_ps(number, rate);
            if number >= window.arrivals_max(workload.queue_depth(spec)) {
                arrival_ps = u64::MAX;
            }
            continue;
        }
        if at_ps > now_ns * PS_PER_NS {
            clock.wait_until(at_ps.min(arrival_ps).div_ceil(PS_PER_NS).min(now_ns + 50_000_000));
            continue;
        }
        let Some(Completion { arrived_ps, completed_ps, .. }) = queue.next_completion(now_ns * PS_PER_NS) else {
            continue;
        };
        let delivered_ns = clock.now_ns();
        if window.is_open() {
            let (arrived_ns, due_ns) = (arrived_ps / PS_PER_NS, completed_ps / PS_PER_NS);
            latency.record(delivered_ns.saturating_sub(arrived_ns));
            lateness.record(1, arrived_ns, due_ns, delivered_ns);
        }
        if window.count(&mut queue, delivered_ns * PS_PER_NS) {
            break;
        }
        if rate == 0.0 {
            submit(&mut queue, &mut mover, requests.entry(number, AT_ISSUE), clock.now_ns() * PS_PER_NS)?;
            number += 1;
        }
    }
    let snapshot = queue.snapshot(window.end_ps);
    Ok(result(spec, workload, &window, snapshot, latency, lateness, "ram"))
}

/// Moves the bytes of one request at a time.
struct Mover {
    backend: Box<dyn Backend>,
    batch: Option<IoBatch>,
}

fn empty_batch(nbytes: u64) -> IoBatch {
    let extent = Extent { offset: 0, buffer_offset: 0, nbytes: nbytes as usize };
    IoBatch { buffer: AlignedBuffer::zeroed(nbytes as usize), extents: vec![extent] }
}

fn submit(queue: &mut DeviceQueue, mover: &mut Mover, entry: Entry, now_ps: u64) -> Result<()> {
    queue.submit(now_ps, entry);
    let mut batch = mover.batch.take().unwrap_or_else(|| empty_batch(u64::from(entry.nbytes)));
    batch.extents[0].offset = entry.offset;
    let (batch, outcome) = match entry.operation {
        Operation::Read => mover.backend.read(batch),
        Operation::Write => mover.backend.write(batch),
    };
    mover.batch = Some(batch);
    outcome
}

fn result(
    spec: &DeviceSpec,
    workload: &Workload,
    window: &Window,
    mut snapshot: DeviceSnapshot,
    latency: LatencyHistogram,
    lateness: Lateness,
    engine: &'static str,
) -> PointResult {
    snapshot.counters = snapshot.counters.since(&window.counters);
    let elapsed_ps = window.end_ps - window.begin_ps;
    let info = BackendInfo { engine, direct: false, fallback_reason: String::new() };
    let total = window.warm_up + window.operations;
    let overrun = (total / BACKLOG_SHARE).max(BACKLOG_QUEUES * workload.queue_depth(spec) as u64);
    PointResult {
        stats: DeviceStats::new(spec, info, snapshot, elapsed_ps / PS_PER_NS, workload.span_bytes),
        latency,
        operations: workload.operations,
        accesses_per_operation: workload.pieces(spec),
        elapsed_ps,
        saturated: window.backlog > overrun,
        lateness,
    }
}
