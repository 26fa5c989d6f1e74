//! Statistics as JSON documents; Python turns them into typed records.

use serde_json::{Value, json};
use tiermem_core::device::{Debt, DeviceStats, Lateness, Operation, PointResult, TransferRecord};
use tiermem_core::stats::{LatencyHistogram, LatencySummary};
use tiermem_core::store::{StoreStats, TableStats, TierStats, Timeline};
use tiermem_core::tier::PartCounts;

pub(crate) fn latency(summary: LatencySummary) -> Value {
    json!({
        "count": summary.count,
        "mean_ns": summary.mean_ns,
        "p50_ns": summary.p50_ns,
        "p90_ns": summary.p90_ns,
        "p95_ns": summary.p95_ns,
        "p99_ns": summary.p99_ns,
        "p999_ns": summary.p999_ns,
        "p9999_ns": summary.p9999_ns,
        "p99999_ns": summary.p99999_ns,
        "max_ns": summary.max_ns,
    })
}

/// Points `[latency_ns, share]`.
pub(crate) fn cdf(histogram: &LatencyHistogram) -> Vec<(u64, f64)> {
    histogram.cdf()
}

pub(crate) fn lateness(lateness: &Lateness) -> Value {
    json!({
        "requests": lateness.requests,
        "late_requests": lateness.late_requests,
        "late_share": lateness.late_share(),
        "late_by": latency(lateness.late_by.summary()),
        "valid": lateness.late_share() <= Lateness::SHARE_MAX,
    })
}

pub(crate) fn debt(debt: &Debt) -> Value {
    json!({
        "outstanding_ns": debt.outstanding_ns,
        "incurred_ns": debt.incurred_ns,
        "modelled_ns": debt.modelled_ns,
        "share": debt.share(),
        "valid": debt.share() <= Lateness::SHARE_MAX,
    })
}

/// One point of a benchmark.
pub(crate) fn point(point: &PointResult) -> Value {
    json!({
        "operations": point.operations,
        "accesses_per_operation": point.accesses_per_operation,
        "elapsed_ps": point.elapsed_ps,
        "iops": point.iops(),
        "saturated": point.saturated,
        "latency": latency(point.latency.summary()),
        "cdf": cdf(&point.latency),
        "lateness": lateness(&point.lateness),
        "late_by_cdf": cdf(&point.lateness.late_by),
        "device": device(&point.stats),
    })
}

pub(crate) fn device(stats: &DeviceStats) -> Value {
    let counters = &stats.counters;
    json!({
        "name": stats.name,
        "engine": stats.backend.engine,
        "direct": stats.backend.direct,
        "fallback_reason": stats.backend.fallback_reason,
        "reads": counters.reads,
        "writes": counters.writes,
        "read_bytes": counters.read_bytes,
        "write_bytes": counters.write_bytes,
        "media_read_bytes": counters.media_read_bytes,
        "media_write_bytes": counters.media_write_bytes,
        "active_ns": counters.active_ns,
        "elapsed_ns": stats.elapsed_ns,
        "read_latency": latency(stats.read_latency.summary()),
        "write_latency": latency(stats.write_latency.summary()),
        "utilisation": stats.utilisation,
        "busiest_stage": stats.busiest_stage,
        "write_amplification": stats.wear.write_amplification,
        "endurance_parts_per_billion": stats.wear.endurance_share * 1e9,
        "lifetime_years": if stats.wear.lifetime_years.is_finite() { json!(stats.wear.lifetime_years) } else { Value::Null },
        "energy_joules": stats.energy.joules,
        "nanojoules_per_operation": stats.energy.nanojoules_per_operation,
        "cost_dollars": stats.cost_dollars,
    })
}

fn tier(stats: &TierStats) -> Value {
    json!({
        "name": stats.name,
        "held": stats.held,
        "probed_rows": stats.probed_rows,
        "hit_rows": stats.hit_rows,
        "asked_bytes": stats.asked_bytes,
        "device": device(&stats.device),
    })
}

pub(crate) fn store(stats: &StoreStats) -> Value {
    let memory = &stats.memory;
    json!({
        "tiers": stats.tiers.iter().map(tier).collect::<Vec<_>>(),
        "asked_rows": stats.asked_rows,
        "unique_rows": stats.unique_rows,
        "in_flight_hits": stats.in_flight_hits,
        "initialised_rows": stats.initialised_rows,
        "rows_written_back": stats.rows_written_back,
        "read_modify_writes": stats.read_modify_writes,
        "rows_compacted": stats.rows_compacted,
        "compaction_stalls": stats.compaction_stalls,
        "non_finite_values": stats.non_finite_values,
        "dirty_rows": stats.dirty_rows,
        "memory": {
            "resident_bytes": memory.resident_bytes,
            "cached_bytes": memory.cached_bytes,
            "staging_bytes": memory.staging_bytes,
            "metadata_bytes": memory.metadata_bytes,
            "paged_index_bytes": memory.paged_index_bytes,
        },
        "lateness": lateness(&stats.lateness),
        "open_tickets": stats.open_tickets,
    })
}

fn counts(counts: &PartCounts) -> Value {
    json!({
        "probed_rows": counts.probed_rows,
        "hit_rows": counts.hit_rows,
        "asked_bytes": counts.asked_bytes,
        "reads": counts.reads,
        "read_bytes": counts.read_bytes,
        "writes": counts.writes,
        "written_bytes": counts.written_bytes,
        "media_bytes": counts.media_bytes,
    })
}

/// Counters by table.
pub(crate) fn tables(tables: &[TableStats]) -> Value {
    let table = |stats: &TableStats| {
        json!({
            "name": stats.name,
            "asked_rows": stats.asked_rows,
            "unique_rows": stats.unique_rows,
            "in_flight_hits": stats.in_flight_hits,
            "initialised_rows": stats.initialised_rows,
            "rows_written_back": stats.rows_written_back,
            "read_modify_writes": stats.read_modify_writes,
            "tiers": stats.tiers.iter().map(counts).collect::<Vec<_>>(),
        })
    };
    tables.iter().map(table).collect()
}

/// What happened when. A transfer that was still under way has no end.
pub(crate) fn timeline(timeline: &Timeline) -> Value {
    let transfer = |record: &TransferRecord| {
        json!({
            "tier": record.device + 1,
            "operation": if record.operation == Operation::Read { "read" } else { "write" },
            "begin_ps": record.begin_ps,
            "end_ps": if record.end_ps == 0 { Value::Null } else { json!(record.end_ps) },
            "requests": record.requests,
            "nbytes": record.nbytes,
        })
    };
    json!({
        "transfers": timeline.transfers.iter().map(transfer).collect::<Vec<_>>(),
        "dirty_rows": timeline.dirty_rows,
    })
}
