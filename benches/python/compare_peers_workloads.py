"""Ids, rows and gradients that all sides of `compare_peers.py` get alike, and the interface of a side."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch

ZIPF_EXPONENT = 1.05
LEARNING_RATE, EPSILON = 0.05, 1e-8
ADAM_LEARNING_RATE, ADAM_EPSILON = 1e-3, 1e-8
_TILE_ROWS = 65_536


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """One table and the mean length of its bags."""

    rows: int
    dim: int
    ids_per_bag: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Tables and the batches of one workload. All tables have as many bags."""

    name: str
    title: str
    tables: tuple[Table, ...]
    bags: int
    batches: int = 16
    row_type: str = "fp32"
    uniform_ids: bool = False
    """Otherwise ranks by Zipf's law, and which row has which rank is a permutation by chance."""
    varied_bags: bool = False
    """Lengths of bags are uniform from 1 to twice the mean less 1; otherwise all are the mean."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.row_type == "fp16" else torch.float32

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(table.rows * table.dim for table in self.tables) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """The lookups of one step."""

    ids: tuple[torch.Tensor, ...]
    """By table, int64 [L]."""
    offsets: tuple[torch.Tensor, ...]
    """By table, int64 [B]."""
    all_ids: torch.Tensor
    """Of all tables, as FBGEMM takes them: int64 [sum of L]."""
    all_offsets: torch.Tensor
    """int64 [tables * B + 1]."""


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """A workload, ready to run."""

    shape: Shape
    batches: tuple[Batch, ...]
    gradients: tuple[torch.Tensor, ...]
    """By table, float32 [B, D]; the same in every step."""
    all_gradients: torch.Tensor
    """float32 [B, sum of D]."""

    @property
    def ids(self) -> float:
        """Ids of a batch, mean."""
        return sum(len(batch.all_ids) for batch in self.batches) / len(self.batches)

    def touched_rows(self) -> int:
        """Different rows of all batches together."""
        return sum(
            len(torch.unique(torch.cat([batch.ids[position] for batch in self.batches])))
            for position in self.positions()
        )

    def forward_bytes(self) -> float:
        """The least that a forward pass over a batch moves: rows asked for, ids, offsets, pooled rows."""
        total = 0
        for batch in self.batches:
            for table, ids in zip(self.shape.tables, batch.ids, strict=True):
                rows = len(ids) * (table.dim * self.shape.dtype.itemsize + 8)
                total += rows + self.shape.bags * (8 + 4 * table.dim)
        return total / len(self.batches)

    def training_bytes(self, state_floats: int) -> float:
        """The same of a step: in addition ids and gradients are read, and unique rows read and written.

        Args:
            state_floats: floats of optimizer state in a row; -1: as many as it has columns, twice.
        """
        total = 0
        for batch in self.batches:
            for table, ids in zip(self.shape.tables, batch.ids, strict=True):
                state = 2 * table.dim if state_floats < 0 else state_floats
                image = table.dim * self.shape.dtype.itemsize + 4 * state
                total += len(ids) * 8 + self.shape.bags * (8 + 4 * table.dim)
                total += 2 * len(torch.unique(ids)) * image
        return self.forward_bytes() + total / len(self.batches)

    def row_bytes(self) -> float:
        """Bytes of weights of a row, mean over the ids of the batches."""
        ids = [sum(len(batch.ids[position]) for batch in self.batches) for position in self.positions()]
        widths = [table.dim * self.shape.dtype.itemsize for table in self.shape.tables]
        return sum(count * width for count, width in zip(ids, widths, strict=True)) / sum(ids)

    def positions(self) -> range:
        """Numbers of the tables."""
        return range(len(self.shape.tables))


class Side(ABC):
    """One implementation, with the rows of `chunks`. Methods take the number of a batch."""

    def __init__(self, work: Work) -> None:
        self.work = work

    @abstractmethod
    def pooled(self, batch: int) -> Sequence[torch.Tensor]:
        """Pools by the lowest call, without autograd; split by table or not."""

    @abstractmethod
    def forward(self, batch: int) -> Sequence[torch.Tensor]:
        """Pools by the module, with a graph for backward."""

    @abstractmethod
    def train(self, batch: int) -> None:
        """One whole step by the module."""

    @abstractmethod
    def rows(self, table: int) -> torch.Tensor:
        """Weights of a table, float32 [rows, D]; may be a view."""

    def split(self, outputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Outputs by table."""
        return outputs

    @property
    def held_bytes(self) -> float:
        """Bytes of memory that all rows take with what belongs to them."""
        return 0.0

    def close(self) -> None:
        """Gives the memory back."""
        self.__dict__.clear()


def _cycle(values: Sequence[int], count: int) -> list[int]:
    return [values[position % len(values)] for position in range(count)]


