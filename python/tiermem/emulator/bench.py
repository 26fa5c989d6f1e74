"""Loads on the model of one device, as fio would put them on a drive: closed and open loop."""

import dataclasses
import json
from typing import Any

from tiermem import _core
from tiermem.config import ClockMode, DeviceSpec, Operation
from tiermem.errors import ConfigError
from tiermem.stats import DeviceStats, LatencyStats, LatenessStats
from tiermem.units import parse_bytes

__all__ = ["BenchPoint", "Load", "bench_device"]

_READ_PERCENT = {"randread": 100, "seqread": 100, "randwrite": 0, "seqwrite": 0}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What is asked of a device. Exactly one of `queue_depth` and `rate_iops` is set."""

    operation: Operation = "randread"
    block_bytes: int = 4096
    """Bytes of a request."""
    queue_depth: int | None = None
    """Closed loop: so many requests are outstanding at any time; accesses of one page on memories."""
    rate_iops: float | None = None
    """Open loop: requests arrive by a Poisson process of this rate, however long earlier ones take."""
    read_percent: int | None = None
    """Share of reads of a `randrw`; default 50."""
    operations: int = 100_000
    """Operations measured, after a warm-up that fills queue and write buffer."""
    span: int | str = "1GiB"
    """Requests go to the first so many bytes of the device."""
    seed: int = 1

    def __post_init__(self) -> None:
        """Refuses contradictions.

        Raises:
            ConfigError: names the argument.
        """
        if (self.queue_depth is None) == (self.rate_iops is None):
            raise ConfigError("give a queue depth (closed loop) or a rate (open loop), and not both")
        if self.read_percent is not None and self.operation != "randrw":
            raise ConfigError(
                f"a share of reads (--read-percent) goes with randrw, not with {self.operation}"
            )
        if self.rate_iops is not None and not 1e-3 <= self.rate_iops <= 1e12:
            raise ConfigError(
                f"the rate lies between 0.001 and 10^12 operations a second, got {self.rate_iops}"
            )
        for name, value, most in (
            ("the share of reads", self.read_percent, 100),
            ("the seed", self.seed, 2**64 - 1),
        ):
            if value is not None and not 0 <= value <= most:
                raise ConfigError(f"{name} lies between 0 and {most:,}, got {value:,}")
        for name, value, most in (
            ("the queue depth", self.queue_depth, 2**20),
            ("the block size", self.block_bytes, 2**30),
            ("the number of operations", self.operations, 2**40),
        ):
            if value is not None and not 1 <= value <= most:
                raise ConfigError(f"{name} lies between 1 and {most:,}, got {value:,}")

    def _span_bytes(self, spec: DeviceSpec) -> int:
        nbytes = parse_bytes(self.span)
        if nbytes > spec.capacity_bytes:
            raise ConfigError(f"the span is {nbytes:,} bytes, and {spec.name} has {spec.capacity_bytes:,}")
        if nbytes < self.block_bytes:
            raise ConfigError(f"a span of {nbytes:,} bytes has no room for a request of {self.block_bytes:,}")
        return nbytes

    def document(self, spec: DeviceSpec) -> dict[str, Any]:
        """The form that the extension reads."""
        if self.operation == "randrw":
            read_percent = 50 if self.read_percent is None else self.read_percent
        else:
            read_percent = _READ_PERCENT[self.operation]
        closed = {"queue_depth": self.queue_depth}
        return {
            "pattern": "sequential" if self.operation.startswith("seq") else "random",
            "read_percent": read_percent,
            "block_bytes": self.block_bytes,
            "span_bytes": self._span_bytes(spec),
            "arrival": closed if self.rate_iops is None else {"rate_per_second": float(self.rate_iops)},
            "operations": self.operations,
            "seed": self.seed,
        }


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BenchPoint:
    """One point of a benchmark: throughput and latency of the measured window alone."""

    load: Load
    iops: float
    bytes_per_s: float
    accesses_per_operation: int
    """Accesses of one page that an operation on a byte-addressable device makes; latency and queue depth
    are those of accesses. 1 for block devices."""
    latency: LatencyStats
    """Of all operations, in real time as they were delivered. An open loop counts from the arrival."""
    saturated: bool
    """Whether requests arrived faster than the device serves them."""
    lateness: LatenessStats
    device: DeviceStats
    """Counters, latencies by direction, utilisation, wear and energy of the window."""
    cdf: list[tuple[int, float]]
    """Points (latency in ns, share at or below)."""
    late_by_cdf: list[tuple[int, float]]
    """Points (lateness in ns, share at or below)."""

    @property
    def outstanding(self) -> float:
        """IOPS x mean latency: by Little's law the mean number outstanding, so the queue depth."""
        return self.iops * self.accesses_per_operation * self.latency.mean_ns * 1e-9

    def row(self) -> dict[str, Any]:
        """The point with the units and names of the command line."""
        latency = self.latency
        percentiles = {
            f"{name}_us": getattr(latency, f"{name}_ns") / 1000
            for name in ("mean", "p50", "p90", "p99", "p999", "p9999", "p99999", "max")
        }
        return {
            "queue_depth": self.load.queue_depth,
            "rate_iops": self.load.rate_iops,
            "iops": self.iops,
            "bytes_per_s": self.bytes_per_s,
            **percentiles,
            "late_fraction": self.lateness.late_share,
            "utilisation": self.device.utilisation,
            "busiest_stage": self.device.busiest_stage,
            "iops_times_mean_latency": self.outstanding,
            "saturated": self.saturated,
            "operations": self.load.operations,
            "accesses_per_operation": self.accesses_per_operation,
            "reads": self.device.reads,
            "writes": self.device.writes,
            "write_amplification": self.device.write_amplification,
            "lifetime_years": self.device.lifetime_years,
            "nanojoules_per_operation": self.device.nanojoules_per_operation,
            "energy_joules": self.device.energy_joules,
        }


def bench_device(spec: DeviceSpec, load: Load, *, clock: ClockMode = "virtual") -> BenchPoint:
    """Runs one load on a device.

    Args:
        spec: the device.
        load: what is asked of it.
        clock: `virtual` computes time. `wall` runs in real time on one thread that spins; bytes move
            in memory, and how late requests were delivered is part of the result.

    Raises:
        ConfigError: if the load is not one that this device or this clock can run.

    Example:
        >>> point = bench_device(DeviceSpec.load("nand-p3700"), Load(queue_depth=1, operations=1000))
        >>> point.latency.p50_us
        76.0
    """
    found = json.loads(
        _core.run_workload(spec.to_json(), json.dumps(load.document(spec)), wall=clock == "wall")
    )
    return BenchPoint(
        load=load,
        iops=found["iops"],
        bytes_per_s=found["iops"] * load.block_bytes,
        accesses_per_operation=found["accesses_per_operation"],
        latency=LatencyStats(**found["latency"]),
        saturated=found["saturated"],
        lateness=LatenessStats.from_dict(found["lateness"]),
        device=DeviceStats.from_dict(found["device"]),
        cdf=[(ns, share) for ns, share in found["cdf"]],
        late_by_cdf=[(ns, share) for ns, share in found["late_by_cdf"]],
    )
