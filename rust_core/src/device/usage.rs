//! What follows from the counters of a run: utilisation, wear, energy, cost.

use super::spec::DeviceSpec;
use super::traffic::DeviceSnapshot;
use crate::backend::BackendInfo;
use crate::stats::{DeviceCounters, LatencyHistogram};
use crate::units::PS_PER_NS;

const SECONDS_PER_YEAR: f64 = 365.25 * 86_400.0;

/// Wear of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Wear {
    /// Bytes on the medium per byte written.
    pub write_amplification: f64,
    /// Share of the device's endurance that was used up. 0 where there is no limit.
    pub endurance_share: f64,
    /// How long the device would last at this rate. Infinite without writes or without a limit.
    pub lifetime_years: f64,
}

/// Energy of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Energy {
    /// All of it: idle power over the elapsed time, and what activity adds.
    pub joules: f64,
    /// What activity adds, per operation.
    pub nanojoules_per_operation: f64,
}

/// Times for which each stage was busy, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct StageTimes {
    /// Media units, on average.
    pub media_ns: f64,
    /// Controller.
    pub controller_ns: f64,
    /// Read link.
    pub read_link_ns: f64,
    /// Write link.
    pub write_link_ns: f64,
    /// Drain of the write buffer.
    pub drain_ns: f64,
}

impl StageTimes {
    /// Of the counters of a device.
    pub fn new(spec: &DeviceSpec, counters: &DeviceCounters) -> Self {
        let ns = |ps: u64| ps as f64 / PS_PER_NS as f64;
        let units = f64::from(spec.units.max(1));
        Self {
            media_ns: ns(counters.media_read_busy_ps + counters.media_background_busy_ps) / units,
            controller_ns: ns(counters.read_controller_busy_ps + counters.write_controller_busy_ps),
            read_link_ns: ns(counters.read_link_busy_ps),
            write_link_ns: ns(counters.write_link_busy_ps),
            drain_ns: ns(counters.drain_busy_ps),
        }
    }

    /// The stage that was busiest, by name, and its time.
    pub fn busiest(&self) -> (&'static str, f64) {
        [
            ("media units", self.media_ns),
            ("controller", self.controller_ns),
            ("read link", self.read_link_ns),
            ("write link", self.write_link_ns),
            ("write buffer drain", self.drain_ns),
        ]
        .into_iter()
        .fold(("none", 0.0), |best, stage| if stage.1 > best.1 { stage } else { best })
    }
}

/// What one device did, and what follows from it and its specification.
#[derive(Debug, Clone)]
pub struct DeviceStats {
    /// Name of the specification.
    pub name: String,
    /// What runs underneath.
    pub backend: BackendInfo,
    /// Counters.
    pub counters: DeviceCounters,
    /// Latency of reads, from issue to completion, by the model.
    pub read_latency: LatencyHistogram,
    /// Latency of writes, from issue to acknowledgement, by the model.
    pub write_latency: LatencyHistogram,
    /// Time over which the counters were collected.
    pub elapsed_ns: u64,
    /// Share of the elapsed time for which the busiest stage was busy.
    pub utilisation: f64,
    /// Name of that stage.
    pub busiest_stage: &'static str,
    /// Wear.
    pub wear: Wear,
    /// Energy.
    pub energy: Energy,
    /// Price of the bytes that the run occupies, in US dollars.
    pub cost_dollars: f64,
}

impl DeviceStats {
    /// Derives utilisation, wear, energy and cost. `elapsed_ns` may be zero.
    pub fn new(
        spec: &DeviceSpec,
        backend: BackendInfo,
        snapshot: DeviceSnapshot,
        elapsed_ns: u64,
        occupied_bytes: u64,
    ) -> Self {
        let counters = snapshot.counters;
        let (busiest_stage, busiest_ns) = StageTimes::new(spec, &counters).busiest();
        Self {
            name: spec.name.clone(),
            backend,
            counters,
            read_latency: snapshot.read_latency,
            write_latency: snapshot.write_latency,
            elapsed_ns,
            utilisation: if elapsed_ns == 0 { 0.0 } else { (busiest_ns / elapsed_ns as f64).min(1.0) },
            busiest_stage,
            wear: wear(spec, &counters, elapsed_ns),
            energy: energy(spec, &counters, elapsed_ns),
            cost_dollars: occupied_bytes as f64 * 1e-9 * spec.cost.millidollars_per_gigabyte as f64 * 1e-3,
        }
    }
}

/// The endurance is rated for random writes in steady state, so it is a number of bytes on the medium:
/// the rating times the amplification that such writes have.
fn wear(spec: &DeviceSpec, counters: &DeviceCounters, elapsed_ns: u64) -> Wear {
    let written = counters.write_bytes as f64;
    let on_medium = counters.media_write_bytes as f64;
    let endurance = spec.wear.endurance_bytes as f64 * spec.wear.write_amplification_percent as f64 / 100.0;
    let endurance_share = if endurance > 0.0 { on_medium / endurance } else { 0.0 };
    let elapsed_years = elapsed_ns as f64 * 1e-9 / SECONDS_PER_YEAR;
    Wear {
        write_amplification: if written > 0.0 { on_medium / written } else { 0.0 },
        endurance_share,
        lifetime_years: if endurance_share > 0.0 { elapsed_years / endurance_share } else { f64::INFINITY },
    }
}

/// A direction is as active as the busiest stage that its requests pass.
fn energy(spec: &DeviceSpec, counters: &DeviceCounters, elapsed_ns: u64) -> Energy {
    let power = &spec.power;
    let ns = |ps: u64| ps as f64 / PS_PER_NS as f64;
    let units = f64::from(spec.units.max(1));
    let reading_ns = ns(counters.read_link_busy_ps)
        .max(ns(counters.read_controller_busy_ps))
        .max(ns(counters.media_read_busy_ps) / units);
    let writing_ns = ns(counters.write_link_busy_ps)
        .max(ns(counters.write_controller_busy_ps))
        .max(ns(counters.drain_busy_ps))
        .max(ns(counters.media_background_busy_ps) / units);
    let above_idle = |milliwatts: u64| (milliwatts - power.idle_milliwatts.min(milliwatts)) as f64;
    let elapsed = elapsed_ns as f64;
    let active_milliwatt_ns = above_idle(power.read_milliwatts) * reading_ns.min(elapsed)
        + above_idle(power.write_milliwatts) * writing_ns.min(elapsed);
    let operations = counters.reads + counters.writes;
    Energy {
        joules: (power.idle_milliwatts as f64 * elapsed + active_milliwatt_ns) * 1e-12,
        nanojoules_per_operation: if operations == 0 { 0.0 } else { active_milliwatt_ns * 1e-3 / operations as f64 },
    }
}
