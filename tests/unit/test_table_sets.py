"""Table sets: the published totals come out, and a wrong file ends in one sentence that names the place."""

import csv
import math
import re
from importlib import resources
from pathlib import Path

import pytest
from tiermem.config import TableEntry, TableSet, available
from tiermem.config.tables import ROWS_MAX, TABLES_MAX
from tiermem.errors import ConfigError

HEAD = """
name = "mine"
description = "made for a test"

[source]
kind = "assumed"
ref = "nobody/nothing, README"
date = "2026-11-24"
"""
GROUP = """
[[tables]]
rows = [10, 20, 30]
dim = 4
pooling = [1, 2, 1.5]
row_dtype = "fp32"
"""
CSV_GROUP = """
[[tables]]
csv = "mine.csv"
row_dtype = "fp16"
"""
CSV = "name,rows,dim,pooling\na,10,4,1.5\nb,20,8,0.0\n"


def _file(folder: Path, text: str, table: str | None = CSV) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    if table is not None:
        (folder / "mine.csv").write_text(table)
    return path


def _refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        TableSet.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Totals as the sources print them or as their own numbers give them, worked out apart from the files.
@pytest.mark.parametrize(
    ("name", "tables", "rows", "lookups"),
    [
        ("criteo-kaggle", 26, 33_762_577, 26),
        ("mlperf-dlrm-v1", 26, 187_767_399, 26),
        ("mlperf-dlrm-v2", 26, 204_184_588, 214),
        ("deeprecsys-rm1", 8, 32_000_000, 640),
        ("deeprecsys-rm2", 32, 16_000_000, 3_840),
        ("deeprecsys-rm3", 10, 20_000_000, 200),
        ("meta-dlrm-a", 4_096, 8_519_680_000, 61_440),
        ("meta-dlrm-f", 64, 46_848_000_000, 1_280),
        ("meta-dlrm-i", 512, 3_609_600_000, 35_840),
        ("torchrec-1935", 1_935, 2_609_057_181, 47_710.319),
    ],
)
def test_tables_rows_and_lookups_are_those_that_were_published(
    name: str, tables: int, rows: int, lookups: float
) -> None:
    loaded = TableSet.load(name)
    assert len(loaded.tables) == tables
    assert loaded.rows_total == rows
    assert loaded.lookups_per_sample == pytest.approx(lookups, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "unit", "size"),
    [
        ("criteo-kaggle", 2**30, 2.01),
        ("mlperf-dlrm-v1", 10**9, 96.14),
        ("mlperf-dlrm-v2", 10**9, 104.54),
        ("mlperf-dlrm-v2", 2**30, 97.36),
        ("deeprecsys-rm1", 2**30, 3.81),
        ("deeprecsys-rm2", 2**30, 3.81),
        ("deeprecsys-rm3", 2**30, 2.38),
        ("meta-dlrm-a", 10**12, 1.60),
        ("meta-dlrm-f", 10**12, 23.99),
        ("meta-dlrm-i", 10**12, 0.66),
        # 25 M rows of 64 columns take 3.027 GiB of the plan with row-wise state, so 2 bytes per value.
        ("torchrec-1935", 10**9, 651.48),
    ],
)
def test_sizes_are_those_that_were_published(name: str, unit: int, size: float) -> None:
    assert round(TableSet.load(name).bytes_total / unit, 2) == size


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlperf-dlrm-v2", 109_568),
        ("deeprecsys-rm1", 81_920),
        ("deeprecsys-rm2", 983_040),
        ("deeprecsys-rm3", 25_600),
        ("meta-dlrm-a", 11_550_720),
        ("meta-dlrm-f", 655_360),
        ("meta-dlrm-i", 6_594_560),
    ],
)
def test_bytes_per_sample(name: str, expected: int) -> None:
    assert TableSet.load(name).bytes_per_sample == expected


