"""A small model, trained and exported, and engines on it, for the tests of serving."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiermem.checkpoint import ExportedModel, TableHeader, write_table
from tiermem.config import ModelConfig, ServeConfig
from tiermem.models import DenseParts
from tiermem.serve.engine import Engine, Query

ROWS = (400, 300, 200, 100)
NAMES = ("user_id", "user_history", "item_id", "item_tags")
USERS = NAMES[:2]
DIM, INPUTS = 16, 3
MODEL = ModelConfig(dim=DIM, dense_layers=(8,), over_layers=(12,))


def weights(seed: int) -> list[torch.Tensor]:
    """Rows of each table, float32 [rows, D]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, DIM, generator=generator) for rows in ROWS]


def dense_parts(seed: int) -> DenseParts:
    torch.manual_seed(seed)
    return DenseParts(MODEL, dense_features=INPUTS, sparse_features=len(ROWS)).eval()


def export(folder: Path, seed: int, *, step: int = 7) -> Path:
    """Writes a model as `tiermem export` does."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, (name, rows) in enumerate(zip(NAMES, weights(seed), strict=True)):
        header = TableHeader(name=name, rows=len(rows), dim=DIM, step=step, experiment_hash="a" * 64)
        files.append(f"{number:03d}-{name}.tmtable")
        write_table(folder / files[-1], header, [rows.numpy()])
    exported = ExportedModel(
        folder=folder, step=step, experiment_hash="a" * 64, model=MODEL, batch_size=32, tables=tuple(files)
    )
    exported.write({name: value.detach() for name, value in dense_parts(seed).named_parameters()})
    return folder


def serve_config(path: Path, **changes: Any) -> ServeConfig:
    """An engine on an Optane SSD with room for the item tables and some rows; keys are `part__key`."""
    values: dict[str, Any] = {
        "model": {"path": str(path), "user_tables": list(USERS)},
        "device": {"spec": "optane-p5800x", "reads_max": 32},
        "memory": {"budget": 90_000, "pooled_ids_min": 3, "updates": 16_384},
        "load": {"sla_ms": 5.0, "warm_up_queries": 200, "measured_queries": 200},
    }
    for name, value in changes.items():
        *parts, key = name.split("__")
        place = values
        for part in parts:
            place = place.setdefault(part, {})
        place[key] = value
    return ServeConfig.from_mapping(values)


def open_engine(path: Path, **changes: Any) -> Engine:
    return Engine(serve_config(path, **changes))


def query(seed: int, candidates: int = 5) -> Query:
    """Skewed ids, so that rows and lists come again; bags may be empty."""
    rng = np.random.default_rng(seed)
    sparse = []
    for name, rows in zip(NAMES, ROWS, strict=True):
        bags = 1 if name in USERS else candidates
        lengths = rng.integers(0, 6, bags)
        ids = (rows * rng.random(lengths.sum()) ** 3).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        sparse.append((torch.from_numpy(ids), torch.from_numpy(offsets)))
    return Query(torch.from_numpy(rng.standard_normal(INPUTS).astype(np.float32)), sparse)


def plain_pooled(query: Query, tables: list[torch.Tensor]) -> list[torch.Tensor]:
    """Bags added one row after the other in float32, as training adds them."""
    pooled = []
    for (ids, offsets), rows in zip(query.sparse, tables, strict=True):
        ends = [*offsets.tolist()[1:], len(ids)]
        bags = torch.zeros(len(offsets), DIM)
        for bag, (start, end) in enumerate(zip(offsets.tolist(), ends, strict=True)):
            for row in ids[start:end].tolist():
                bags[bag] += rows[row]
        pooled.append(bags)
    return pooled


def plain_logits(query: Query, tables: list[torch.Tensor], dense: DenseParts) -> torch.Tensor:
    """What torch alone makes of a query."""
    candidates = len(query.sparse[-1][1])
    pooled = [bags.expand(candidates, -1) if len(bags) == 1 else bags for bags in plain_pooled(query, tables)]
    with torch.inference_mode():
        vector = dense.lower(query.dense.unsqueeze(0)).expand(candidates, -1)
        return dense.upper(vector, torch.stack(pooled, dim=1))
