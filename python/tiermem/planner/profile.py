"""What a trace says of each table, in the form that the planner needs: an access profile, and its file."""

import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from tiermem.errors import ConfigError, CorruptionError
from tiermem.results import digest, write_bytes

__all__ = ["AccessProfile", "TableProfile"]

FORMAT = 1
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TableProfile:
    """One table. Segments are runs of rows by rank of popularity, the hottest first.

    Counts are means per batch.
    """

    name: str
    rows: int
    row_bytes: int
    """Bytes of a row's image: weights and optimizer state."""
    weight_bytes: int
    """Bytes of its weights alone."""
    pooling: float
    """Ids per bag that is not empty."""
    coverage: float
    """Share of the bags that are not empty."""
    segment_rows: Integers
    """Rows of each segment, int64 [S]; they add up to `rows`."""
    segment_ids: Floats
    """Ids, duplicates included, float64 [S]."""
    distinct: Floats
    """Distinct rows, float64 [S]."""
    misses: Floats
    """float64 [S, W]: distinct rows that none of the `windows[w]` batches before asked for."""
    hot_rows: Integers
    """Row numbers by rank, int64; the rows that are not listed follow in order of their number."""

    @property
    def ids(self) -> float:
        """Ids per batch."""
        return float(self.segment_ids.sum())


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AccessProfile:
    """All tables of a trace."""

    origin: str
    """Trace or law, for people."""
    bags: int
    """Bags of each table in a batch: the batch size."""
    batches: int
    """Batches that were profiled."""
    windows: Integers
    """Ascending from 0, int64 [W], in batches; the same for all tables."""
    tables: tuple[TableProfile, ...]

    @property
    def bytes_total(self) -> int:
        """Bytes of all row images."""
        return sum(table.rows * table.row_bytes for table in self.tables)

    def divided(self, nodes: int) -> Self:
        """What one of so many nodes is asked for if each has an equal part of every table."""
        return dataclasses.replace(
            self, tables=tuple(_divided(table, nodes) if nodes > 1 else table for table in self.tables)
        )

    def hash(self) -> str:
        """Of everything in it, 16 hexadecimal digits."""
        return digest(
            {
                "format": FORMAT,
                **self._head(),
                "tables": [
                    {**_scalars(table), **{key: value.tolist() for key, value in _arrays(table).items()}}
                    for table in self.tables
                ],
            }
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the profile, whole or not at all.

        Raises:
            TiermemError: if it cannot be written.
        """
        head = {"format": FORMAT, **self._head(), "tables": [_scalars(table) for table in self.tables]}
        arrays: dict[str, npt.NDArray[np.generic]] = {
            f"{number}.{key}": value
            for number, table in enumerate(self.tables)
            for key, value in _arrays(table).items()
        }
        contents = io.BytesIO()
        np.savez_compressed(contents, head=np.array(json.dumps(head)), **arrays)  # type: ignore[arg-type]
        write_bytes(Path(path), contents.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a profile.

        Raises:
            ConfigError: if there is no such file, or it is of another version.
            CorruptionError: if it is not a profile.
        """
        try:
            with np.load(Path(path), allow_pickle=False) as file:
                head = json.loads(str(file["head"]))
                if head.pop("format") != FORMAT:
                    raise ConfigError(f"{os.fspath(path)} is a profile of another version; make it again")
                tables = tuple(
                    TableProfile(**scalars, **{key: file[f"{number}.{key}"] for key in _ARRAYS})
                    for number, scalars in enumerate(head.pop("tables"))
                )
                return cls(**{**head, "windows": np.array(head["windows"], dtype=np.int64)}, tables=tables)
        except OSError as error:
            raise ConfigError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from None
        except (KeyError, ValueError, TypeError, EOFError) as error:
            if isinstance(error, ConfigError):
                raise
            raise CorruptionError(
                f"{os.fspath(path)} is not an access profile; make one with tiermem plan --save-profile"
            ) from None

    def _head(self) -> dict[str, object]:
        keys = ("origin", "bags", "batches")
        return {**{key: getattr(self, key) for key in keys}, "windows": self.windows.tolist()}


def _divided(table: TableProfile, nodes: int) -> TableProfile:
    segment_rows = np.maximum(1, np.round(table.segment_rows / nodes)).astype(np.int64)
    return dataclasses.replace(
        table,
        rows=int(segment_rows.sum()),
        segment_rows=segment_rows,
        segment_ids=table.segment_ids / nodes,
        distinct=table.distinct / nodes,
        misses=table.misses / nodes,
        hot_rows=table.hot_rows[:0],
    )


_ARRAYS = ("segment_rows", "segment_ids", "distinct", "misses", "hot_rows")
_SCALARS = ("name", "rows", "row_bytes", "weight_bytes", "pooling", "coverage")


def _arrays(table: TableProfile) -> dict[str, npt.NDArray[np.generic]]:
    return {key: getattr(table, key) for key in _ARRAYS}


def _scalars(table: TableProfile) -> dict[str, object]:
    return {key: getattr(table, key) for key in _SCALARS}
