"""Limits of memory for one process, by cgroup v1 or v2 where one can be made; peaks; cold files."""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

_NUMBERS = itertools.count()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MemoryGroup:
    """A cgroup with a limit, or why there is none."""

    path: Path | None
    version: int = 0
    refusal: str = ""

    def enter(self) -> None:
        """Moves this process in. What it has by now stays charged elsewhere, so the limit is on the rest."""
        if self.path is not None:
            (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def peak_bytes(self) -> int | None:
        """The most that was in use, page cache included; `None` where the kernel does not say."""
        if self.path is None:
            return None
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        with contextlib.suppress(OSError):
            return int((self.path / name).read_text())
        return None


def _own_groups() -> Iterator[tuple[int, Path]]:
    """(version, directory) of this process's memory groups, those that exist."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, inside = line.split(":", 2)
        for _, point, kind, options, *_ in mounts:
            is_first = (
                kind == "cgroup" and "memory" in controllers.split(",") and "memory" in options.split(",")
            )
            is_second = kind == "cgroup2" and not controllers
            if is_first or is_second:
                yield (1 if is_first else 2), Path(point) / inside.lstrip("/")


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup]:
    """A group below that of this process, gone afterwards."""
    refusals = []
    name = f"tiermem-bench-{os.getpid()}-{next(_NUMBERS)}"
    try:
        own = sorted(_own_groups())
    except OSError as error:
        own, refusals = [], [str(error)]
    for version, parent in own:
        path = parent / name
        try:
            path.mkdir()
            limit = "memory.limit_in_bytes" if version == 1 else "memory.max"
            (path / limit).write_text(str(limit_bytes))
        except OSError as error:
            refusals.append(f"cgroup v{version}: {error.strerror}")
            with contextlib.suppress(OSError):
                path.rmdir()
            continue
        try:
            yield MemoryGroup(path=path, version=version)
        finally:
            path.rmdir()
        return
    yield MemoryGroup(path=None, refusal="; ".join(refusals) or "no memory cgroup is mounted")


def forget_files(folder: Path) -> None:
    """Takes the files of a folder out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def resident_bytes() -> int:
    """Resident size of this process."""
    return int(psutil.Process().memory_info().rss)


def reset_peak() -> bool:
    """Makes the peak resident size start from now; whether the kernel took it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_resident_bytes() -> int:
    """Peak resident size of this process."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
