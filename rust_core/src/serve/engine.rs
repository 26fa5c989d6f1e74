//! The engine that moves bytes: versions of tables, their caches, and updates while queries are served.
//!
//! docs/design/serving.md says which query sees what.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};

use super::config::{MemoryUse, ServeConfig};
use super::gate::Gate;
use super::layout::Span;
use super::lookup::Lookup;
use super::overlay::Overlay;
use super::reads::Trailing;
use super::replicas::{self, PROBE_BYTES};
use super::residency::{CacheCounters, Residency};
use super::version::Version;
use crate::backend::{Backend, BackendConfig, BackendInfo, Extent};
use crate::clock::Clock;
use crate::device::{DeviceKind, DeviceSnapshot, FaultSpec, Lateness, Schedule, TimedDevice};
use crate::embedding::{Instructions, SimdLevel};
use crate::error::{Error, ErrorKind, Result};
use crate::units::round_up;

/// How time passes for the device under an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceTime {
    /// The backend takes the time that it takes: the device is real.
    Real,
    /// Whoever waits for a read waits until the emulated device would have it.
    Wall,
    /// Nobody waits, and the emulated device counts.
    Virtual,
}

/// Everything about an engine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineConfig {
    /// What decides what is read from where.
    pub serve: ServeConfig,
    /// Where the bytes of the device are.
    pub backend: BackendConfig,
    /// Directory of the second copy's bytes; `None`: that of the first.
    #[serde(default)]
    pub replica_directory: Option<PathBuf>,
    /// How its time passes.
    pub time: DeviceTime,
    /// Versions that can be there at a time: 2 to refresh and to roll back, 1 if tables never change as a whole.
    pub versions: usize,
    /// Injected faults.
    #[serde(default)]
    pub faults: FaultSpec,
    /// Seed of latency draws.
    pub seed: u64,
    /// Instructions of the kernels; `None`: the best. They change no bit.
    #[serde(default)]
    pub simd: Option<SimdLevel>,
}

/// What an engine did so far.
#[derive(Debug, Clone)]
pub struct EngineStats {
    /// Where the memory goes.
    pub memory: MemoryUse,
    /// Memory that caches and updated rows take now.
    pub cached_bytes: u64,
    /// Rows that are cached now.
    pub cached_rows: u64,
    /// Pooled results that are cached now.
    pub pooled_results: u64,
    /// Caches.
    pub caches: CacheCounters,
    /// Reads and writes.
    pub traffic: EngineTraffic,
    /// Rows that were updated and are not yet in their place.
    pub updated_rows: u64,
    /// The version that is served.
    pub version: u64,
    /// What moves the bytes.
    pub backend: BackendInfo,
    /// What each emulated device did; none if it is real.
    pub devices: Vec<DeviceSnapshot>,
    /// How punctual emulated devices were.
    pub lateness: Lateness,
}

/// What was read and written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct EngineTraffic {
    /// Reads.
    pub reads: u64,
    /// Bytes of the different rows of a query that were missing.
    pub asked_bytes: u64,
    /// Bytes that crossed the bus, those of second copies, too.
    pub bus_bytes: u64,
    /// Reads that were asked of a second device.
    pub hedged: u64,
    /// Of these, the second was first.
    pub hedged_won: u64,
    /// Reads that failed and were done by the other device.
    pub failed_over: u64,
    /// Rows that a warm hand-over left out.
    pub cold_rows: u64,
    /// Blocks that updates wrote.
    pub written_blocks: u64,
}

/// An emulated device's time.
pub(super) struct Timing {
    pub(super) schedule: Mutex<Schedule>,
    pub(super) lateness: Mutex<Lateness>,
}

