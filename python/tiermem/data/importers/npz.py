"""Bags in compressed-row form in a numpy archive: `offsets` and `indices` of one table or of several.

B = bags of one table in the file, L = its ids.
"""

import dataclasses
import errno
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from tiermem.data.accesses import Bags, Batch, Source, TraceTable
from tiermem.data.importers.cutting import ROWS_MAX, first_outside
from tiermem.data.importers.files import fill, opened
from tiermem.data.importers.options import ImportOptions, refuse_renumbering
from tiermem.errors import CorruptionError, InputError

__all__ = ["open_npz"]

Ids = npt.NDArray[np.int64]

_PIECE_ITEMS = 2**17
_CAUSE_CHARACTERS = 80
_DAMAGED = (zipfile.BadZipFile, NotImplementedError, RuntimeError, UnicodeDecodeError, OSError)
"""What zipfile raises at bytes that numpy does not write: unknown methods, encryption, offsets below zero."""


@dataclasses.dataclass(slots=True)
class _Table:
    """What the survey of one file found out about one table."""

    name: str
    offsets: str
    """Name of the member."""
    indices: str
    starts: int = 0
    """Values in `offsets`."""
    ids: int = 0
    last: int | None = None
    """Last of the offsets."""
    largest: int = -1


class _Member:
    """A 1-D array of integers of an archive, read from front to back."""

    def __init__(self, archive: zipfile.ZipFile, path: Path, name: str) -> None:
        self._label = f"{path}, {name}"
        self._file = cast("zipfile.ZipExtFile", archive.open(f"{name}.npy"))
        try:
            version = npy.read_magic(self._file)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, self._dtype = header(self._file)
        except ValueError as error:
            raise CorruptionError(
                f"{self._label} has no header of an array ({error}); write it again"
            ) from None
        if self._dtype.kind not in "iu" or len(shape) != 1:
            raise InputError(
                f"{self._label} is {self._dtype} of shape {list(shape)}; it must be a 1-D array of integers"
            )
        stored = archive.getinfo(f"{name}.npy").file_size - self._file.tell()
        if stored != shape[0] * self._dtype.itemsize:
            raise CorruptionError(
                f"{self._label} has {stored} bytes for {shape[0]} values of {self._dtype}; write it again"
            )
        self.left = int(shape[0])
        self.position = 0

    def read(self, count: int) -> Ids:
        """The next values, int64 [count], or as many as are left."""
        count = min(count, self.left)
        buffer = np.empty(count * self._dtype.itemsize, dtype=np.uint8)
        if fill(self._file, buffer) != len(buffer):
            raise CorruptionError(f"{self._label} ends within value {self.position + count}; write it again")
        self.left -= count
        self.position += count
        values = buffer.view(self._dtype)
        if self._dtype.kind == "u" and count and values.max() > np.iinfo(np.int64).max:
            raise InputError(f"{self._label} has the value {values.max()}; the largest allowed is 2^63 - 1")
        return values.astype(np.int64)

    def pieces(self) -> Iterator[tuple[int, Ids]]:
        """All values: the position of the first one of each piece, and the piece."""
        while self.left:
            position = self.position
            yield position, self.read(_PIECE_ITEMS)


def open_npz(paths: Sequence[Path], options: ImportOptions) -> Source:
    """Archives of `offsets` and `indices`, or of `NAME.offsets` and `NAME.indices` (also with an underscore).

    `offsets` is [B + 1] if it ends with L in every table of the file, and otherwise [B]. Objects are never
    unpickled. Several files are read one after the other and have the same tables; a batch ends with its
    file. Memory: one batch.

    Raises:
        ConfigError: if a file cannot be read.
        CorruptionError: if a file is no archive, or is cut short.
        InputError: if arrays are missing or inconsistent, offsets fall, or an id is beyond its table.
    """
    refuse_renumbering(options, "npz")
    files = [(path, *_survey(path, options)) for path in paths]
    names = [table.name for table in files[0][1]]
    for path, found, _ in files:
        if [table.name for table in found] != names:
            raise InputError(
                f"{path} has the tables {', '.join(table.name for table in found)}, and {files[0][0]} has "
                f"{', '.join(names)}; files of one trace have the same tables in the same order"
            )
    largest = [max(found[position].largest for _, found, _ in files) for position in range(len(names))]
    tables = tuple(
        TraceTable(name, options.rows or max(1, most + 1), options.row_bytes)
        for name, most in zip(names, largest, strict=True)
    )

    def batches() -> Iterator[Batch]:
        for path, found, bags in files:
            yield from _batches(path, found, bags, options.bags_per_batch)

    return Source(tables, batches)


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    # The file is closed by `opened`, whatever members are still open.
    with opened(path) as file:
        try:
            with zipfile.ZipFile(cast("IO[bytes]", file)) as archive:
                yield archive
        except _DAMAGED as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            cause = str(error)[:_CAUSE_CHARACTERS]
            raise CorruptionError(
                f"{path} is cut short or is no npz file ({cause}); write it again"
            ) from None


