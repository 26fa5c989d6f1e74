//! From text to a device: which numbers go together, and that each has a source. Every refusal names the key.

use super::spec::{DeviceKind, DeviceSpec, DeviceState, SourceSpec};
use crate::error::{Error, ErrorKind, Result};

/// Durations are counted in picoseconds in 64 bits, and a latency draw in 32 bits of nanoseconds.
const DURATION_NS_MAX: u64 = u32::MAX as u64;
/// More than any device has; bounds the memory of a model.
const UNITS_MAX: u32 = 1 << 20;
const CAPACITY_BYTES_MAX: u64 = 1 << 60;
const BANDWIDTH_BYTES_PER_S_MAX: u64 = 1 << 50;
/// Below this a large request takes longer than the clock counts.
const BANDWIDTH_BYTES_PER_S_MIN: u64 = 1_000_000;

type Problem = (&'static str, &'static str);

impl DeviceSpec {
    /// Reads and validates a device file: every number needs a source.
    pub fn from_toml(text: &str) -> Result<Self> {
        let wrong = |error: toml::de::Error| {
            let place = error.span().map_or(0, |span| span.start);
            let line = text.get(..place).unwrap_or_default().matches('\n').count();
            Error::new(ErrorKind::Config, format!("not a device file: {}", error.message()))
                .with_context("line", line + 1)
                .with_context("text", text.lines().nth(line).unwrap_or_default().trim())
        };
        let spec: Self = toml::from_str(text).map_err(wrong)?;
        let document: toml::Table = toml::from_str(text).map_err(wrong)?;
        spec.validate()?;
        sources(&spec, &document)?;
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
        numbers(self)
    }
}

fn numbers(spec: &DeviceSpec) -> Result<()> {
    let checks = [ranges, geometry, latency, acknowledge, background, wear_and_power, curves];
    match checks.iter().find_map(|check| check(spec).err()) {
        None => Ok(()),
        Some((key, why)) => {
            Err(Error::new(ErrorKind::Config, format!("{key} {why}")).with_context("device", &spec.name))
        }
    }
}

fn refuse_if(wrong: bool, key: &'static str, why: &'static str) -> std::result::Result<(), Problem> {
    if wrong { Err((key, why)) } else { Ok(()) }
}

fn ranges(spec: &DeviceSpec) -> std::result::Result<(), Problem> {
    let (read, write) = (&spec.read, &spec.write);
    for (key, value, most) in [
        ("capacity_bytes", spec.capacity_bytes, CAPACITY_BYTES_MAX),
        ("granule_bytes", spec.granule_bytes, 1 << 30),
        ("page_bytes", spec.page_bytes, 1 << 30),
        ("queue_depth", u64::from(spec.queue_depth), 1 << 20),
        ("read.latency_ns", read.latency_ns, DURATION_NS_MAX),
        ("read.reference_bytes", read.reference_bytes, 1 << 30),
        ("read.bandwidth_bytes_per_s", read.bandwidth_bytes_per_s, BANDWIDTH_BYTES_PER_S_MAX),
        ("write.bandwidth_bytes_per_s", write.bandwidth_bytes_per_s, BANDWIDTH_BYTES_PER_S_MAX),
        ("write.drain_bytes_per_s", write.drain_bytes_per_s, BANDWIDTH_BYTES_PER_S_MAX),
    ] {
        refuse_if(value == 0, key, "must be above zero")?;
        refuse_if(value > most, key, "is larger than any device's")?;
    }
    for (key, value) in [
        ("read.bandwidth_bytes_per_s", read.bandwidth_bytes_per_s),
        ("write.bandwidth_bytes_per_s", write.bandwidth_bytes_per_s),
        ("write.drain_bytes_per_s", write.drain_bytes_per_s),
    ] {
        refuse_if(value < BANDWIDTH_BYTES_PER_S_MIN, key, "must be at least 1,000,000")?;
    }
    for (key, value) in [
        ("host.submit_ns", spec.host.submit_ns),
        ("host.complete_ns", spec.host.complete_ns),
        ("read.command_ns", read.command_ns),
        ("read.small_command_ns", read.small_command_ns),
        ("read.latency_max_ns", read.latency_max_ns),
        ("write.acknowledge_ns", write.acknowledge_ns),
        ("write.acknowledge_max_ns", write.acknowledge_max_ns),
        ("write.command_ns", write.command_ns),
        ("write.small_command_ns", write.small_command_ns),
    ] {
        refuse_if(value > DURATION_NS_MAX, key, "must be below 4.29 s")?;
    }
    refuse_if(write.buffer_bytes > CAPACITY_BYTES_MAX, "write.buffer_bytes", "is larger than any device's")?;
    refuse_if(
        write.sequential_drain_bytes_per_s > BANDWIDTH_BYTES_PER_S_MAX,
        "write.sequential_drain_bytes_per_s",
        "is larger than any device's",
    )
}

