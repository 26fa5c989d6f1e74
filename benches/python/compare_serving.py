"""Rows of codes, gathered, dequantised and pooled: the serving engine beside FBGEMM's IntNBit, on one thread.

    make peers
    OMP_NUM_THREADS=1 .venv-peers/bin/python benches/python/compare_serving.py

Both sides have the same codes, scales and biases, and outputs are compared before anything is timed. tiermem:
a whole query of an engine with all tables in memory, ids checked. FBGEMM: its module with bounds checks
(WARNING, its default), and the same without any. Repetitions alternate; ratios are of neighbours.
"""

import argparse
import dataclasses
import datetime
import importlib
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tiering_report import Section, Target, Timed, alternate, wall_ratios
from tiermem import _core
from tiermem.config import DeviceSpec
from tiermem.results import canonical, host, write_text

MODULE, UNCHECKED = "FBGEMM", "FBGEMM, ids unchecked"
OURS = "tiermem"
ROW_TYPES = {8: "int8_fp16", 4: "int4"}
LEAST = 1.0
_BATCHES = 8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Tables of one width and the lookups of a batch."""

    name: str
    bits: int
    rows: int
    columns: int
    tables: int = 8
    bags: int = 128
    ids_per_bag: int = 20

    @property
    def ids(self) -> int:
        """Of a batch."""
        return self.tables * self.bags * self.ids_per_bag


SHAPES = tuple(
    Shape(name=f"int{bits} x {columns}, {where}", bits=bits, rows=rows, columns=columns)
    for bits in (8, 4)
    for columns in (64, 128)
    for rows, where in ((1_000_000, "from memory"), (10_000, "from the cache"))
)


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """Codes and scales of one table: uint8 [rows, bytes of codes], uint8 [rows, 4]."""

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.uint8]

    def plain(self, ids: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.float64]:
        """Weights of some rows, by the definition."""
        codes = self.codes[ids]
        if bits == 4:
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(ids), -1)
        scales = self.scales[ids].view(np.float16).astype(np.float64)
        weights: npt.NDArray[np.float64] = codes * scales[:, :1] + scales[:, 1:]
        return weights


def draw_rows(shape: Shape, rng: np.random.Generator) -> Rows:
    codes = rng.integers(0, 256, (shape.rows, shape.columns * shape.bits // 8), dtype=np.uint8)
    scales = np.stack([rng.uniform(1e-3, 1e-2, shape.rows), rng.uniform(-0.5, 0.5, shape.rows)], axis=1)
    return Rows(codes, scales.astype(np.float16).view(np.uint8))


class Ours:
    """An engine with all tables in memory."""

    def __init__(self, shape: Shape, tables: Sequence[Rows], ids: npt.NDArray[np.int64]) -> None:
        row_type = ROW_TYPES[shape.bits]
        table = {
            "ids": shape.rows, "rows": shape.rows, "columns": shape.columns, "row_type": row_type,
            "placement": "fixed",
        }  # fmt: skip
        spec = DeviceSpec.load("optane-p5800x").model_dump(mode="json", exclude={"published"})
        config = {
            "serve": {
                "tables": [{"name": str(number), **table} for number in range(shape.tables)],
                "device": {
                    "spec": spec, "replicas": 1, "block_bytes": 512, "is_sub_block": True,
                    "limits": {"per_table": 1, "total": 1}, "hedge_after_ns": None,
                },
                "memory": {
                    "total_bytes": 2**33, "pooled_share": 0.0, "update_bytes": 0, "dense_row_bytes_max": 255,
                    "policy": "lru", "pooled_ids_min": 1, "pooled_match": "in_order",
                },
            },
            "backend": {"engine": "ram"}, "time": "virtual", "versions": 1, "seed": 1,
        }  # fmt: skip
        self.engine = _core.ServeEngine(json.dumps(config))
        version = self.engine.new_version()
        for number, rows in enumerate(tables):
            stored = np.hstack([rows.codes, rows.scales])
            count = self.engine.rows_per_load(number)
            for first in range(0, shape.rows, count):
                version.load(number, row_type, stored[first : first + count].reshape(-1))
        version.commit(warm=False)
        starts = (np.arange(shape.bags) * shape.ids_per_bag).view(np.uint8)
        self.bags = [[(of_table.view(np.uint8), starts) for of_table in batch] for batch in ids]
        self.out = np.empty(shape.tables * shape.bags * shape.columns, dtype=np.float32)
        self.shape = shape

    def __call__(self, batch: int) -> npt.NDArray[np.float32]:
        """Pooled rows [tables * bags * D]."""
        lookup = self.engine.begin(self.bags[batch])
        lookup.pool_memory(self.out.view(np.uint8))
        lookup.abandon()
        return self.out


class Fbgemm:
    """`IntNBitTableBatchedEmbeddingBagsCodegen` on the CPU."""

    def __init__(self, shape: Shape, tables: Sequence[Rows], ids: npt.NDArray[np.int64]) -> None:
        inference: Any = importlib.import_module("fbgemm_gpu.split_table_batched_embeddings_ops_inference")
        common: Any = importlib.import_module("fbgemm_gpu.split_table_batched_embeddings_ops_common")
        kinds: Any = importlib.import_module("fbgemm_gpu.split_embedding_configs").SparseType
        kind = kinds.INT8 if shape.bits == 8 else kinds.INT4
        location = common.EmbeddingLocation.HOST
        self.module = inference.IntNBitTableBatchedEmbeddingBagsCodegen(
            [(str(n), shape.rows, shape.columns, kind, location) for n in range(shape.tables)],
            device="cpu",
            output_dtype=kinds.FP32,
        )
        self.module.fill_random_weights()
        for (codes, scales), rows in zip(self.module.split_embedding_weights(), tables, strict=True):
            codes.copy_(torch.from_numpy(rows.codes))
            scales.copy_(torch.from_numpy(rows.scales))
        self.ids = [torch.from_numpy(batch.reshape(-1).astype(np.int32)) for batch in ids]
        self.offsets = torch.arange(shape.tables * shape.bags + 1, dtype=torch.int32) * shape.ids_per_bag
        self.unchecked = common.BoundsCheckMode.NONE.value
        self.checked = self.module.bounds_check_mode_int

    def by_module(self, batch: int) -> torch.Tensor:
        """Pooled rows [bags, tables * D]."""
        pooled: torch.Tensor = self.module(self.ids[batch], self.offsets)
        return pooled

    def without_check(self, batch: int) -> torch.Tensor:
        """The same without the check of ids."""
        self.module.bounds_check_mode_int = self.unchecked
        pooled = self.by_module(batch)
        self.module.bounds_check_mode_int = self.checked
        return pooled


def check(
    shape: Shape, tables: Sequence[Rows], ids: npt.NDArray[np.int64], ours: Ours
) -> npt.NDArray[np.float32]:
    """Our output [tables, bags, D], compared with the definition in double precision."""
    found = ours(0).reshape(shape.tables, shape.bags, shape.columns)
    for number, rows in enumerate(tables):
        weights = rows.plain(ids[0, number], shape.bits).reshape(shape.bags, shape.ids_per_bag, -1)
        np.testing.assert_allclose(found[number], weights.sum(axis=1), rtol=2e-5, atol=2e-5)
    return found


def measure(shape: Shape, settings: argparse.Namespace) -> Section:
    rng = np.random.default_rng(1)
    tables = [draw_rows(shape, rng) for _ in range(shape.tables)]
    ids = rng.integers(0, shape.rows, (_BATCHES, shape.tables, shape.bags * shape.ids_per_bag))
    ours = Ours(shape, tables, ids)
    found = check(shape, tables, ids, ours)
    sides: dict[str, Callable[[int], object]] = {OURS: ours}
    if not settings.without_fbgemm:
        fbgemm = Fbgemm(shape, tables, ids)
        theirs = fbgemm.by_module(0).numpy().reshape(shape.bags, shape.tables, shape.columns)
        np.testing.assert_allclose(found.transpose(1, 0, 2), theirs, rtol=2e-5, atol=2e-5)
        sides |= {MODULE: fbgemm.by_module, UNCHECKED: fbgemm.without_check}
    section = Section(name=shape.name, title=shape.name, parameters=dataclasses.asdict(shape))
    cycles = {name: _cycles(side, settings.seconds) for name, side in sides.items()}
    runs = alternate({name: _timed(side, cycles[name]) for name, side in sides.items()}, settings.repeats)
    section.add_sides("gather, dequantise and pool", runs)
    for name in sides:
        if name != OURS:
            per_batch = wall_ratios(
                {side: [_one(run) for run in timed] for side, timed in runs.items()}, OURS, name
            )
            section.targets.append(Target(what=f"{name} over tiermem", measured=per_batch, bound=LEAST))
    nanoseconds = sorted(_one(run).wall_s * 1e9 / shape.ids for run in runs[OURS])
    section.notes.append(f"tiermem: {nanoseconds[len(nanoseconds) // 2]:.1f} ns a row.")
    return section


def _one(run: Timed) -> Timed:
    """A batch of a repetition, on average."""
    return Timed(run.wall_s / run.batches, run.cpu_s / run.batches, 1)


def _cycles(side: Callable[[int], object], seconds: float) -> int:
    """Passes over all batches that take so long."""
    began = time.perf_counter()
    for batch in range(_BATCHES):
        side(batch)
    return max(1, round(seconds / (time.perf_counter() - began)))


def _timed(side: Callable[[int], object], cycles: int) -> Callable[[int], Timed]:
    def run(_repetition: int) -> Timed:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(cycles):
            for batch in range(_BATCHES):
                side(batch)
        return Timed(time.perf_counter() - wall, time.process_time() - cpu, cycles * _BATCHES)

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3, help="least time of a repetition of a side")
    parser.add_argument(
        "--small", action="store_true", help="small tables and few repetitions, to see that it runs"
    )
    parser.add_argument("--without-fbgemm", action="store_true", help="tiermem alone, beside the definition")
    parser.add_argument("--json", help="write one JSON object")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    shapes = list(SHAPES)
    if settings.small:
        settings.repeats, settings.seconds = 2, 0.0
        shapes = [
            Shape(name=f"int{bits} x {columns}", bits=bits, rows=500, columns=columns, tables=2, bags=7)
            for bits in (8, 4)
            for columns in (16, 64, 100)
        ]
    sections = [measure(shape, settings) for shape in shapes]
    document = {
        "bench": "compare_serving",
        "sections": {section.name: section.document() for section in sections},
        "build_profile": _core.BUILD_PROFILE,
        "host": host(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }
    for section in sections:
        print("\n".join(section.lines()))
    if settings.json is not None:
        write_text(Path(settings.json), json.dumps(canonical(document), indent=1) + "\n")
    return 0 if all(target.met for section in sections for target in section.targets) or settings.small else 1


if __name__ == "__main__":
    raise SystemExit(main())