def _mixed_tables() -> tuple[Table, ...]:
    """26 tables, 1e4 to 1e6 rows, mixed columns and bags; periods 7, 9 and 5 mix the combinations."""
    rows = _cycle((1_000_000, 10_000, 200_000, 50_000, 500_000, 20_000, 100_000), 26)
    dims = _cycle((64, 16, 128, 32, 20, 48, 100, 64, 36), 26)
    means = _cycle((10, 1, 50, 3, 100), 26)
    return tuple(Table(*values) for values in zip(rows, dims, means, strict=True))


def _one_table(name: str, bags: int, row_type: str) -> Shape:
    title = f"one table of 1 M rows x 64 {row_type}, bags of 10"
    tables = (Table(1_000_000, 64, 10),)
    # So many that all rows of the batches together do not fit in a cache of 32 MB.
    batches = 64 if bags < 10_000 else 16
    return Shape(name=name, title=title, tables=tables, bags=bags, batches=batches, row_type=row_type)


def _mixed(name: str, row_type: str) -> Shape:
    title = f"26 tables of mixed columns and bags in {row_type}"
    tables = _mixed_tables()
    return Shape(
        name=name, title=title, tables=tables, bags=256, batches=8, varied_bags=True, row_type=row_type
    )


SHAPES = {
    shape.name: shape
    for shape in (
        _one_table("W1", 2_048, "fp32"),
        _one_table("W1L", 20_480, "fp32"),
        _one_table("W2", 2_048, "fp16"),
        _one_table("W2L", 20_480, "fp16"),
        _mixed("W3", "fp32"),
        _mixed("W3H", "fp16"),
        Shape(
            name="W5",
            title="uniform ids over 4 GB",
            tables=(Table(16_800_000, 64, 10),),
            bags=2_048,
            batches=64,
            uniform_ids=True,
        ),
    )
}


def small(shape: Shape) -> Shape:
    """A size that the checks run."""
    tables = tuple(
        dataclasses.replace(table, rows=max(100, table.rows // 2_000), ids_per_bag=min(table.ids_per_bag, 10))
        for table in shape.tables
    )
    return dataclasses.replace(shape, tables=tables, bags=max(8, shape.bags // 128), batches=3)


def _draw(
    shape: Shape, table: Table, counts: Sequence[int], generator: np.random.Generator
) -> list[torch.Tensor]:
    """Ids of all batches."""
    if shape.uniform_ids:
        return [torch.from_numpy(generator.integers(0, table.rows, count)) for count in counts]
    cumulative = np.cumsum(np.arange(1, table.rows + 1, dtype=np.float64) ** -ZIPF_EXPONENT)
    cumulative /= cumulative[-1]
    row_of_rank = generator.permutation(table.rows)
    found = []
    for count in counts:
        ranks = np.searchsorted(cumulative, generator.random(count))
        found.append(torch.from_numpy(row_of_rank[np.minimum(ranks, table.rows - 1)]))
    return found


def prepare(shape: Shape) -> Work:
    """Batches and gradients, the same in every run."""
    by_table = []
    for position, table in enumerate(shape.tables):
        generator = np.random.default_rng([5, position])
        mean = table.ids_per_bag
        if shape.varied_bags:
            lengths = generator.integers(1, 2 * mean, (shape.batches, shape.bags))
        else:
            lengths = np.full((shape.batches, shape.bags), mean)
        ids = _draw(shape, table, lengths.sum(axis=1).tolist(), generator)
        offsets = torch.from_numpy(np.cumsum(lengths, axis=1) - lengths)
        by_table.append((ids, offsets))
    batches = []
    for number in range(shape.batches):
        ids_of = tuple(ids[number] for ids, _ in by_table)
        offsets_of = tuple(offsets[number].contiguous() for _, offsets in by_table)
        starts = np.cumsum([0, *(len(ids) for ids in ids_of)]).tolist()
        shifted = [offsets + start for offsets, start in zip(offsets_of, starts, strict=False)]
        batches.append(
            Batch(ids_of, offsets_of, torch.cat(ids_of), torch.cat([*shifted, torch.tensor(starts[-1:])]))
        )
    torch_generator = torch.Generator().manual_seed(11)
    # All positive: sums that nearly cancel would show where each Adam adds its epsilon.
    gradients = tuple(
        (torch.rand(shape.bags, table.dim, generator=torch_generator) + 0.5) * 0.01 for table in shape.tables
    )
    return Work(shape, tuple(batches), gradients, torch.cat(gradients, dim=1))


def chunks(shape: Shape, position: int) -> Iterator[tuple[int, torch.Tensor]]:
    """The first values of a table: (first row, float32 [n, D]); what `row_type` can hold."""
    table = shape.tables[position]
    generator = torch.Generator().manual_seed(100 + position)
    tile = torch.rand(min(_TILE_ROWS, table.rows), table.dim, generator=generator) - 0.5
    for start in range(0, table.rows, len(tile)):
        part = tile[: table.rows - start] + start / table.rows
        yield start, part.to(shape.dtype).float()


def fill(shape: Shape, position: int, weights: torch.Tensor) -> None:
    """The first values of a table, into a tensor [rows, D]."""
    with torch.no_grad():
        for start, part in chunks(shape, position):
            weights[start : start + len(part)] = part
