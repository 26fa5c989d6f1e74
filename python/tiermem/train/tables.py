"""The tables of a model."""

from collections.abc import Iterable

from tiermem.config import ModelConfig
from tiermem.embedding import TableConfig

__all__ = ["table_configs"]


def table_configs(model: ModelConfig, tables: Iterable[tuple[str, int]]) -> list[TableConfig]:
    """One table for each (name, rows), with the columns, the row type and the rounding of the model."""
    return [
        TableConfig(name=name, rows=rows, dim=model.dim, row_type=model.row_type, rounding=model.rounding)
        for name, rows in tables
    ]
