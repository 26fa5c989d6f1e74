"""Little-endian int64 keys one after the other, plain or as .xz or .gz; `open_words` serves either order."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from tiermem.data.accesses import Source
from tiermem.data.importers.cutting import ROWS_MAX, first_outside
from tiermem.data.importers.files import fill, opened
from tiermem.data.importers.options import ImportOptions
from tiermem.data.importers.streams import PIECE_KEYS, Piece, Reader, open_stream
from tiermem.errors import CorruptionError, InputError

__all__ = ["open_int64", "open_words"]

ByteOrder = Literal["<", ">"]
_KEY_BYTES = 8
_WORDS: dict[ByteOrder, tuple[str, str]] = {
    "<": ("little-endian", '"caffeine", which is big-endian'),
    ">": ("big-endian", '"int64", which is little-endian'),
}


def open_int64(paths: Sequence[Path], options: ImportOptions) -> Source:
    """Keys as little-endian int64; see `open_words`."""
    return open_words(paths, options, "<")


def open_words(paths: Sequence[Path], options: ImportOptions, order: ByteOrder) -> Source:
    """Keys of 8 bytes each as accesses of one table, renumbered unless `options.renumber` is false.

    Args:
        paths: the files, read one after the other.
        options: all fields matter.
        order: "<" for little-endian keys, ">" for big-endian ones.

    Raises:
        ConfigError: if a file cannot be read.
        CorruptionError: if a file is cut short.
        InputError: if a file is empty, makes sense only in the other byte order, or has a key that is no row.
    """
    renumber = options.renumber is not False
    read = functools.partial(_read, order=order)
    for path in paths:
        _refuse_other_order(path, read, order, None if renumber else options.rows or ROWS_MAX)
    return open_stream(paths, options, read, renumber=renumber)


def _read(path: Path, count: int, *, order: ByteOrder) -> Iterator[Piece]:
    start = 0
    with opened(path) as file:
        while True:
            buffer = np.empty(count * _KEY_BYTES, dtype=np.uint8)
            got = fill(file, buffer)
            if got % _KEY_BYTES:
                raise CorruptionError(
                    f"{path} holds {start + got} bytes, which is no whole number of 8-byte keys; "
                    "fetch it again"
                )
            if got == 0:
                return
            keys = buffer[:got].view(f"{order}i8").astype(np.int64)
            yield Piece(keys, functools.partial(_place, start))
            start += got


def _place(start: int, position: int) -> str:
    return f"byte offset {start + position * _KEY_BYTES}"


def _refuse_other_order(path: Path, read: Reader, order: ByteOrder, rows: int | None) -> None:
    """Raise if keys are no row numbers as they are, and all of them are with their bytes swapped.

    Keys in the right order fail the second part within the first piece, so the file is not read twice.
    Hashes over the full range are no row numbers in either order.

    Args:
        path: the file.
        read: yields its keys.
        order: in which they were taken to be.
        rows: rows that all keys must be below; `None`: keys may be anything, so most must be implausible.
    """
    limit = ROWS_MAX if rows is None else rows
    total = outside = 0
    first = ""
    for piece in read(path, PIECE_KEYS):
        if first_outside(piece.keys.byteswap(), limit) is not None:
            return
        bad = first_outside(piece.keys, limit)
        if bad is not None:
            first = first or f"{piece.keys[bad]} at {piece.place(bad)}"
            outside += int(((piece.keys < 0) | (piece.keys >= limit)).sum())
        total += len(piece.keys)
    if outside > (total // 2 if rows is None else 0):
        mine, other = _WORDS[order]
        raise InputError(
            f"{path}: read as {mine}, {outside} of {total} keys are not in [0, {limit}) (first {first}), "
            f"and with their bytes swapped all are; import it as {other}"
        )
