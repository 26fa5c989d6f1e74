"""The serving engine beside a mapped file, in wall time, on one drive and with the same limit of memory.

    OMP_NUM_THREADS=1 python benches/python/serving_wall.py [--small] [--directory DIR] [--json FILE]

Both sides have the same float32 rows in files of one directory, and pool the same lists; their first answers
are compared. Each is a process in a memory cgroup of a tenth of the bytes and 64 MiB more: the engine keeps
rows in that tenth and reads past the page cache, the kernel keeps pages of the mapped file. Threads ask one
query after the other; runs of both sides alternate after a warm-up, and ratios are of neighbours. No device
is emulated.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import multiprocessing
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from serving_wall_sides import MAPPED, OURS, SIDES, SLACK_BYTES, Run, Workload, serve
from tiering_limit import MemoryGroup, memory_group
from tiering_report import Section, Spread, ratios
from tiermem import _core
from tiermem.results import canonical, host, write_text
from tiermem.units import format_bytes

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_CHECKED = 50
"""Answers that are compared."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How much is run."""

    threads: tuple[int, ...]
    seconds: float
    warm_up_s: float
    repeats: int
    sla_ms: float


class _Side:
    """A process under way."""

    def __init__(self, name: str, workload: Workload, group: MemoryGroup) -> None:
        # A new interpreter: what this one has in memory would not count in the limit.
        context = multiprocessing.get_context("spawn")
        self.pipe: Connection
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(name, workload, group, _CHECKED, theirs))
        self.process.start()
        theirs.close()
        with self._alive():
            self.answers, self.backend = self.pipe.recv()

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except EOFError:
            self.process.join()
            message = f"the side in process {self.process.pid} ended with {self.process.exitcode}"
            raise RuntimeError(message) from None

    def run(self, threads: int, seconds: float) -> Run:
        self.pipe.send((threads, seconds))
        with self._alive():
            found: Run = self.pipe.recv()
        return found

    def stop(self) -> int | None:
        """Ends it; the most memory that it had, as far as the kernel says."""
        self.pipe.send(None)
        with self._alive():
            peak: int | None = self.pipe.recv()
        self.process.join()
        return peak


def _rate(run: Run) -> float:
    return run.queries / run.seconds


def _quantile(run: Run, share: float) -> float:
    return float(np.quantile(run.latency_ms, share))


def _best_within(runs: dict[int, list[Run]], sla_ms: float) -> list[Run] | None:
    """The runs with the most queries a second whose p99 is within the bound; medians decide."""
    within = [
        timed for timed in runs.values() if np.median([_quantile(run, 0.99) for run in timed]) <= sla_ms
    ]
    return max(within, key=lambda timed: float(np.median([_rate(run) for run in timed])), default=None)


def measure(workload: Workload, settings: Settings) -> Section:
    """Runs both sides in turns."""
    limit = workload.budget_bytes + SLACK_BYTES
    with contextlib.ExitStack() as stack:
        groups = [stack.enter_context(memory_group(limit)) for _ in SIDES]
        sides: dict[str, _Side] = {}
        try:
            for name, group in zip(SIDES, groups, strict=True):
                sides[name] = _Side(name, workload, group)
            runs = _alternate(sides, settings)
            peaks = {name: side.stop() for name, side in sides.items()}
        finally:
            for side in sides.values():
                side.process.kill()
                side.process.join()
    shape = dataclasses.asdict(workload)
    del shape["path"]
    section = Section(
        name="serving in wall time",
        title="engine and mapped file",
        parameters={**shape, **dataclasses.asdict(settings)},
    )
    _report(section, runs, settings)
    refusal = next((group.refusal for group in groups if group.refusal), "")
    section.notes.append(
        f"No limit of memory: {refusal}." if refusal else f"Limit of each side: {format_bytes(limit)}."
    )
    for name, side in sides.items():
        peak = peaks[name]
        used = "" if peak is None else f", {format_bytes(peak)} at most"
        section.notes.append(f"{name}: {side.backend}{used}.")
    return section


def _alternate(sides: dict[str, _Side], settings: Settings) -> dict[str, dict[int, list[Run]]]:
    """Runs by side and number of threads."""
    if not np.array_equal(sides[OURS].answers, sides[MAPPED].answers):
        raise AssertionError("both sides answer with the same sums")
    for side in sides.values():
        side.run(max(settings.threads), settings.warm_up_s)
    runs: dict[str, dict[int, list[Run]]] = {name: {n: [] for n in settings.threads} for name in SIDES}
    for _ in range(settings.repeats):
        for threads in settings.threads:
            for name, side in sides.items():
                runs[name][threads].append(side.run(threads, settings.seconds))
    return runs


def _report(section: Section, runs: dict[str, dict[int, list[Run]]], settings: Settings) -> None:
    rows = []
    for threads in settings.threads:
        for name in SIDES:
            timed = runs[name][threads]
            rows.append((
                str(threads), name,
                Spread.of([_rate(run) for run in timed]).text(0),
                Spread.of([_quantile(run, 0.5) for run in timed]).text(2),
                Spread.of([_quantile(run, 0.99) for run in timed]).text(2),
                Spread.of([run.reads / max(1, run.queries) for run in timed]).text(1),
            ))  # fmt: skip
        ratio = ratios(
            [_rate(run) for run in runs[OURS][threads]], [_rate(run) for run in runs[MAPPED][threads]]
        )
        rows.append((str(threads), "queries/s, ratio", ratio.text(2), "", "", ""))
        section.figures[f"ratio, {threads} threads"] = ratio.document()
    section.add_table(("threads", "side", "queries/s", "p50 ms", "p99 ms", "reads a query"), rows)
    best = {name: _best_within(runs[name], settings.sla_ms) for name in SIDES}
    for name, within in best.items():
        rates = None if within is None else Spread.of([_rate(run) for run in within])
        shown = "no run keeps it" if rates is None else f"{rates.text(0)} queries/s"
        section.notes.append(f"p99 within {settings.sla_ms:g} ms, {name}: {shown}.")
        section.figures[f"within the bound, {name}"] = None if rates is None else rates.document()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--small", action="store_true", help="small tables and short runs, to see that it runs"
    )
    parser.add_argument("--directory", help="where the files go (default: the temporary directory)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sla-ms", type=float, default=10.0, help="bound on p99")
    parser.add_argument("--json", help="write one JSON object")
    options = parser.parse_args()
    settings = Settings(
        threads=(1, 2, 4, 8, 16), seconds=options.seconds, warm_up_s=30.0, repeats=options.repeats,
        sla_ms=options.sla_ms,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="serving-") as folder:
        workload = Workload(
            tables=16, rows=1_000_000, columns=32, ids_per_list=20, queries=20_000, budget_share=0.1,
            path=str(Path(folder) / "rows"),
        )  # fmt: skip
        if options.small:
            settings = dataclasses.replace(settings, threads=(1, 3), seconds=0.2, warm_up_s=0.1, repeats=2)
            workload = dataclasses.replace(workload, tables=3, rows=20_000, queries=200)
        workload.write()
        section = measure(workload, settings)
    print("\n".join(section.lines()))
    if options.json is not None:
        document = {
            "bench": "serving_wall",
            "section": section.document(),
            "build_profile": _core.BUILD_PROFILE,
            "host": host(),
            "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        }
        write_text(Path(options.json), json.dumps(canonical(document), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
