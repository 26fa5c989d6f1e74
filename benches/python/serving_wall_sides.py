"""Sides of `serving_wall.py`, each a process with a limit on its memory, in which threads answer queries."""

import dataclasses
import itertools
import json
import mmap
import resource
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tiering_limit import MemoryGroup, forget_files
from tiermem import _core
from tiermem.config import DeviceSpec

OURS, MAPPED = "tiermem", "mapped file"
SIDES = (OURS, MAPPED)
SLACK_BYTES = 64 * 2**20
"""Beyond the budget, on both sides: for what Python and PyTorch take as threads run."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Tables of float32 rows in one file, table behind table, and lists of ids, one of each table a query."""

    tables: int
    rows: int
    columns: int
    ids_per_list: int
    queries: int
    budget_share: float
    path: str

    @property
    def nbytes(self) -> int:
        """Of all rows."""
        return self.tables * self.rows * self.columns * 4

    @property
    def budget_bytes(self) -> int:
        """Memory for rows."""
        return int(self.nbytes * self.budget_share)

    def write(self) -> None:
        """Rows whose sums are exact in float32 whatever their order."""
        rng = np.random.default_rng(1)
        with Path(self.path).open("wb") as file:
            for _ in range(self.tables):
                rows = rng.integers(-512, 512, (self.rows, self.columns), dtype=np.int16)
                (rows.astype(np.float32) / 64).tofile(file)

    def ids(self) -> npt.NDArray[np.int64]:
        """Ids [queries, tables, ids of a list]: by Zipf's law with exponent 1, popular rows far apart."""
        rng = np.random.default_rng(2)
        shape = (self.queries, self.tables, self.ids_per_list)
        ranks = np.minimum(np.exp(rng.random(shape) * np.log(self.rows + 1)) - 1, self.rows - 1)
        # Coprime to any number of rows that we use: a permutation.
        spread: npt.NDArray[np.int64] = ranks.astype(np.int64) * 2_654_435_761 % self.rows
        return spread


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What threads did in a time; each asks its next query when it has the answer to the last."""

    queries: int
    seconds: float
    latency_ms: list[float]
    reads: int
    """Of the file: requests of the engine, or major page faults."""


class Ours:
    """The engine with all tables on the device, which is real: its own file beside the mapped one."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        starts = np.zeros(1, dtype=np.int64).view(np.uint8)
        self.ids = [[(of_table.view(np.uint8), starts) for of_table in query] for query in workload.ids()]
        self.shape = (workload.tables, workload.columns)

    def open(self) -> None:
        """Writes the engine's file."""
        workload = self.workload
        spec = DeviceSpec.load("nand-pm9a3").model_dump(mode="json", exclude={"published"})
        table = {
            "ids": workload.rows, "rows": workload.rows, "columns": workload.columns, "row_type": "fp32",
            "placement": "cached",
        }  # fmt: skip
        config = {
            "serve": {
                "tables": [{"name": str(number), **table} for number in range(workload.tables)],
                "device": {
                    "spec": spec, "replicas": 1, "block_bytes": 512, "is_sub_block": False,
                    "limits": {"per_table": 256, "total": 256}, "hedge_after_ns": None,
                },
                "memory": {
                    "total_bytes": workload.budget_bytes, "pooled_share": 0.0, "update_bytes": 0,
                    "dense_row_bytes_max": 255, "policy": "lru", "pooled_ids_min": 1,
                    "pooled_match": "in_order",
                },
            },
            "backend": {"engine": "auto", "directory": str(Path(workload.path).parent)},
            "time": "real", "versions": 1, "seed": 1,
        }  # fmt: skip
        self.engine = _core.ServeEngine(json.dumps(config))
        version = self.engine.new_version()
        shape = (workload.tables, workload.rows * workload.columns * 4)
        stored = np.memmap(workload.path, dtype=np.uint8, mode="r", shape=shape)
        for table_number in range(workload.tables):
            nbytes = self.engine.rows_per_load(table_number) * workload.columns * 4
            for first in range(0, shape[1], nbytes):
                version.load(table_number, "fp32", np.array(stored[table_number, first : first + nbytes]))
        version.commit(warm=False)
        del stored

    def answer(self, number: int) -> npt.NDArray[np.float32]:
        """Pooled rows [tables, D]."""
        out = np.empty(self.shape, dtype=np.float32)
        self.engine.begin(self.ids[number]).finish(out.reshape(-1).view(np.uint8))
        return out

    def reads(self) -> int:
        """Requests to the file so far."""
        return int(json.loads(self.engine.stats_json())["traffic"]["reads"])

    def backend(self) -> str:
        """What moves the bytes."""
        found = json.loads(self.engine.stats_json())
        path = ", past the page cache" if found["direct"] else ", through the page cache"
        return (
            str(found["engine"])
            + path
            + (f" ({found['fallback_reason']})" if found["fallback_reason"] else "")
        )


class Mapped:
    """All tables as one tensor over the mapped file, without read-ahead; one `embedding_bag` a query."""

    def __init__(self, workload: Workload) -> None:
        torch.set_num_threads(1)
        self.workload = workload
        first = np.arange(workload.tables).reshape(1, -1, 1) * workload.rows
        self.ids = torch.from_numpy((workload.ids() + first).reshape(workload.queries, -1))
        self.offsets = torch.arange(workload.tables) * workload.ids_per_list
        self.weights = torch.empty(0)

    def open(self) -> None:
        """Maps the file."""
        with Path(self.workload.path).open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)
        mapped.madvise(mmap.MADV_RANDOM)
        rows = np.frombuffer(mapped, dtype=np.float32).reshape(-1, self.workload.columns)
        self.weights = torch.from_numpy(rows)

    def answer(self, number: int) -> npt.NDArray[np.float32]:
        """Pooled rows [tables, D]."""
        pooled = torch.nn.functional.embedding_bag(self.ids[number], self.weights, self.offsets, mode="sum")
        rows: npt.NDArray[np.float32] = pooled.numpy()
        return rows

    def reads(self) -> int:
        """Major page faults of this process so far."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_majflt

    def backend(self) -> str:
        """What moves the bytes."""
        return "page faults"


def _drive(
    side: Ours | Mapped, numbers: "itertools.count[int]", queries: int, threads: int, seconds: float
) -> Run:
    latency_ms: list[list[float]] = [[] for _ in range(threads)]
    reads, began = side.reads(), time.perf_counter()

    def work(mine: list[float]) -> None:
        while (at := time.perf_counter()) - began < seconds:
            side.answer(next(numbers) % queries)
            mine.append((time.perf_counter() - at) * 1e3)

    workers = [threading.Thread(target=work, args=(mine,)) for mine in latency_ms]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    took = time.perf_counter() - began
    flat = [each for mine in latency_ms for each in mine]
    return Run(queries=len(flat), seconds=took, latency_ms=flat, reads=side.reads() - reads)


def serve(name: str, workload: Workload, group: MemoryGroup, checked: int, pipe: Connection) -> None:
    """A process: sends its first answers and what it is, then runs (threads, seconds) until `None` comes."""
    side = Ours(workload) if name == OURS else Mapped(workload)
    # Ids are before the limit.
    group.enter()
    side.open()
    forget_files(Path(workload.path).parent)
    numbers = itertools.count()
    pipe.send((np.stack([side.answer(next(numbers)) for _ in range(checked)]), side.backend()))
    while (asked := pipe.recv()) is not None:
        pipe.send(_drive(side, numbers, workload.queries, *asked))
    pipe.send(group.peak_bytes())
