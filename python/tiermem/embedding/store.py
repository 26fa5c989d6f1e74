"""The handle of a tiered store: lookups in, pooled rows out, exact updates back."""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from tiermem import _core
from tiermem._interop import bytes_of, float_rows, id_vector, new_float
from tiermem.config import SGD, Hierarchy, Placement, RowWiseAdagrad
from tiermem.errors import ClosedError, ConfigError, InputError
from tiermem.stats import StoreStats, TableStats

__all__ = ["EmbeddingStore", "Lookup", "Mode", "StageTimes", "TableConfig", "Ticket"]

Mode = Literal["sum", "mean"]
NonFinite = Literal["pass", "refuse"]
_EXPORT_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TableConfig:
    """One embedding table."""

    name: str
    """Name, for errors and statistics."""
    rows: int
    """Number of rows."""
    dim: int
    """Columns."""
    init_bound: float | None = None
    """Rows start uniform in [-bound, bound); `None`: sqrt(1 / rows), as in the DLRM reference."""

    def __post_init__(self) -> None:
        if self.rows < 1 or self.dim < 1:
            raise ConfigError(f'table "{self.name}" needs at least one row and one column')
        if self.init_bound is not None and not 0 <= self.init_bound < float("inf"):
            raise ConfigError(f'init_bound of table "{self.name}" must not be negative')

    def core(self) -> dict[str, object]:
        """The form that the extension reads."""
        bound = self.rows**-0.5 if self.init_bound is None else self.init_bound
        init = {"uniform": {"bound": bound}}
        return {"name": self.name, "rows": self.rows, "dim": self.dim, "init": init}


@dataclasses.dataclass(frozen=True, slots=True)
class Lookup:
    """Bags of one table. B = bags, L = ids in all bags together."""

    table: int
    """Table number."""
    ids: torch.Tensor
    """int64 or int32 [L]."""
    offsets: torch.Tensor
    """int64 or int32 [B]: first position of each bag; ascending, the first is 0."""
    sample_weights: torch.Tensor | None = None
    """float32 [L]: factor of each id; only with sums."""


@dataclasses.dataclass(slots=True)
class StageTimes:
    """Nanoseconds that one step spent in the store, on the store's clock."""

    wait_ns: int = 0
    gather_ns: int = 0
    update_ns: int = 0
    release_ns: int = 0


class Ticket:
    """The rows of one prefetched batch: in memory from `wait` to `release`."""

    def __init__(self, core: _core.Ticket, lookups: Sequence[Lookup]) -> None:
        self._core = core
        self.lookups = tuple(lookups)

    def wait(self) -> None:
        """Returns when the rows are in memory, and on a wall clock when they are due.

        Blocks while earlier batches hold the staging memory that this one needs. A failed transfer is tried
        again by the next call.

        Raises:
            CapacityError: if only the calling thread could release those earlier batches.
            DeviceError: if a tier failed; names the tier and the rows.
        """
        self._core.wait()

    def release(self) -> None:
        """Gives the rows back, at the next step if gradients wait for one. Idempotent."""
        self._core.release()


