"""Interleaved repetitions, memory bandwidth and pages for `compare_peers.py`."""

import dataclasses
import gc
import math
import mmap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from compare_peers_workloads import Side, Work
from tiering_report import Section, Spread, Target, Timed, alternate, ratios

OURS = "tiermem"
_MIB = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How everything is run."""

    threads: int
    repeats: int
    seconds: float
    """The least time of one repetition of one side."""
    with_fbgemm: bool
    bandwidth: float
    """Bytes read a second."""
    small: bool


def read_bandwidth(nbytes: int) -> tuple[float, dict[str, float]]:
    """Bytes read a second by torch over memory of this size: the best, and the best of each way."""
    values = torch.ones(nbytes // 4)
    half = len(values) // 2
    ways: dict[str, Callable[[], object]] = {
        "torch.sum": values.sum,
        "torch.dot": lambda: torch.dot(values[:half], values[half:]),
    }
    found = {}
    for name, way in ways.items():
        times = []
        for _ in range(6):
            began = time.perf_counter()
            way()
            times.append(time.perf_counter() - began)
        found[name] = values.nbytes / min(times)
    return max(found.values()), found


def huge_page_bytes() -> int | None:
    """`AnonHugePages` of this process; nothing where the kernel does not say."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("AnonHugePages:")]
    return sizes[0] if sizes else None


class Pages:
    """Huge pages of the process at each stage of a section."""

    def __init__(self, section: Section) -> None:
        self._section = section
        section.figures["anon_huge_pages_bytes"] = {}
        self.note("at the start")

    def note(self, when: str) -> None:
        """Now."""
        self._section.figures["anon_huge_pages_bytes"][when] = huge_page_bytes()

    def text(self) -> str:
        """For the page."""
        stages = self._section.figures["anon_huge_pages_bytes"].items()
        shown = [
            f"{when} {'unknown' if nbytes is None else f'{nbytes / _MIB:,.0f} MiB'}"
            for when, nbytes in stages
        ]
        return f"AnonHugePages of the process: {', '.join(shown)}; base pages are {mmap.PAGESIZE} bytes."


def check_outputs(sides: Mapping[str, tuple[Side, Sequence[torch.Tensor]]], rtol: float) -> None:
    """Fails unless all sides pooled the same values, but for the order of sums."""
    _, reference = sides[OURS]
    for name, (side, outputs) in sides.items():
        for mine, other in zip(reference, side.split(outputs), strict=True):
            assert mine.shape == other.shape, name
            torch.testing.assert_close(other.float(), mine, rtol=rtol, atol=rtol, msg=_says(name))


def check_rows(ours: Side, name: str, other: Side, *, rtol: float, atol: float) -> float:
    """Fails unless both sides have the same weights; gives the largest difference."""
    largest = 0.0
    for position in ours.work.positions():
        mine, theirs = ours.rows(position), other.rows(position)
        torch.testing.assert_close(theirs, mine, rtol=rtol, atol=atol, msg=_says(name))
        largest = max(largest, float((theirs - mine).abs().max()))
    return largest


def _says(name: str) -> Callable[[str], str]:
    return lambda message: f"{name} and {OURS} differ: {message}"


def _timed(call: Callable[[int], object], batches: int, cycles: int) -> Timed:
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(cycles):
        for batch in range(batches):
            call(batch)
    return Timed(time.perf_counter() - wall, time.process_time() - cpu, batches * cycles)


def _cycles(call: Callable[[int], object], batches: int, seconds: float) -> int:
    """How often all batches take as long as that; the first time does not count."""
    _timed(call, batches, 1)
    return max(1, math.ceil(seconds / _timed(call, batches, 1).wall_s))


def wall_of(timed: Timed) -> float:
    """Seconds a batch."""
    return timed.wall_s / timed.batches


def times_as_fast(runs: Mapping[str, Sequence[Timed]], ours: str, theirs: Sequence[str]) -> Spread:
    """By repetition: the time of the fastest of `theirs` over that of `ours`."""
    return Spread.of(
        [
            min(wall_of(runs[name][repetition]) for name in theirs) / wall_of(mine)
            for repetition, mine in enumerate(runs[ours])
        ]
    )


