"""Trace files: tables, batches, bags and ids in the format of docs/traces.md, streamed."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from tiermem import _core
from tiermem.data.accesses import Bags, Batch, Source, TraceTable
from tiermem.errors import InputError

__all__ = ["TraceReader", "TraceTotals", "TraceWriter", "write_trace"]


@dataclasses.dataclass(frozen=True, slots=True)
class TraceTotals:
    """What a trace holds in all."""

    batches: int
    bags: int
    """Of all tables."""
    ids: int
    """Of all tables."""


class TraceWriter:
    """A trace that is being written; as a context manager it appears when the block ends without an error.

    Args:
        path: where it goes; nothing is there before `finish`.
        tables: in the order in which batches hold them.
        origin: where the accesses come from, for people.

    Raises:
        ConfigError: if tables have no rows, too many, or share a name.
        DeviceError: if the folder cannot be written.

    Example:
        >>> import tempfile, pathlib, numpy as np
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "t.tmtrace"
        >>> with TraceWriter(path, (TraceTable("user", rows=10),), origin="by hand") as writer:
        ...     writer.write((Bags(np.array([2, 0]), np.array([3, 7])),))
        >>> [bags.ids.tolist() for batch in TraceReader(path) for bags in batch]
        [[3, 7]]
    """

    def __init__(self, path: str | os.PathLike[str], tables: tuple[TraceTable, ...], *, origin: str) -> None:
        described = {
            "tables": [
                {"name": table.name, "rows": int(table.rows), "row_bytes": int(table.row_bytes)}
                for table in tables
            ],
            "origin": origin,
        }
        self.tables = tables
        self._inner = _core.TraceWriter(os.fspath(path), json.dumps(described))

    def write(self, batch: Batch) -> None:
        """Adds one batch: the bags of each table, in the order of the tables.

        Raises:
            InputError: if a table is missing, lengths and ids do not fit together, a number is negative, or
                an id is beyond its table; nothing of the batch is written then.
        """
        self._inner.write([(_bytes(bags.lengths), _bytes(bags.ids)) for bags in batch])

    def finish(self) -> TraceTotals:
        """Ends the trace and gives it its name."""
        return TraceTotals(**json.loads(self._inner.finish()))

    def abort(self) -> None:
        """Leaves nothing behind."""
        self._inner.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.abort()


class TraceReader:
    """A trace to read: iterating gives its batches, from the first one on each time.

    Raises:
        DeviceError: if the file cannot be read.
        CorruptionError: if it is no trace, was cut short or changed; the message names the offset.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        described = json.loads(_core.TraceReader(self.path).description_json())
        self.tables = tuple(TraceTable(**table) for table in described["tables"])
        self.origin: str = described["origin"]

    def __iter__(self) -> Iterator[Batch]:
        inner = _core.TraceReader(self.path)
        while (batch := inner.read()) is not None:
            yield tuple(
                Bags(np.frombuffer(lengths, dtype=np.int64), np.frombuffer(ids, dtype=np.int64))
                for lengths, ids in batch
            )


def write_trace(path: str | os.PathLike[str], source: Source, *, origin: str) -> TraceTotals:
    """Writes all batches of a source."""
    writer = TraceWriter(path, source.tables, origin=origin)
    try:
        for batch in source.batches():
            writer.write(batch)
        return writer.finish()
    finally:
        # Nothing is left to abort after `finish`.
        writer.abort()


def _bytes(values: np.typing.NDArray[np.int64]) -> np.typing.NDArray[np.uint8]:
    if values.dtype.kind not in "iu":
        raise InputError(
            f"lengths and ids are integers, not {values.dtype}; convert them with .astype(np.int64)"
        )
    return np.ascontiguousarray(values, dtype=np.int64).view(np.uint8)
