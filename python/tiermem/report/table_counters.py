"""Tables of what the tables of a store did, on each tier. docs/metrics.md defines the columns."""

from collections.abc import Iterator, Mapping
from typing import Any

from tiermem.report.table import Table
from tiermem.units import format_bytes

__all__ = ["TABLES_MAX", "table_counters"]

TABLES_MAX = 20
"""So many tables of a run are shown, those with the most ids."""


def table_counters(record: Mapping[str, Any]) -> list[Table]:
    """Two tables for the busiest tables of every run: rows by table, and by table and tier.

    A record from before tables were counted gives none.
    """
    busiest, left_out = [], []
    for name, run in record["results"]["runs"].items():
        tables = run["store"].get("tables", [])
        shown = sorted(tables, key=lambda table: -table["asked_rows"])[:TABLES_MAX]
        busiest += [(f"{name}: {table['name']}", table) for table in shown]
        if len(tables) > len(shown):
            left_out.append(f"{name}: {len(tables) - len(shown):,} of {len(tables):,}")
    if not busiest:
        return []
    note = f"Tables left out, as they have the fewest ids: {'; '.join(left_out)}." if left_out else ""
    return [_rows(busiest, note), _tiers(busiest, note)]


def _rows(tables: list[tuple[str, Mapping[str, Any]]], note: str) -> Table:
    keys = {
        "asked": "asked_rows",
        "deduplicated": "deduplicated_rows",
        "unique": "unique_rows",
        "in-flight hits": "in_flight_hits",
        "initialised": "initialised_rows",
        "written back": "rows_written_back",
        "read-modify-writes": "read_modify_writes",
    }
    rows = tuple((name, *(f"{table[key]:,}" for key in keys.values())) for name, table in tables)
    return Table("Tables: rows", ("run: table", *keys), rows, note)


def _tiers(tables: list[tuple[str, Mapping[str, Any]]], note: str) -> Table:
    heads = (
        "run: table: tier",
        "looked for",
        "hits",
        "conditional hit rate",
        "unconditional hit rate",
        "device reads",
        "device writes",
        "asked",
        "moved",
        "media",
    )
    rows = tuple(row for name, table in tables for row in _tier_rows(name, table))
    return Table("Tables: tiers", heads, rows, note)


def _tier_rows(name: str, table: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for position, tier in enumerate(table["tiers"]):
        counts = [f"{tier['reads']:,}", f"{tier['writes']:,}"]
        moved, media = (
            format_bytes(tier["read_bytes"] + tier["written_bytes"]),
            format_bytes(tier["media_bytes"]),
        )
        if position == 0:
            # What the fastest tier moves is not counted by table.
            counts, moved, media = ["-", "-"], "-", "-"
        yield (
            f"{name}: {tier['name']}",
            f"{tier['probed_rows']:,}",
            f"{tier['hit_rows']:,}",
            f"{tier['conditional_hit_rate']:.1%}",
            f"{tier['unconditional_hit_rate']:.1%}",
            *counts,
            format_bytes(tier["asked_bytes"]),
            moved,
            media,
        )