class EmbeddingStore:
    """Tables on a hierarchy.

    Args:
        tables: the tables; their position is their number in a `Lookup`.
        hierarchy: tiers, budgets, clock.
        optimizer: of all tables.
        mode: pooling of all tables, "sum" or "mean". An empty bag gives zeros.
        placement: where tables live, or the path of a plan file; `None`: in the slowest tier, cached by all
            others.
        non_finite_gradients: "pass" applies NaN and infinities as torch does, "refuse" raises `InputError`
            before any row of the lookup changes. Both count them (`stats().non_finite_values`).
        timeline: remember transfers and dirty rows, for `timeline()`.
        seed: seed of initial values and latency draws.
        gate: for tests: a gate in front of all backends.

    Raises:
        ConfigError: for a configuration that is not allowed.
        CapacityError: if a device, a budget or the memory limit is too small.
        DeviceError: if a backend cannot be opened.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        hierarchy: Hierarchy,
        optimizer: SGD | RowWiseAdagrad,
        mode: Mode = "sum",
        placement: Placement | str | os.PathLike[str] | None = None,
        non_finite_gradients: NonFinite = "pass",
        timeline: bool = False,
        seed: int = 1,
        gate: _core.Gate | None = None,
    ) -> None:
        if mode not in ("sum", "mean"):
            raise ConfigError(f'mode "{mode}" is not supported; use "sum" or "mean"')
        if not 0 <= seed < 2**64:
            raise ConfigError(f"seed must be between 0 and 2^64 - 1, got {seed}")
        if non_finite_gradients not in ("pass", "refuse"):
            raise ConfigError(f'non_finite_gradients is "pass" or "refuse", got "{non_finite_gradients}"')
        self.tables = tuple(tables)
        self.hierarchy = hierarchy
        if placement is not None and not isinstance(placement, Placement):
            placement = Placement.load(placement)
        self.mode = mode
        self.times = StageTimes()
        shapes = [(table.name, table.rows) for table in self.tables]
        config = {
            "tables": [table.core() for table in self.tables],
            "tiers": hierarchy.core(),
            "parts": None if placement is None else placement.core(shapes, hierarchy),
            "optimizer": optimizer.core(),
            "non_finite_gradients": non_finite_gradients,
            "timeline": timeline,
            "staging_bytes": hierarchy.staging_bytes,
            "memory_limit_bytes": hierarchy.memory_limit_bytes,
            "clock": hierarchy.clock,
            "seed": seed,
        }
        self._core = _core.Store(json.dumps(config), gate=gate)

    @property
    def state_floats(self) -> int:
        """Floats of optimizer state in a row."""
        return self._core.state_floats

    @property
    def is_virtual(self) -> bool:
        """Whether time is computed rather than waited for."""
        return self._core.is_virtual

    def now_ns(self) -> int:
        """Time on the store's clock."""
        return self._core.now_ns()

    def advance(self, duration_ns: int) -> None:
        """Accounts for dense work in virtual time; no-op on a wall clock."""
        self._core.advance(duration_ns)

    def prefetch(self, lookups: Sequence[Lookup]) -> Ticket:
        """Queues the rows of a batch and returns at once.

        Raises:
            InputError: names the table and what is wrong with its ids or offsets.
            CapacityError: if the batch needs more rows than staging memory holds.
            DeviceError: if a tier fails and much is waiting for it already.
        """
        views, kept = self._views(lookups)
        return Ticket(self._core.prefetch(views), kept)

    def announce(self, lookups: Sequence[Lookup]) -> None:
        """Tells the policies which rows a batch will ask for that is prefetched later; for `lookahead`.

        Batches are announced in the order in which they are prefetched, each before its own prefetch.

        Raises:
            InputError: as `prefetch`.
            CapacityError: if more than 254 batches are announced and not yet prefetched.
        """
        self._core.announce(self._views(lookups)[0])

    def withdraw_announced(self) -> None:
        """What was announced and not yet prefetched will not come."""
        self._core.withdraw_announced()

    def _views(
        self, lookups: Sequence[Lookup]
    ) -> tuple[list[tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]], list[Lookup]]:
        views, kept = [], []
        for lookup in lookups:
            if not 0 <= lookup.table < len(self.tables):
                raise InputError(
                    f"table {lookup.table} does not exist; the store has {len(self.tables)} tables"
                )
            ids = id_vector("ids", lookup.ids)
            offsets = id_vector("offsets", lookup.offsets)
            weights = lookup.sample_weights
            if weights is not None:
                float_rows("sample_weights", weights)
                if weights.shape != ids.shape:
                    raise InputError(
                        f"there are {list(weights.shape)} sample weights for {list(ids.shape)} ids"
                    )
                if self.mode == "mean":
                    raise InputError('sample weights go with a sum; use mode="sum"')
            views.append((lookup.table, bytes_of(ids), bytes_of(offsets)))
            kept.append(Lookup(lookup.table, ids, offsets, weights))
        return views, kept

    def wait(self, ticket: Ticket) -> None:
        """`ticket.wait()`, timed."""
        began_ns = self.now_ns()
        ticket.wait()
        self.times.wait_ns += self.now_ns() - began_ns

    def gather(self, ticket: Ticket, position: int) -> torch.Tensor:
        """Pools lookup `position` of a ticket: float32 [B, D]. The ticket was waited for."""
        lookup = ticket.lookups[position]
        out = new_float(len(lookup.offsets), self.tables[lookup.table].dim)
        began_ns = self.now_ns()
        ticket._core.gather(
            position, bytes_of(out), mean=self.mode == "mean", sample_weights=_weights(lookup)
        )
        self.times.gather_ns += self.now_ns() - began_ns
        return out

    def backward(self, ticket: Ticket, position: int, gradients: torch.Tensor, *, lr: float | None) -> None:
        """Takes the gradient float32 [B, D] of a lookup: applied at once with `lr`, kept without."""
        lookup = ticket.lookups[position]
        view = bytes_of(float_rows("gradients", gradients))
        mean, weights = self.mode == "mean", _weights(lookup)
        core = ticket._core
        began_ns = self.now_ns()
        if lr is None:
            core.accumulate(position, view, mean=mean, sample_weights=weights)
        else:
            core.update(position, view, lr, mean=mean, sample_weights=weights)
        self.times.update_ns += self.now_ns() - began_ns

    def sample_weight_gradient(self, ticket: Ticket, position: int, gradients: torch.Tensor) -> torch.Tensor:
        """Gradient float32 [L] of a lookup's sample weights; before its rows are updated."""
        out = new_float(len(ticket.lookups[position].ids))
        view = bytes_of(float_rows("gradients", gradients))
        ticket._core.sample_weight_gradient(position, view, bytes_of(out))
        return out

    def step(self, lr: float) -> None:
        """Applies all kept gradients, in order of (batch, lookup, bag, position): one update a row."""
        began_ns = self.now_ns()
        self._core.step(lr)
        self.times.update_ns += self.now_ns() - began_ns

    def discard(self) -> None:
        """Forgets all kept gradients."""
        self._core.discard()

    def release(self, ticket: Ticket) -> None:
        """`ticket.release()`, timed."""
        began_ns = self.now_ns()
        ticket.release()
        self.times.release_ns += self.now_ns() - began_ns

    def chunk_rows(self, table: int) -> int:
        """The most ids of one forward-only lookup that surely fit in staging memory."""
        return self._core.chunk_rows(table)

    def rows(self, table: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """All rows in chunks of bounded size: (first row, weights [n, D], state [n, S])."""
        config = self.tables[table]
        chunk = max(1, _EXPORT_BYTES // (4 * (config.dim + self.state_floats)))
        for start in range(0, config.rows, chunk):
            count = min(chunk, config.rows - start)
            yield start, *self.read_rows(table, start, count)

    def read_rows(self, table: int, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows `start ..`: weights float32 [count, D], state float32 [count, S]. Costs no virtual time."""
        if start < 0 or count < 0:
            raise InputError(f"rows to copy start at {start} and are {count}; neither may be negative")
        weights = new_float(count, self.tables[table].dim)
        state = new_float(count, self.state_floats)
        self._core.read_rows(table, start, bytes_of(weights), bytes_of(state))
        return weights, state

    def write_rows(
        self, table: int, start: int, weights: torch.Tensor, state: torch.Tensor | None = None
    ) -> None:
        """Replaces rows `start ..` by weights float32 [n, D], and state float32 [n, S] or zero."""
        if start < 0:
            raise InputError(f"rows to replace start at {start}, which may not be negative")
        view = bytes_of(float_rows("weights", weights))
        state_view = None if state is None else bytes_of(float_rows("state", state))
        self._core.write_rows(table, start, view, state_view)

    def save_rows(self, path: str | os.PathLike[str]) -> int:
        """Writes all rows that exist, weights and optimizer state, to a new file; gives their number.

        Streams in chunks of bounded size, costs no virtual time, and leaves batches in flight as they are.
        Other threads may not update rows meanwhile, or the file mixes two steps.
        The file is safe (fsync) when this returns.

        Raises:
            DeviceError: if the file exists or cannot be written, or a tier failed.
        """
        return self._core.save_rows(path)

    def load_rows(self, path: str | os.PathLike[str]) -> int:
        """Replaces the rows of a store that was just opened by those of a file; gives their number.

        The file is read through and checked before any row is replaced.

        Raises:
            ConfigError: if the file is of other tables.
            CorruptionError: if it was cut short or changed; names the file and the offset.
        """
        return self._core.load_rows(path)

    def flush(self) -> None:
        """Writes every changed row down to the tier below and waits for it."""
        self._core.flush()

    def stats(self) -> StoreStats:
        """Everything counted so far."""
        return StoreStats.from_json(self._core.stats_json())

    def table_stats(self) -> list[TableStats]:
        """Everything counted so far, by table and tier."""
        return [TableStats.from_dict(table) for table in json.loads(self._core.table_stats_json())]

    def timeline(self) -> dict[str, Any]:
        """What happened when, if the store was opened with `timeline=True`; times on the store's clock.

        `transfers`: tier (position), operation, begin_ps, end_ps (`None`: under way), requests, nbytes.
        `dirty_rows`: (time in ns, rows in memory that are newer than below) after each release.
        """
        timeline: dict[str, Any] = json.loads(self._core.timeline_json())
        return timeline

    def read_latency_cdf(self, tier: int) -> list[tuple[int, float]]:
        """Points (latency in ns, share of reads at or below) of one tier's device."""
        return self._core.read_latency_cdf(tier)

    def close(self) -> None:
        """Finishes what is queued; later calls raise `ClosedError`. Idempotent."""
        self._core.close()

    def __reduce__(self) -> tuple[object, ...]:
        raise ClosedError("a store cannot be pickled or sent to another process; open one there")


def _weights(lookup: Lookup) -> npt.NDArray[np.uint8] | None:
    weights = lookup.sample_weights
    return None if weights is None else bytes_of(float_rows("sample_weights", weights))