/// What changes.
pub(super) struct State {
    pub(super) residency: Residency,
    /// The version that is served; none before the first was committed.
    pub(super) version: Option<Arc<Version>>,
    /// With the rows of it that are not yet in their place.
    pub(super) previous: Option<(Arc<Version>, Overlay)>,
    /// The version that is being loaded.
    pub(super) loading: Weak<Mutex<Option<Version>>>,
    /// Versions that were begun.
    pub(super) begun: u64,
    /// Counts updates and changes of the version.
    pub(super) number: u64,
    /// Queries that began before this number are of another version than the served one.
    pub(super) switched_at: u64,
    pub(super) overlay: Overlay,
    /// Queries under way, by the number at which each began.
    pub(super) in_flight: BTreeMap<u64, usize>,
    pub(super) traffic: EngineTraffic,
}

/// A version that is being loaded, until it is committed or another one is begun.
pub struct NewVersion {
    pub(super) number: u64,
    pub(super) version: Arc<Mutex<Option<Version>>>,
}

impl NewVersion {
    /// Its number.
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// Tables in memory and on a device, for many threads.
pub struct Engine {
    pub(super) config: EngineConfig,
    pub(super) instructions: Instructions,
    pub(super) backends: Vec<Box<dyn Backend>>,
    pub(super) gate: Gate,
    /// None if the device is real.
    pub(super) timing: Option<Timing>,
    pub(super) clock: Clock,
    /// What offsets and lengths are multiples of, on all devices.
    alignment_bytes: u64,
    pub(super) trailing: Mutex<Vec<Trailing>>,
    pub(super) region_bytes: u64,
    memory: MemoryUse,
    pub(super) state: Mutex<State>,
    /// A query is done.
    pub(super) done: Condvar,
    /// Whoever changes what is on the device.
    pub(super) changing: Mutex<()>,
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// Without a version: load one and commit it.
    ///
    /// # Errors
    ///
    /// `Config` for what does not go together; `Capacity` if memory or device are too small; those of the backend.
    pub fn open(mut config: EngineConfig) -> Result<Self> {
        config.serve.check()?;
        config.faults.validate()?;
        if !(1..=2).contains(&config.versions) {
            let message = format!("versions must be 1 or 2, not {}", config.versions);
            return Err(Error::new(ErrorKind::Config, message));
        }
        let places = replicas::places(&config)?;
        let tier = config.serve.device.spec.name.clone();
        let on_tier = |error: Error| error.with_context("tier", &tier);
        // A file that is read past the page cache moves whole blocks of its own; no block is a part of one.
        let alignment_bytes = replicas::alignment_bytes(&places).map_err(on_tier)?;
        config.serve.device.block_bytes = config.serve.device.block_bytes.max(alignment_bytes);
        let device = &config.serve.device;
        let memory = config.serve.memory(config.versions as u64)?;
        let (_, end) = config.serve.layouts(0, device.block_bytes);
        let region_bytes = round_up(end, PROBE_BYTES);
        let needed = region_bytes * config.versions as u64;
        if needed > device.spec.capacity_bytes {
            let message = "the device is smaller than the versions of the tables on it; use a larger one";
            return Err(Error::new(ErrorKind::Capacity, message)
                .with_context("tier", &device.spec.name)
                .with_context("needed_bytes", needed)
                .with_context("capacity_bytes", device.spec.capacity_bytes));
        }
        let backends = replicas::open(&config, &places, needed.max(PROBE_BYTES)).map_err(on_tier)?;
        let timed = |replica: usize| TimedDevice {
            storms: config.faults.storms(replica as u64),
            ..TimedDevice::new(device.spec.clone())
        };
        let timing = (config.time != DeviceTime::Real).then(|| Timing {
            schedule: Mutex::new(Schedule::new((0..device.replicas).map(timed).collect(), config.seed)),
            lateness: Mutex::default(),
        });
        let clock = match config.time {
            DeviceTime::Real | DeviceTime::Wall => Clock::new_wall(),
            DeviceTime::Virtual => Clock::new_virtual(),
        };
        let state = State {
            residency: config.serve.residency(&memory, true)?,
            version: None,
            previous: None,
            loading: Weak::new(),
            begun: 0,
            number: 0,
            switched_at: 0,
            overlay: Overlay::default(),
            in_flight: BTreeMap::new(),
            traffic: EngineTraffic::default(),
        };
        Ok(Self {
            instructions: config.simd.map_or_else(|| Ok(Instructions::best()), Instructions::at)?,
            gate: Gate::new(device.limits, config.serve.tables.len(), device.replicas),
            backends,
            timing,
            clock,
            alignment_bytes,
            trailing: Mutex::default(),
            region_bytes,
            memory,
            state: Mutex::new(state),
            done: Condvar::new(),
            changing: Mutex::new(()),
            config,
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// The device's name with an error.
    pub(super) fn on_device(&self, error: Error) -> Error {
        error.with_context("tier", &self.config.serve.device.spec.name)
    }

    /// Rows of a table to load at a time.
    ///
    /// # Errors
    ///
    /// `Input` if there is no such table.
    pub fn rows_per_load(&self, table: usize) -> Result<u64> {
        self.check_table(table)?;
        Ok(Version::rows_per_load(&self.config.serve, table))
    }

    /// Spans as requests that the backend takes, where in the buffer each span begins, and the length of that.
    pub(super) fn extents(&self, spans: &[Span]) -> (Vec<Extent>, Vec<usize>, usize) {
        let alignment = self.alignment_bytes;
        let (mut extents, mut places, mut nbytes) = (Vec::new(), Vec::new(), 0);
        for span in spans {
            let begin = span.offset / alignment * alignment;
            let length = (round_up(span.offset + span.nbytes, alignment) - begin) as usize;
            extents.push(Extent { offset: begin, buffer_offset: nbytes, nbytes: length });
            places.push(nbytes + (span.offset - begin) as usize);
            nbytes += length;
        }
        (extents, places, nbytes)
    }

    /// Begins a query: bags of every table, ids and where each bag begins. Reads are under way when this returns.
    ///
    /// # Errors
    ///
    /// `Input` if an id is not one of its table; `Closed` before a version was committed.
    pub fn begin(self: &Arc<Self>, bags: &[(&[i64], &[i64])]) -> Result<Lookup> {
        Lookup::begin(self, bags)
    }

    /// What it did so far.
    pub fn stats(&self) -> EngineStats {
        let state = self.lock();
        let devices = self.timing.iter().flat_map(|timing| {
            let schedule = locked(&timing.schedule);
            (0..self.backends.len()).map(|device| schedule.snapshot(device)).collect::<Vec<_>>()
        });
        EngineStats {
            memory: self.memory,
            cached_bytes: state.residency.memory_bytes()
                + state.overlay.memory_bytes()
                + state.previous.as_ref().map_or(0, |(_, overlay)| overlay.memory_bytes()),
            cached_rows: state.residency.rows.rows(),
            pooled_results: state.residency.pooled.len() as u64,
            caches: state.residency.counters,
            traffic: state.traffic,
            updated_rows: state.overlay.len() as u64,
            version: state.version.as_ref().map_or(0, |version| version.number),
            backend: self.backends[0].info(),
            devices: devices.collect(),
            lateness: self.timing.as_ref().map(|timing| locked(&timing.lateness).clone()).unwrap_or_default(),
        }
    }

    /// The device's numbers.
    pub fn device(&self) -> &crate::device::DeviceSpec {
        &self.config.serve.device.spec
    }

    /// Nanoseconds on the device's clock; 0 if it is real.
    pub fn now_ns(&self) -> u64 {
        self.timing.as_ref().map_or(0, |_| self.clock.now_ns())
    }

    /// Whether reads are loads of the host.
    pub(super) fn is_byte_addressable(&self) -> bool {
        self.config.serve.device.spec.kind == DeviceKind::Byte
    }
}

pub(super) fn no_version() -> Error {
    Error::new(ErrorKind::Closed, "no version of the tables is there yet; load one and commit it")
}
