//! Synthetic load on one device, in virtual time or in real time: closed loop at a queue depth, or
//! open loop with Poisson arrivals. Throughput and latency come from the measured window alone,
//! which begins after a warm-up and ends with the last measured completion, under load throughout.

use super::curve::CurveFamily;
use super::lateness::Lateness;
use super::live::{Mover, touched_memory};
use super::load::{Arrival, Requests, Workload};
use super::queue::{AT_ISSUE, Completion, DeviceQueue, Entry};
use super::spec::{DeviceKind, DeviceSpec};
use super::traffic::{DeviceSnapshot, Operation};
use super::usage::DeviceStats;
use crate::backend::BackendInfo;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::stats::{DeviceCounters, LatencyHistogram};
use crate::units::PS_PER_NS;

/// The caller is asked whether to go on after so many media accesses.
const ACCESSES_PER_QUESTION: u64 = 1 << 20;
/// Virtual time ends here, at 53 days: an arrival or a completion beyond would leave its 64 bits.
const TIME_PS_MAX: u64 = 1 << 62;
/// More requests than this may not wait for a place in the queue of a device.
const WAITING_MAX: usize = 1 << 22;
/// An open loop does not keep up if so many requests wait at once: this share of all, and this many queues.
const BACKLOG_SHARE: u64 = 200;
const BACKLOG_QUEUES: u64 = 2;

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
            // Accesses, as of a memory with units.
            reads: reads * pages,
            writes: writes * pages,
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
    snapshot.read_latency.record_many(latency_ns, reads * pages);
    snapshot.write_latency.record_many(latency_ns, writes * pages);
    let mut latency = LatencyHistogram::default();
    latency.record_many(latency_ns, operations * pages);
    let info = BackendInfo::new("phantom");
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
    let mut mover = touched_memory(workload.span_bytes)?;
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
        // Not past the next arrival, which the model has to see in its place.
        let limit_ps = arrival_ps.min(now_ns * PS_PER_NS);
        let Some(Completion { arrived_ps, completed_ps, .. }) = queue.next_completion(limit_ps) else {
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

fn submit(queue: &mut DeviceQueue, mover: &mut Mover, entry: Entry, now_ps: u64) -> Result<()> {
    queue.submit(now_ps, entry);
    let nbytes = entry.nbytes as usize;
    match entry.operation {
        Operation::Read => mover.read(entry.offset, nbytes, |_| ()),
        Operation::Write => mover.write(entry.offset, nbytes, |_| ()),
    }
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
    let info = BackendInfo::new(engine);
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
