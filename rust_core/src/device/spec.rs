//! The numbers of one device file. Python reads the same files for the control plane and hands the
//! resolved values over as JSON; `validate.rs` decides which numbers go together.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::quantile::QuantileTable;
use crate::units::transfer_ns;

/// How a device is addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// Requests of whole blocks through a queue.
    Block,
    /// Loads and stores; a batch of row reads is one call with a stated parallelism.
    Byte,
}

/// What was written to the device before the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceState {
    /// Nothing: there is no old data to move, and every write drains as a sequential one does.
    Fresh,
    /// Everything, several times over: random writes are amplified and garbage is collected.
    #[default]
    Steady,
}

/// Cost on the host's side, per request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSpec {
    /// From the call to the device.
    pub submit_ns: u64,
    /// From the device to the caller.
    pub complete_ns: u64,
}

/// Reads.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadSpec {
    /// End-to-end latency at queue depth 1, of `reference_bytes`; the mean of the distribution if there are quantiles.
    pub latency_ns: u64,
    /// Size of the request that `latency_ns` and the quantiles speak of.
    pub reference_bytes: u64,
    /// Time of the controller per command: the IOPS ceiling is its inverse.
    pub command_ns: u64,
    /// Commands of at most this many bytes take `small_command_ns` instead; 0: none do.
    #[serde(default)]
    pub small_bytes: u64,
    /// Time of the controller per small command.
    #[serde(default)]
    pub small_command_ns: u64,
    /// Link bandwidth of this direction.
    pub bandwidth_bytes_per_s: u64,
    /// Quantiles of the latency at queue depth 1, as `[probability, ns]`, ascending. Empty: constant.
    #[serde(default)]
    pub latency_quantiles_ns: Vec<(f64, u64)>,
    /// No read takes longer at queue depth 1. Needed with quantiles.
    #[serde(default)]
    pub latency_max_ns: u64,
    /// End-to-end latency at queue depth 1 by request size, as `[bytes, ns]`, ascending in bytes. Less host,
    /// controller and link it is the medium's time, which is interpolated in straight lines and is constant
    /// outside. Empty: the medium takes the same time for every size.
    #[serde(default)]
    pub latency_by_bytes_ns: Vec<(u64, u64)>,
}

/// Writes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteSpec {
    /// Time from data in the buffer to the acknowledgement; the mean if there are quantiles.
    pub acknowledge_ns: u64,
    /// Quantiles of that time, as `[probability, ns]`, ascending. Empty: constant.
    #[serde(default)]
    pub acknowledge_quantiles_ns: Vec<(f64, u64)>,
    /// No acknowledgement out of a buffer with room takes longer. Needed with quantiles.
    #[serde(default)]
    pub acknowledge_max_ns: u64,
    /// Time of the controller per command.
    pub command_ns: u64,
    /// Commands of at most this many bytes take `small_command_ns` instead; 0: none do.
    #[serde(default)]
    pub small_bytes: u64,
    /// Time of the controller per small command.
    #[serde(default)]
    pub small_command_ns: u64,
    /// Link bandwidth of this direction.
    pub bandwidth_bytes_per_s: u64,
    /// Capacity of the write buffer.
    pub buffer_bytes: u64,
    /// Rate at which random writes drain from the buffer to the medium in steady state.
    pub drain_bytes_per_s: u64,
    /// The same where nothing has to be moved: a fresh device, or sequential writes. 0: the same rate.
    #[serde(default)]
    pub sequential_drain_bytes_per_s: u64,
}

/// What draining the write buffer does to the media units; absent where a write does not hold up reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackgroundSpec {
    /// Bytes that one program operation of one unit writes.
    pub program_bytes: u64,
    /// Time that it takes.
    pub program_ns: u64,
    /// A read that finds a program on its unit waits at most this long for it to be suspended.
    pub program_suspend_ns: u64,
    /// Bytes programmed per erase. 0: no erases.
    #[serde(default)]
    pub erase_bytes: u64,
    /// Time of an erase.
    #[serde(default)]
    pub erase_ns: u64,
    /// A read that finds an erase on its unit waits at most this long for it to be suspended.
    #[serde(default)]
    pub erase_suspend_ns: u64,
    /// Bytes of random writes, on average, per stall by garbage collection in steady state. 0: no stalls.
    #[serde(default)]
    pub stall_every_bytes: u64,
    /// Time for which a stall holds up one unit; reads wait for its end.
    #[serde(default)]
    pub stall_ns: u64,
}

/// Endurance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WearSpec {
    /// Bytes that may be written over the device's life, by random writes in steady state. 0: no limit.
    pub endurance_bytes: u64,
    /// Bytes written to the medium per byte of random writes in steady state, in percent; at least 100.
    pub write_amplification_percent: u64,
}

/// Power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerSpec {
    /// Idle.
    pub idle_milliwatts: u64,
    /// Reading as fast as the device can.
    pub read_milliwatts: u64,
    /// Writing as fast as the device can.
    pub write_milliwatts: u64,
}

/// Price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostSpec {
    /// Thousandths of a US dollar per 10^9 bytes.
    pub millidollars_per_gigabyte: u64,
}

