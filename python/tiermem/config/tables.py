"""Sets of embedding tables as somebody published them: rows, width and ids per bag, with the source."""

import csv
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from tiermem.config.base import Config, load_toml
from tiermem.config.names import resolve
from tiermem.errors import ConfigError

__all__ = ["RowDtype", "TableEntry", "TableSet", "TableSource"]

RowDtype = Literal["fp32", "fp16", "bf16"]
ROWS_MAX = 2**40
TABLES_MAX = 2**20
_VALUE_BYTES: Mapping[RowDtype, int] = {"fp32": 4, "fp16": 2, "bf16": 2}

T = TypeVar("T")


def _one_as_many(value: object) -> object:
    return value if isinstance(value, tuple) else (value,)


OneOrMany = Annotated[tuple[T, ...], BeforeValidator(_one_as_many), Field(min_length=1)]
"""An array with one value per table, or a single value for all of them."""


class TableSource(Config):
    """Where the numbers of a set come from."""

    kind: Literal["published", "measured", "derived", "assumed"]
    """`published`: stated by whoever made the model or benchmark. `measured`: counted by us."""
    ref: str = Field(min_length=1)
    """Repository and file, or document and place."""
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    """When it was read, ISO 8601."""


class TableEntry(Config):
    """One table."""

    name: str = Field(min_length=1)
    """Name, of which a set has one each."""
    rows: int = Field(ge=1, le=ROWS_MAX)
    """Number of rows."""
    dim: int = Field(ge=1)
    """Columns."""
    pooling: float = Field(ge=0)
    """Mean ids per bag. 0 is what a measured mean may round to; such a table has rows and no lookups."""
    row_dtype: RowDtype
    """Format of each value of a row."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, without optimizer state."""
        return self.dim * _VALUE_BYTES[self.row_dtype]


