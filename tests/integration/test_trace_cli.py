"""`tiermem trace` from end to end: import, generate, describe, curves; wrong use leaves nothing behind."""

import csv
import itertools
import json
import struct
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiermem.cli.main import main
from tiermem.config import Experiment
from tiermem.data import load_dataset
from tiermem.data.accesses import Bags, TraceTable
from tiermem.data.trace_file import TraceReader, TraceWriter

POINT_KEYS = {
    "table", "policy", "rows", "accesses", "hits", "hit_rate", "hit_rate_second_half", "missed_row_bytes",
    "missed_block_bytes", "sample_rate",
}  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n"


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The one JSON object on standard output, and nothing else there."""
    assert main([*arguments, "--json", "-"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def _keys(path: Path, order: str = ">") -> list[int]:
    """A file of 3,000 skewed row numbers as 8-byte integers."""
    keys = np.minimum(np.random.default_rng(1).geometric(0.02, 3000), 255).tolist()
    path.write_bytes(struct.pack(f"{order}3000q", *keys))
    return list(keys)


def _two_tables(path: Path) -> None:
    generator = np.random.default_rng(2)
    with TraceWriter(path, (TraceTable("user", 50, 64), TraceTable("item", 300, 5000)), origin="") as writer:
        for _ in range(20):
            lengths = generator.integers(0, 4, (2, 30))
            sums = lengths.sum(axis=1)
            ids = [
                np.minimum(generator.geometric(p, size), 49)
                for p, size in zip((0.1, 0.05), sums, strict=True)
            ]
            writer.write(tuple(Bags(*each) for each in zip(lengths, ids, strict=True)))


@pytest.fixture
def imported(tmp_path: Path) -> tuple[Path, list[int]]:
    keys = _keys(tmp_path / "keys")
    path = tmp_path / "keys.tmtrace"
    arguments = ["--format", "caffeine", str(tmp_path / "keys"), "--out", str(path), "--no-renumber"]
    assert main(["trace", "import", *arguments, "--bags-per-batch", "64", "--quiet"]) == 0
    return path, keys


class TestImport:
    def test_the_trace_has_the_keys(self, imported: tuple[Path, list[int]]) -> None:
        path, keys = imported
        assert [row for (bags,) in TraceReader(path) for row in bags.ids.tolist()] == keys
        assert TraceReader(path).tables == (TraceTable("table_0", max(keys) + 1, 256),)
        assert TraceReader(path).origin == "imported from keys as caffeine"

    def test_it_says_what_was_imported(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        keys = _keys(tmp_path / "a", "<")
        out = tmp_path / "a.tmtrace"
        base = ["trace", "import", "--format", "int64", str(tmp_path / "a"), "--out", str(out)]
        more = [
            "--ids-per-bag",
            "4",
            "--bags-per-batch",
            "100",
            "--row-bytes",
            "64",
            "--table-name",
            "movies",
        ]
        assert _json(capsys, *base, *more, "--rows", "5000") == {
            "trace": str(out), "tables": 1, "rows": 5000, "batches": 8, "bags": 750, "ids": 3000,
        }  # fmt: skip
        assert TraceReader(out).tables == (TraceTable("movies", 5000, 64),)
        assert main([*base, *more]) == 0
        assert "1 table of " in capsys.readouterr().out
        assert TraceReader(out).tables[0].rows == len(set(keys))


class TestSynth:
    def test_parts_overrides_and_seeds(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        base = [
            "trace",
            "synth",
            "--config",
            "drift-recency",
            "--set",
            "batches=6",
            "--set",
            "bags_per_batch=50",
        ]
        found = _json(capsys, *base, "--out", str(tmp_path / "whole"))
        assert (found["batches"], found["ids"], found["rows"]) == (6, 300, 1_000_000)
        for part in (1, 2):
            assert (
                main([*base, "--part", f"{part}/2", "--out", str(tmp_path / f"part{part}"), "--quiet"]) == 0
            )
        assert main([*base, "--seed", "9", "--out", str(tmp_path / "other"), "--quiet"]) == 0
        ids = {
            name: [row for (bags,) in TraceReader(tmp_path / name) for row in bags.ids.tolist()]
            for name in ("whole", "part1", "part2", "other")
        }
        assert ids["whole"] == ids["part1"] + ids["part2"]
        assert ids["whole"] != ids["other"]


class TestStats:
    def test_json_has_the_counts_and_plots_are_written(
        self, imported: tuple[Path, list[int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path, keys = imported
        plots = tmp_path / "plots"
        found = _json(capsys, "trace", "stats", str(path), "--plots", str(plots), "--quiet")
        assert found["all"]["accesses"] == len(keys)
        assert found["all"]["distinct"] == len(set(keys))
        assert found["tables"][0]["ids"] == len(keys)
        rows = list(csv.DictReader((plots / "keys-access-cdf.csv").read_text().splitlines()))
        counts = sorted((keys.count(key) for key in set(keys)), reverse=True)
        for row in rows:
            rank = round(float(row["share_of_rows"]) * len(counts))
            assert float(row["share_of_accesses"]) == pytest.approx(sum(counts[:rank]) / len(keys))
        rows = list(csv.DictReader((plots / "keys-stack-distances.csv").read_text().splitlines()))
        shares = [float(row["share_of_accesses"]) for row in rows]
        assert shares == [*found["all"]["distance_shares"], found["all"]["first_share"]]
        assert rows[-1]["distance_from"] == "", "a first access has no distance"
        assert sum(shares) == pytest.approx(1)
        _check_plots(plots, {"keys-access-cdf", "keys-stack-distances"})

    def test_tables_are_shown_to_people(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        _two_tables(tmp_path / "two.tmtrace")
        assert main(["trace", "stats", str(tmp_path / "two.tmtrace"), "--per-table"]) == 0
        text = capsys.readouterr().out
        for word in ("user", "item", "all tables", "stack distance", "Zipf", "retention"):
            assert word in text
        found = _json(capsys, "trace", "stats", str(tmp_path / "two.tmtrace"), "--per-table")
        streams = [table["stream"]["accesses"] for table in found["tables"]]
        assert sum(streams) == found["all"]["accesses"]


def _check_plots(folder: Path, names: set[str]) -> None:
    """Every plot is there as SVG and PNG, light and dark, which differ, and the files are what they say."""
    kinds = ("-light.svg", "-dark.svg", "-light.png", "-dark.png", ".csv")
    assert {path.name for path in folder.iterdir()} == {f"{name}{kind}" for name in names for kind in kinds}
    for name in names:
        light, dark, *pictures = ((folder / f"{name}{kind}").read_bytes() for kind in kinds[:4])
        for text in (light, dark):
            assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert light != dark
        assert all(picture.startswith(PNG) and picture.endswith(b"IEND\xaeB`\x82") for picture in pictures)
        assert pictures[0] != pictures[1]


class TestMrc:
    def test_json_has_a_point_for_each_policy_and_size(
        self, imported: tuple[Path, list[int]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        path, keys = imported
        distinct = len(set(keys))
        found = _json(capsys, "trace", "mrc", str(path), "--policy", "lru,sieve,min", "--rows", "1,10%,100%")
        assert (found["accesses"], found["distinct"], found["sample_rate"]) == (3000, distinct, None)
        sizes = [1, round(0.1 * distinct), distinct]
        assert [(point["policy"], point["rows"]) for point in found["points"]] == [
            (policy, size) for policy in ("lru", "sieve", "min") for size in sizes
        ]
        by_place = {(point["policy"], point["rows"]): point for point in found["points"]}
        again = sum(now == before for before, now in itertools.pairwise(keys))
        assert by_place["lru", 1]["hits"] == again, "a cache of one row hits what comes twice in a row"
        for point in found["points"]:
            assert set(point) == POINT_KEYS
            assert point["hit_rate"] == pytest.approx(point["hits"] / 3000)
            assert point["missed_row_bytes"] == (3000 - point["hits"]) * 256
            assert point["hits"] <= by_place["min", point["rows"]]["hits"]
            if point["rows"] == distinct:
                assert point["hits"] == 3000 - distinct

    def test_files_hold_the_numbers_of_the_json(
        self, imported: tuple[Path, list[int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path, _ = imported
        points, torchrec, plots = tmp_path / "points.csv", tmp_path / "torchrec.json", tmp_path / "plots"
        found = _json(
            capsys, "trace", "mrc", str(path), "--csv", str(points), "--torchrec", str(torchrec),
            "--plots", str(plots), "--rows", "20%,5%,1%", "--quiet",
        )  # fmt: skip
        rows = list(csv.DictReader(points.read_text().splitlines()))
        assert rows == [
            {key: "" if value is None else str(value) for key, value in point.items()}
            for point in found["points"]
        ]
        rows = list(csv.DictReader((plots / "keys-mrc.csv").read_text().splitlines()))
        assert [(row["policy"], int(row["rows"])) for row in rows] == [
            (point["policy"], point["rows"]) for point in found["points"]
        ]
        for row, point in zip(rows, found["points"], strict=True):
            assert float(row["miss_rate"]) == pytest.approx(1 - point["hit_rate"])
        _check_plots(plots, {"keys-mrc"})
        light = (plots / "keys-mrc-light.svg").read_text()
        assert all(policy in light for policy in ("lru", "s3fifo", "min (Belady)"))
        statistics = json.loads(torchrec.read_text())
        assert set(statistics) == {"table_0"}
        assert set(statistics["table_0"]) == {"cacheability", "expected_lookups", "mrc_hist_counts", "height"}
        file = tmp_path / "out.json"
        assert main(["trace", "mrc", str(path), "--rows", "20%,5%,1%", "--json", str(file)]) == 0
        assert json.loads(file.read_text()) == found
        assert "lru" in capsys.readouterr().out

    def test_per_table_adds_a_curve_for_each(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path, plots = tmp_path / "two.tmtrace", tmp_path / "plots"
        _two_tables(path)
        base = ["trace", "mrc", str(path), "--policy", "lru,clock", "--rows", "3,10"]
        found = _json(capsys, *base, "--per-table", "--plots", str(plots), "--quiet")
        _check_plots(plots, {"two-mrc", "two-user-mrc", "two-item-mrc"})
        points = found["points"]
        assert [point["table"] for point in points] == [None] * 4 + ["user"] * 4 + ["item"] * 4
        assert points[4]["accesses"] + points[8]["accesses"] == points[0]["accesses"]
        alone = _json(capsys, *base, "--tables", "item")
        assert [{**point, "table": "item"} for point in alone["points"]] == points[8:]
        assert (alone["tables"], alone["dedupe"]) == (["item"], False)
        once = _json(capsys, *base, "--tables", "user", "--dedupe")
        different = sum(len(set(batch[0].ids.tolist())) for batch in TraceReader(path))
        assert once["accesses"] == different < points[4]["accesses"]

    def test_a_sample_says_that_it_is_an_estimate(
        self, imported: tuple[Path, list[int]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        base = ["trace", "mrc", str(imported[0]), "--sample", "0.25", "--rows", "100%", "--policy", "lru"]
        found = _json(capsys, *base)
        assert (found["accesses"], found["sample_rate"]) == (3000, 0.25)
        assert [point["sample_rate"] for point in found["points"]] == [0.25]
        assert main(base) == 0
        assert "estimated from 25.00% of the rows" in capsys.readouterr().out


IMPORT = ["trace", "import", "--out", "made.tmtrace", "--format"]
MRC = ["trace", "mrc", "good.tmtrace"]
SYNTH = ["trace", "synth", "--out", "made.tmtrace", "--config"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*IMPORT, "caffeine", "nothing"], "nothing: No such file"),
        ([*IMPORT, "caffeine", "little"], 'import it as "int64"'),
        ([*IMPORT, "int64", "big"], 'import it as "caffeine"'),
        ([*IMPORT, "nope", "big"], "nope"),
        ([*IMPORT, "caffeine", "big", "--rows", "0"], "rows"),
        ([*IMPORT, "caffeine", "big", "--rows", "7"], "do not fit 7 rows"),
        ([*IMPORT, "caffeine", "big", "--rows", "7", "--no-renumber"], "is no row number in [0, 7)"),
        ([*IMPORT, "caffeine", "big", "--row-bytes", "0"], "row_bytes"),
        ([*IMPORT, "caffeine", "odd"], "no whole number"),
        (["trace", "import", "--format", "caffeine", "big", "--out", "no/such/t"], "no/such/t"),
        (["trace", "import", "--format", "caffeine", "big", "--out", "folder"], "folder"),
        ([*SYNTH, "nope"], '"nope" is not one of the traces'),
        ([*SYNTH, "nope.toml"], "there is no file nope.toml"),
        ([*SYNTH, "eeg-zipf", "--set", "batchs=1"], 'did you mean "batches"?'),
        ([*SYNTH, "eeg-zipf", "--set", "batches"], "is not an override"),
        ([*SYNTH, "eeg-zipf", "--seed", "-1"], "seed"),
        ([*SYNTH, "eeg-zipf", "--part", "0/2"], "part 0/2 is not possible"),
        ([*SYNTH, "eeg-zipf", "--part", "1"], '--part "1" is no part'),
        ([*SYNTH, "eeg-zipf", "--part", "1/x"], '--part "1/x" is no part'),
        ([*SYNTH, "eeg-zipf", "--part", "\u00b2/3"], "is no part"),
        ([*SYNTH, "stack-distance", "--set", "law.like=nothing"], "nothing"),
        (["trace", "synth", "--config", "sessions", "--set", "batches=1", "--out", "no/such/t"], "no/such/t"),
        (["trace", "stats", "nothing"], "nothing"),
        (["trace", "stats", "cut.tmtrace"], "offset="),
        (["trace", "stats", "little"], "not a trace"),
        (["trace", "stats", "folder"], "folder is not a file"),
        (["trace", "stats", "empty.tmtrace"], "has no accesses"),
        (["trace", "mrc", "nothing"], "nothing"),
        (["trace", "mrc", "cut.tmtrace"], "offset="),
        (["trace", "mrc", "empty.tmtrace"], "has no accesses to t"),
        ([*MRC, "--rows", "0"], '--rows "0" is a cache of 0 rows'),
        ([*MRC, "--rows", "x"], '--rows "x" is no cache size'),
        ([*MRC, "--rows", ""], '--rows "" is no cache size'),
        ([*MRC, "--rows", "5,-1"], '--rows "-1" is a cache of -1 rows'),
        ([*MRC, "--rows=-5%"], '--rows "-5%"'),
        ([*MRC, "--rows", "x%"], '--rows "x%" is no cache size'),
        ([*MRC, "--rows", "nan%"], '--rows "nan%" is no cache size'),
        ([*MRC, "--rows", "inf%"], '--rows "inf%" is no cache size'),
        ([*MRC, "--rows", str(10**30)], f"a cache of {10**30} rows is not possible"),
        ([*MRC, "--rows", "1" * 5000], "is no cache size"),
        ([*MRC, "--policy", "fifo"], '"fifo" is not a policy; choose of lru, '),
        ([*MRC, "--policy", ""], '"" is not a policy'),
        ([*MRC, "--sample", "0"], "a sampling rate of 0 is not a share"),
        ([*MRC, "--sample", "2"], "a sampling rate of 2 is not a share"),
        ([*MRC, "--sample", "nan"], "sampl"),
        ([*MRC, "--tables", "user"], 'there is no table "user"'),
        ([*MRC, "--policy", "lookahead", "--window-batches", "1000"], "a window of 1000 batches is too long"),
        ([*MRC, "--policy", "lookahead", "--window-batches", "-1"], "window"),
        ([*MRC, "--policy", "random", "--seed", "-1"], "seed"),
        ([*MRC, "--csv", "/proc/nothing/x.csv"], "cannot write /proc/nothing/x.csv"),
        ([*MRC, "--torchrec", "/proc/nothing/x"], "cannot write /proc/nothing/x"),
        ([*MRC, "--plots", "/proc/nothing"], "cannot write /proc/nothing/"),
    ],
)
def test_wrong_use_ends_in_one_sentence_and_leaves_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    _keys(Path("big"), ">")
    _keys(Path("little"), "<")
    Path("odd").write_bytes(bytes(1003))
    Path("folder").mkdir()
    for name, batches in (("good", 3), ("empty", 0)):
        with TraceWriter(f"{name}.tmtrace", (TraceTable("t", 9),), origin="") as writer:
            for _ in range(batches):
                writer.write((Bags(np.array([2, 0, 1]), np.array([1, 2, 1])),))
    Path("cut.tmtrace").write_bytes(Path("good.tmtrace").read_bytes()[:-60])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main([*arguments, "--quiet"]) in (1, 2)
    captured = capsys.readouterr()
    assert captured.err.startswith("tiermem: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["import"],
        ["mrc"],
        ["import", "--format", "int64", "big", "--rows", "x", "--out", "t"],
        ["replay"],
    ],
)
def test_arguments_that_cannot_be_parsed_are_wrong_use(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["trace", *arguments])
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


def test_a_training_writes_what_it_looks_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = ("data.samples_max=700", "data.rows_per_table=3000", "train.batch_size=256", "seed=1")
    overrides = [option for value in values for option in ("--set", value)]
    path = tmp_path / "run.tmtrace"
    verb = ["train", "--config", "demo-tiering", *overrides, "--out", str(tmp_path / "run"), "--quiet"]
    with_trace = _json(capsys, *verb, "--capture-trace", str(path))
    reader = TraceReader(path)
    experiment = Experiment.load("demo-tiering", list(values))
    columns = load_dataset(experiment.data, experiment.seed).sparse
    assert [(table.name, table.rows, table.row_bytes) for table in reader.tables] == [
        (column.name, 3000, experiment.model.dim * 4 + 4) for column in columns
    ]
    batches = list(reader)
    # One epoch in recorded order: batches of 256, 256 and 188 samples.
    assert [len(batch[0].lengths) for batch in batches] == [256, 256, 188]
    for table, column in enumerate(columns):
        assert np.concatenate([batch[table].ids for batch in batches]).tolist() == column.ids.tolist()
        lengths = np.concatenate([batch[table].lengths for batch in batches])
        assert lengths.tolist() == np.diff(column.offsets).tolist()
    assert _json(capsys, *verb)["results_digest"] == with_trace["results_digest"], "recording changes nothing"
