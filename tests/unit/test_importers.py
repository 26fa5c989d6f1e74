"""Importers of access streams, against files that numpy, torch and struct wrote."""

import gzip
import lzma
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tiermem.data.accesses import Source
from tiermem.data.hashing import mix
from tiermem.data.importers import FORMATS, ImportOptions, open_source
from tiermem.data.trace import read_trace
from tiermem.errors import ConfigError, CorruptionError, InputError, TiermemError

Ids = npt.NDArray[np.int64]
HASHES = np.random.default_rng(3).integers(-(2**63), 2**63 - 1, 500, dtype=np.int64)


def _ids(source: Source, table: int = 0) -> list[int]:
    return [int(i) for batch in source.batches() for i in batch[table].ids]


def _bags(source: Source, table: int) -> list[list[int]]:
    """Bags of all batches as lists, taken apart by a loop."""
    bags = []
    for batch in source.batches():
        ids = iter(batch[table].ids.tolist())
        bags += [[next(ids) for _ in range(length)] for length in batch[table].lengths.tolist()]
        assert next(ids, None) is None
    return bags


def _refused(kind: type[TiermemError], name: str, *paths: Path, **options: Any) -> str:
    """The sentence with which an import is refused, before any batch is made."""
    with pytest.raises(kind) as caught:
        open_source(name, paths, ImportOptions(**options))
    assert caught.type is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _packed(path: Path, contents: bytes) -> Path:
    """A file, compressed as its name says."""
    if path.suffix == ".xz":
        contents = lzma.compress(contents)
    if path.suffix == ".gz":
        contents = gzip.compress(contents)
    path.write_bytes(contents)
    return path


class TestOptions:
    def test_an_unknown_format_is_told_the_formats(self, tmp_path: Path) -> None:
        message = _refused(ConfigError, "csv", tmp_path)
        assert all(name in message for name in ("csv", *FORMATS))

    @pytest.mark.parametrize("name", FORMATS)
    def test_missing_files(self, tmp_path: Path, name: str) -> None:
        assert "nothing.bin: No such file" in _refused(ConfigError, name, tmp_path / "nothing.bin")
        assert "cannot read" in _refused(ConfigError, name, tmp_path)
        assert "no file is given" in _refused(ConfigError, name)

    @pytest.mark.parametrize(
        "options",
        [{"rows": 0}, {"row_bytes": -1}, {"bags_per_batch": 0}, {"ids_per_bag": 0}, {"table_name": ""}],
    )
    def test_values(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=next(iter(options))):
            ImportOptions(**options)
        with pytest.raises(ConfigError, match="smaller batches"):
            ImportOptions(bags_per_batch=2**20, ids_per_bag=2**10)

    @pytest.mark.parametrize("name", ["npz", "fbgemm", "execution-trace"])
    def test_row_numbers_are_not_renumbered(self, tmp_path: Path, name: str) -> None:
        assert "leave renumber out" in _refused(ConfigError, name, tmp_path, renumber=True)