class _ListedTables(Config):
    """A `[[tables]]` group that states its numbers."""

    name: str = Field(default="table", min_length=1)
    """Each table's name is this, an underscore, and its place in the set, from 0."""
    count: int = Field(default=1, ge=1, le=TABLES_MAX)
    """How often the tables of the group occur."""
    rows: OneOrMany[Annotated[int, Field(ge=1, le=ROWS_MAX)]]
    """Number of rows."""
    dim: OneOrMany[Annotated[int, Field(ge=1)]]
    """Columns."""
    pooling: OneOrMany[Annotated[float, Field(gt=0)]]
    """Mean ids per bag."""
    row_dtype: RowDtype
    """Format of each value of a row."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        lengths = {"rows": len(self.rows), "dim": len(self.dim), "pooling": len(self.pooling)}
        longest = max(lengths, key=lengths.__getitem__)
        for key, length in lengths.items():
            if length not in (1, lengths[longest]):
                raise ValueError(
                    f"{key} has {length} values and {longest} has {lengths[longest]};"
                    " write one value per table, or a single one for all"
                )
        if self.count * lengths[longest] > TABLES_MAX:
            raise ValueError(f"count {self.count} makes more than {TABLES_MAX} tables; lower it")
        return self

    def entries(self, first: int, folder: Path) -> Iterator[TableEntry]:  # noqa: ARG002 (as _CsvTables)
        """The tables, of which the first has the place `first` in the set."""
        for n in range(self.count * max(len(self.rows), len(self.dim), len(self.pooling))):
            yield TableEntry(
                name=f"{self.name}_{first + n}",
                rows=self.rows[n % len(self.rows)],
                dim=self.dim[n % len(self.dim)],
                pooling=self.pooling[n % len(self.pooling)],
                row_dtype=self.row_dtype,
            )


class _CsvColumns(Config):
    """Which column of a CSV file holds what; other columns are not read."""

    name: str = "name"
    """Names; a table whose name was there before gets `.2`, `.3` and so on."""
    rows: str = "rows"
    """Number of rows."""
    dim: str = "dim"
    """Columns of the table."""
    pooling: str = "pooling"
    """Mean ids per bag; may be 0."""


class _CsvTables(Config):
    """A `[[tables]]` group that leaves its numbers to a CSV file, one table a line."""

    csv: str = Field(min_length=1)
    """The file, relative to the folder of the set."""
    columns: _CsvColumns = _CsvColumns()
    """Its columns."""
    row_dtype: RowDtype
    """Format of each value of a row."""

    def entries(self, first: int, folder: Path) -> Iterator[TableEntry]:  # noqa: ARG002 (as _ListedTables)
        """The tables of the file in `folder`."""
        wanted = self.columns.model_dump()
        seen: Counter[str] = Counter()
        for where, texts in _csv_lines(folder / self.csv, wanted):
            seen[texts["name"]] += 1
            again = f".{seen[texts['name']]}" if seen[texts["name"]] > 1 else ""
            rows, dim = (_number(where, wanted[key], texts[key], int) for key in ("rows", "dim"))
            pooling = _number(where, wanted["pooling"], texts["pooling"], float)
            try:
                yield TableEntry(
                    name=texts["name"] + again, rows=rows, dim=dim, pooling=pooling, row_dtype=self.row_dtype
                )
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None


def _csv_lines(path: Path, wanted: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each line of a CSV file as its place, for errors, and the wanted columns."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file, strict=True)
            names = lines.fieldnames or ()
            for column in wanted.values():
                if column not in names:
                    raise ConfigError(f'{path.name} has no column "{column}"; it has {", ".join(names)}')
            for line in lines:
                where = f"{path.name}, line {lines.line_num}"
                if None in line or None in line.values():
                    raise ConfigError(f"{where}: must have {len(names)} values, as the first line has")
                yield where, {key: line[column] for key, column in wanted.items()}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason}") from None
    except csv.Error as error:
        raise ConfigError(f"{path} is not valid CSV: {error}") from None


Number = TypeVar("Number", int, float)


def _number(where: str, column: str, text: str, kind: type[Number]) -> Number:
    try:
        return kind(text)
    except ValueError:
        what = "an integer" if kind is int else "a number"
        raise ConfigError(f"{where}: {column} must be {what}, got {text!r}") from None


def _group_tag(value: object) -> str:
    return "in_csv" if isinstance(value, Mapping) and "csv" in value else "listed"


class _TableFile(Config):
    """The contents of a file of tables."""

    name: str
    description: str
    source: TableSource
    tables: tuple[
        Annotated[
            Annotated[_ListedTables, Tag("listed")] | Annotated[_CsvTables, Tag("in_csv")],
            Discriminator(_group_tag),
        ],
        ...,
    ]


class TableSet(Config):
    """A set of tables. Files: `emulator_configs/tables/NAME.toml`.

    A file has a `name`, a `description`, a `[source]` with `kind`, `ref` and `date`, and groups of tables.
    In a group, `rows`, `dim` and `pooling` are each an array with one value per table or a single value for
    all; `count`, 1 if it is not there, repeats the group. `row_dtype` is "fp32", "fp16" or "bf16". Tables
    are called `table_0` and so on through the whole set; `name` replaces the word.

        [[tables]]                      # two tables that differ
        rows = [1_460, 583]
        dim = 16
        pooling = 1
        row_dtype = "fp32"

        [[tables]]                      # eight equal ones
        count = 8
        rows = 4_000_000
        dim = 32
        pooling = 80
        row_dtype = "fp32"

    A group may leave its numbers to a CSV file beside it, one table a line. `columns` says which columns
    hold `name`, `rows`, `dim` and `pooling`; it is not needed for those that are called so.

        [[tables]]
        csv = "mine.csv"
        columns = { dim = "emb_dim" }
        row_dtype = "fp16"

    Example:
        >>> tables = TableSet.load("criteo-kaggle")
        >>> len(tables.tables), tables.rows_total, tables.tables[2].row_bytes
        (26, 33762577, 64)
        >>> tables.scaled(1000).rows_total
        33765
    """

    name: str
    """Name, as in its file name."""
    description: str
    """What it is, for people."""
    source: TableSource
    """Where the numbers come from."""
    tables: tuple[TableEntry, ...] = Field(min_length=1, max_length=TABLES_MAX)
    """The tables, in the order of the file."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        name, times = Counter(entry.name for entry in self.tables).most_common(1)[0]
        if times > 1:
            raise ValueError(f'table names must differ, but {times} tables are called "{name}"; rename them')
        return self

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> Self:
        """The set of a shipped name or of a file.

        Raises:
            ConfigError: names the file, the key or the line and column, and what is wrong.
        """
        path = resolve("tables", name_or_path)
        file = _TableFile.from_mapping(load_toml(path), where=path.name)
        entries: list[TableEntry] = []
        for group in file.tables:
            entries.extend(group.entries(len(entries), path.parent))
        values: dict[str, Any] = {
            "name": file.name, "description": file.description, "source": file.source,
            "tables": tuple(entries),
        }  # fmt: skip
        return cls.from_mapping(values, where=path.name)

    @property
    def rows_total(self) -> int:
        """Rows of all tables."""
        return sum(entry.rows for entry in self.tables)

    @property
    def bytes_total(self) -> int:
        """Bytes of all rows, without optimizer state."""
        return sum(entry.rows * entry.row_bytes for entry in self.tables)

    @property
    def lookups_per_sample(self) -> float:
        """Mean ids of a sample that has one bag for each table."""
        return math.fsum(entry.pooling for entry in self.tables)

    @property
    def bytes_per_sample(self) -> float:
        """Bytes of the rows that these ids name, each counted as often as it is named."""
        return math.fsum(entry.pooling * entry.row_bytes for entry in self.tables)

    def scaled(self, rows_divisor: int) -> Self:
        """A copy with the rows of each table divided, rounded down to at least 1; the rest is kept.

        Raises:
            ConfigError: if the divisor is below 1.
        """
        if rows_divisor < 1:
            raise ConfigError(f"rows_divisor must be >= 1, got {rows_divisor}; 1 keeps all rows")
        if rows_divisor == 1:
            return self
        return self.replace(
            name=f"{self.name}-div{rows_divisor}",
            description=f"{self.description}; rows divided by {rows_divisor}",
            tables=tuple(entry.replace(rows=max(1, entry.rows // rows_divisor)) for entry in self.tables),
        )
