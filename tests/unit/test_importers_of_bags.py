"""Importers of files that have bags: archives of numpy, and batches of torch."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiermem.data.accesses import Source
from tiermem.data.importers import ImportOptions, open_source
from tiermem.errors import CorruptionError, InputError, TiermemError

Ids = npt.NDArray[np.int64]


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


def _csr(bags: list[list[int]]) -> tuple[Ids, Ids]:
    starts = np.cumsum([0, *map(len, bags)])
    return starts, np.array([i for bag in bags for i in bag], dtype=np.int64)


class TestNpz:
    A = ([[3, 1], [], [4], [1, 5, 9]], [[2], [6, 5], [3], []])

    @pytest.mark.parametrize("separator", [".", "_"])
    @pytest.mark.parametrize("with_end", [True, False])
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_tables(self, tmp_path: Path, separator: str, with_end: bool, save: Callable[..., None]) -> None:
        arrays: dict[str, Any] = {}
        for name, bags in zip(("user", "item"), self.A, strict=True):
            starts, ids = _csr(bags)
            arrays[f"{name}{separator}indices"] = ids.astype(np.int32)
            arrays[f"{name}{separator}offsets"] = starts if with_end else starts[:-1].astype(np.uint64)
        save(tmp_path / "t.npz", **arrays, labels=np.zeros(4))
        source = open_source("npz", [tmp_path / "t.npz"], ImportOptions(bags_per_batch=3, row_bytes=64))
        assert [(t.name, t.rows, t.row_bytes) for t in source.tables] == [("user", 10, 64), ("item", 7, 64)]
        for _ in range(2):
            assert [_bags(source, table) for table in (0, 1)] == list(self.A)
        assert [len(batch[0].lengths) for batch in source.batches()] == [3, 1]

    def test_one_table_in_several_files(self, tmp_path: Path) -> None:
        paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
        for path, bags in zip(paths, self.A, strict=True):
            starts, ids = _csr(bags)
            np.savez(path, offsets=starts, indices=ids)
        source = open_source("npz", paths, ImportOptions(table_name="t"))
        assert (source.tables[0].name, source.tables[0].rows) == ("t", 10)
        assert _bags(source, 0) == [*self.A[0], *self.A[1]]

    def test_many_bags(self, tmp_path: Path) -> None:
        lengths = np.random.default_rng(2).integers(0, 4, 300_000)
        ids = np.random.default_rng(2).integers(0, 1000, lengths.sum())
        np.savez(tmp_path / "t.npz", offsets=np.cumsum([0, *lengths]), indices=ids)
        source = open_source("npz", [tmp_path / "t.npz"], ImportOptions(bags_per_batch=7001))
        np.testing.assert_array_equal(
            np.concatenate([batch[0].lengths for batch in source.batches()]), lengths
        )
        np.testing.assert_array_equal(np.concatenate([batch[0].ids for batch in source.batches()]), ids)

    def test_bags_without_ids(self, tmp_path: Path) -> None:
        none = np.empty(0, dtype=np.int64)
        np.savez(tmp_path / "t.npz", offsets=np.zeros(4, dtype=np.int64), indices=none)
        source = open_source("npz", [tmp_path / "t.npz"], ImportOptions())
        assert _bags(source, 0) == [[], [], []]
        assert source.tables[0].rows == 1

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"offsets": [0, 2], "indices": [1, -2]}, "indices[1] is -2"),
            ({"offsets": [0, 2], "indices": [1, 20]}, "indices[1] is 20, which is not in [0, 10)"),
            ({"offsets": [0, 2, 1, 3], "indices": [1, 2, 3]}, "offsets[2] is 1"),
            ({"offsets": [0, 4, 3], "indices": [1, 2, 3]}, "offsets[1] is 4"),
            ({"offsets": [1, 3], "indices": [1, 2, 3]}, "offsets[0] is 1"),
            ({"offsets": [-1, 3], "indices": [1, 2, 3]}, "offsets[0] is -1"),
            ({"offsets": [0.0, 3.0], "indices": [1, 2, 3]}, "offsets is float64 of shape [2]"),
            ({"offsets": [[0, 3]], "indices": [1, 2, 3]}, "offsets is int64 of shape [1, 2]"),
            ({"offsets": np.array([0], dtype=object), "indices": [1]}, "offsets is object of shape [1]"),
            ({"offsets": [0, 3]}, 'no "indices"'),
            ({"a.offsets": [0, 3], "indices": [1]}, 'no "a.indices"'),
            ({"x": [0]}, "it has x"),
            ({}, "it has nothing"),
            ({"a.offsets": [0], "a.indices": [1], "a_offsets": [0], "a_indices": [1]}, 'two tables "a"'),
            ({"a.offsets": [0, 1], "a.indices": [1], "b.offsets": [0], "b.indices": []}, "(a 1, b 0)"),
            ({"offsets": [0], "indices": np.empty(0, np.int64)}, "has no bags"),
            ({"offsets": np.empty(0, np.int64), "indices": [1]}, "offsets is empty"),
            ({"offsets": np.array([0, 2**64 - 1], np.uint64), "indices": [1]}, "18446744073709551615"),
        ],
    )
    def test_arrays_that_are_refused(self, tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
        if arrays.get("b.indices") == []:
            arrays["b.indices"] = np.empty(0, np.int64)
        np.savez(tmp_path / "t.npz", **arrays)
        refused = _refused(InputError, "npz", tmp_path / "t.npz", rows=10)
        assert message in refused
        assert "t.npz" in refused

    def test_files_of_other_tables(self, tmp_path: Path) -> None:
        paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
        for path, name in zip(paths, "ab", strict=True):
            arrays: dict[str, Any] = {f"{name}.offsets": np.array([0, 1]), f"{name}.indices": np.array([1])}
            np.savez(path, **arrays)
        assert "has the tables b" in _refused(InputError, "npz", *paths)

    def test_damaged_archives(self, tmp_path: Path) -> None:
        path = tmp_path / "t.npz"
        starts, ids = _csr(self.A[0] * 100)
        np.savez(path, offsets=starts, indices=ids)
        whole = path.read_bytes()
        for contents in (b"", whole[:-1], whole[: len(whole) // 2], b"\x93NUMPY"):
            path.write_bytes(contents)
            assert "cut short or is no npz" in _refused(CorruptionError, "npz", path)
        place = whole.index(ids.tobytes())
        path.write_bytes(whole[:place] + b"\x07" + whole[place + 1 :])
        assert "CRC" in _refused(CorruptionError, "npz", path)


def _fbgemm(batch: list[list[list[int]]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The parts of a file, from the bags of each table."""
    starts, ids = _csr([bag for table in batch for bag in table])
    lengths = torch.tensor([[len(bag) for bag in table] for table in batch])
    return torch.from_numpy(ids), torch.from_numpy(starts), lengths