class TestKeys:
    """The formats "caffeine" and "int64"."""

    def test_the_scarab_trace(self, root: Path) -> None:
        path = root / "python" / "tiermem" / "data" / "traces" / "scarab-recs.trace.xz"
        source = open_source("caffeine", [path], ImportOptions(bags_per_batch=50_000))
        assert [(table.name, table.rows, table.row_bytes) for table in source.tables] == [
            ("table_0", 258_368, 256)
        ]
        batches = list(source.batches())
        assert [len(batch[0].lengths) for batch in batches] == [50_000] * 24 + [45_184]
        ids = np.concatenate([batch[0].ids for batch in batches])
        keys = read_trace(path)
        distinct = np.unique(keys)
        by_hash = distinct[np.argsort(mix(distinct.view(np.uint64)))]
        np.testing.assert_array_equal(by_hash[ids], keys)
        assert len(ids) == 1_245_184

    @pytest.mark.parametrize(("name", "order"), [("caffeine", ">"), ("int64", "<")])
    @pytest.mark.parametrize("suffix", ["bin", "xz", "gz"])
    def test_row_numbers(self, tmp_path: Path, name: str, order: str, suffix: str) -> None:
        keys = np.random.default_rng(1).integers(0, 5000, 1003)
        contents = struct.pack(f"{order}1003q", *keys.tolist())
        path = _packed(tmp_path / f"keys.{suffix}", contents)
        options = ImportOptions(
            rows=6000, row_bytes=64, bags_per_batch=100, ids_per_bag=4, table_name="t", renumber=False
        )
        source = open_source(name, [path], options)
        for _ in range(2):
            assert _ids(source) == keys.tolist()
        assert [(table.name, table.rows, table.row_bytes) for table in source.tables] == [("t", 6000, 64)]
        lengths = [batch[0].lengths.tolist() for batch in source.batches()]
        assert lengths == [[4] * 100, [4] * 100, [4] * 50 + [3]]
        without = open_source(name, [path], ImportOptions(renumber=False))
        assert without.tables[0].rows == keys.max() + 1

    def test_files_follow_each_other_and_share_numbers(self, tmp_path: Path) -> None:
        paths = [tmp_path / "a", tmp_path / "b"]
        HASHES[:300].astype("<i8").tofile(paths[0])
        HASHES[200:].astype("<i8").tofile(paths[1])
        source = open_source("int64", paths, ImportOptions())
        ids = _ids(source)
        assert source.tables[0].rows == 500
        assert sorted(set(ids)) == list(range(500))
        assert ids[200:300] == ids[300:400]
        assert [len(batch[0].ids) for batch in source.batches()] == [300, 300]

    def test_neighbouring_numbers_mean_nothing(self, tmp_path: Path) -> None:
        # Numbers by first appearance would make a scan of new keys a scan of neighbours.
        path = tmp_path / "scan"
        np.arange(10_000, dtype="<i8").tofile(path)
        ids = np.array(_ids(open_source("int64", [path], ImportOptions())))
        assert np.sort(ids).tolist() == list(range(10_000))
        assert (np.abs(np.diff(ids)) < 100).mean() < 0.05

    @pytest.mark.parametrize(("name", "wrong"), [("caffeine", "<i8"), ("int64", ">i8")])
    def test_the_wrong_byte_order(self, tmp_path: Path, name: str, wrong: str) -> None:
        path = tmp_path / "keys"
        np.arange(100).astype(wrong).tofile(path)
        other = next(n for n in ("caffeine", "int64") if n != name)
        for options in ({}, {"rows": 100}, {"rows": 100, "renumber": False}, {"renumber": False}):
            message = _refused(InputError, name, path, **options)
            assert "99 of 100 keys" in message
            assert "at byte offset 8" in message
            assert f'import it as "{other}"' in message

    @pytest.mark.parametrize("name", ["caffeine", "int64"])
    def test_hashes_have_no_wrong_byte_order(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / "keys"
        HASHES.tofile(path)
        assert open_source(name, [path], ImportOptions()).tables[0].rows == 500
        message = _refused(InputError, name, path, renumber=False)
        assert "at byte offset 0 is no row number" in message
        assert "renumber" in message

    def test_keys_beyond_the_table(self, tmp_path: Path) -> None:
        path = tmp_path / "keys"
        np.array([5, 2, 10, 3, -1], dtype="<i8").tofile(path)
        message = _refused(InputError, "int64", path, rows=10, renumber=False)
        assert "key 10 at byte offset 16 is no row number in [0, 10)" in message
        assert "5 distinct keys do not fit 4 rows" in _refused(InputError, "int64", path, rows=4)

    def test_damaged_files(self, tmp_path: Path) -> None:
        path = tmp_path / "keys.xz"
        whole = lzma.compress(HASHES.tobytes())
        path.write_bytes(whole[:-100])
        assert "cut short" in _refused(CorruptionError, "int64", path)
        path.write_bytes(b"no such thing")
        assert "no .xz file" in _refused(CorruptionError, "int64", path)
        path = tmp_path / "keys.gz"
        path.write_bytes(gzip.compress(HASHES.tobytes())[:-100])
        assert "cut short" in _refused(CorruptionError, "int64", path)
        path = tmp_path / "keys"
        path.write_bytes(bytes(8 * 200_000 + 3))
        assert "1600003 bytes, which is no whole number" in _refused(CorruptionError, "int64", path)
        path.write_bytes(b"")
        assert "has no keys" in _refused(InputError, "int64", path)

    @pytest.mark.parametrize("renumber", [True, False])
    def test_a_file_that_changes(self, tmp_path: Path, renumber: bool) -> None:
        path = tmp_path / "keys"
        np.arange(100).astype("<i8").tofile(path)
        source = open_source("int64", [path], ImportOptions(renumber=renumber))
        np.arange(1, 101).astype("<i8").tofile(path)
        with pytest.raises(CorruptionError, match="changed since"):
            _ids(source)


class TestText:
    def test_lines(self, tmp_path: Path) -> None:
        text = "# ids\n\n3\n 1  # one\r\n\t\n4\n1"
        for suffix in ("txt", "gz", "xz"):
            path = _packed(tmp_path / f"ids.{suffix}", text.encode())
            source = open_source("text", [path], ImportOptions(ids_per_bag=2, bags_per_batch=1))
            assert source.tables[0].rows == 5
            for _ in range(2):
                assert _bags(source, 0) == [[3, 1], [4, 1]]

    def test_renumbered(self, tmp_path: Path) -> None:
        path = tmp_path / "ids"
        path.write_text("\n".join(str(abs(int(key))) for key in HASHES))
        ids = _ids(open_source("text", [path], ImportOptions(renumber=True)))
        assert sorted(ids) == list(range(500))

    @pytest.mark.parametrize(
        "line",
        ["-3", "1.5", "1 2", "+1", "1_0", "0x1", str(2**63), "a" * 50, "\u0663", "1;2", "9" * 5000],
    )
    def test_lines_that_are_no_id(self, tmp_path: Path, line: str) -> None:
        path = tmp_path / "ids"
        path.write_text(f"1\n#\n2\n{line}\n3\n", encoding="utf-8")
        message = _refused(InputError, "text", path)
        shown = line if line.isascii() else "\\xd9\\xa3"
        assert f'ids, line 4: "{shown[:40]}" is no id' in message

    def test_ids_beyond_the_table_and_no_ids(self, tmp_path: Path) -> None:
        path = tmp_path / "ids"
        path.write_text("1\n# comment\n\n7\n")
        assert "key 7 at line 4 is no row number in [0, 7)" in _refused(InputError, "text", path, rows=7)
        path.write_text("# nothing\n\n")
        assert "has no keys" in _refused(InputError, "text", path)
        path.write_text("")
        assert "has no keys" in _refused(InputError, "text", path)
