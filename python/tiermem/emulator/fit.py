"""A device profile from what a data sheet, a review or a benchmark says.

Latency at queue depth 1, the highest IOPS and the bandwidth are read off; the number of media units
is found by running the model, since a loaded latency depends on how often requests meet on a unit.
(The closed form R(N) = S (1 + (N - 1) / K) assumes exponential service and is wrong for a medium of
constant service.)
"""

import dataclasses
import datetime
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from tiermem import _core
from tiermem.config import DeviceSpec, Operation
from tiermem.emulator.bench import Load, bench_device
from tiermem.errors import ConfigError

__all__ = ["Fit", "FitPoint", "FitTargets", "fit_device", "is_possible"]

ERROR_MAX = 0.10
"""A number that the model misses by more than this is refused."""
_UNITS_MAX = 4096
_OPERATIONS = 40_000
_OPERATIONS_FINAL = 200_000
_SEQUENTIAL_BYTES = 131_072
_SEQUENTIAL_DEPTH = 64
_SUBMIT_NS, _COMPLETE_NS = 500, 200
# Where nothing was given that says how fast they are, these stages are out of the way.
_UNITS_ASSUMED = 64
_COMMAND_NS_ASSUMED = 100
_BANDWIDTH_ASSUMED = 16e9


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FitTargets:
    """Published or measured numbers of one device."""

    name: str
    read_latency_us: float
    """Mean at queue depth 1."""
    max_read_iops: float | None
    """`None` if no load reached it; the controller is then assumed not to bind."""
    read_bandwidth: float | None
    """Bytes per second; `None` if no load reached it, and the link is then assumed not to bind."""
    loaded: tuple[tuple[int, float], ...] = ()
    """(queue depth, mean latency in us) of random reads."""
    write_latency_us: float | None = None
    max_write_iops: float | None = None
    """Sustained, of random writes."""
    write_bandwidth: float | None = None
    """Bytes per second, sequential."""
    block_bytes: int = 4096
    """Bytes of the requests that latencies and IOPS speak of."""
    max_iops_queue_depth: int = 256
    """Requests outstanding where the highest IOPS were reached."""
    latency_quantiles_ns: tuple[tuple[float, int], ...] = ()
    """Quantiles of the read latency at queue depth 1."""
    latency_max_ns: int = 0
    source_kind: str = "datasheet"
    source: str = "given to tiermem device fit"

    def __post_init__(self) -> None:
        """Refuses numbers that are none.

        Raises:
            ConfigError: names the number.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ConfigError(
                f"--name takes letters, digits, dots, dashes and underscores, got {self.name!r}"
            )
        for name in (
            "read_latency_us", "max_read_iops", "read_bandwidth", "block_bytes", "max_iops_queue_depth",
            "write_latency_us", "max_write_iops", "write_bandwidth",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{_flag(name)} must be a number above zero, got {value}")
        for depth, latency_us in self.loaded:
            if depth < 1 or not (latency_us > 0 and math.isfinite(latency_us)):
                raise ConfigError(
                    f"--loaded {depth}:{latency_us:g} needs a queue depth and a latency above zero"
                )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FitPoint:
    """One given number beside what the model makes of the profile."""

    given_as: str
    """The option that gave it."""
    given: float
    model: float

    @property
    def error(self) -> float:
        """Model over given, less one."""
        return self.model / self.given - 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """A profile, and how well it meets what was given."""

    document: dict[str, Any]
    """The device file."""
    points: tuple[FitPoint, ...]
    notes: tuple[str, ...]
    """What was left out, and why."""

    @property
    def spec(self) -> DeviceSpec:
        """The device."""
        return DeviceSpec.from_mapping(self.document)


def _measure(
    spec: DeviceSpec, operation: Operation, block_bytes: int, depth: int, operations: int
) -> tuple[float, float]:
    """IOPS and mean latency in us."""
    load = Load(
        operation=operation,
        block_bytes=block_bytes,
        queue_depth=depth,
        operations=operations,
        span=spec.capacity_bytes,
    )
    point = bench_device(spec, load)
    return point.iops, point.latency.mean_ns / 1000


def _stream(spec: DeviceSpec, operation: Operation, block_bytes: int, operations: int) -> float:
    """Bytes per second of large sequential requests."""
    nbytes = max(_SEQUENTIAL_BYTES, block_bytes)
    iops, _ = _measure(spec, operation, nbytes, _SEQUENTIAL_DEPTH, operations)
    return iops * nbytes


def _write_table(targets: FitTargets) -> dict[str, tuple[Any, str, str]]:
    """Each number of `[write]` with its kind and reference."""
    assumed = ("assumed", "not given")
    given = (targets.source_kind, targets.source)
    granule = _granule(targets)
    bandwidth = targets.write_bandwidth or _bandwidth(targets)
    latency_ns = (targets.write_latency_us or targets.read_latency_us) * 1000
    around_ns = _SUBMIT_NS + _COMPLETE_NS + targets.block_bytes * 1e9 / bandwidth
    command_ns = min(_command_ns(targets), max(0, int(latency_ns - around_ns)))
    if targets.max_write_iops is not None:
        command_ns = min(command_ns, round(1e9 / targets.max_write_iops))
    fixed_ns = around_ns + command_ns
    drain = bandwidth
    if targets.max_write_iops is not None:
        drain = min(bandwidth, targets.max_write_iops * (-(-targets.block_bytes // granule) * granule))
    return {
        "acknowledge_ns": (
            max(0, round(latency_ns - fixed_ns)),
            *(given if targets.write_latency_us else assumed),
        ),
        "command_ns": (command_ns, "assumed", "as for reads, or as fast as what was given needs"),
        "bandwidth_bytes_per_s": (round(bandwidth), *(given if targets.write_bandwidth else assumed)),
        "buffer_bytes": (16 * 2**20, *assumed),
        "drain_bytes_per_s": (round(drain), *(given if targets.max_write_iops else assumed)),
        "sequential_drain_bytes_per_s": (round(bandwidth), *(given if targets.write_bandwidth else assumed)),
    }


def _granule(targets: FitTargets) -> int:
    return min(4096, 1 << (targets.block_bytes.bit_length() - 1))


def _document(targets: FitTargets, units: int, command_ns: int) -> dict[str, Any]:
    """The device file for one number of units."""
    assumed = ("assumed", "not given")
    given = (targets.source_kind, targets.source)
    ran = ("derived", f"the timing model run against the numbers {targets.source}")
    read: dict[str, tuple[Any, str, str]] = {
        "latency_ns": (round(targets.read_latency_us * 1000), *given),
        "reference_bytes": (targets.block_bytes, *given),
        "command_ns": (command_ns, *ran),
        "bandwidth_bytes_per_s": (
            round(_bandwidth(targets)),
            *(given if targets.read_bandwidth else ("assumed", "not reached by any load; out of the way")),
        ),
    }
    if targets.latency_quantiles_ns:
        read["latency_quantiles_ns"] = ([list(point) for point in targets.latency_quantiles_ns], *given)
        read["latency_max_ns"] = (targets.latency_max_ns, *given)
    top: dict[str, tuple[Any, str, str]] = {
        "capacity_bytes": (2**40, *assumed),
        "units": (units, *ran),
        "page_bytes": (16_384, *assumed),
        "granule_bytes": (
            _granule(targets),
            "assumed",
            "the least that is read is what was measured, at most 4 KiB",
        ),
        "queue_depth": (128, "assumed", "a caller's choice"),
    }
    tables: dict[str, dict[str, tuple[Any, str, str]]] = {
        "host": {
            "submit_ns": (_SUBMIT_NS, "assumed", "submission path of a polling host"),
            "complete_ns": (_COMPLETE_NS, "assumed", "completion path of a polling host"),
        },
        "read": read,
        "write": _write_table(targets),
        "wear": {
            "endurance_bytes": (0, "assumed", "not given; no limit"),
            "write_amplification_percent": (100, *assumed),
        },
        "power": {f"{mode}_milliwatts": (0, *assumed) for mode in ("idle", "read", "write")},
        "cost": {"millidollars_per_gigabyte": (0, *assumed)},
    }
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    document: dict[str, Any] = {
        "name": targets.name,
        "description": f"{targets.name}, fitted by tiermem device fit",
        "kind": "block",
        **{key: number[0] for key, number in top.items()},
    }
    source = {key: number[1:] for key, number in top.items()}
    for table, numbers in tables.items():
        document[table] = {key: number[0] for key, number in numbers.items()}
        source.update({f"{table}.{key}": number[1:] for key, number in numbers.items()})
    document["source"] = {
        path: {"kind": kind, "ref": reference, "date": date} for path, (kind, reference) in source.items()
    }
    return document


def _bandwidth(targets: FitTargets) -> float:
    return targets.read_bandwidth or _BANDWIDTH_ASSUMED


def _command_ns(targets: FitTargets) -> int:
    """Time of the controller per command: the highest IOPS, as far as the latency leaves room for it."""
    link_ns = targets.block_bytes * 1e9 / _bandwidth(targets)
    slack_ns = targets.read_latency_us * 1000 - _SUBMIT_NS - _COMPLETE_NS - link_ns
    if slack_ns < 2:
        raise ConfigError(
            f"--read-latency-us {targets.read_latency_us:g} leaves no time for the medium: host and link take"
            f" {_SUBMIT_NS + _COMPLETE_NS + link_ns:,.0f} ns of it at a bandwidth of {_bandwidth(targets):g}"
        )
    iops = targets.max_read_iops
    return min(_COMMAND_NS_ASSUMED if iops is None else round(1e9 / iops), int(slack_ns) - 1)


def is_possible(targets: FitTargets) -> bool:
    """Whether the core takes a profile with these numbers, whatever the number of units."""
    try:
        _core.check_device(DeviceSpec.from_mapping(_document(targets, 1, _command_ns(targets))).to_json())
    except ConfigError:
        return False
    return True


def _point(targets: FitTargets, name: str, model: float) -> list[FitPoint]:
    """The comparison of one number, if it was given."""
    given = getattr(targets, name)
    return [] if given is None else [FitPoint(given_as=f"{_flag(name)} {given:g}", given=given, model=model)]


def _deviations(targets: FitTargets, units: int, operations: int) -> tuple[dict[str, Any], list[FitPoint]]:
    """The profile for a number of units, and what it makes of latencies and IOPS."""
    document = _document(targets, units, _command_ns(targets))
    spec = DeviceSpec.from_mapping(document)
    depth = targets.max_iops_queue_depth
    block = targets.block_bytes
    iops, _ = _measure(spec, "randread", block, depth, operations)
    points = _point(targets, "max_read_iops", iops)
    if targets.read_bandwidth is not None:
        points += _point(targets, "read_bandwidth", _stream(spec, "seqread", block, operations // 4))
    for loaded_depth, latency_us in targets.loaded:
        _, model_us = _measure(spec, "randread", block, loaded_depth, operations)
        points.append(
            FitPoint(given_as=f"--loaded {loaded_depth}:{latency_us:g}", given=latency_us, model=model_us)
        )
    return document, points


def _best_units(cost: Callable[[int], float]) -> int:
    """The number of units of least cost: a scan by factors, then steps that halve."""
    tried: dict[int, float] = {}

    def at(units: int) -> float:
        if units not in tried:
            tried[units] = cost(units)
        return tried[units]

    scan = sorted({round(2 ** (step / 2)) for step in range(25)})
    best = min(scan, key=at)
    step = max(1, best // 4)
    while True:
        near = [units for units in (best - step, best + step) if 1 <= units <= _UNITS_MAX]
        candidate = min([best, *near], key=at)
        if candidate != best:
            best = candidate
        elif step == 1:
            return best
        else:
            step //= 2


def _cost(points: Sequence[FitPoint]) -> float:
    """Worst relative error, and a little of the others, so that one bad point does not hide the rest."""
    errors = [abs(point.error) for point in points]
    return max(errors) + 0.1 * sum(errors) / len(errors)


def fit_device(targets: FitTargets, *, notes: Sequence[str] = ()) -> Fit:
    """Makes a profile that reproduces the given numbers.

    Args:
        targets: what is known of the device.
        notes: passed on into the result.

    Raises:
        ConfigError: names the number that the model cannot reproduce within 10 %, and the nearest
            that it can.

    Example:
        >>> fit = fit_device(FitTargets(name="p3700", read_latency_us=77.9, max_read_iops=460_000,
        ...     read_bandwidth=2.8e9, loaded=((16, 93.9),)))
        >>> 38 <= fit.spec.units <= 46
        True
    """
    _command_ns(targets)
    remarks = list(notes)
    if targets.max_read_iops is None and not targets.loaded:
        units = _UNITS_ASSUMED
        remarks.append(f"nothing says how reads meet on the medium, so {units} media units are assumed")
    else:
        units = _best_units(lambda units: _cost(_deviations(targets, units, _OPERATIONS)[1]))
    document, points = _deviations(targets, units, _OPERATIONS_FINAL)
    spec = DeviceSpec.from_mapping(document)
    block = targets.block_bytes

    single: tuple[tuple[str, Operation], ...] = (
        ("read_latency_us", "randread"),
        ("write_latency_us", "randwrite"),
    )
    for name, operation in single:
        _, mean_us = _measure(spec, operation, block, 1, _OPERATIONS_FINAL)
        points += _point(targets, name, mean_us)
    if targets.write_bandwidth is not None:
        points += _point(targets, "write_bandwidth", _stream(spec, "seqwrite", block, _OPERATIONS_FINAL))
    iops, _ = _measure(spec, "randwrite", block, targets.max_iops_queue_depth, _OPERATIONS_FINAL)
    points += _point(targets, "max_write_iops", iops)
    worst = max(points, key=lambda point: abs(point.error))
    if abs(worst.error) > ERROR_MAX:
        raise ConfigError(
            f"the model cannot reproduce {worst.given_as}: with {units} units, the best for all numbers,"
            f" it gives {worst.model:,.1f} ({worst.error:+.1%});"
            " check it, leave it out, or see what it was measured with"
        )
    return Fit(document=document, points=tuple(points), notes=tuple(remarks))