def test_the_tables_of_the_sharding_plan_are_those_of_its_csv() -> None:
    folder = Path(str(resources.files("tiermem"))) / "emulator_configs" / "tables"
    with (folder / "torchrec-1935.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 1_935
    assert len(lines[0]) == 12
    tables = TableSet.load("torchrec-1935").tables
    assert sum(entry.rows * entry.dim for entry in tables) == 325_738_432_764
    pooled = [entry.pooling for entry, line in zip(tables, lines, strict=True) if line["output"] == "pooled"]
    assert len(pooled) == 1_933
    assert math.fsum(pooled) == pytest.approx(32_545.319, rel=1e-9)
    assert sum(pooling == 0 for pooling in pooled) == 35
    by_name = {entry.name: entry for entry in tables}
    assert by_name["table_1705"].pooling == 6_066
    assert by_name["table_1706"].pooling == 9_099
    # The plan has two tables of this name.
    assert (by_name["table_1750"].rows, by_name["table_1750.2"].rows) == (15_000_000, 94)
    assert "BSD-3-Clause" in (folder / "SOURCES.txt").read_text()


def test_the_sets_that_are_documented_are_there() -> None:
    assert set(available("tables")) == {
        "criteo-kaggle", "deeprecsys-rm1", "deeprecsys-rm2", "deeprecsys-rm3", "meta-dlrm-a", "meta-dlrm-f",
        "meta-dlrm-i", "mlperf-dlrm-v1", "mlperf-dlrm-v2", "torchrec-1935",
    }  # fmt: skip


@pytest.mark.parametrize("name", available("tables"))
def test_every_set_names_the_file_of_a_repository_as_its_source(name: str) -> None:
    loaded = TableSet.load(name)
    assert loaded.name == name
    assert loaded.description
    assert loaded.source.kind == "published"
    assert re.match(r"[\w-]+/[\w-]+ at [0-9a-f]{7}, [\w/.-]+\.\w+", loaded.source.ref)
    assert TableSet.from_mapping(loaded.model_dump()) == loaded


@pytest.mark.parametrize("name", available("tables"))
def test_scaling_divides_rows_and_keeps_lookups(name: str) -> None:
    loaded = TableSet.load(name)
    scaled = loaded.scaled(1_000)
    assert scaled.name == f"{name}-div1000"
    assert scaled.source == loaded.source
    assert scaled.lookups_per_sample == loaded.lookups_per_sample
    assert scaled.bytes_per_sample == loaded.bytes_per_sample
    for small, large in zip(scaled.tables, loaded.tables, strict=True):
        assert small.rows == max(1, large.rows // 1_000)
        assert small == large.replace(rows=small.rows)
    assert loaded.scaled(1) is loaded


def test_a_divisor_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="rows_divisor must be >= 1, got 0; 1 keeps all rows"):
        TableSet.load("criteo-kaggle").scaled(0)


def test_groups_are_repeated_and_their_tables_numbered_through_the_set(tmp_path: Path) -> None:
    again = GROUP.replace("dim = 4", 'dim = [4, 8, 16]\ncount = 2\nname = "user"')
    loaded = TableSet.load(_file(tmp_path, HEAD + GROUP + again + CSV_GROUP))
    assert [entry.name for entry in loaded.tables] == [
        "table_0", "table_1", "table_2", "user_3", "user_4", "user_5", "user_6", "user_7", "user_8", "a", "b",
    ]  # fmt: skip
    assert [entry.rows for entry in loaded.tables] == [10, 20, 30] * 3 + [10, 20]
    assert [entry.row_bytes for entry in loaded.tables] == [16] * 3 + [16, 32, 64] * 2 + [8, 16]
    assert [entry.pooling for entry in loaded.tables] == [1, 2, 1.5] * 3 + [1.5, 0]


def test_an_entry_is_frozen() -> None:
    entry = TableEntry(name="a", rows=1, dim=1, pooling=1, row_dtype="bf16")
    with pytest.raises(ValueError, match="frozen"):
        entry.rows = 2
    assert entry.row_bytes == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "[10, 20, 30]",
            "[10, 0, 30]",
            "mine.toml: tables.0.rows.1: input should be greater than or equal to 1",
        ),
        (
            "[10, 20, 30]",
            f"{ROWS_MAX + 1}",
            "tables.0.rows.0: input should be less than or equal to 10995116",
        ),
        ("[10, 20, 30]", "[10, 20.5, 30]", "tables.0.rows.1: input should be a valid integer (got 20.5)"),
        ("[10, 20, 30]", "[]", "tables.0.rows: value should have at least 1 item"),
        (
            "[10, 20, 30]",
            "[10, 20]",
            "tables.0: rows has 2 values and pooling has 3; write one value per table, or a single one",
        ),
        ("dim = 4", "dim = [4, 8]", "tables.0: dim has 2 values and rows has 3; write one value per table"),
        ("dim = 4", "dim = 0", "tables.0.dim.0: input should be greater than or equal to 1 (got 0)"),
        ("dim = 4\n", "", 'missing key "tables.0.dim"'),
        ("1.5]", "0]", "tables.0.pooling.2: input should be greater than 0 (got 0)"),
        ("1.5]", "nan]", "tables.0.pooling.2: input should be a finite number"),
        ("1.5]", "-1.0]", "tables.0.pooling.2: input should be greater than 0 (got -1.0)"),
        ("pooling =", "poolin =", 'unknown key "tables.0.poolin"; did you mean "pooling"?'),
        ('"fp32"', '"fp31"', "tables.0.row_dtype: input should be 'fp32', 'fp16' or 'bf16' (got 'fp31')"),
        ("dim = 4", "dim = 4\ncount = 0", "tables.0.count: input should be greater than or equal to 1"),
        ("dim = 4", f"dim = 4\ncount = {TABLES_MAX}", f"tables.0: count {TABLES_MAX} makes more than"),
        ('kind = "assumed"', 'kind = "hearsay"', "source.kind: input should be 'published'"),
        ('date = "2026-11-24"', 'date = "yesterday"', "source.date: string should match pattern"),
        ('name = "mine"', 'nam = "mine"', 'unknown key "nam"; did you mean "name"?'),
        (GROUP, "", 'missing key "tables"'),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = HEAD + GROUP
    assert text.count(old) == 1
    refusal = _refusal(_file(tmp_path, text.replace(old, new)))
    assert message in refusal
    assert "mine.toml" in refusal


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name,rows", "nam,rows", 'mine.csv has no column "name"; it has nam, rows, dim, pooling'),
        (",dim,", ",emb_dim,", 'mine.csv has no column "dim"; it has name, rows, emb_dim, pooling'),
        (CSV, "", 'mine.csv has no column "name"'),
        ("b,20,8", "b,2e1,8", "mine.csv, line 3: rows must be an integer, got '2e1'"),
        ("b,20,8", "b,20,8.5", "mine.csv, line 3: dim must be an integer, got '8.5'"),
        ("b,20,8,0.0", "b,20,8,few", "mine.csv, line 3: pooling must be a number, got 'few'"),
        ("b,20,8,0.0", "b,20,8,nan", "mine.csv, line 3: pooling: input should be a finite number"),
        ("b,20,8,0.0", "b,20,8,-1", "mine.csv, line 3: pooling: input should be greater than or equal to 0"),
        ("a,10", "a,0", "mine.csv, line 2: rows: input should be greater than or equal to 1 (got 0)"),
        ("b,20,8,0.0", "b,20", "mine.csv, line 3: must have 4 values, as the first line has"),
        ("b,20,8,0.0", "b,20,8,0.0,7", "mine.csv, line 3: must have 4 values, as the first line has"),
        ("b,20,8,0.0", '"b,20', "mine.csv is not valid CSV: unexpected end of data"),
        ("a,10,4,1.5\nb,20,8,0.0\n", "", "mine.toml: tables: tuple should have at least 1 item"),
        ("a,10", "b.2,10", ""),
    ],
)
def test_a_wrong_csv_file_is_refused_with_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert CSV.count(old) == 1
    table = CSV.replace(old, new)
    if not message:
        table += "b,1,1,1\n"
        message = 'mine.toml: table names must differ, but 2 tables are called "b.2"; rename them'
    assert message in _refusal(_file(tmp_path, HEAD + CSV_GROUP, table))


