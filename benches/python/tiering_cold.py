"""4 GB of rows in a real file and 256 MB of memory: tiermem, rocksdict, lmdb and np.memmap, each from cold.

Every run is a process of its own, which imports everything, enters a memory group of 256 MB (what it had
by then is not charged), opens its store and runs the batches. Files are out of the page cache when it starts.
The tiermem store is a scratch file, written anew in each run before the clock starts; the others were filled
once, and keep what they were trained to. Training ends when everything that was changed is in the file.
"""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tiering_child import Spec
from tiering_ids import ZIPF_EXPONENT, Ids, Workload, spaced_ids, zipf_ids
from tiering_limit import forget_files, memory_group
from tiering_report import Section, Spread, Target, Timed, alternate, ratios, wall_ratios
from tiering_sides import PEERS, PREFETCH_DISTANCE, missing_peers

CHILD = Path(__file__).with_name("tiering_child.py")
BLOCK_BYTES = 4096
IO_DEPTH = 256
"""Of the file backend; fio gets the same."""
ROW_SPACING = 64
"""Rows so far apart are never in adjacent home blocks."""
READ, TRAIN = "reading", "training"
READ_LEAST, TRAIN_LEAST, DEVICE_LEAST = 3.0, 2.0, 0.85
_CHECK_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is run."""

    workload: Workload
    batches: int
    device_batches: int
    repetitions: int
    limit_bytes: int
    cache_bytes: int
    """Of tiermem: what the limit leaves beside staging, metadata and transfers."""
    rocksdb_cache_bytes: int
    """The same of rocksdict, beside filters, indices and write buffers."""
    staging_bytes: int
    fio_seconds: float


FULL = Sizes(
    workload=Workload(rows=16_000_000, dim=64, ids_per_batch=20_480, ids_per_bag=10),
    batches=20,
    device_batches=12,
    repetitions=5,
    limit_bytes=256 << 20,
    cache_bytes=128 << 20,
    rocksdb_cache_bytes=96 << 20,
    staging_bytes=12 << 20,
    fio_seconds=3.0,
)
SMALL = Sizes(
    workload=Workload(rows=65_536, dim=64, ids_per_batch=512, ids_per_bag=8),
    batches=4,
    device_batches=2,
    repetitions=1,
    limit_bytes=256 << 20,
    cache_bytes=128 << 10,
    rocksdb_cache_bytes=1 << 20,
    staging_bytes=1 << 20,
    fio_seconds=0.1,
)


class Runner:
    """Starts the processes and keeps what they reported."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self.folder = folder
        self.sizes = sizes
        self.reports: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.limited_by = ""
        self.refusal = ""

    def save(self, name: str, ids: Ids) -> Path:
        path = self.folder / f"{name}.npy"
        np.save(path, ids)
        return path

    def run(self, side: str, what: str, batches: Path, *, cache_bytes: int, train: bool) -> Timed:
        forget_files(self.folder)
        with memory_group(self.sizes.limit_bytes) as group:
            self.limited_by = (
                f"cgroup v{group.version}" if group.path is not None else "the stores' own budgets"
            )
            self.refusal = group.refusal
            spec = Spec(
                side=side,
                train=train,
                folder=str(self.folder),
                batches=str(batches),
                workload=dataclasses.asdict(self.sizes.workload),
                cache_bytes=cache_bytes if group.path is not None else self.sizes.limit_bytes,
                staging_bytes=self.sizes.staging_bytes,
                group=None if group.path is None else str(group.path),
                group_version=group.version,
            )
            command = [sys.executable, str(CHILD), json.dumps(dataclasses.asdict(spec))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(
                    f"{side}, {what}, ended with {done.returncode}, after a peak of {group.peak_bytes()}"
                    f" of {self.sizes.limit_bytes} bytes: {done.stderr[-2000:]}"
                )
            report: dict[str, Any] = {**json.loads(done.stdout), "group_peak_bytes": group.peak_bytes()}
        self.reports.setdefault((what, side), []).append(report)
        print(f"# {what}, {side}: {report['wall_s']:.2f} s", file=sys.stderr, flush=True)
        return Timed(report["wall_s"], report["cpu_s"], report["batches"])

    def check(self, what: str) -> None:
        """The first repetition of each side saw the same values."""
        sums = {side: reports[0]["sum"] for (of, side), reports in self.reports.items() if of == what}
        least, most = min(sums.values()), max(sums.values())
        assert most - least <= _CHECK_TOLERANCE * abs(most), f"{what}: sides differ in what they read: {sums}"


def _fio(path: Path, seconds: float, seed: int) -> float:
    """Random reads a second of one file, the better of plain and registered buffers."""
    rates = []
    for registered in (0, 1):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "fio.json"
            subprocess.run(
                [
                    "fio", "--name=device", f"--filename={path}", "--readonly", "--rw=randread",
                    f"--bs={BLOCK_BYTES}", "--ioengine=io_uring", f"--iodepth={IO_DEPTH}", "--direct=1",
                    f"--randseed={seed}", f"--fixedbufs={registered}", f"--registerfiles={registered}",
                    "--norandommap", "--time_based", f"--runtime={round(seconds * 1000)}ms",
                    "--output-format=json", f"--output={out}",
                ],
                check=True, capture_output=True,
            )  # fmt: skip
            text = out.read_text()
            rates.append(float(json.loads(text[text.index("{") :])["jobs"][0]["read"]["iops"]))
    return max(rates)


def _device_rates(section: Section, runner: Runner) -> None:
    """Reads a second of batches in which every row is a read of one block by itself."""
    sizes = runner.sizes
    ids = spaced_ids(sizes.workload, sizes.device_batches, seed=3, spacing=ROW_SPACING)
    batches = runner.save("device", ids)
    has_fio = shutil.which("fio") is not None and "np.memmap" in section.figures.get(READ, {})
    ours, theirs = [], []
    for repetition in range(sizes.repetitions):
        timed = runner.run("tiermem", "device", batches, cache_bytes=1 << 20, train=False)
        figures = runner.reports["device", "tiermem"][-1]["figures"]
        assert figures["device_reads"] == ids.size, "no two blocks were merged, and none was cached"
        assert figures["device_read_bytes"] == ids.size * BLOCK_BYTES, "each read is one block"
        ours.append(ids.size / timed.wall_s)
        if has_fio:
            theirs.append(_fio(runner.folder / "memmap" / "rows.bin", sizes.fio_seconds, repetition + 1))
    section.figures["device"] = {"tiermem_reads_per_s": Spread.of(ours).document()}
    rows = [("tiermem", Spread.of(ours).text(0))]
    if theirs:
        section.figures["device"]["fio_reads_per_s"] = Spread.of(theirs).document()
        rows.append(("fio", Spread.of(theirs).text(0)))
        what = f"device reads/s over fio's, {BLOCK_BYTES} bytes, {IO_DEPTH} outstanding, none merged"
        section.targets.append(Target(what=what, measured=ratios(ours, theirs), bound=DEVICE_LEAST))
    else:
        section.notes.append("fio is left out: it is not installed, or the sizes are small.")
    section.add_table(("random reads of one block", "a second"), rows)


def _fill(section: Section, sizes: Sizes, folder: Path, names: list[str]) -> None:
    section.figures["fill_s"] = {}
    for name in names:
        began = time.perf_counter()
        PEERS[name].fill(sizes.workload, folder)
        section.figures["fill_s"][name] = time.perf_counter() - began
        print(f"# {name} is filled: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)


def _compare(section: Section, runner: Runner, peers: list[str], what: str, least: float) -> None:
    sizes = runner.sizes
    # Other rows in each repetition: those that were just trained lie together in a log.
    first = 1 if what == READ else 101
    batches = [
        runner.save(f"{what}-{number}", zipf_ids(sizes.workload, sizes.batches, seed=first + number))
        for number in range(sizes.repetitions)
    ]
    caches = {"tiermem": sizes.cache_bytes, "rocksdict": sizes.rocksdb_cache_bytes}

    def run(side: str, repetition: int) -> Timed:
        budget = caches.get(side, 0)
        return runner.run(side, what, batches[repetition], cache_bytes=budget, train=what == TRAIN)

    sides = {side: functools.partial(run, side) for side in ["tiermem", *peers]}
    runs = alternate(sides, sizes.repetitions)
    runner.check(what)
    section.add_sides(what, runs)
    for peer in peers:
        measured = wall_ratios(runs, "tiermem", peer)
        section.targets.append(
            Target(what=f"{what}: times as fast as {peer}", measured=measured, bound=least)
        )
    for (of, side), reports in runner.reports.items():
        if of == what:
            section.figures[what][side]["reports"] = reports


def cold(folder: Path, *, small: bool) -> Section:
    """The whole section; files go below `folder`."""
    sizes = SMALL if small else FULL
    absent = list(PEERS) if small else missing_peers()
    peers = [name for name in PEERS if name not in absent]
    runner = Runner(folder / "cold", sizes)
    runner.folder.mkdir()
    workload = sizes.workload
    section = Section(
        name="cold",
        title="rows in a file, 256 MB of memory, nothing cached at first",
        parameters={
            "rows": workload.rows,
            "columns": workload.dim,
            "ids a batch": workload.ids_per_batch,
            "ids a bag": workload.ids_per_bag,
            "zipf": ZIPF_EXPONENT,
            "batches": sizes.batches,
            "memory limit, bytes beyond those after import": sizes.limit_bytes,
            "prefetch distance": PREFETCH_DISTANCE,
            "repetitions": sizes.repetitions,
            "threads": 1,
        },
    )
    _fill(section, sizes, runner.folder, peers)
    _compare(section, runner, peers, READ, READ_LEAST)
    _device_rates(section, runner)
    _compare(section, runner, peers, TRAIN, TRAIN_LEAST)
    engine = runner.reports[READ, "tiermem"][0]["figures"]
    section.parameters |= {
        "limited by": runner.limited_by,
        "engine": engine["engine"],
        "direct": engine["direct"],
    }
    if runner.refusal:
        section.notes.append(
            f"No memory group could be made ({runner.refusal}): tiermem and rocksdict have a cache of"
            f" {sizes.limit_bytes:,} bytes each, and nothing limits the page cache of lmdb and np.memmap."
        )
    if absent:
        section.notes.append(f"Left out, not installed or the sizes are small: {', '.join(absent)}.")
    section.figures["filesystem_free_bytes"] = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    shutil.rmtree(runner.folder)
    return section
