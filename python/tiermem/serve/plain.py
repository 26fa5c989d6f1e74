"""What torch alone makes of a query, with all rows in memory: what an engine's answers are compared with."""

import torch
from torch.nn.functional import embedding_bag

from tiermem.serve.engine import Query
from tiermem.serve.model import Model

__all__ = ["PlainModel"]


class PlainModel:
    """A model without an engine. D = columns, C = candidates.

    Args:
        model: whose rows all go into memory, as float32.
    """

    def __init__(self, model: Model) -> None:
        self.dense = model.dense
        self.tables = []
        for file, index_map in zip(model.files, model.index_maps, strict=True):
            rows = torch.from_numpy(file.rows(range(len(file))))
            if index_map is not None:
                ids = torch.from_numpy(index_map.astype("int64"))
                rows = rows[ids.clamp(min=0)] * (ids >= 0).unsqueeze(1)
            self.tables.append(rows)

    def with_rows(self, table: int, ids: torch.Tensor, rows: torch.Tensor) -> "PlainModel":
        """A model with some rows of a table changed: ids int64 [n], rows float32 [n, D]."""
        changed = PlainModel.__new__(PlainModel)
        changed.dense = self.dense
        changed.tables = list(self.tables)
        changed.tables[table] = self.tables[table].index_copy(0, ids, rows)
        return changed

    @torch.inference_mode()
    def logits(self, query: Query) -> torch.Tensor:
        """Logits float32 [C]; sums of bags are torch's, so the last bits may differ from an engine's."""
        candidates = max(len(offsets) for _, offsets in query.sparse)
        pooled = []
        for (ids, offsets), rows in zip(query.sparse, self.tables, strict=True):
            bags = embedding_bag(ids, rows, offsets, mode="sum")
            pooled.append(bags.expand(candidates, -1) if len(bags) == 1 else bags)
        dense = query.dense if query.dense.dim() == 2 else query.dense.unsqueeze(0)
        vector = self.dense.lower(dense).expand(candidates, -1)
        return self.dense.upper(vector, torch.stack(pooled, dim=1))
