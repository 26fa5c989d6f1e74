"""One side of `tiering.py` in a process of its own: `python tiering_child.py SPEC`, JSON in and out.

Everything is imported first; then the process enters its memory group, opens the store and runs the batches.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiering_ids import Workload
from tiering_limit import MemoryGroup, peak_resident_bytes, reset_peak, resident_bytes
from tiering_sides import Lmdb, Memmap, RocksDb, Side, Tiermem, TiermemOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """What to run."""

    side: str
    train: bool
    folder: str
    batches: str
    """An .npy of int64 [batches, ids]."""
    workload: dict[str, int]
    cache_bytes: int
    """Budget of a side's own cache; lmdb and np.memmap have the page cache."""
    staging_bytes: int
    group: str | None
    group_version: int


def open_side(spec: Spec) -> Side:
    """The side with its rows, none of them in memory."""
    workload, folder = Workload(**spec.workload), Path(spec.folder)
    if spec.side == "rocksdict":
        return RocksDb(workload, folder, spec.cache_bytes)
    if spec.side == "lmdb":
        return Lmdb(workload, folder)
    if spec.side == "np.memmap":
        return Memmap(workload, folder)
    options = TiermemOptions(cache=spec.cache_bytes, staging=spec.staging_bytes, directory=folder)
    side = Tiermem(workload, options)
    side.materialise()
    return side


def run(spec: Spec) -> dict[str, Any]:
    """Times the batches, until what they changed is in the file; the first meets a cold store."""
    torch.set_num_threads(1)
    batches = np.load(spec.batches)
    group = MemoryGroup(path=None if spec.group is None else Path(spec.group), version=spec.group_version)
    after_import = resident_bytes()
    reset_peak()
    group.enter()
    began = time.perf_counter()
    side = open_side(spec)
    opened_s = time.perf_counter() - began
    before = side.figures()
    wall, cpu = time.perf_counter(), time.process_time()
    total = side.train(batches) if spec.train else side.read(batches)
    unsettled_s = time.perf_counter() - wall
    if spec.train:
        side.settle()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    after = side.figures()
    counted = {
        key: value - before[key] if type(value) is int and key != "declared_bytes" else value
        for key, value in after.items()
    }
    side.close()
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "unsettled_s": unsettled_s,
        "batches": len(batches),
        "sum": total,
        "opened_s": opened_s,
        "resident_after_import_bytes": after_import,
        "peak_resident_bytes": peak_resident_bytes(),
        "figures": counted,
    }


if __name__ == "__main__":
    print(json.dumps(run(Spec(**json.loads(sys.argv[1])))))
