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
    alignment_bytes: int
    """What direct transfers to files in the directory must be multiples of."""
    registered_buffers: bool
    """Whether the kernel pins memory for io_uring, rather than at every request."""
    polling_refusal: str
    """Why io_uring cannot poll for completions here; only drives whose driver has polled queues can."""
    huge_pages: bool
    """Whether the kernel gives huge pages to memory that asks for them."""
    free_bytes: int
    sleep_overshoot_us: float
    """Median overshoot of a 100 us sleep: what a sleeping emulator would add."""
    build_profile: str


def probe_host(directory: Path) -> HostReport:
    """Probes the host, with `directory` for scratch files."""
    refusal, direct, unpolled, free = "", "", "", 0
    alignment, registered = 1, False
    try:
        free = _core.free_bytes(directory)
        direct_refusal, alignment, registered, polling_refusal = _core.probe_directory(directory)
        direct, unpolled = direct_refusal or "", polling_refusal or ""
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
        alignment_bytes=alignment,
        registered_buffers=registered,
        polling_refusal=unpolled,
        huge_pages=_core.huge_pages_allowed(),
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