/// A measured loaded-latency curve for one mix of reads and writes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CurveSpec {
    /// Share of reads in the traffic, in percent.
    pub read_percent: u32,
    /// `[bytes per second, latency in ns]`, ascending in both; the first point is idle, at 0 bytes per second.
    pub points: Vec<(u64, u64)>,
}

/// Where one number comes from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceSpec {
    /// `datasheet`, `measured`, `derived` or `assumed`.
    pub kind: String,
    /// Document and place, or how it was derived.
    #[serde(rename = "ref")]
    pub reference: String,
    /// When it was read or derived, ISO 8601.
    pub date: String,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSpec {
    /// Name, as in its file name.
    pub name: String,
    /// What it is, for people.
    pub description: String,
    /// How it is addressed.
    pub kind: DeviceKind,
    /// What was written to it before.
    #[serde(default)]
    pub state: DeviceState,
    /// Capacity of the real device.
    pub capacity_bytes: u64,
    /// Independent media units, each a FIFO. 0 for devices that carry curves.
    #[serde(default)]
    pub units: u32,
    /// What maps to one unit.
    pub page_bytes: u64,
    /// The least that the medium reads or writes.
    pub granule_bytes: u64,
    /// Requests outstanding at most; for byte-addressable devices accesses of one page, the memory-level parallelism.
    pub queue_depth: u32,
    /// Host cost.
    pub host: HostSpec,
    /// Reads.
    pub read: ReadSpec,
    /// Writes.
    pub write: WriteSpec,
    /// What draining does to the media units.
    #[serde(default)]
    pub background: Option<BackgroundSpec>,
    /// Endurance.
    pub wear: WearSpec,
    /// Power.
    pub power: PowerSpec,
    /// Price.
    pub cost: CostSpec,
    /// Loaded-latency curves, which replace units, controller and link of a byte-addressable device.
    #[serde(default)]
    pub curves: Vec<CurveSpec>,
    /// Published points that `docs/fidelity.md` compares with the model; the core does not use them.
    #[serde(default)]
    pub published: Vec<serde::de::IgnoredAny>,
    /// Source of each number, by its dotted path.
    #[serde(default)]
    pub source: BTreeMap<String, SourceSpec>,
}

impl DeviceSpec {
    /// Whether latencies come from measured curves instead of units, controller and link.
    pub fn has_curves(&self) -> bool {
        !self.curves.is_empty()
    }

    /// The distribution of the read latency at queue depth 1; `None` if its quantiles contradict its mean.
    pub fn read_quantiles(&self) -> Option<QuantileTable> {
        let read = &self.read;
        QuantileTable::with_mean(
            read.latency_ns,
            self.read_fixed_ns(read.reference_bytes) + 1,
            &read.latency_quantiles_ns,
            read.latency_max_ns,
        )
    }

    /// The distribution of the acknowledgement time; `None` if its quantiles contradict its mean.
    pub fn acknowledge_quantiles(&self) -> Option<QuantileTable> {
        let write = &self.write;
        QuantileTable::with_mean(write.acknowledge_ns, 1, &write.acknowledge_quantiles_ns, write.acknowledge_max_ns)
    }

    /// What of the latency of a read of `nbytes` is not media time: host, controller and link.
    pub fn read_fixed_ns(&self, nbytes: u64) -> u64 {
        self.host.submit_ns
            + self.read.command_ns_of(nbytes)
            + transfer_ns(nbytes, self.read.bandwidth_bytes_per_s)
            + self.host.complete_ns
    }

    /// The medium's time for a read of each size in the table of sizes, as `(bytes, ns)`.
    pub fn media_by_bytes_ns(&self) -> Vec<(u64, u64)> {
        let media = |&(bytes, ns): &(u64, u64)| (bytes, ns.saturating_sub(self.read_fixed_ns(bytes)));
        self.read.latency_by_bytes_ns.iter().map(media).collect()
    }

    /// Rate at which a write drains from the buffer.
    pub fn drain_bytes_per_s(&self, sequential: bool) -> u64 {
        let write = &self.write;
        let unhindered = sequential || self.state == DeviceState::Fresh;
        if unhindered && write.sequential_drain_bytes_per_s > 0 {
            write.sequential_drain_bytes_per_s
        } else {
            write.drain_bytes_per_s
        }
    }

    /// Bytes written to the medium per byte that a write drains, in percent.
    pub fn write_amplification_percent(&self, sequential: bool) -> u64 {
        let unhindered = sequential || self.state == DeviceState::Fresh;
        if unhindered { 100 } else { self.wear.write_amplification_percent }
    }
}

impl ReadSpec {
    /// Time of the controller for a command of `nbytes`.
    pub fn command_ns_of(&self, nbytes: u64) -> u64 {
        if nbytes <= self.small_bytes { self.small_command_ns } else { self.command_ns }
    }
}

impl WriteSpec {
    /// Time of the controller for a command of `nbytes`.
    pub fn command_ns_of(&self, nbytes: u64) -> u64 {
        if nbytes <= self.small_bytes { self.small_command_ns } else { self.command_ns }
    }
}