class TestFbgemm:
    BATCHES: tuple[list[list[list[int]]], ...] = (
        [[[3, 1], []], [[7], [2, 2, 2]]],
        [[[5], [6], [0]], [[], [], []]],
    )

    @pytest.mark.parametrize("suffix", [".pt", ".pt.gz"])
    def test_files_are_batches(self, tmp_path: Path, suffix: str) -> None:
        paths = [tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"]
        for path, batch in zip(paths, self.BATCHES, strict=True):
            opener: Any = gzip.open if suffix.endswith("gz") else Path.open
            with opener(path, "wb") as file:
                torch.save(_fbgemm(batch), file)
        source = open_source("fbgemm", paths, ImportOptions(row_bytes=128))
        tables = [(table.name, table.rows, table.row_bytes) for table in source.tables]
        assert tables == [("table_0", 7, 128), ("table_1", 8, 128)]
        for _ in range(2):
            for table in (0, 1):
                assert _bags(source, table) == self.BATCHES[0][table] + self.BATCHES[1][table]
        assert [len(batch[1].lengths) for batch in source.batches()] == [2, 3]

    def test_the_older_format_and_int32(self, tmp_path: Path) -> None:
        indices, offsets, lengths = _fbgemm(self.BATCHES[0])
        parts = (indices.int(), offsets, lengths.int())
        torch.save(parts, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
        assert _bags(open_source("fbgemm", [tmp_path / "a.pt"], ImportOptions()), 1) == self.BATCHES[0][1]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda *parts: parts[:2], "holds a tuple"),
            (lambda *parts: {"indices": parts[0]}, "holds a dict"),
            (lambda i, o, n: (i.float(), o, n), "indices is torch.float32"),
            (lambda i, o, n: (i, o.tolist(), n), "offsets is list"),
            (lambda i, o, n: (i, o, n.flatten()), "have shapes [6], [5], [4]"),
            (lambda i, o, n: (i, o, n[:, :0]), "have shapes"),
            (lambda i, o, n: (i, o[:-1], n), "4 offsets for 4 bags"),
            (lambda i, o, n: (i, o, n - torch.tensor([[0, 1], [0, 0]])), "lengths[0, 1] is -1"),
            (lambda i, o, n: (i, o + torch.tensor([0, 0, 1, 0, 0]), n), "offsets[2] is 3"),
            (lambda i, o, n: (i, o - 1, n), "offsets[0] is -1"),
            (lambda i, o, n: (i[:-1], o, n), "lengths add up to 6, and there are 5 indices"),
            (lambda i, o, n: (i - 2, o, n), "indices[1] of table 0 is -1"),
            (lambda i, o, n: (i + 20, o, n), "indices[0] of table 0 is 23, which is not in [0, 10)"),
        ],
    )
    def test_contents_that_are_refused(
        self, tmp_path: Path, change: Callable[..., object], message: str
    ) -> None:
        torch.save(change(*_fbgemm(self.BATCHES[0])), tmp_path / "a.pt")
        refused = _refused(InputError, "fbgemm", tmp_path / "a.pt", rows=10)
        assert message in refused
        assert "a.pt" in refused

    def test_objects_are_not_unpickled(self, tmp_path: Path) -> None:
        torch.save((Path("x"), 1, 2), tmp_path / "a.pt")
        assert "could run code" in _refused(InputError, "fbgemm", tmp_path / "a.pt")

    def test_files_with_other_numbers_of_tables(self, tmp_path: Path) -> None:
        torch.save(_fbgemm(self.BATCHES[0]), tmp_path / "a.pt")
        torch.save(_fbgemm(self.BATCHES[0][:1]), tmp_path / "b.pt")
        assert "b.pt has 1 tables" in _refused(InputError, "fbgemm", tmp_path / "a.pt", tmp_path / "b.pt")

    def test_damaged_files(self, tmp_path: Path) -> None:
        path = tmp_path / "a.pt"
        for zipped in (True, False):
            torch.save(_fbgemm(self.BATCHES[0]), path, _use_new_zipfile_serialization=zipped)
            whole = path.read_bytes()
            for contents in (whole[:-1], whole[: len(whole) // 2], whole[:20]):
                path.write_bytes(contents)
                assert "a.pt is cut short" in _refused(CorruptionError, "fbgemm", path)
        path.write_bytes(b"")
        assert "is empty" in _refused(CorruptionError, "fbgemm", path)
        path.write_bytes(b"hello there")
        assert "starts with b'hello th'" in _refused(CorruptionError, "fbgemm", path)
        gz = tmp_path / "a.pt.gz"
        gz.write_bytes(gzip.compress(whole)[:-9])
        assert "cut short" in _refused(CorruptionError, "fbgemm", gz)