def test_a_csv_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    path = _file(tmp_path, HEAD + CSV_GROUP, None)
    assert re.search(r"cannot read .*mine\.csv: No such file", _refusal(path))
    (tmp_path / "mine.csv").write_bytes(CSV.encode("utf-16"))
    assert re.search(r"mine\.csv is not UTF-8 text", _refusal(path))


def test_a_wrong_key_beside_a_csv_file(tmp_path: Path) -> None:
    assert 'unknown key "tables.0.rows"' in _refusal(_file(tmp_path, HEAD + CSV_GROUP + "rows = 1\n"))
    text = HEAD + CSV_GROUP + 'columns = { dims = "emb_dim" }\n'
    assert 'unknown key "tables.0.columns.dims"; did you mean "dim"?' in _refusal(_file(tmp_path, text))


def test_columns_may_have_other_names_and_files_a_byte_order_mark(tmp_path: Path) -> None:
    text = HEAD + CSV_GROUP + 'columns = { name = "table", dim = "emb_dim" }\n'
    table = "\ufefftable,emb_dim,more,rows,pooling\na,4,x,10,1.5\na,8,y,20,2\n"
    tables = TableSet.load(_file(tmp_path, text, table)).tables
    assert [(each.name, each.rows, each.dim, each.pooling) for each in tables] == [
        ("a", 10, 4, 1.5),
        ("a.2", 20, 8, 2.0),
    ]


def test_a_name_that_is_no_set_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'"criteo-kagle" is not one of the tables .*"criteo-kaggle"\?'):
        TableSet.load("criteo-kagle")
    with pytest.raises(ConfigError, match="there is no file"):
        TableSet.load(tmp_path / "nothing.toml")
