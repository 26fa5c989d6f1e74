"""Generated traces: which tables, how many batches, and the law that the accesses follow."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tiermem.config.base import Config
from tiermem.config.locality import LocalityStats, read_locality_stats
from tiermem.config.names import load_named
from tiermem.config.tables import TableSet
from tiermem.errors import ConfigError

__all__ = [
    "DriftLaw",
    "Law",
    "MultiHotLaw",
    "NgramLaw",
    "ReuseLaw",
    "SessionLaw",
    "Skew",
    "StackDistanceLaw",
    "SynthConfig",
    "SynthTable",
    "ZipfLaw",
]

Share = Annotated[float, Field(ge=0, le=1)]


class Skew(Config):
    """How popular rows are: heavy hitters, and Zipf-Mandelbrot for the others: (rank + shift) ^ -exponent."""

    exponent: float = Field(default=1.0, ge=0, le=1e3)
    """0: all rows alike."""
    shift: float = Field(default=0.0, ge=0, le=1e9)
    """Flattens the head."""
    heavy_hitters: tuple[Share, ...] = ()
    """Probabilities of the hottest rows."""


class ZipfLaw(Config):
    """Independent draws: the law of most generators. Its order has no locality."""

    kind: Literal["zipf"]
    skew: Skew = Skew()
    """Popularity."""


class StackDistanceLaw(Config):
    """The stack distances of another trace: it caches as that one does, and is as long as one likes."""

    kind: Literal["stack-distance"]
    like: str
    """The other trace."""


class DriftLaw(Config):
    """Working sets whose rows are replaced, and accesses to any row, most of which come once."""

    kind: Literal["drift"]
    skew: Skew = Skew()
    """Popularity within the working set."""
    working_set: Share = 0.1
    """Share of a table's rows that is in the working set; up to half of them if rows are replaced."""
    turnover: Share = 0.01
    """Share of the working set that is replaced in each batch."""
    once: Share = 0.0
    """Share of accesses that go to any row of the table."""


class MultiHotLaw(Config):
    """MLPerf's multi-hot tables: one id of a bag is drawn, the others are a fixed function of it."""

    kind: Literal["multi-hot"]
    skew: Skew = Skew()
    """Popularity of the drawn id."""


class SessionLaw(Config):
    """Samples of one session share the bags of some tables (RecD, arXiv 2211.05239)."""

    kind: Literal["session"]
    skew: Skew = Skew()
    """Popularity."""
    samples: float = Field(default=8.0, ge=1, le=10_000)
    """Mean samples per session; their number is geometric."""
    repeated: Share = 0.5
    """Share of the tables, the first ones, whose bags repeat."""


class NgramLaw(Config):
    """Tables of language models, indexed by hashed n-grams. A batch is a text, a bag is a token."""

    kind: Literal["ngram"]
    skew: Skew = Skew()
    """Popularity of tokens."""
    vocabulary: int = Field(default=128_000, ge=1)
    """Different tokens."""
    predictable: Share = 0.5
    """Share of tokens that follow from the one before."""
    orders: tuple[Annotated[int, Field(ge=1, le=64)], ...]
    """The order of the n-gram of each table; a single one is meant for all."""


class ReuseLaw(Config):
    """Counts of rows as in a published histogram of reuse, in an order that is chance."""

    kind: Literal["reuse"]
    stats: str
    """A locality_stats.txt of facebookresearch/dlrm_datasets; looked for beside the file that names it."""
    entry: str
    """Name of a batch in it, without .pt."""


Law = Annotated[
    ZipfLaw | StackDistanceLaw | DriftLaw | MultiHotLaw | SessionLaw | NgramLaw | ReuseLaw,
    Field(discriminator="kind"),
]


class SynthTable(Config):
    """One table."""

    name: str = Field(min_length=1)
    rows: int = Field(ge=1, le=2**40)
    """Ids are below it."""
    row_bytes: int = Field(default=256, ge=1)
    """Bytes of one row's image."""
    pooling: float = Field(default=1.0, ge=0, le=1e6)
    """Mean ids per bag; a fraction makes some bags one longer."""


class SynthConfig(Config):
    """A generated trace, `emulator_configs/traces/NAME.toml`."""

    description: str = ""
    """What it is like, for people."""
    seed: int = Field(default=1, ge=0, lt=2**63)
    """Everything follows from it."""
    batches: int = Field(ge=1, le=2**40)
    """Batches of the whole trace."""
    bags_per_batch: int = Field(ge=1, le=2**26)
    """Bags of each table in a batch: the batch size."""
    tables: tuple[SynthTable, ...] = ()
    """The tables; or a table set; or neither for `stack-distance`, which takes those of the other trace."""
    table_set: str | None = None
    """A name under emulator_configs/tables, or a path."""
    rows_divisor: int = Field(default=1, ge=1)
    """Divides the rows of the table set, each table keeping one at the least."""
    law: Law
    """What the accesses follow."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        named = (bool(self.tables), self.table_set is not None)
        if all(named) or (not any(named) and not isinstance(self.law, StackDistanceLaw)):
            raise ValueError("give either tables or table_set")
        if self.rows_divisor != 1 and self.table_set is None:
            raise ValueError("rows_divisor has an effect on a table_set only; there is none")
        return self

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Self:
        """A shipped generator by name, or a file, with `path.to.key=value` overrides.

        Raises:
            ConfigError: names the file, the key, and what is wrong.
        """
        values, path = load_named("traces", name_or_path, overrides)
        config = cls.from_mapping(values, where=path.name)
        if isinstance(config.law, ReuseLaw) and "\0" not in config.law.stats:
            beside = path.parent / config.law.stats
            if beside.is_file():
                return config.replace(law=config.law.replace(stats=str(beside)))
        return config

    def all_tables(self) -> tuple[SynthTable, ...]:
        """The tables, those of the table set too; empty if they are those of another trace."""
        if self.table_set is None:
            return self.tables
        tables = TableSet.load(self.table_set)
        if self.rows_divisor > 1:
            tables = tables.scaled(self.rows_divisor)
        return tuple(
            SynthTable(name=table.name, rows=table.rows, row_bytes=table.row_bytes, pooling=table.pooling)
            for table in tables.tables
        )

    def locality(self) -> LocalityStats | None:
        """The published histogram of a `reuse` law.

        Raises:
            ConfigError: if the file has no such batch.
        """
        if not isinstance(self.law, ReuseLaw):
            return None
        found = read_locality_stats(Path(self.law.stats))
        if self.law.entry not in found:
            raise ConfigError(f'{self.law.stats} has no batch "{self.law.entry}"; it has {", ".join(found)}')
        return found[self.law.entry]
