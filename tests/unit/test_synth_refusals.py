"""Generators that are not possible: one sentence each, and no file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiermem.config import SynthConfig
from tiermem.data.accesses import TraceTable, flat_bags
from tiermem.data.synth import synthesize
from tiermem.data.trace_file import TraceWriter
from tiermem.errors import ConfigError, CorruptionError, DeviceError, InputError, TiermemError

TABLE = {"name": "t", "rows": 10}
STATS = "emulator_configs/traces/meta-locality-stats-2021.txt"


def _refused(folder: Path, kind: type[TiermemError], call: Callable[[], object]) -> str:
    before = sorted(folder.iterdir())
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert sorted(folder.iterdir()) == before
    return str(caught.value)


def _config(law: dict[str, Any], **values: Any) -> SynthConfig:
    return SynthConfig.from_mapping(
        {"batches": 2, "bags_per_batch": 5, "tables": [TABLE], "law": law, **values}, where="my.toml"
    )


@pytest.mark.parametrize(
    ("law", "values", "message"),
    [
        ({"kind": "zipf"}, {"batchs": 1}, 'unknown key "batchs"; did you mean "batches"?'),
        ({"kind": "zipf", "skew": {"exponents": 1.0}}, {}, 'unknown key "law.skew.exponents"; did you'),
        ({"kind": "zipf", "once": 0.1}, {}, 'unknown key "law.once"'),
        ({"kind": "zipf", "skew": {"exponent": -0.5}}, {}, "law.skew.exponent: "),
        ({"kind": "zipf", "skew": {"exponent": float("inf")}}, {}, "law.skew.exponent: "),
        ({"kind": "zipf", "skew": {"heavy_hitters": [1.5]}}, {}, "law.skew.heavy_hitters"),
        ({"kind": "drift", "turnover": 1.5}, {}, "law.turnover: "),
        ({"kind": "session", "samples": 0.5}, {}, "law.samples: "),
        ({"kind": "ngram"}, {}, 'missing key "law.orders"'),
        ({"kind": "ngram", "orders": [0]}, {}, "law.orders"),
        ({"kind": "chance"}, {}, "law"),
        ({}, {}, "law"),
        ({"kind": "zipf"}, {"tables": []}, "give either tables or table_set"),
        ({"kind": "zipf"}, {"table_set": "mlperf-dlrm-v2"}, "give either tables or table_set"),
        ({"kind": "zipf"}, {"rows_divisor": 10}, "rows_divisor has an effect on a table_set only"),
        ({"kind": "zipf"}, {"batches": 0}, "batches: "),
        ({"kind": "zipf"}, {"bags_per_batch": 0}, "bags_per_batch: "),
        ({"kind": "zipf"}, {"bags_per_batch": 2**26 + 1}, "bags_per_batch: "),
        ({"kind": "zipf"}, {"seed": -1}, "seed: "),
        ({"kind": "zipf"}, {"tables": [{**TABLE, "pooling": -1.0}]}, "pooling: "),
        ({"kind": "zipf"}, {"tables": [{**TABLE, "rows": 0}]}, "rows: "),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_by_key(
    tmp_path: Path, law: dict[str, Any], values: dict[str, Any], message: str
) -> None:
    found = _refused(tmp_path, ConfigError, lambda: _config(law, **values))
    assert found.startswith("my.toml: ")
    assert message in found


@pytest.mark.parametrize(
    ("law", "values", "message"),
    [
        (
            {"kind": "ngram", "orders": [2, 3, 4]},
            {"tables": [TABLE, {**TABLE, "name": "u"}]},
            "law.orders has 3 values for 2 tables",
        ),
        ({"kind": "zipf", "skew": {"heavy_hitters": [0.7, 0.7]}}, {}, "add up to 1 at the most, not to 1.4"),
        ({"kind": "zipf"}, {"tables": [TABLE, TABLE]}, 'two tables are called "t"'),
        ({"kind": "zipf"}, {"tables": [{**TABLE, "row_bytes": 2**31}]}, f"have {2**31} bytes"),
        (
            {"kind": "zipf"},
            {"bags_per_batch": 2**26, "tables": [{**TABLE, "pooling": 64.0}]},
            "a pooling of 64",
        ),
        ({"kind": "zipf"}, {"tables": [], "table_set": "mlperf-dlrm-v3"}, "mlperf-dlrm-v3"),
    ],
)
def test_values_that_do_not_fit_each_other_make_no_file(
    tmp_path: Path, law: dict[str, Any], values: dict[str, Any], message: str
) -> None:
    found = _refused(tmp_path, ConfigError, lambda: synthesize(_config(law, **values), tmp_path / "t"))
    assert message in found


@pytest.mark.parametrize("part", [(0, 2), (3, 2), (-1, 1), (1, 0), (0, 0), (1, 3)])
def test_parts_that_there_are_not(tmp_path: Path, part: tuple[int, int]) -> None:
    config = _config({"kind": "zipf"})
    found = _refused(tmp_path, ConfigError, lambda: synthesize(config, tmp_path / "t", part=part))
    assert f"part {part[0]}/{part[1]} is not possible; 2 batches have from 1/1 to 2/2" in found


class TestReuse:
    def _law(self, stats: Path, entry: str = "fbgemm_t856_bs65536") -> dict[str, Any]:
        return {"kind": "reuse", "stats": str(stats), "entry": entry}

    def _refused(self, folder: Path, law: dict[str, Any], **values: Any) -> str:
        return _refused(folder, ConfigError, lambda: synthesize(_config(law, **values), folder / "t"))

    def test_a_file_of_statistics_that_is_missing_or_none(self, root: Path, tmp_path: Path) -> None:
        missing = tmp_path / "nothing.txt"
        assert f"cannot read {missing}: No such file" in self._refused(tmp_path, self._law(missing))
        other = tmp_path / "other.txt"
        other.write_text("nothing\n")
        assert "has no line with the name of a batch" in self._refused(tmp_path, self._law(other))
        text = (root / STATS).read_text()
        other.write_text(text.replace("(64, 128]: 0.005", "(64, 128]: many", 1))
        assert "line 1: fbgemm_t856_bs65536.pt lacks" in self._refused(tmp_path, self._law(other))
        other.write_bytes(b"\xff\xfe" * 100)
        assert "is not a text file" in self._refused(tmp_path, self._law(other))

    def test_a_batch_that_the_file_does_not_have(self, root: Path, tmp_path: Path) -> None:
        found = self._refused(tmp_path, self._law(root / STATS, "fbgemm_t1"))
        assert 'has no batch "fbgemm_t1"; it has fbgemm_t856_bs65536, ' in found

    def test_a_table_with_fewer_rows_than_the_lookups_go_to(self, root: Path, tmp_path: Path) -> None:
        # 10,000 lookups with a reuse of 6.9 go to some 1,450 rows; to more, as the hottest bins have none.
        law = self._law(root / STATS)
        found = self._refused(tmp_path, law, batches=10, bags_per_batch=1000)
        assert "but the table has 10" in found
        enough = _config(law, batches=10, bags_per_batch=1000, tables=[{**TABLE, "rows": 2200}])
        assert synthesize(enough, tmp_path / "t").ids == 10_000

    def test_bags_of_a_fraction(self, root: Path, tmp_path: Path) -> None:
        found = self._refused(tmp_path, self._law(root / STATS), tables=[{**TABLE, "pooling": 1.5}])
        assert 'table "t" has a pooling of 1.5; a histogram of reuse needs a whole number' in found

    def test_statistics_are_looked_for_beside_the_file_that_names_them(
        self, root: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "stats.txt").write_bytes((root / STATS).read_bytes())
        (tmp_path / "mine.toml").write_text(
            'batches = 2\nbags_per_batch = 100\ntables = [{ name = "t", rows = 1000 }]\n'
            '[law]\nkind = "reuse"\nstats = "stats.txt"\nentry = "fbgemm_t856_bs65536"\n'
        )
        assert synthesize(SynthConfig.load(tmp_path / "mine.toml"), tmp_path / "t").ids == 200


class TestStackDistance:
    def _refused(self, folder: Path, kind: type[TiermemError], like: Path, **values: Any) -> str:
        config = _config({"kind": "stack-distance", "like": str(like)}, **values)
        return _refused(folder, kind, lambda: synthesize(config, folder / "t"))

    def _like(self, path: Path, ids: list[int]) -> None:
        with TraceWriter(path, (TraceTable("t", 10),), origin="") as writer:
            writer.write((flat_bags(np.array(ids, dtype=np.int64)),))

    @pytest.mark.parametrize("tables", [[], [TABLE]])
    def test_the_other_trace_must_be_there_and_whole(
        self, tmp_path: Path, tables: list[dict[str, Any]]
    ) -> None:
        missing = self._refused(tmp_path, DeviceError, tmp_path / "nothing", tables=tables)
        assert str(tmp_path / "nothing") in missing
        (tmp_path / "other").write_bytes(b"nothing of the kind, whatever it may be")
        assert "not a trace" in self._refused(tmp_path, CorruptionError, tmp_path / "other", tables=tables)
        self._like(tmp_path / "cut", [1, 2, 3])
        (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-1])
        assert "offset=" in self._refused(tmp_path, CorruptionError, tmp_path / "cut", tables=tables)

    def test_tables_without_accesses_have_no_distances(self, tmp_path: Path) -> None:
        self._like(tmp_path / "empty", [])
        for tables in ([], [TABLE]):
            found = self._refused(tmp_path, InputError, tmp_path / "empty", tables=tables)
            assert "has no accesses" in found

    def test_more_tables_than_the_other_trace_has(self, tmp_path: Path) -> None:
        self._like(tmp_path / "one", [1, 2, 1])
        tables = [TABLE, {**TABLE, "name": "u"}]
        assert "there is no table 1" in self._refused(tmp_path, ConfigError, tmp_path / "one", tables=tables)