def _survey(path: Path, options: ImportOptions) -> tuple[list[_Table], int]:
    """The tables of a file, each read once, and the number of bags that all of them have."""
    with _archive(path) as archive:
        tables = _find_tables(archive, path, options.table_name)
        for table in tables:
            _check_ids(_Member(archive, path, table.indices), table, path, options.rows)
            _check_offsets(_Member(archive, path, table.offsets), table, path)
    ends = all(table.last == table.ids for table in tables)
    bags = {table.name: table.starts - ends for table in tables}
    if len(set(bags.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in bags.items())
        raise InputError(
            f"{path}: tables have different numbers of bags ({counts}); each needs one per sample"
        )
    if max(bags.values()) == 0:
        raise InputError(f"{path} has no bags; leave the file out")
    return tables, bags[tables[0].name]


def _find_tables(archive: zipfile.ZipFile, path: Path, unnamed: str) -> list[_Table]:
    members = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    tables: dict[str, _Table] = {}
    for member in members:
        match = re.fullmatch(r"(?:(.+)([._]))?offsets", member)
        if match is None:
            continue
        prefix = member.removesuffix("offsets")
        name = match[1] or unnamed
        if f"{prefix}indices" not in members:
            raise InputError(f'{path} has an array "{member}" and no "{prefix}indices"; add it')
        if name in tables:
            raise InputError(f'{path} has two tables "{name}" (again at "{member}"); rename one')
        tables[name] = _Table(name, member, f"{prefix}indices")
    if not tables:
        raise InputError(
            f'{path} has no array "offsets" or "NAME.offsets"; it has {", ".join(members) or "nothing"}'
        )
    return list(tables.values())


def _check_ids(member: _Member, table: _Table, path: Path, rows: int | None) -> None:
    limit = ROWS_MAX if rows is None else rows
    table.ids = member.left
    for start, ids in member.pieces():
        bad = first_outside(ids, limit)
        if bad is not None:
            raise InputError(
                f"{path}: {table.indices}[{start + bad}] is {ids[bad]}, which is not in [0, {limit}); "
                "give the table more rows or correct the id"
            )
        table.largest = max(table.largest, int(ids.max()))


def _check_offsets(member: _Member, table: _Table, path: Path) -> None:
    table.starts = member.left
    before = 0
    for start, offsets in member.pieces():
        falls = np.flatnonzero(np.diff(offsets, prepend=before) < 0)
        beyond = np.flatnonzero(offsets > table.ids)
        bad = int(min([*falls[:1], *beyond[:1]], default=-1))
        if start == 0 and offsets[0] != 0:
            bad = 0
        if bad >= 0:
            raise InputError(
                f"{path}: {table.offsets}[{start + bad}] is {offsets[bad]}; offsets start at 0, do not fall "
                f"and do not pass the {table.ids} ids of {table.indices}"
            )
        before = int(offsets[-1])
        table.last = before
    if table.last is None and table.ids:
        raise InputError(
            f"{path}: {table.offsets} is empty and {table.indices} has {table.ids} ids; add offsets"
        )


def _batches(path: Path, tables: list[_Table], bags: int, bags_per_batch: int) -> Iterator[Batch]:
    with _archive(path) as archive:
        cursors = [_Cursor(archive, path, table) for table in tables]
        for first in range(0, bags, bags_per_batch):
            count = min(bags_per_batch, bags - first)
            yield tuple(cursor.take(count) for cursor in cursors)


class _Cursor:
    """The bags of one table from front to back."""

    def __init__(self, archive: zipfile.ZipFile, path: Path, table: _Table) -> None:
        self._offsets = _Member(archive, path, table.offsets)
        self._indices = _Member(archive, path, table.indices)
        self._ids = table.ids
        self._start = self._offsets.read(1)

    def take(self, count: int) -> Bags:
        """So many further bags."""
        ends = self._offsets.read(count)
        if len(ends) < count:  # offsets is [B]: the last bag ends with the ids
            ends = np.append(ends, self._ids)
        lengths = np.diff(ends, prepend=self._start)
        self._start = ends[-1:]
        return Bags(lengths, self._indices.read(max(0, int(lengths.sum()))))
