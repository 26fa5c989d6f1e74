"""Tables of a record that count by table: which are shown, and what a reader is told of the others."""

from typing import Any

import pytest
from tiermem.report import Table, all_tables, summary_tables
from tiermem.report.table_counters import TABLES_MAX, table_counters
from tiermem.stats import TableStats, TableTierStats
from tiermem.train.run import table_results


def _tier(probed: int, hits: int, reads: int = 0) -> TableTierStats:
    return TableTierStats(
        probed_rows=probed,
        hit_rows=hits,
        asked_bytes=hits * 64,
        reads=reads,
        read_bytes=reads * 4096,
        writes=2 * reads,
        written_bytes=reads * 8192,
        media_bytes=reads * 16_384,
    )


def _table(name: str, asked: int) -> dict[str, Any]:
    stats = TableStats(
        name=name,
        asked_rows=asked,
        unique_rows=asked // 2,
        in_flight_hits=1,
        initialised_rows=3,
        rows_written_back=4,
        read_modify_writes=5,
        tiers=(_tier(1000, 250), _tier(750, 600, 700), _tier(0, 0)),
    )
    return table_results(stats, ["dram", "optane", "nand"])


def _record(*tables: dict[str, Any]) -> dict[str, Any]:
    return {"results": {"runs": {"run": {"store": {"tables": list(tables)}}}}}


def test_every_counter_has_its_column() -> None:
    rows, tiers = table_counters(_record(_table("item", 4000)))
    assert dict(zip(rows.heads, rows.rows[0], strict=True)) == {
        "run: table": "run: item",
        "asked": "4,000",
        "deduplicated": "2,000",
        "unique": "2,000",
        "in-flight hits": "1",
        "initialised": "3",
        "written back": "4",
        "read-modify-writes": "5",
    }
    assert [row[0] for row in tiers.rows] == ["run: item: dram", "run: item: optane", "run: item: nand"]
    assert dict(zip(tiers.heads, tiers.rows[1], strict=True)) == {
        "run: table: tier": "run: item: optane",
        "looked for": "750",
        "hits": "600",
        "conditional hit rate": "80.0%",
        "unconditional hit rate": "30.0%",
        "device reads": "700",
        "device writes": "1,400",
        "asked": "37.5 KiB",
        "moved": "8.2 MiB",
        "media": "10.9 MiB",
    }
    fastest = dict(zip(tiers.heads, tiers.rows[0], strict=True))
    assert (fastest["conditional hit rate"], fastest["unconditional hit rate"]) == ("25.0%", "12.5%")
    for head in ("device reads", "device writes", "moved", "media"):
        assert fastest[head] == "-", "the fastest tier counts no transfers by table"
    assert tiers.rows[2][3:5] == ("0.0%", "0.0%"), "nobody looked there"
    assert rows.note == tiers.note == ""


@pytest.mark.parametrize("more", [0, 1, 1480])
def test_the_busiest_are_shown_and_the_rest_counted(more: int) -> None:
    count = TABLES_MAX + more
    tables = [_table(f"t{number}", 10 * (number * 7919 % count) + 10) for number in range(count)]
    rows, tiers = table_counters(_record(*tables))
    assert len(rows.rows) == TABLES_MAX
    assert len(tiers.rows) == 3 * TABLES_MAX
    asked = [int(row[1].replace(",", "")) for row in rows.rows]
    assert asked == sorted((table["asked_rows"] for table in tables), reverse=True)[:TABLES_MAX]
    expected = f"Tables left out, as they have the fewest ids: run: {more:,} of {count:,}." if more else ""
    assert rows.note == tiers.note == expected


def test_records_from_before_tables_were_counted_still_read() -> None:
    record: dict[str, Any] = {"results": {"runs": {"run": {"store": {}}}}}
    assert table_counters(record) == []


def test_a_summary_has_no_row_for_each_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiermem.report.tables.summary_tables", lambda _: [Table("s", (), ())])
    assert [table.title for table in all_tables(_record(_table("item", 4)))] == [
        "s",
        "Tables: rows",
        "Tables: tiers",
    ]
    assert summary_tables is not all_tables