fn geometry(spec: &DeviceSpec) -> std::result::Result<(), Problem> {
    refuse_if(!spec.granule_bytes.is_power_of_two(), "granule_bytes", "must be a power of two")?;
    refuse_if(
        !spec.page_bytes.is_power_of_two() || spec.page_bytes < spec.granule_bytes,
        "page_bytes",
        "must be a power of two and a multiple of granule_bytes",
    )?;
    refuse_if(spec.units > UNITS_MAX, "units", "must be at most 1,048,576")?;
    if spec.has_curves() {
        refuse_if(spec.kind == DeviceKind::Block, "curves", "are for byte-addressable devices")?;
        refuse_if(spec.units > 0, "units", "must be left out of a device that has curves")?;
        return Ok(());
    }
    refuse_if(spec.units == 0, "units", "must be above zero for a device without curves")
}

fn quantiles(
    points: &[(f64, u64)],
    max_ns: u64,
    key: &'static str,
    max_key: &'static str,
) -> std::result::Result<(), Problem> {
    let ascending = points.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
    let in_range = points.iter().all(|&(probability, _)| (0.5..1.0).contains(&probability));
    refuse_if(!ascending || !in_range, key, "must ascend, with probabilities from 0.5 and below 1")?;
    let positive = points.iter().all(|&(_, ns)| ns > 0);
    refuse_if(!positive, key, "must be above zero")?;
    refuse_if(points.last().is_some_and(|&(_, last)| max_ns < last), max_key, "must not be below the last quantile")
}

fn latency(spec: &DeviceSpec) -> std::result::Result<(), Problem> {
    let read = &spec.read;
    refuse_if(
        (read.small_bytes == 0) != (read.small_command_ns == 0),
        "read.small_command_ns",
        "goes together with read.small_bytes",
    )?;
    refuse_if(
        (spec.write.small_bytes == 0) != (spec.write.small_command_ns == 0),
        "write.small_command_ns",
        "goes together with write.small_bytes",
    )?;
    if spec.has_curves() {
        return Ok(());
    }
    refuse_if(
        spec.read_fixed_ns(read.reference_bytes) >= read.latency_ns,
        "read.latency_ns",
        "must exceed host, controller and link time of reference_bytes",
    )?;
    quantiles(&read.latency_quantiles_ns, read.latency_max_ns, "read.latency_quantiles_ns", "read.latency_max_ns")?;
    refuse_if(
        !read.latency_quantiles_ns.is_empty() && spec.read_quantiles().is_none(),
        "read.latency_ns",
        "is a mean that no distribution with these quantiles can have",
    )?;
    let table = &read.latency_by_bytes_ns;
    let key = "read.latency_by_bytes_ns";
    refuse_if(!table.windows(2).all(|pair| pair[0].0 < pair[1].0), key, "must ascend in bytes")?;
    for &(bytes, ns) in table {
        refuse_if(bytes == 0 || bytes > 1 << 30 || ns > DURATION_NS_MAX, key, "has a size or a latency out of range")?;
        refuse_if(
            spec.read_fixed_ns(bytes) >= ns,
            key,
            "has a latency that does not exceed host, controller and link time",
        )?;
    }
    let at_reference = table.iter().find(|&&(bytes, _)| bytes == read.reference_bytes);
    refuse_if(
        !table.is_empty() && at_reference.is_none_or(|&(_, ns)| ns != read.latency_ns),
        key,
        "must give read.latency_ns at read.reference_bytes",
    )
}

