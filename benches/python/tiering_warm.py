"""A million rows, all of them in every store's memory: tiermem, cached and resident, rocksdict and lmdb."""

import dataclasses
import functools
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tiering_ids import ZIPF_EXPONENT, Ids, Workload, zipf_ids
from tiering_report import Section, Target, Timed, alternate, wall_ratios
from tiering_sides import Lmdb, RocksDb, Side, Tiermem, TiermemOptions, missing_peers

CACHED, RESIDENT = "tiermem, all rows cached", "tiermem, all rows resident"
LEAST = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is run."""

    workload: Workload
    batches: int
    repetitions: int


FULL = Sizes(
    workload=Workload(rows=1_000_000, dim=64, ids_per_batch=20_480, ids_per_bag=10), batches=20, repetitions=7
)
SMALL = Sizes(
    workload=Workload(rows=10_240, dim=64, ids_per_batch=1_024, ids_per_bag=8), batches=2, repetitions=2
)


def timed(run: Callable[[Ids], float], batches: Ids, _repetition: int = 0) -> Timed:
    """One call with all batches, which are the same in every repetition."""
    wall, cpu = time.perf_counter(), time.process_time()
    run(batches)
    return Timed(time.perf_counter() - wall, time.process_time() - cpu, len(batches))


def touch_all(side: Side) -> None:
    """Every row once, in whole batches."""
    workload = side.workload
    rows = np.arange(-(-workload.rows // workload.ids_per_batch) * workload.ids_per_batch) % workload.rows
    side.read(rows.reshape(-1, workload.ids_per_batch))


def open_tiermem(workload: Workload, *, cached: bool) -> Tiermem:
    """All rows in memory, above a home tier in RAM if cached."""
    side = Tiermem(workload, TiermemOptions(cache=1.0 if cached else None))
    side.materialise()
    touch_all(side)
    return side


def _open_peers(workload: Workload, folder: Path) -> dict[str, Side]:
    absent = missing_peers()
    sides: dict[str, Side] = {}
    if "rocksdict" not in absent:
        RocksDb.fill(workload, folder)
        sides["rocksdict"] = RocksDb(workload, folder, 2 << 30, in_memory=True)
    if "lmdb" not in absent:
        Lmdb.fill(workload, folder)
        sides["lmdb"] = Lmdb(workload, folder, readahead=True)
    for side in sides.values():
        touch_all(side)
    return sides


def warm(folder: Path, *, small: bool) -> Section:
    """The whole section; the peers' files go below `folder`."""
    sizes = SMALL if small else FULL
    workload = sizes.workload
    files = folder / "warm"
    files.mkdir()
    sides: dict[str, Side] = {
        CACHED: open_tiermem(workload, cached=True),
        RESIDENT: open_tiermem(workload, cached=False),
    }
    peers = {} if small else _open_peers(workload, files)
    sides |= peers
    section = Section(
        name="warm",
        title="all rows in every store's memory",
        parameters={
            "rows": workload.rows,
            "columns": workload.dim,
            "ids a batch": workload.ids_per_batch,
            "ids a bag": workload.ids_per_bag,
            "zipf": ZIPF_EXPONENT,
            "batches": sizes.batches,
            "repetitions": sizes.repetitions,
            "threads": 1,
        },
    )
    batches = zipf_ids(workload, sizes.batches, seed=1)
    missed = sides[CACHED].figures()["missed_rows"]
    for what in ("reading", "training"):
        calls = {name: side.read if what == "reading" else side.train for name, side in sides.items()}
        runs = alternate(
            {name: functools.partial(timed, call, batches) for name, call in calls.items()}, sizes.repetitions
        )
        section.add_sides(what, runs)
        for peer in peers:
            measured = wall_ratios(runs, CACHED, peer)
            section.targets.append(
                Target(
                    what=f"{what}: cached, times as fast as {peer}", measured=measured, bound=LEAST, digits=1
                )
            )
    assert sides[CACHED].figures()["missed_rows"] == missed, "every row was in memory"
    sums = {name: side.read(batches) for name, side in sides.items()}
    assert max(sums.values()) - min(sums.values()) <= 1e-3 * abs(max(sums.values())), f"sides differ: {sums}"
    for side in sides.values():
        side.close()
    if len(peers) < 2:
        section.notes.append(
            "rocksdict and lmdb are left out where they are not installed or sizes are small."
        )
    shutil.rmtree(files)
    return section
