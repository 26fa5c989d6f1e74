//! The validated numbers of one device file. Python reads the same files for the control plane and
//! hands the resolved values over as JSON; this is the one place that decides what they mean.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::quantile::QuantileTable;
use crate::error::{Error, ErrorKind, Result};
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
    /// Link bandwidth of this direction.
    pub bandwidth_bytes_per_s: u64,
    /// Quantiles of the latency at queue depth 1, as `[probability, ns]`, ascending. Empty: constant.
    #[serde(default)]
    pub latency_quantiles_ns: Vec<(f64, u64)>,
    /// No read takes longer at queue depth 1. Needed with quantiles.
    #[serde(default)]
    pub latency_max_ns: u64,
}

/// Writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteSpec {
    /// Time from data in the buffer to the acknowledgement.
    pub acknowledge_ns: u64,
    /// Time of the controller per command.
    pub command_ns: u64,
    /// Link bandwidth of this direction.
    pub bandwidth_bytes_per_s: u64,
    /// Capacity of the write buffer.
    pub buffer_bytes: u64,
    /// Rate at which the buffer drains to the medium.
    pub drain_bytes_per_s: u64,
}

/// Power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerSpec {
    /// Idle.
    pub idle_milliwatts: u64,
    /// Reading at full bandwidth.
    pub read_milliwatts: u64,
    /// Writing at full bandwidth.
    pub write_milliwatts: u64,
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
    /// Capacity of the real device.
    pub capacity_bytes: u64,
    /// Independent media units, each a FIFO. 0 for byte-addressable devices.
    #[serde(default)]
    pub units: u32,
    /// What maps to one unit.
    #[serde(default)]
    pub page_bytes: u64,
    /// The least that the medium reads or writes.
    pub granule_bytes: u64,
    /// Requests outstanding at most; for byte-addressable devices the memory-level parallelism.
    pub queue_depth: u32,
    /// Host cost.
    pub host: HostSpec,
    /// Reads.
    pub read: ReadSpec,
    /// Writes.
    pub write: WriteSpec,
    /// Power.
    pub power: PowerSpec,
    /// Source of each number, by its dotted path.
    pub source: BTreeMap<String, SourceSpec>,
}

impl DeviceSpec {
    /// Reads and validates a device file.
    pub fn from_toml(text: &str) -> Result<Self> {
        let spec: Self = toml::from_str(text)
            .map_err(|error| Error::new(ErrorKind::Config, format!("not a device file: {}", error.message())))?;
        spec.validate()?;
        Ok(spec)
    }

    /// Reads and validates the JSON form that Python hands over.
    pub fn from_json(text: &str) -> Result<Self> {
        let spec: Self = serde_json::from_str(text)
            .map_err(|error| Error::new(ErrorKind::Config, format!("not a device specification: {error}")))?;
        spec.validate()?;
        Ok(spec)
    }

    /// Refuses numbers that contradict each other or that the model cannot use.
    pub fn validate(&self) -> Result<()> {
        let fail = |field: &str, why: &str| {
            Err(Error::new(ErrorKind::Config, format!("{field} {why}")).with_context("device", &self.name))
        };
        for (field, value) in [
            ("capacity_bytes", self.capacity_bytes),
            ("granule_bytes", self.granule_bytes),
            ("queue_depth", u64::from(self.queue_depth)),
            ("read.latency_ns", self.read.latency_ns),
            ("read.bandwidth_bytes_per_s", self.read.bandwidth_bytes_per_s),
            ("read.reference_bytes", self.read.reference_bytes),
            ("write.bandwidth_bytes_per_s", self.write.bandwidth_bytes_per_s),
            ("write.drain_bytes_per_s", self.write.drain_bytes_per_s),
        ] {
            if value == 0 {
                return fail(field, "must be above zero");
            }
        }
        if self.kind == DeviceKind::Block {
            if self.units == 0 {
                return fail("units", "must be above zero for a block device");
            }
            if self.page_bytes == 0 || !self.page_bytes.is_multiple_of(self.granule_bytes) {
                return fail("page_bytes", "must be a multiple of granule_bytes");
            }
            if self.read_fixed_ns() >= self.read.latency_ns {
                return fail("read.latency_ns", "must exceed host, controller and link time of reference_bytes");
            }
        }
        let quantiles = &self.read.latency_quantiles_ns;
        let ascending = quantiles.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        let in_range = quantiles.iter().all(|&(probability, _)| probability > 0.0 && probability < 1.0);
        if !ascending || !in_range {
            return fail("read.latency_quantiles_ns", "must ascend, with probabilities between 0 and 1");
        }
        if let Some(&(_, last)) = quantiles.last()
            && self.read.latency_max_ns < last
        {
            return fail("read.latency_max_ns", "must not be below the last quantile");
        }
        if self.read.latency_max_ns >= 1 << 32 {
            return fail("read.latency_max_ns", "must be below 4.29 s");
        }
        if !quantiles.is_empty() && self.read_quantiles().is_none() {
            return fail("read.latency_ns", "is a mean that no distribution with these quantiles can have");
        }
        Ok(())
    }

    /// The distribution of the read latency at queue depth 1; `None` if its quantiles contradict its mean.
    pub fn read_quantiles(&self) -> Option<QuantileTable> {
        let read = &self.read;
        QuantileTable::with_mean(
            read.latency_ns,
            self.read_fixed_ns() + 1,
            &read.latency_quantiles_ns,
            read.latency_max_ns,
        )
    }

    /// What of a reference read's latency is not media time: host, controller and link.
    pub fn read_fixed_ns(&self) -> u64 {
        self.host.submit_ns
            + self.read.command_ns
            + transfer_ns(self.read.reference_bytes, self.read.bandwidth_bytes_per_s)
            + self.host.complete_ns
    }
}