def compare(  # noqa: PLR0917
    section: Section,
    kind: str,
    calls: Mapping[str, Callable[[int], object]],
    work: Work,
    least_bytes: float,
    settings: Settings,
) -> dict[str, list[Timed]]:
    """Runs the sides in turns, each over all batches; adds their table and figures to the section.

    Args:
        section: gets the table.
        kind: its name.
        calls: run one batch each; `OURS` is among them.
        work: the batches.
        least_bytes: the least that has to move for a batch.
        settings: repetitions, and the bandwidth to compare with.
    """
    batches = work.shape.batches
    gc.collect()
    cycles = {name: _cycles(call, batches, settings.seconds) for name, call in calls.items()}

    def repeat(name: str) -> Callable[[int], Timed]:
        return lambda _repetition: _timed(calls[name], batches, cycles[name])

    runs = alternate({name: repeat(name) for name in calls}, settings.repeats)
    our_cpu = [each.cpu_s / each.batches for each in runs[OURS]]
    rows, figures = [], {}
    for name, timed in runs.items():
        wall = Spread.of([wall_of(each) * 1e3 for each in timed])
        cpu = Spread.of([each.cpu_s * 1e3 / each.batches for each in timed])
        ratio = times_as_fast(runs, OURS, [name])
        by_cpu = ratios([each.cpu_s / each.batches for each in timed], our_cpu)
        rate = least_bytes / (wall.median / 1e3)
        share = rate / settings.bandwidth
        shown = ("", "") if name == OURS else (ratio.text(2), by_cpu.text(2))
        rows.append((name, wall.text(3), cpu.text(3), *shown, f"{rate / 1e9:.1f}", f"{100 * share:.0f} %"))
        figures[name] = {
            "wall_ms_per_batch": wall.document(),
            "cpu_ms_per_batch": cpu.document(),
            "tiermem_times_as_fast": ratio.document(),
            "tiermem_times_as_fast_by_processor_time": by_cpu.document(),
            "batches_per_repetition": batches * cycles[name],
            "least_bytes_per_s": rate,
            "share_of_read_bandwidth": share,
        }
    section.figures[kind] = {"least_bytes_per_batch": least_bytes, "sides": figures}
    heads = (f"{kind}, ms a batch", "wall", "processor, all threads", "tiermem is times as fast")
    more = ("by processor time", "GB/s of the least bytes", "of the read bandwidth")
    section.add_table((*heads, *more), rows)
    return runs


def add_target(  # noqa: PLR0917
    section: Section,
    what: str,
    runs: Mapping[str, Sequence[Timed]],
    theirs: Sequence[str],
    bound: float,
    ours: str = OURS,
) -> None:
    """A target, if one of the others was there."""
    present = [name for name in theirs if name in runs]
    if present:
        measured = times_as_fast(runs, ours, present)
        section.targets.append(Target(what=what, measured=measured, bound=bound))


def add_memory(section: Section, work: Work, sides: Mapping[str, Side]) -> None:
    """A table of the bytes that a row takes."""
    rows = sum(table.rows for table in work.shape.tables)
    least = work.shape.parameter_bytes / rows
    shown = [("weights alone", f"{least:,.1f}")]
    figures: dict[str, Any] = {"weights alone": least}
    for name, side in sides.items():
        figures[name] = side.held_bytes / rows
        shown.append((name, f"{figures[name]:,.1f}"))
    section.figures["held_bytes_per_row"] = figures
    section.add_table(("memory held, optimizer state included", "bytes a row"), shown)


def new_section(name: str, title: str, work: Work, settings: Settings) -> Section:
    """With the parameters of a workload."""
    shape = work.shape
    return Section(
        name=name,
        title=title,
        parameters={
            "tables": len(shape.tables),
            "rows": sum(table.rows for table in shape.tables),
            "MB of weights": round(shape.parameter_bytes / 1e6),
            "row type": shape.row_type,
            "bags a table": shape.bags,
            "ids a batch": round(work.ids),
            "ids": "uniform" if shape.uniform_ids else "zipf 1.05",
            "batches": shape.batches,
            "different rows in all of them": work.touched_rows(),
            "repetitions": settings.repeats,
            "threads": settings.threads,
        },
    )