fn acknowledge(spec: &DeviceSpec) -> std::result::Result<(), Problem> {
    let write = &spec.write;
    quantiles(
        &write.acknowledge_quantiles_ns,
        write.acknowledge_max_ns,
        "write.acknowledge_quantiles_ns",
        "write.acknowledge_max_ns",
    )?;
    refuse_if(
        !write.acknowledge_quantiles_ns.is_empty() && spec.acknowledge_quantiles().is_none(),
        "write.acknowledge_ns",
        "is a mean that no distribution with these quantiles can have",
    )?;
    refuse_if(
        write.sequential_drain_bytes_per_s > 0 && write.sequential_drain_bytes_per_s < write.drain_bytes_per_s,
        "write.sequential_drain_bytes_per_s",
        "must not be below write.drain_bytes_per_s",
    )
}

fn background(spec: &DeviceSpec) -> std::result::Result<(), Problem> {
    let Some(work) = &spec.background else { return Ok(()) };
    refuse_if(spec.has_curves(), "background", "needs media units, which a device with curves does not have")?;
    for (key, value) in [("background.program_bytes", work.program_bytes), ("background.program_ns", work.program_ns)] {
        refuse_if(value == 0, key, "must be above zero")?;
    }
    refuse_if(work.program_bytes < spec.granule_bytes, "background.program_bytes", "must not be below granule_bytes")?;
    for (key, value) in [
        ("background.program_ns", work.program_ns),
        ("background.program_suspend_ns", work.program_suspend_ns),
        ("background.erase_ns", work.erase_ns),
        ("background.erase_suspend_ns", work.erase_suspend_ns),
        ("background.stall_ns", work.stall_ns),
    ] {
        refuse_if(value > DURATION_NS_MAX, key, "must be below 4.29 s")?;
    }
    refuse_if(
        (work.erase_bytes == 0) != (work.erase_ns == 0),
        "background.erase_ns",
        "goes together with erase_bytes",
    )?;
    refuse_if(
        (work.stall_every_bytes == 0) != (work.stall_ns == 0),
        "background.stall_ns",
        "goes together with stall_every_bytes",
    )?;
    refuse_if(
        work.erase_bytes != 0 && work.erase_bytes < work.program_bytes,
        "background.erase_bytes",
        "must not be below program_bytes",
    )?;
    refuse_if(
        work.stall_every_bytes != 0 && work.stall_every_bytes < spec.granule_bytes,
        "background.stall_every_bytes",
        "must not be below granule_bytes",
    )?;
    for sequential in [false, true] {
        let bytes_per_s =
            spec.drain_bytes_per_s(sequential) as f64 * spec.write_amplification_percent(sequential) as f64 / 100.0;
        let mut ns_per_byte = work.program_ns as f64 / work.program_bytes as f64;
        if work.erase_bytes > 0 {
            ns_per_byte += work.erase_ns as f64 / work.erase_bytes as f64;
        }
        if work.stall_every_bytes > 0 && !sequential && spec.state == DeviceState::Steady {
            // A stall comes per byte written, not per byte on the medium.
            let per_byte = work.stall_ns as f64 / work.stall_every_bytes as f64;
            ns_per_byte += per_byte * 100.0 / spec.write_amplification_percent(false) as f64;
        }
        refuse_if(
            bytes_per_s * ns_per_byte * 1e-9 > f64::from(spec.units),
            "background.program_ns",
            "is so long that the units cannot keep up with the drain rate times the write amplification",
        )?;
    }
    Ok(())
}

