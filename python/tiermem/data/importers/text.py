"""One decimal id per line, plain or as .gz or .xz; blank lines, and what follows #, do not count."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tiermem.data.accesses import Source
from tiermem.data.importers.files import opened
from tiermem.data.importers.options import ImportOptions
from tiermem.data.importers.streams import Piece, open_stream
from tiermem.errors import InputError

__all__ = ["LINE_BYTES_MAX", "open_text"]

LINE_BYTES_MAX = 4096
_ID_MAX = 2**63 - 1
_SHOWN_CHARACTERS = 40


def open_text(paths: Sequence[Path], options: ImportOptions) -> Source:
    """Ids as accesses of one table; they are row numbers unless `options.renumber` is true.

    Raises:
        ConfigError: if a file cannot be read.
        CorruptionError: if a compressed file is cut short.
        InputError: if a line is no id, an id is beyond the table, or a file has no ids.
    """
    return open_stream(paths, options, _read, renumber=options.renumber is True)


def _read(path: Path, count: int) -> Iterator[Piece]:
    keys: list[int] = []
    lines: list[int] = []
    with opened(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES_MAX), b""), 1):
            text = line.partition(b"#")[0].strip()
            if not text and len(line) < LINE_BYTES_MAX:
                continue
            keys.append(_parse(path, number, line, text))
            lines.append(number)
            if len(keys) == count:
                yield _piece(keys, lines)
                keys, lines = [], []
    if keys:
        yield _piece(keys, lines)


def _piece(keys: list[int], lines: list[int]) -> Piece:
    return Piece(np.array(keys, dtype=np.int64), lambda position: f"line {lines[position]}")


def _parse(path: Path, number: int, line: bytes, text: bytes) -> int:
    if len(line) < LINE_BYTES_MAX and len(text) < 20 and text.isdigit() and int(text) <= _ID_MAX:
        return int(text)
    shown = line.strip().decode("ascii", "backslashreplace")[:_SHOWN_CHARACTERS]
    raise InputError(
        f'{path}, line {number}: "{shown}" is no id; write one decimal number in [0, 2^63) per line '
        f"of less than {LINE_BYTES_MAX} bytes"
    )
