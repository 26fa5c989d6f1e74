"""One table as a read-only file that can be served: rows at fixed offsets, checksums at the end.

offset  bytes
0       8             "TMTABLE" and a zero byte
8       4             format version, little-endian as all numbers here
12      4             length of the JSON text
16                    the JSON text (`TableHeader`), then zeros
4092    4             CRC-32 of the 4,092 bytes before
4096    rows * bytes  rows as `tiermem.checkpoint.table_rows` describes them, one after the other, no gaps
        4 each        CRC-32 of each MiB of the rows; the last may be shorter
        4             CRC-32 of these checksums
"""

import dataclasses
import json
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import numpy.typing as npt

from tiermem.checkpoint.files import (
    CHUNK_BYTES_MIN,
    check_chunks,
    check_length,
    naming_failures,
    remove_leftovers,
    sync_directory,
    temporary_path,
)
from tiermem.checkpoint.manifest import refuse_version
from tiermem.checkpoint.table_rows import Rows, ScaleType, decode_rows, row_bytes_of
from tiermem.config import RowType
from tiermem.errors import ConfigError, CorruptionError, InputError

__all__ = ["TABLE_VERSION", "TableFile", "TableHeader", "write_table"]

TABLE_VERSION = 2
_MAGIC = b"TMTABLE\0"
_HEADER_BYTES = 4096
_FIXED = struct.Struct("<8sII")
_TEXT_BYTES_MAX = _HEADER_BYTES - _FIXED.size - 4
_MODE = 0o444
_NAME = re.compile(r".+\.tmtable")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TableHeader:
    """What a table file says about itself."""

    name: str
    rows: int
    dim: int
    """Columns."""
    step: int
    """Training steps that its weights have seen."""
    experiment_hash: str
    """SHA-256 of the configuration that it was trained with."""
    row_type: RowType = "fp32"
    """How rows are stored; `TableFile` gives float32 whatever it is."""
    scale_type: ScaleType | None = None
    """How scale and bias of a row are stored: for int8 rows, which have them, and for no others."""
    row_bytes: int = 0
    header_bytes: int = _HEADER_BYTES
    """Offset of row 0."""
    chunk_bytes: int = CHUNK_BYTES_MIN
    """Bytes of rows under one checksum."""
    footer_offset: int = 0
    """Where the checksums begin."""
    tiermem_version: str = dataclasses.field(default_factory=lambda: metadata.version("tiermem"))
    """The package that wrote it."""

    def __post_init__(self) -> None:
        for setting, value, choices in (
            ("row_type", self.row_type, get_args(RowType)),
            ("scale_type", self.scale_type, get_args(ScaleType) if self.row_type == "int8" else (None,)),
        ):
            if value not in choices:
                raise ConfigError(f'{setting} of table "{self.name}" is "{value}"; use one of {choices}')
        object.__setattr__(self, "row_bytes", row_bytes_of(self.row_type, self.scale_type, self.dim))
        object.__setattr__(self, "footer_offset", self.header_bytes + self.rows * self.row_bytes)

    @property
    def chunks(self) -> int:
        """Number of checksums of rows."""
        return -(-self.rows * self.row_bytes // self.chunk_bytes)

    @property
    def file_bytes(self) -> int:
        """Length of the whole file."""
        return self.footer_offset + 4 * (self.chunks + 1)

    def pack(self) -> bytes:
        """The first 4,096 bytes of the file."""
        text = json.dumps({"format_version": TABLE_VERSION, **dataclasses.asdict(self)}).encode()
        if len(text) > _TEXT_BYTES_MAX:
            raise ConfigError(f"the name of table {self.name[:40]}... is too long for a table file")
        fixed = _FIXED.pack(_MAGIC, TABLE_VERSION, len(text))
        block = (fixed + text).ljust(_HEADER_BYTES - 4, b"\0")
        return block + struct.pack("<I", zlib.crc32(block))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads and checks the header of a file.

        Raises:
            CorruptionError: names the file and the offset.
            TiermemError: if another version wrote it; the message says which.
        """
        try:
            with path.open("rb") as file:
                block = file.read(_HEADER_BYTES)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        if block[: len(_MAGIC)] != _MAGIC:
            raise CorruptionError(f"{path} is not a table file: it does not begin with its mark at offset 0")
        if len(block) < _HEADER_BYTES:
            raise CorruptionError(f"{path} was cut short at offset {len(block)}, within its header")
        if struct.pack("<I", zlib.crc32(block[:-4])) != block[-4:]:
            raise CorruptionError(f"{path} has changed between offset 0 and offset {_HEADER_BYTES - 1}")
        length = _FIXED.unpack_from(block)[2]
        values: dict[str, Any] = json.loads(block[_FIXED.size : _FIXED.size + length])
        refuse_version(path, values, TABLE_VERSION, make="export the table")
        del values["format_version"]
        return cls(**values)


class _ChunkSums:
    """CRC-32 of a stream, one a chunk."""

    def __init__(self, chunk_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes
        self.done: list[int] = []
        self.current = 0
        self.filled = 0

    def add(self, data: memoryview) -> None:
        while data:
            part = data[: self.chunk_bytes - self.filled]
            self.current = zlib.crc32(part, self.current)
            self.filled += len(part)
            data = data[len(part) :]
            if self.filled == self.chunk_bytes:
                self.finish()

    def finish(self) -> None:
        if self.filled:
            self.done.append(self.current)
            self.current, self.filled = 0, 0

    def pack(self) -> bytes:
        self.finish()
        sums = struct.pack(f"<{len(self.done)}I", *self.done)
        return sums + struct.pack("<I", zlib.crc32(sums))


def write_table(path: Path, header: TableHeader, chunks: Iterable[npt.NDArray[Any]]) -> None:
    """Writes a table whole or not at all, in chunks; an earlier file of that name is replaced.

    Args:
        path: the file.
        header: what it is.
        chunks: all rows in order, n at a time: [n, D] of the row type, or uint8 [n, bytes of a row].

    Raises:
        DeviceError: if it cannot be written; nothing half-written is left behind.
    """
    temporary = temporary_path(path)
    with naming_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, _NAME)
        try:
            with temporary.open("xb") as file:
                file.write(header.pack())
                sums, rows = _ChunkSums(header.chunk_bytes), 0
                for chunk in chunks:
                    data = np.ascontiguousarray(chunk).view(np.uint8)
                    assert data.shape[1] == header.row_bytes, "chunks are as the header says"  # noqa: S101
                    rows += len(data)
                    file.write(data.data)
                    sums.add(data.data.cast("B"))
                assert rows == header.rows, "chunks have all rows of the table"  # noqa: S101
                file.write(sums.pack())
                file.flush()
                os.fchmod(file.fileno(), _MODE)
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


class TableFile:
    """A table to read from: mapped into memory, so that opening reads nothing but the header.

    D = columns.

    Args:
        path: a file that `tiermem export` wrote.

    Raises:
        ConfigError: if there is no such file.
        CorruptionError: if it is no table, was cut short, or its header changed.
        TiermemError: if another version wrote it.

    Example:
        >>> import tempfile, pathlib, numpy as np
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "item.tmtable"
        >>> header = TableHeader(name="item", rows=3, dim=2, step=0, experiment_hash="")
        >>> write_table(path, header, [np.arange(6, dtype=np.float32).reshape(3, 2)])
        >>> TableFile(path).rows([2, 0]).tolist()
        [[4.0, 5.0], [0.0, 1.0]]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.header = TableHeader.read(self.path)
        check_length(self.path, self.header.file_bytes)
        shape = (self.header.rows, self.header.row_bytes)
        self._rows: npt.NDArray[np.uint8] = np.memmap(
            self.path, dtype=np.uint8, mode="r", offset=self.header.header_bytes, shape=shape
        )

    def __len__(self) -> int:
        return self.header.rows

    def rows(self, ids: npt.ArrayLike) -> Rows:
        """Copies of some rows: float32 [n, D], whatever the row type is.

        Args:
            ids: integers [n], in any order, as often as one likes.

        Raises:
            InputError: if an id is not a row of this table.
        """
        wanted = np.asarray(ids)
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise InputError(f"ids are a list of integers, not {wanted.dtype} of {wanted.ndim} dimensions")
        wrong = wanted[(wanted < 0) | (wanted >= len(self))]
        if wrong.size:
            raise InputError(
                f'id {wrong[0]} is not a row of table "{self.header.name}", which has {len(self)} rows'
            )
        stored = np.asarray(self._rows[wanted.astype(np.int64)])
        return decode_rows(stored, self.header.row_type, self.header.scale_type)

    def stored(self, count: int) -> Iterator[npt.NDArray[np.uint8]]:
        """All rows as they are stored, uint8 [n * bytes of a row], `count` at a time; the last fewer."""
        for first in range(0, len(self), count):
            yield np.ascontiguousarray(self._rows[first : first + count]).reshape(-1)

    def stored_at(self, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
        """Some rows as they are stored, uint8 [n * bytes of a row]; zeros where a row is -1."""
        stored = self._rows[np.maximum(rows, 0)]
        stored[rows < 0] = 0
        return np.ascontiguousarray(stored).reshape(-1)

    def verify(self) -> None:
        """Reads the file through.

        Raises:
            CorruptionError: names the file and the offsets between which a byte changed.
        """
        header = self.header
        stored = np.fromfile(self.path, dtype="<u4", offset=header.footer_offset)
        if zlib.crc32(stored[:-1].data) != int(stored[-1]):
            last = header.file_bytes - 1
            raise CorruptionError(
                f"{self.path} has changed between offset {header.footer_offset} and offset {last}"
            )
        check_chunks(
            self.path,
            header.chunk_bytes,
            stored[:-1].tolist(),
            start=header.header_bytes,
            end=header.footer_offset,
        )
