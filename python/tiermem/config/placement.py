"""Where each table, or a range of its rows, lives: a plan file, or built in code."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tiermem.config.base import Config, load_toml
from tiermem.config.hierarchy import Hierarchy
from tiermem.errors import ConfigError

__all__ = ["Placement", "PlacementSource", "TablePlacement"]


class TablePlacement(Config):
    """One table, or a range of its rows."""

    table: str
    """Name of the table."""
    rows: tuple[int, int] | None = None
    """First row, and the row behind the last; `None`: the whole table."""
    home: str
    """Tier where the rows live; in the fastest tier they are resident."""
    cached_by: tuple[str, ...] | None = None
    """Tiers above the home that cache the rows; `None`: all of them that have a cache budget."""
    caching: Literal["inclusive", "exclusive"] = "inclusive"
    """`exclusive`: a row is in one row-holding tier at a time; a tier of blocks gets written ones only."""
    table_rows: int | None = Field(default=None, gt=0)
    """Rows that the table has, to notice a plan for another one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rows is not None and not 0 <= self.rows[0] < self.rows[1]:
            raise ValueError(f"a range of rows is [first, behind the last], got {list(self.rows)}")
        return self


class Placement(Config):
    """Where tables live. Tables that it does not name live in the slowest tier, cached by all others.

    Example:
        >>> placement = Placement.from_mapping({
        ...     "tables": [
        ...         {"table": "item", "rows": [0, 100], "home": "dram"},
        ...         {"table": "item", "rows": [100, 1000], "home": "nand"},
        ...     ]
        ... })
        >>> [part.home for part in placement.tables]
        ['dram', 'nand']
    """

    description: str = ""
    """What it is, for people."""
    tables: tuple[TablePlacement, ...] = ()
    """Tables and ranges; those of one table follow one another without gaps."""

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """A placement file, or the placement of a plan that `tiermem plan` wrote.

        Raises:
            ConfigError: names the file, the key, and what is wrong.
        """
        found = Path(path)
        values = load_toml(found)
        return cls.from_mapping(values.get("placement", values), where=found.name)

    def core(self, tables: Sequence[tuple[str, int]], hierarchy: Hierarchy) -> list[dict[str, Any]]:
        """The parts of a store's tables, given as (name, rows), in the form that the extension reads.

        Raises:
            ConfigError: if the placement is for other tables or tiers; names them.
        """
        numbers = {name: number for number, (name, _) in enumerate(tables)}
        if len(numbers) != len(tables):
            raise ConfigError("a placement goes by the names of tables, and two tables have the same name")
        by_table: dict[str, list[TablePlacement]] = {name: [] for name, _ in tables}
        for part in self.tables:
            if part.table not in by_table:
                raise ConfigError(
                    f'the placement is for a table "{part.table}", which is not here;'
                    f" tables: {_some(by_table)}"
                )
            by_table[part.table].append(part)
        default = TablePlacement(table="", home=hierarchy.tiers[-1].name)
        return [
            _core_part(part, numbers[name], rows, hierarchy)
            for name, rows in tables
            for part in by_table[name] or [default]
        ]


def _core_part(part: TablePlacement, number: int, rows: int, hierarchy: Hierarchy) -> dict[str, Any]:
    if part.table_rows not in (None, rows):
        raise ConfigError(
            f'the placement is for a table "{part.table}" of {part.table_rows} rows; this one has {rows}'
        )
    if part.rows is not None and part.rows[1] > rows:
        raise ConfigError(f'table "{part.table}" has {rows} rows; the placement goes to row {part.rows[1]}')
    tiers = {tier.name: position for position, tier in enumerate(hierarchy.tiers)}
    for name in (part.home, *(part.cached_by or ())):
        if name not in tiers:
            raise ConfigError(
                f'the placement of table "{part.table}" names a tier "{name}"; tiers: {", ".join(tiers)}'
            )
    home = tiers[part.home]
    cached_by = [
        position
        for position, tier in enumerate(hierarchy.tiers[:home])
        if (tier.cache is not None if part.cached_by is None else tier.name in part.cached_by)
    ]
    for name in part.cached_by or ():
        if tiers[name] not in cached_by or hierarchy.tiers[tiers[name]].cache is None:
            raise ConfigError(
                f'tier "{name}" cannot cache table "{part.table}": it is not above its home "{part.home}",'
                " or has no cache budget"
            )
    first, end = part.rows or (0, rows)
    return {
        "table": number,
        "first_row": first,
        "rows": end - first,
        "home": home,
        "cached_by": cached_by,
        "exclusive": part.caching == "exclusive",
    }


def _some(names: dict[str, Any], most: int = 8) -> str:
    listed = list(names)
    more = f", and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def _placement(value: object) -> object:
    return Placement.load(value) if isinstance(value, str | os.PathLike) else value


PlacementSource = Annotated[Placement, BeforeValidator(_placement)]
"""A `Placement`, its contents, or the path of a plan file."""
