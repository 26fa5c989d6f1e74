"""The requests of a planned step on emulated devices of full size: phantom bytes, virtual time."""

import dataclasses
import math

import numpy as np

from tiermem.config import BackendConfig, DeviceSpec
from tiermem.config.node import NodeConfig
from tiermem.emulator import open_device
from tiermem.perf.service import Demand, DeviceService
from tiermem.planner.evaluate import TierLoad
from tiermem.study.nodes import Point

__all__ = ["Emulated", "emulated"]

_REQUESTS_MAX = 20_000
_STEPS = 4
_BLOCK_BYTES = 512


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Emulated:
    """One device of one tier in one step, or in a part of it."""

    tier: str
    device: str
    capacity_bytes: int
    reads: int
    read_bytes: int
    """Of one request."""
    writes: int
    write_bytes: int
    predicted_ns: float
    """By the planner's closed form."""
    emulated_ns: float
    """Per step, on the emulated device."""

    @property
    def error(self) -> float:
        """Predicted over emulated, less one."""
        return self.predicted_ns / self.emulated_ns - 1


def emulated(point: Point, node: NodeConfig, seed: int) -> list[Emulated]:
    """Runs what the plan asks of each tier below the first two on one of its devices.

    Reads go to random places; writes too, or one after the other where rows lie in a log. Of steps with more
    than 20,000 requests for a device a part is run, and predicted.
    """
    found = []
    for load in point.tiers[2:]:
        if load.reads + load.writes > 0:
            spec = node.tiers[load.name].spec()
            found.append(
                _run(spec, load, node.tiers[load.name].count, is_log=point.layout == "log", seed=seed)
            )
    return found


def _run(spec: DeviceSpec, load: TierLoad, count: int, *, is_log: bool, seed: int) -> Emulated:
    part = min(1.0, _REQUESTS_MAX * count / (load.reads + load.writes))
    reads, read_bytes = _requests(spec, load.reads * part / count, load.read_bytes / max(load.reads, 1e-9))
    writes, write_bytes = _requests(
        spec, load.writes * part / count, load.write_bytes / max(load.writes, 1e-9)
    )
    is_sequential = is_log and spec.kind == "block"
    demand = Demand(
        reads=reads,
        read_bytes=reads * read_bytes,
        read_accesses=_accesses(spec, reads, read_bytes),
        writes=writes,
        write_bytes=writes * write_bytes,
        write_accesses=_accesses(spec, writes, write_bytes),
        sequential_share=1.0 if is_sequential else 0.0,
    )
    device = open_device(
        spec, capacity=spec.capacity_bytes, backend=BackendConfig(engine="phantom"), seed=seed
    )
    draws = np.random.default_rng(seed)
    began, written = device.now_ns(), 0
    for step in range(_STEPS + 1):
        if step == 1:
            # The first step finds the write buffer empty.
            began = device.now_ns()
        device.read_batch(_places(draws, spec, reads, read_bytes), nbytes=max(1, read_bytes))
        places = _places(draws, spec, writes, write_bytes)
        if is_sequential:
            places = (written + np.arange(writes)) * write_bytes
            written += writes
        device.write_batch(places, np.zeros((writes, max(1, write_bytes)), dtype=np.uint8))
    return Emulated(
        tier=load.name,
        device=spec.name,
        capacity_bytes=spec.capacity_bytes,
        reads=reads,
        read_bytes=read_bytes,
        writes=writes,
        write_bytes=write_bytes,
        predicted_ns=float(DeviceService(spec).sustained_ns(demand)),
        emulated_ns=(device.now_ns() - began) / _STEPS,
    )


def _requests(spec: DeviceSpec, count: float, nbytes: float) -> tuple[int, int]:
    """Whole requests of whole blocks, or of whole pages of a memory."""
    unit = spec.page_bytes if spec.kind == "byte" else _BLOCK_BYTES
    return round(count), unit * max(1, math.ceil(nbytes / unit - 1e-9))


def _accesses(spec: DeviceSpec, requests: int, nbytes: int) -> float:
    unit = min(nbytes, 4096) if spec.kind == "block" else spec.page_bytes
    return requests * (nbytes / spec.page_bytes + 1 - min(1.0, unit / spec.page_bytes))


def _places(
    draws: np.random.Generator, spec: DeviceSpec, count: int, nbytes: int
) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    return draws.integers(spec.capacity_bytes // nbytes, size=count) * nbytes
