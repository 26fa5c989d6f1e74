"""The tables of an engine as they are stored, and the form of a configuration that the extension reads."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from tiermem.config import ModelConfig, ServeConfig, ServePlacement, ServeRowType
from tiermem.config.serve import DEVICE_PLACEMENTS
from tiermem.errors import ConfigError

__all__ = [
    "DenseLayers",
    "ServedModel",
    "ServedTable",
    "budget_bytes",
    "core_config",
    "imagined_model",
    "row_bytes",
]

_DENSE_FEATURES = 13
"""Of an imagined model that says nothing else: those of the Criteo data sets."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ServedTable:
    """One table."""

    name: str
    ids: int
    """Ids are below it."""
    rows: int
    """Rows that were not pruned."""
    columns: int
    row_type: ServeRowType
    """How its rows are stored."""
    is_user: bool
    """Whether a query has one list of it."""
    placement: ServePlacement
    ids_per_list: int = 1
    """Mean length of a generated list."""
    exponent: float = 1.0
    """Skew of a generated list's rows."""

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.rows * row_bytes(self.row_type, self.columns)

    def loaded(self, config: ServeConfig) -> "ServedTable":
        """The table after what `load_time` asks for, which is for tables on the device alone."""
        if self.placement not in DEVICE_PLACEMENTS:
            return self
        changes: dict[str, Any] = {}
        if config.load_time.deprune:
            changes["rows"] = self.ids
        if config.load_time.dequantise:
            changes["row_type"] = "fp32"
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DenseLayers:
    """The dense layers of a model, for what they cost."""

    model: ModelConfig
    dense_features: int
    sparse_features: int
    """Pooled rows of a sample that they get, wherever those were looked up."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """What an engine in virtual time serves."""

    tables: tuple[ServedTable, ...]
    dense: DenseLayers | None
    """`None`: it looks up rows and nothing else."""

    def with_tables(self, tables: Sequence[ServedTable]) -> "ServedModel":
        """The same layers over other tables."""
        return dataclasses.replace(self, tables=tuple(tables))


def row_bytes(row_type: ServeRowType, columns: int) -> int:
    """Bytes of a stored row; of codes with their scale and bias."""
    match row_type:
        case "fp32":
            return 4 * columns
        case "fp16" | "bf16":
            return 2 * columns
        case "int8":
            return columns + 8
        case "int8_fp16":
            return columns + 4
        case "int4":
            return math.ceil(columns / 2) + 4


def imagined_model(config: ServeConfig) -> ServedModel:
    """What a configuration without a model imagines."""
    tables = tuple(
        ServedTable(
            name=name,
            ids=kind.rows,
            rows=max(1, round(kind.rows * (1 - kind.pruned_share))),
            columns=kind.columns,
            row_type=kind.row_type,
            is_user=kind.side == "user",
            placement=config.placement_of(name, kind.name, is_user=kind.side == "user"),
            ids_per_list=kind.ids_per_list,
            exponent=kind.exponent,
        )
        for kind in config.tables
        for name in kind.names
    )
    dense = DenseLayers(
        model=config.dense or ModelConfig(),
        dense_features=_DENSE_FEATURES if config.dense_features is None else config.dense_features,
        sparse_features=len(tables),
    )
    return ServedModel(tables=tables, dense=dense)


def budget_bytes(config: ServeConfig, tables: Sequence[ServedTable]) -> int:
    """The memory of an engine.

    A share is of the bytes of all rows that were not pruned, as they are before `load_time` changes them.
    """
    budget = config.memory.budget
    if isinstance(budget, float):
        return math.ceil(budget * sum(table.nbytes for table in tables))
    return budget


def core_config(config: ServeConfig, tables: Sequence[ServedTable]) -> dict[str, Any]:
    """What decides what is read from where, as the extension reads it."""
    if not tables:
        raise ConfigError("an engine needs at least one table")
    device, memory = config.device, config.memory
    loaded = [table.loaded(config) for table in tables]
    return {
        "tables": [
            {
                "name": table.name,
                "ids": table.ids,
                "rows": table.rows,
                "columns": table.columns,
                "row_type": table.row_type,
                "placement": table.placement,
            }
            for table in loaded
        ],
        "device": {
            "spec": device.effective_spec().model_dump(mode="json", exclude={"published"}),
            "replicas": device.replicas,
            "block_bytes": device.effective_block_bytes,
            "is_sub_block": device.sub_block,
            "limits": {"per_table": device.reads_per_table_max, "total": device.reads_max},
            "hedge_after_ns": device.hedge_after,
        },
        "memory": {
            "total_bytes": budget_bytes(config, tables),
            "pooled_share": memory.pooled_share,
            "update_bytes": memory.updates,
            "dense_row_bytes_max": memory.dense_row_bytes_max,
            "policy": memory.policy,
            "pooled_ids_min": memory.pooled_ids_min,
            "pooled_match": memory.pooled_match,
        },
    }