fn wear_and_power(spec: &DeviceSpec) -> std::result::Result<(), Problem> {
    let percent = spec.wear.write_amplification_percent;
    refuse_if(!(100..=10_000).contains(&percent), "wear.write_amplification_percent", "must be from 100 to 10,000")?;
    let power = &spec.power;
    refuse_if(power.read_milliwatts < power.idle_milliwatts, "power.read_milliwatts", "must not be below idle")?;
    refuse_if(power.write_milliwatts < power.idle_milliwatts, "power.write_milliwatts", "must not be below idle")?;
    refuse_if(power.write_milliwatts.max(power.read_milliwatts) > 1 << 32, "power.write_milliwatts", "is out of range")
}

fn curves(spec: &DeviceSpec) -> std::result::Result<(), Problem> {
    let key = "curves";
    refuse_if(
        !spec.curves.windows(2).all(|pair| pair[0].read_percent < pair[1].read_percent),
        key,
        "must ascend in read_percent",
    )?;
    for curve in &spec.curves {
        refuse_if(curve.read_percent > 100, key, "must have a read_percent from 0 to 100")?;
        let ascending = curve.points.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        let starts_idle = curve.points.first().is_some_and(|&(bandwidth, ns)| bandwidth == 0 && ns > 0);
        refuse_if(
            !ascending || !starts_idle || curve.points.len() < 2,
            key,
            "must have at least two points, ascending in bandwidth and latency, the first at 0 bytes per second",
        )?;
        let in_range = curve.points.iter().all(|&(b, ns)| b <= BANDWIDTH_BYTES_PER_S_MAX && ns <= DURATION_NS_MAX);
        refuse_if(!in_range, key, "have a point out of range")?;
    }
    if let Some(reads) = spec.curves.last() {
        let (bandwidth, idle_ns) = (reads.points[reads.points.len() - 1].0, reads.points[0].1);
        refuse_if(spec.read.latency_ns != idle_ns, "read.latency_ns", "must be the idle latency of the last curve")?;
        refuse_if(
            spec.read.bandwidth_bytes_per_s != bandwidth,
            "read.bandwidth_bytes_per_s",
            "must be the highest bandwidth of the last curve",
        )?;
    }
    Ok(())
}

/// Refuses a file in which a number has no source, or a source has no number.
fn sources(spec: &DeviceSpec, document: &toml::Table) -> Result<()> {
    let mut paths = Vec::new();
    leaves(document, "", &mut paths);
    let fail = |key: &str, why: &str| {
        Err(Error::new(ErrorKind::Config, format!("{key} {why}")).with_context("device", &spec.name))
    };
    for path in &paths {
        match spec.source.get(path) {
            None => {
                return fail(
                    path,
                    "has no source; add [source.\"...\"] of kind datasheet, measured, derived or assumed",
                );
            }
            Some(source) => check_source(path, source).map_err(|error| error.with_context("device", &spec.name))?,
        }
    }
    match spec.source.keys().find(|key| !paths.contains(key)) {
        Some(key) => fail(key, "has a source but no number"),
        None => Ok(()),
    }
}

fn check_source(path: &str, source: &SourceSpec) -> Result<()> {
    let known = ["datasheet", "measured", "derived", "assumed"].contains(&source.kind.as_str());
    let date = source.date.as_bytes();
    let dated = date.len() == 10
        && date.iter().enumerate().all(|(n, byte)| match n {
            4 | 7 => *byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    if !known || source.reference.is_empty() || !dated {
        let why = "needs a kind (datasheet, measured, derived or assumed), a ref and a date such as 2026-11-24";
        return Err(Error::new(ErrorKind::Config, format!("source.\"{path}\" {why}")));
    }
    Ok(())
}

/// Dotted paths of all numbers, apart from sources and published points, which carry their own.
fn leaves(table: &toml::Table, prefix: &str, paths: &mut Vec<String>) {
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            toml::Value::Table(_) if prefix.is_empty() && key == "source" => {}
            toml::Value::Array(_) if prefix.is_empty() && key == "published" => {}
            toml::Value::Table(inner) => leaves(inner, &path, paths),
            toml::Value::Integer(_) | toml::Value::Float(_) | toml::Value::Array(_) => paths.push(path),
            _ => {}
        }
    }
}
