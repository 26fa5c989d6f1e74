"""What the model makes of a device: ceilings, the stage that binds, saturation, published points."""

import dataclasses

from tiermem.config import DeviceSpec, PublishedPoint
from tiermem.emulator.bench import BenchPoint, Load, bench_device

__all__ = ["Comparison", "Prediction", "compare_published", "predict"]

_SATURATED_SHARE = 0.95
_DEPTH_MAX = 4096
# Tails that a published point asks for need more operations than a mean.
_OPERATIONS_OF = {"p999_ns": 1_000_000, "p9999_ns": 2_000_000, "p99999_ns": 4_000_000}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Random reads or writes of one size."""

    operation: str
    block_bytes: int
    latency_ns: int
    """Mean at queue depth 1, by the model."""
    ceilings_iops: dict[str, float]
    """Most operations per second that each stage lets through, from its numbers alone."""
    binding_stage: str
    """The stage with the lowest ceiling."""
    iops_max: float
    """Most operations per second that the model reached at any queue depth tried."""
    saturation_queue_depth: int
    """The least power of two at which it reached 95 % of that."""


def _ceilings(spec: DeviceSpec, operation: str, block_bytes: int) -> dict[str, float]:
    reads = operation == "randread"
    direction = spec.read if reads else spec.write
    if spec.curves:
        top = max(
            (curve for curve in spec.curves),
            key=lambda curve: curve.read_percent if reads else -curve.read_percent,
        )
        pages = -(-block_bytes // spec.page_bytes)
        return {"curve": top.points[-1][0] / (pages * spec.page_bytes)}
    ceilings = {"link": direction.bandwidth_bytes_per_s / block_bytes}
    small = block_bytes <= direction.small_bytes
    command_ns = direction.small_command_ns if small else direction.command_ns
    if command_ns:
        ceilings["controller"] = 1e9 / command_ns
    granules = -(-block_bytes // spec.granule_bytes)
    if not reads:
        drain = spec.write.drain_bytes_per_s
        if spec.state == "fresh":
            drain = spec.write.sequential_drain_bytes_per_s or drain
        return {**ceilings, "write buffer drain": drain / (granules * spec.granule_bytes)}
    fixed_ns = float(spec.host.submit_ns + spec.host.complete_ns + command_ns)
    fixed_ns += spec.read.reference_bytes * 1e9 / spec.read.bandwidth_bytes_per_s
    pages = -(-block_bytes // spec.page_bytes)
    ceilings["media units"] = spec.units * 1e9 / ((spec.read.latency_ns - fixed_ns) * pages)
    return ceilings


def predict(spec: DeviceSpec, *, operation: str = "randread", block_bytes: int | None = None) -> Prediction:
    """Runs the model over queue depths.

    Args:
        spec: the device.
        operation: `randread` or `randwrite`.
        block_bytes: bytes of a request; default: what the device's latency was stated for.
    """
    nbytes = block_bytes or spec.read.reference_bytes
    ceilings = _ceilings(spec, operation, nbytes)
    points: dict[int, BenchPoint] = {}
    depth = 1
    while depth <= _DEPTH_MAX:
        load = Load(operation=operation, block_bytes=nbytes, queue_depth=depth, operations=20_000)  # type: ignore[arg-type]
        points[depth] = bench_device(spec, load)
        depth *= 2
    best = max(point.iops for point in points.values())
    return Prediction(
        operation=operation,
        block_bytes=nbytes,
        latency_ns=points[1].latency.mean_ns,
        ceilings_iops=ceilings,
        binding_stage=min(ceilings, key=lambda stage: ceilings[stage]),
        iops_max=best,
        saturation_queue_depth=next(
            depth for depth, point in points.items() if point.iops >= _SATURATED_SHARE * best
        ),
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A published figure beside the model's."""

    published: PublishedPoint
    model: float

    @property
    def error(self) -> float:
        """Model over published, less one."""
        return self.model / self.published.value - 1

    @property
    def is_target(self) -> bool:
        """Whether it is a throughput or a mean latency that no other published figure contradicts."""
        return self.published.role != "context" and self.published.quantity in (
            "iops",
            "bytes_per_s",
            "mean_ns",
        )


def compare_published(spec: DeviceSpec, *, operations: int = 200_000, seed: int = 1) -> list[Comparison]:
    """Runs the load of every published point of a device in virtual time; tails get more operations."""
    found = []
    for point in spec.published:
        rate = point.offered_bytes_per_s / point.block_bytes if point.offered_bytes_per_s else None
        scale = operations / 200_000
        load = Load(
            operation=point.operation,
            block_bytes=point.block_bytes,
            queue_depth=point.queue_depth if rate is None else None,
            rate_iops=rate,
            read_percent=point.read_percent if point.operation == "randrw" else None,
            operations=int(_OPERATIONS_OF.get(point.quantity, 200_000) * scale),
            span=spec.capacity_bytes,
            seed=seed,
        )
        result = bench_device(spec, load)
        values = {"iops": result.iops, "bytes_per_s": result.bytes_per_s}
        model = values.get(point.quantity)
        found.append(
            Comparison(
                published=point,
                model=float(getattr(result.latency, point.quantity)) if model is None else model,
            )
        )
    return found
