"""A stream of keys as bags of one table: cut by count, and given row numbers.

N = keys of one piece, D = distinct keys of all files.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tiermem.data.accesses import Bags, Batch, Source, TraceTable
from tiermem.data.hashing import mix
from tiermem.data.importers.cutting import ROWS_MAX, first_outside
from tiermem.data.importers.options import ImportOptions
from tiermem.errors import InputError

__all__ = ["PIECE_KEYS", "Piece", "Reader", "open_stream"]

Ids = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

PIECE_KEYS = 2**17
"""Keys looked at together while a file is surveyed: 1 MiB."""


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive keys of a file."""

    keys: Ids
    """int64 [N]."""
    place: Callable[[int], str]
    """Where the key of a position is in the file, in words."""


Reader = Callable[[Path, int], Iterator[Piece]]
"""Pieces of a file, each of so many keys; only the last one may have fewer, and none is empty."""


class _Numbering(Protocol):
    """How keys become row numbers: `learn` sees every piece once, then `number` may be called."""

    def learn(self, piece: Piece, path: Path) -> None: ...

    def rows(self) -> int: ...

    def number(self, keys: Ids) -> Ids: ...


class _AsGiven:
    """Keys are row numbers."""

    def __init__(self, rows: int | None) -> None:
        self._rows = rows
        self._largest = 0

    def learn(self, piece: Piece, path: Path) -> None:
        limit = ROWS_MAX if self._rows is None else self._rows
        bad = first_outside(piece.keys, limit)
        if bad is not None:
            raise InputError(
                f"{path}: key {piece.keys[bad]} at {piece.place(bad)} is no row number in [0, {limit}); "
                "give the rows of the table, or renumber keys that are no row numbers"
            )
        self._largest = max(self._largest, int(piece.keys.max()))

    def rows(self) -> int:
        return self._largest + 1 if self._rows is None else self._rows

    def number(self, keys: Ids) -> Ids:
        return keys


class _ByRank:
    """Rows are ranks in the order of the keys' hashes: neighbouring numbers mean nothing.

    Numbers in the order of first appearance would put keys that come together into one block, a
    locality that the recorded service did not have.
    """

    def __init__(self, rows: int | None) -> None:
        self._rows = rows
        self._sorted = np.empty(0, dtype=np.uint64)
        self._pending: list[Words] = []
        self._pending_keys = 0

    def learn(self, piece: Piece, path: Path) -> None:  # noqa: ARG002 (any key will do)
        self._pending.append(_distinct(mix(piece.keys.view(np.uint64))))
        self._pending_keys += len(self._pending[-1])
        # Merging only when as much has come as there was keeps the sum of all merges linear.
        if self._pending_keys > max(len(self._sorted), PIECE_KEYS):
            self._merge()

    def _merge(self) -> None:
        self._sorted = _distinct(np.concatenate([self._sorted, *self._pending]))
        self._pending, self._pending_keys = [], 0

    def rows(self) -> int:
        self._merge()
        distinct = len(self._sorted)
        if self._rows is not None and distinct > self._rows:
            raise InputError(f"{distinct} distinct keys do not fit {self._rows} rows; use rows >= {distinct}")
        return distinct if self._rows is None else self._rows

    def number(self, keys: Ids) -> Ids:
        words = mix(keys.view(np.uint64))
        # Searching in ascending order stays in the processor's cache: five times as fast.
        order = np.argsort(words)
        ranks = np.empty(len(words), dtype=np.int64)
        ranks[order] = np.searchsorted(self._sorted, words[order])
        found = self._sorted[np.minimum(ranks, len(self._sorted) - 1)] == words
        # A key that the survey did not see has no row; the caller finds the -1 outside of the table.
        return np.where(found, ranks, np.int64(-1))


def _distinct(words: Words) -> Words:
    """Distinct words in ascending order; `np.unique` hashes them and takes ten times as long."""
    ordered = np.sort(words)
    first = np.ones(len(ordered), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def open_stream(paths: Sequence[Path], options: ImportOptions, read: Reader, *, renumber: bool) -> Source:
    """Files read one after the other as accesses of one table; a batch ends with its file.

    Memory: one piece or one batch of keys, and with `renumber` 8 bytes per distinct key (up to three
    times that while surveying).

    Args:
        paths: the files, in order.
        options: `rows`, `row_bytes`, `bags_per_batch`, `ids_per_bag` and `table_name` matter.
        read: yields the keys of a file.
        renumber: rows are ranks of hashes; otherwise keys are row numbers.

    Raises:
        InputError: if a file has no keys, a key is no row number, or there are more keys than rows.
        ConfigError, CorruptionError: what `read` raises.
    """
    numbering: _Numbering = _ByRank(options.rows) if renumber else _AsGiven(options.rows)
    for path in paths:
        empty = True
        for piece in read(path, PIECE_KEYS):
            numbering.learn(piece, path)
            empty = False
        if empty:
            raise InputError(f"{path} has no keys; leave the file out")
    table = TraceTable(options.table_name, numbering.rows(), options.row_bytes)

    def batches() -> Iterator[Batch]:
        size = options.bags_per_batch * options.ids_per_bag
        # Several small batches are numbered at once.
        for path in paths:
            for piece in read(path, size * max(1, PIECE_KEYS // size)):
                ids = numbering.number(piece.keys)
                for start in range(0, len(ids), size):
                    yield (_cut(ids[start : start + size], options.ids_per_bag),)

    return Source((table,), batches)


def _cut(ids: Ids, ids_per_bag: int) -> Bags:
    """Bags of so many ids; what is left over is a shorter one, so that no access is lost."""
    whole, rest = divmod(len(ids), ids_per_bag)
    lengths = np.full(whole + (rest > 0), ids_per_bag, dtype=np.int64)
    if rest:
        lengths[-1] = rest
    return Bags(lengths, ids)
