"""What this host can do: engines, direct I/O, timers, memory."""

import dataclasses
import os
import time
from pathlib import Path

import psutil

from tiermem import _core
from tiermem.errors import TiermemError

__all__ = ["HostReport", "probe_host"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HostReport:
    """Findings; a refusal is empty where the thing works."""

    cores: int
    memory_bytes: int
    memory_available_bytes: int
    io_uring_refusal: str
    directory: str
    directory_refusal: str
    direct_io_refusal: str
    free_bytes: int
    sleep_overshoot_us: float
    """Median overshoot of a 100 us sleep: what a sleeping emulator would add."""
    build_profile: str


def probe_host(directory: Path) -> HostReport:
    """Probes the host, with `directory` for scratch files."""
    refusal, direct, free = "", "", 0
    try:
        free = _core.free_bytes(directory)
        direct = _core.direct_io_refusal(directory) or ""
    except (TiermemError, OSError) as error:
        refusal = str(error)
    memory = psutil.virtual_memory()
    return HostReport(
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=memory.total,
        memory_available_bytes=memory.available,
        io_uring_refusal=_core.io_uring_refusal() or "",
        directory=str(directory),
        directory_refusal=refusal,
        direct_io_refusal=direct,
        free_bytes=free,
        sleep_overshoot_us=_sleep_overshoot_us(),
        build_profile=_core.BUILD_PROFILE,
    )


def _sleep_overshoot_us() -> float:
    overshoots = []
    for _ in range(51):
        began = time.perf_counter_ns()
        time.sleep(100e-6)
        overshoots.append((time.perf_counter_ns() - began - 100_000) / 1000)
    return sorted(overshoots)[25]
