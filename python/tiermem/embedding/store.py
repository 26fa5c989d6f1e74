"""The handle of a tiered store: lookups in, pooled rows out, exact updates back."""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from tiermem import _core
from tiermem._interop import bytes_of, float_rows, id_vector, new_float, stored_rows
from tiermem.config import Hierarchy, OptimizerConfig, Placement
from tiermem.embedding.table import STORED_AS, Lookup, Mode, NonFinite, StageTimes, TableConfig, Ticket
from tiermem.errors import ClosedError, ConfigError, InputError
from tiermem.stats import StoreStats, TableStats

__all__ = ["EmbeddingStore"]

_EXPORT_BYTES = 16 * 2**20


class EmbeddingStore:
    """Tables on a hierarchy.

    Args:
        tables: the tables; their position is their number in a `Lookup`.
        hierarchy: tiers, budgets, clock.
        optimizer: of all tables.
        mode: pooling of all tables, "sum" or "mean", where an empty bag gives zeros; or "none": one row of
            output for each id.
        placement: where tables live, or the path of a plan file; `None`: in the slowest tier, cached by all
            others.
        non_finite_gradients: "pass" applies NaN and infinities of gradients and sample weights as torch does,
            "refuse" raises `InputError` before any row changes. Both count them
            (`stats().non_finite_values`).
        timeline: remember transfers and dirty rows, for `timeline()`.
        threads: that share the work of a lookup or an update, and change no bit; `None`: as many as torch has
            now.
        simd: "scalar", "avx2" or "avx512"; `None`: the best that the processor has. It changes no bit.
        seed: seed of initial values, latency draws and rounding.
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
        optimizer: OptimizerConfig,
        mode: Mode = "sum",
        placement: Placement | str | os.PathLike[str] | None = None,
        non_finite_gradients: NonFinite = "pass",
        timeline: bool = False,
        threads: int | None = None,
        simd: Literal["scalar", "avx2", "avx512"] | None = None,
        seed: int = 1,
        gate: _core.Gate | None = None,
    ) -> None:
        if not isinstance(optimizer, get_args(get_args(OptimizerConfig)[0])):
            raise ConfigError(f"the optimizer is one like tm.SGD(lr=0.1), got {optimizer!r}")
        if mode not in get_args(Mode):
            raise ConfigError(f'mode "{mode}" is not supported; use "sum", "mean" or "none"')
        threads = torch.get_num_threads() if threads is None else threads
        if threads < 1:
            raise ConfigError(f"threads must be at least 1, got {threads}")
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
            "threads": threads,
            "simd": simd,
        }
        self._core = _core.Store(json.dumps(config), gate=gate)

    def state_floats(self, table: int) -> int:
        """Floats of optimizer state in a row of a table."""
        return self._core.state_floats(table)

    def is_resident(self, table: int) -> bool:
        """Whether all rows of a table live in the fastest tier."""
        return self._core.is_resident(table)

    @property
    def steps(self) -> int:
        """Optimizer steps so far: what Adam calls t."""
        return self._core.steps()

    @steps.setter
    def steps(self, steps: int) -> None:
        if not 0 <= steps < 2**63:
            raise InputError(f"steps are counted from 0, got {steps}")
        self._core.set_steps(steps)

    @property
    def simd(self) -> str:
        """The instructions that the kernels use: "scalar", "avx2" or "avx512"."""
        return self._core.simd

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
                if self.mode != "sum":
                    raise InputError('sample weights go with a sum; use mode="sum"')
            views.append((lookup.table, bytes_of(ids), bytes_of(offsets)))
            is_kept = ids is lookup.ids and offsets is lookup.offsets
            kept.append(lookup if is_kept else Lookup(lookup.table, ids, offsets, weights))
        return views, kept

    def wait(self, ticket: Ticket) -> None:
        """`ticket.wait()`, timed."""
        began_ns = self.now_ns()
        ticket.wait()
        self.times.wait_ns += self.now_ns() - began_ns

    def gather(self, ticket: Ticket, position: int) -> torch.Tensor:
        """Pools lookup `position` of a ticket: float32 [B, D]. The ticket was waited for."""
        _lookup(ticket, position)
        return self._gather(ticket, [position])[0]

    def gather_all(self, ticket: Ticket) -> tuple[torch.Tensor, ...]:
        """Pools all lookups of a ticket in one call: float32 [B, D] each; [L, D] with mode "none"."""
        return self._gather(ticket, range(len(ticket.lookups)))

    def _gather(self, ticket: Ticket, positions: Sequence[int]) -> tuple[torch.Tensor, ...]:
        outs = [self._new_out(ticket.lookups[position]) for position in positions]
        sides = [
            (position, bytes_of(out), _weights(ticket.lookups[position]))
            for position, out in zip(positions, outs, strict=True)
        ]
        began_ns = self.now_ns()
        ticket._core.gather(sides, mode=self.mode)
        self.times.gather_ns += self.now_ns() - began_ns
        return tuple(outs)

    def pool(self, lookups: Sequence[Lookup]) -> tuple[torch.Tensor, ...]:
        """Fetches a batch, pools all its lookups, and gives the rows back, in one call; without gradients.

        Returns:
            As `gather_all`.

        Raises:
            InputError: as `prefetch`.
            CapacityError: if the batch needs more rows than staging memory holds, or than open tickets of
                this thread leave.
            DeviceError: if a tier failed.
        """
        views, kept = self._views(lookups)
        outs = [self._new_out(lookup) for lookup in kept]
        sides = [
            (position, bytes_of(out), _weights(lookup))
            for position, (lookup, out) in enumerate(zip(kept, outs, strict=True))
        ]
        self._core.pool(views, sides, mode=self.mode)
        return tuple(outs)

    def _new_out(self, lookup: Lookup) -> torch.Tensor:
        return new_float(*self._out_shape(lookup))

    def _out_shape(self, lookup: Lookup) -> tuple[int, int]:
        rows = lookup.ids if self.mode == "none" else lookup.offsets
        return rows.shape[0], self.tables[lookup.table].dim

    def backward(self, ticket: Ticket, position: int, gradients: torch.Tensor, *, lr: float | None) -> None:
        """Takes the gradient float32 [B, D] of a lookup: applied at once with `lr`, kept without."""
        _lookup(ticket, position)
        every: list[torch.Tensor | None] = [None] * len(ticket.lookups)
        every[position] = gradients
        self.backward_all(ticket, every, lr=lr)

    def backward_all(
        self, ticket: Ticket, gradients: Sequence[torch.Tensor | None], *, lr: float | None
    ) -> None:
        """Takes the gradients of all lookups of a ticket: applied at once, as one step, with `lr`; or kept.

        Args:
            ticket: the batch.
            gradients: float32 [B, D] for each lookup, [L, D] with mode "none", in any strides; `None` where
                there is none.
            lr: learning rate; `None` keeps the gradients for `step`.

        Raises:
            InputError: for a wrong shape or dtype; nothing was changed or kept.
        """
        if len(gradients) != len(ticket.lookups):
            raise InputError(f"there are {len(gradients)} gradients for {len(ticket.lookups)} lookups")
        sides = []
        for position, (lookup, gradient) in enumerate(zip(ticket.lookups, gradients, strict=True)):
            if gradient is None:
                continue
            if gradient.shape != (expected := self._out_shape(lookup)):
                raise InputError(
                    f"the gradient of lookup {position} is {list(gradient.shape)};"
                    f" its output is {list(expected)}"
                )
            sides.append((position, bytes_of(float_rows("gradients", gradient)), _weights(lookup)))
        if not sides:
            return
        if lr is not None:
            _check_lr(lr)
        began_ns = self.now_ns()
        if lr is None:
            ticket._core.accumulate(sides, mode=self.mode)
        else:
            ticket._core.update(sides, lr, mode=self.mode)
        self.times.update_ns += self.now_ns() - began_ns

    def gradient_norm(self) -> float:
        """The Euclidean norm of all kept gradients, each row's summed over its lookups first."""
        return self._core.gradient_norm()

    def scale_gradients(self, factor: float) -> None:
        """Multiplies all kept gradients by a factor."""
        self._core.scale_gradients(factor)

    def sample_weight_gradient(self, ticket: Ticket, position: int, gradients: torch.Tensor) -> torch.Tensor:
        """Gradient float32 [L] of a lookup's sample weights; before its rows are updated.

        Raises:
            InputError: for gradients of another shape than the output, or a mode other than "sum".
        """
        lookup = _lookup(ticket, position)
        if self.mode != "sum":
            raise InputError('sample weights go with a sum; use mode="sum"')
        if gradients.shape != (expected := self._out_shape(lookup)):
            raise InputError(
                f"the gradient of lookup {position} is {list(gradients.shape)};"
                f" its output is {list(expected)}"
            )
        out = new_float(len(lookup.ids))
        view = bytes_of(float_rows("gradients", gradients))
        ticket._core.sample_weight_gradient(position, view, bytes_of(out))
        return out

    def step(self, lr: float) -> None:
        """Applies all kept gradients, in order of (batch, lookup, bag, position): one update a row.

        Raises:
            InputError: for a learning rate that is negative or not finite.
        """
        _check_lr(lr)
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
        """All rows in chunks of bounded size: (first row, weights float32 [n, D], state [n, S])."""
        for start, count in self._chunks(table):
            yield start, *self.read_rows(table, start, count)

    def stored_rows(self, table: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """As `rows`, with the weights as `read_stored_rows` has them."""
        for start, count in self._chunks(table):
            yield start, *self.read_stored_rows(table, start, count)

    def _chunks(self, table: int) -> Iterator[tuple[int, int]]:
        config = self.tables[table]
        chunk = max(1, _EXPORT_BYTES // (4 * (config.dim + self.state_floats(table))))
        for start in range(0, config.rows, chunk):
            yield start, min(chunk, config.rows - start)

    def read_rows(self, table: int, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows `start ..`: weights float32 [count, D], state float32 [count, S]. Costs no virtual time."""
        weights = new_float(_not_negative(start, count), self.tables[table].dim)
        return self._read(table, start, weights, stored=False)

    def read_stored_rows(self, table: int, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As `read_rows`, with the weights as they are stored.

        Returns:
            weights [count, D] as float32, float16 or bfloat16, or for int8 rows uint8 [count, D + 8] (codes,
            then scale and bias as float32); state float32 [count, S].
        """
        config = self.tables[table]
        dtype = STORED_AS[config.row_type]
        width = config.weight_bytes // dtype.itemsize
        return self._read(
            table, start, torch.empty(_not_negative(start, count), width, dtype=dtype), stored=True
        )

    def _read(
        self, table: int, start: int, weights: torch.Tensor, *, stored: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        state = new_float(len(weights), self.state_floats(table))
        self._core.read_rows(table, start, bytes_of(weights), bytes_of(state), stored=stored)
        return weights, state

    def write_rows(
        self, table: int, start: int, weights: torch.Tensor, state: torch.Tensor | None = None
    ) -> None:
        """Replaces rows `start ..` by weights float32 [n, D], and state float32 [n, S] or zero.

        In a type of fewer bits each weight becomes the nearest value.

        Raises:
            InputError: for another shape or dtype.
        """
        config = self.tables[table]
        if weights.dim() != 2 or weights.shape[1] != config.dim:
            raise InputError(
                f'rows of table "{config.name}" are [n, {config.dim}]; the weights are {list(weights.shape)}'
            )
        self._write(table, start, float_rows("weights", weights), state, stored=False)

    def write_stored_rows(
        self, table: int, start: int, weights: torch.Tensor, state: torch.Tensor | None = None
    ) -> None:
        """Replaces rows `start ..` by weights as `read_stored_rows` has them, and state [n, S] or zero.

        Raises:
            InputError: for another dtype or width.
        """
        config = self.tables[table]
        dtype = STORED_AS[config.row_type]
        name = f'stored rows of table "{config.name}"'
        width = config.weight_bytes // dtype.itemsize
        self._write(table, start, stored_rows(name, weights, dtype, width), state, stored=True)

    def _write(
        self, table: int, start: int, weights: torch.Tensor, state: torch.Tensor | None, *, stored: bool
    ) -> None:
        _not_negative(start, 0)
        expected = (len(weights), self.state_floats(table))
        if state is not None and state.shape != expected:
            raise InputError(f"the state is {list(state.shape)}; so many rows have {list(expected)}")
        state_view = None if state is None else bytes_of(float_rows("state", state))
        self._core.write_rows(table, start, bytes_of(weights), state_view, stored=stored)

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


def _not_negative(start: int, count: int) -> int:
    if start < 0 or count < 0:
        raise InputError(f"rows to copy start at {start} and are {count}; neither may be negative")
    return count


def _check_lr(lr: float) -> None:
    if not 0 <= lr <= torch.finfo(torch.float32).max:
        raise InputError(f"a learning rate is finite and not negative, got {lr}")


def _lookup(ticket: Ticket, position: int) -> Lookup:
    if not 0 <= position < len(ticket.lookups):
        raise InputError(f"the ticket has {len(ticket.lookups)} lookups; there is no number {position}")
    return ticket.lookups[position]
