"""A closed-loop random-read benchmark of one device."""

import dataclasses

import numpy as np

from tiermem.emulator.device import Device
from tiermem.errors import InputError
from tiermem.stats import LatencyStats

__all__ = ["BenchResult", "bench_device"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BenchResult:
    """One point of a queue-depth sweep."""

    queue_depth: int
    requests: int
    iops: float
    bandwidth_bytes_per_s: float
    latency: LatencyStats
    late_share: float


def bench_device(device: Device, *, nbytes: int, requests: int, seed: int = 1) -> BenchResult:
    """Reads `requests` random, `nbytes`-aligned places with the device's queue depth outstanding.

    Raises:
        InputError: if the device is smaller than one request.
    """
    places = device.capacity_bytes // nbytes
    if places < 1:
        raise InputError(f"a device of {device.capacity_bytes} bytes has no room for {nbytes} bytes")
    offsets = np.random.default_rng(seed).integers(0, places, requests) * nbytes
    began_ns = device.now_ns()
    device.read_batch(offsets, nbytes=nbytes)
    elapsed_s = (device.now_ns() - began_ns) * 1e-9
    return BenchResult(
        queue_depth=device.queue_depth,
        requests=requests,
        iops=requests / elapsed_s,
        bandwidth_bytes_per_s=requests * nbytes / elapsed_s,
        latency=device.stats().read_latency,
        late_share=device.lateness().late_share,
    )
