"""What a device and a store did, as typed records. docs/metrics.md defines every figure."""

import dataclasses
import json
from typing import Any, Self

__all__ = [
    "DebtStats",
    "DeviceStats",
    "LatencyStats",
    "LatenessStats",
    "MemoryStats",
    "StoreStats",
    "TableStats",
    "TableTierStats",
    "TierStats",
]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LatencyStats:
    """Percentiles of a latency histogram, in nanoseconds; a percentile is at most 0.1 % off."""

    count: int
    mean_ns: int
    p50_ns: int
    p90_ns: int
    p95_ns: int
    p99_ns: int
    p999_ns: int
    p9999_ns: int
    p99999_ns: int
    max_ns: int

    @property
    def p50_us(self) -> float:
        """Median in microseconds."""
        return self.p50_ns / 1000

    @property
    def p99_us(self) -> float:
        """99th percentile in microseconds."""
        return self.p99_ns / 1000


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LatenessStats:
    """How punctual a wall-clock run was; all zero in virtual time."""

    requests: int
    late_requests: int
    late_share: float
    late_by: LatencyStats
    valid: bool
    """Whether at most 1 % of the requests were late."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From the extension's document."""
        return cls(**{**values, "late_by": LatencyStats(**values["late_by"])})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DebtStats:
    """Time by which a host was slower than a byte-addressable device on a wall clock; zero otherwise."""

    outstanding_ns: int
    """Not made up for by later waits."""
    incurred_ns: int
    """All of it."""
    modelled_ns: int
    """Time of all batches by the model."""
    share: float
    """Outstanding debt as a share of the modelled time."""
    valid: bool
    """Whether that is at most 1 %."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DeviceStats:
    """One device. Bytes are those moved over the link, and those touched on the medium.

    An access of one page of a byte-addressable device counts as a read or a write.
    """

    name: str
    engine: str
    direct: bool
    fallback_reason: str
    reads: int
    writes: int
    read_bytes: int
    write_bytes: int
    media_read_bytes: int
    media_write_bytes: int
    active_ns: int
    elapsed_ns: int
    read_latency: LatencyStats
    write_latency: LatencyStats
    utilisation: float
    """Share of the elapsed time for which the busiest stage was busy."""
    busiest_stage: str
    write_amplification: float
    """Bytes on the medium per byte written; 0 without writes."""
    endurance_parts_per_billion: float
    """What the run used up of the device's endurance."""
    lifetime_years: float | None
    """How long the device would last at this rate; `None` without writes or without a limit."""
    energy_joules: float
    nanojoules_per_operation: float
    """Energy above idle, per operation."""
    cost_dollars: float
    """Price of the bytes that the run occupies."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From the extension's document."""
        latencies = {name: LatencyStats(**values[name]) for name in ("read_latency", "write_latency")}
        return cls(**{**values, **latencies})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TierStats:
    """One tier of a store."""

    name: str
    held: int
    """Rows (byte-addressable) or blocks (block device) that it caches between batches now."""
    probed_rows: int
    """Distinct rows that exist and were looked for here; first touches do not count."""
    hit_rows: int
    """Of these, found here."""
    asked_bytes: int
    """Bytes of the rows that were asked of this tier."""
    device: DeviceStats

    @property
    def hit_rate(self) -> float:
        """Conditional hit rate: of the rows looked for here, the share found here."""
        return self.hit_rows / self.probed_rows if self.probed_rows else 0.0

    @property
    def device_reads(self) -> int:
        """Read requests that the device completed."""
        return self.device.reads

    @property
    def device_writes(self) -> int:
        """Write requests that the device completed."""
        return self.device.writes


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TableTierStats:
    """One table on one tier; of the fastest tier only rows and the bytes that were asked for are counted."""

    probed_rows: int
    """Distinct rows that exist and were looked for here."""
    hit_rows: int
    """Of these, found here."""
    asked_bytes: int
    """Bytes of these rows."""
    reads: int
    """Rows or blocks read from here."""
    read_bytes: int
    writes: int
    """Rows or blocks written here."""
    written_bytes: int
    media_bytes: int
    """Bytes that the medium moved for both: whole granules."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TableStats:
    """One table of a store."""

    name: str
    asked_rows: int
    """Ids looked up."""
    unique_rows: int
    """Distinct rows per batch, summed; of resident rows, every id, since nothing is deduplicated there."""
    in_flight_hits: int
    """Of these, rows that another batch had in flight; they count as hits of the fastest tier."""
    initialised_rows: int
    """Rows that came into being."""
    rows_written_back: int
    """Changed rows that left memory."""
    read_modify_writes: int
    """Blocks read to change a part of them."""
    tiers: tuple[TableTierStats, ...]
    """The fastest first."""

    @property
    def deduplicated_rows(self) -> int:
        """Ids that another id of the same batch made unnecessary."""
        return self.asked_rows - self.unique_rows

    def conditional_hit_rate(self, tier: int) -> float:
        """Of the rows looked for in a tier, the share found there."""
        counts = self.tiers[tier]
        return counts.hit_rows / counts.probed_rows if counts.probed_rows else 0.0

    def unconditional_hit_rate(self, tier: int) -> float:
        """Of all distinct rows, the share found in a tier."""
        return self.tiers[tier].hit_rows / self.unique_rows if self.unique_rows else 0.0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From the extension's document."""
        return cls(**{**values, "tiers": tuple(TableTierStats(**tier) for tier in values["tiers"])})


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MemoryStats:
    """Memory of a store by purpose."""

    resident_bytes: int
    cached_bytes: int
    staging_bytes: int
    metadata_bytes: int
    paged_index_bytes: int
    """Locations of rows in logs that the kernel may page out; not part of the budget."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StoreStats:
    """A store."""

    tiers: tuple[TierStats, ...]
    asked_rows: int
    unique_rows: int
    in_flight_hits: int
    initialised_rows: int
    rows_written_back: int
    read_modify_writes: int
    rows_compacted: int
    """Rows that compaction of logs moved."""
    compaction_stalls: int
    """Times that a plan waited for compaction."""
    non_finite_values: int
    """Gradient values that were NaN or infinite."""
    dirty_rows: int
    """Rows in memory that are newer than below, now."""
    memory: MemoryStats
    lateness: LatenessStats
    open_tickets: int

    @classmethod
    def from_json(cls, text: str) -> Self:
        """From the extension's document."""
        values = json.loads(text)
        tiers = tuple(
            TierStats(**{**tier, "device": DeviceStats.from_dict(tier["device"])}) for tier in values["tiers"]
        )
        memory = MemoryStats(**values["memory"])
        lateness = LatenessStats.from_dict(values["lateness"])
        return cls(**{**values, "tiers": tiers, "memory": memory, "lateness": lateness})

    def tier(self, name: str) -> TierStats:
        """The tier of a name.

        Raises:
            KeyError: if there is none.
        """
        for tier in self.tiers:
            if tier.name == name:
                return tier
        raise KeyError(name)
