"""The tables of an engine as they are stored, and the form of a configuration that the extension reads."""

import dataclasses
import math
from typing import Any

from tiermem.config import ServeConfig, ServePlacement, ServeRowType
from tiermem.config.serve import DEVICE_PLACEMENTS
from tiermem.errors import ConfigError

__all__ = ["ServedTable", "budget_bytes", "core_config", "imagined_tables", "row_bytes"]


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


def imagined_tables(config: ServeConfig) -> list[ServedTable]:
    """The tables of a configuration without a model."""
    tables: list[ServedTable] = []
    for kind in config.tables:
        is_user = kind.side == "user"
        first = ServedTable(
            name=kind.name,
            ids=kind.rows,
            rows=max(1, round(kind.rows * (1 - kind.pruned_share))),
            columns=kind.columns,
            row_type=kind.row_type,
            is_user=is_user,
            placement=config.placement_of(kind.name, is_user=is_user),
            ids_per_list=kind.ids_per_list,
            exponent=kind.exponent,
        )
        names = [kind.name] if kind.count == 1 else [f"{kind.name}-{n}" for n in range(kind.count)]
        tables += [dataclasses.replace(first, name=name) for name in names]
    return tables


def budget_bytes(config: ServeConfig, tables: list[ServedTable]) -> int:
    """The memory of an engine.

    A share is of the bytes of all rows that were not pruned, as they are before `load_time` changes them.
    """
    budget = config.memory.budget
    if isinstance(budget, float):
        return math.ceil(budget * sum(table.nbytes for table in tables))
    return budget


def core_config(config: ServeConfig, tables: list[ServedTable]) -> dict[str, Any]:
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
