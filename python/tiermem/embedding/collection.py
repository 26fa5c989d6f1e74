"""Many tables of one store, as an `nn.Module`."""

import itertools
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from tiermem import _core
from tiermem._interop import id_vector
from tiermem.config import Hierarchy, OptimizerConfig, Placement
from tiermem.embedding.autograd import PooledUse, pooled_lookup
from tiermem.embedding.optim import RowOptimizer
from tiermem.embedding.store import EmbeddingStore
from tiermem.embedding.table import STORED_AS, Lookup, Mode, NonFinite, TableConfig, Ticket
from tiermem.errors import ConfigError
from tiermem.stats import StoreStats

__all__ = ["TieredEmbeddingBagCollection", "load_rows"]

_Batch = TypeVar("_Batch")
ANNOUNCE_BATCHES_MAX = 253
"""A policy holds 254 announced batches, the one that runs included."""


class TieredEmbeddingBagCollection(nn.Module):
    """Pooled embeddings of many tables on one hierarchy. B = bags, D = columns of a table.

    Args:
        tables: the tables.
        hierarchy: tiers, budgets, clock.
        optimizer: of all tables.
        mode: pooling, "sum" or "mean"; or "none": one row of output for each id.
        fused_in_backward: apply the gradients inside backward, with each table looked up once per
            step; otherwise `optimizer().step()` applies them.
        prefetch_distance: how many batches ahead `pipeline` fetches.
        announce_batches: how many batches beyond those `pipeline` tells the policies about, for `lookahead`.
        placement: where tables live, or the path of a plan file; `None`: in the slowest tier, cached by all
            others.
        non_finite_gradients: "pass" or "refuse"; see `EmbeddingStore`.
        timeline: remember transfers and dirty rows; see `EmbeddingStore`.
        threads: that share the work of a lookup or an update; see `EmbeddingStore`.
        seed: seed of initial values, latency draws and rounding.

    Example:
        >>> import tiermem as tm
        >>> tables = [tm.TableConfig(name="item", rows=1000, dim=8)]
        >>> bags = TieredEmbeddingBagCollection(
        ...     tables, hierarchy=tm.Hierarchy.load("dram-nand"), optimizer=tm.SGD(lr=0.1)
        ... )
        >>> ids, offsets = torch.tensor([3, 4, 3]), torch.tensor([0, 2])
        >>> [pooled.shape for pooled in bags([tm.Lookup(0, ids, offsets)])]
        [torch.Size([2, 8])]
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        hierarchy: Hierarchy,
        optimizer: OptimizerConfig,
        mode: Mode = "sum",
        fused_in_backward: bool = False,
        prefetch_distance: int = 0,
        announce_batches: int = 0,
        placement: Placement | str | os.PathLike[str] | None = None,
        non_finite_gradients: NonFinite = "pass",
        timeline: bool = False,
        threads: int | None = None,
        seed: int = 1,
        gate: _core.Gate | None = None,
    ) -> None:
        super().__init__()
        if prefetch_distance < 0:
            raise ConfigError(f"prefetch_distance must not be negative, got {prefetch_distance}")
        if not 0 <= announce_batches <= ANNOUNCE_BATCHES_MAX:
            raise ConfigError(
                f"announce_batches must be between 0 and {ANNOUNCE_BATCHES_MAX}, got {announce_batches}"
            )
        self.prefetch_distance = prefetch_distance
        self.announce_batches = announce_batches
        self.fused_in_backward = fused_in_backward
        self.store = EmbeddingStore(
            tables,
            hierarchy=hierarchy,
            optimizer=optimizer,
            mode=mode,
            placement=placement,
            non_finite_gradients=non_finite_gradients,
            timeline=timeline,
            threads=threads,
            seed=seed,
            gate=gate,
        )
        # Not a parameter: rows have no tensor here, and other optimizers must not see a stand-in.
        self._anchor = torch.zeros(0, requires_grad=True)
        self._optimizer = RowOptimizer(self.store, self._anchor, optimizer.lr, fused=fused_in_backward)
        # By table, the last forward pass whose gradients backward has to apply at once.
        self._uses: dict[int, weakref.ref[PooledUse]] = {}

    def optimizer(self) -> RowOptimizer:
        """The torch optimizer of the rows: its `step` applies gradients, its group has the learning rate."""
        return self._optimizer

    def prefetch(self, lookups: Sequence[Lookup]) -> Ticket:
        """Queues the rows of a batch and returns at once; see `EmbeddingStore.prefetch`."""
        return self.store.prefetch(lookups)

    def forward(self, batch: Ticket | Sequence[Lookup]) -> tuple[torch.Tensor, ...]:
        """Pools every lookup of a batch: float32 [B, D] each.

        Args:
            batch: a ticket of `prefetch`, or lookups, which are then fetched now.

        With gradients enabled the caller's ticket stays his; rows of a batch given as lookups are
        given back after their update, or when the outputs are no longer needed. Without gradients
        lookups run in chunks of whole bags, so they work at any staging size that no open batch holds.
        """
        if isinstance(batch, Ticket):
            self.store.wait(batch)
            return self._pool(batch, owned=False)
        if not torch.is_grad_enabled():
            return self._forward_only(batch)
        ticket = self.prefetch(batch)
        self.store.wait(ticket)
        return self._pool(ticket, owned=True)

    def pipeline(
        self, batches: Iterable[_Batch], lookups: Callable[[_Batch], Sequence[Lookup]]
    ) -> Iterator[tuple[_Batch, Ticket]]:
        """Batches with their tickets, fetched `prefetch_distance` ahead; each ticket is released for you.

        `announce_batches` more are taken from `batches` and announced to the policies.

        Args:
            batches: the batches, in order.
            lookups: gives the lookups of a batch.
        """
        ahead: deque[tuple[_Batch, Ticket]] = deque()
        announced: deque[tuple[_Batch, Sequence[Lookup]]] = deque()
        source = iter(batches)
        try:
            while True:
                while len(ahead) <= self.prefetch_distance:
                    for batch in itertools.islice(source, self.announce_batches + 1 - len(announced)):
                        announced.append((batch, lookups(batch)))
                        if self.announce_batches:
                            self.store.announce(announced[-1][1])
                    if not announced:
                        break
                    batch, asked = announced.popleft()
                    ahead.append((batch, self.prefetch(asked)))
                if not ahead:
                    return
                yield ahead[0]
                self.store.release(ahead.popleft()[1])
        finally:
            for _, ticket in ahead:
                ticket.release()
            if announced:
                self.store.withdraw_announced()

    def stats(self) -> StoreStats:
        """Everything counted so far."""
        return self.store.stats()

    def close(self) -> None:
        """Ends the store; later calls raise `ClosedError`."""
        self.store.close()

    def _pool(self, ticket: Ticket, *, owned: bool) -> tuple[torch.Tensor, ...]:
        if not torch.is_grad_enabled():
            return self.store.gather_all(ticket)
        if not self.fused_in_backward:
            return pooled_lookup(self._anchor, PooledUse(self.store, ticket, None, owned=owned))
        use = PooledUse(self.store, ticket, lambda: self._optimizer.lr, owned=owned)
        tables = [lookup.table for lookup in ticket.lookups]
        open_uses = [reference() for table in tables if (reference := self._uses.get(table))]
        if len(set(tables)) != len(tables) or any(use is not None and not use.done for use in open_uses):
            raise ConfigError(
                "fused_in_backward needs each table looked up once per step; use optimizer().step(),"
                " or forward without gradients"
            )
        self._uses.update(dict.fromkeys(tables, weakref.ref(use)))
        return pooled_lookup(self._anchor, use)

    def _forward_only(self, batch: Sequence[Lookup]) -> tuple[torch.Tensor, ...]:
        if all(self.store.is_resident(lookup.table) for lookup in batch):
            return self.store.pool(batch)
        return tuple(self._in_chunks(lookup) for lookup in batch)

    def _in_chunks(self, lookup: Lookup) -> torch.Tensor:
        limit = self.store.chunk_rows(lookup.table)
        offsets = id_vector("offsets", lookup.offsets)
        if len(lookup.ids) <= limit or not _are_offsets(offsets, len(lookup.ids)):
            # Fits as it is, or is refused as it is.
            return self._forward_chunk(lookup)
        chunks = [
            self._forward_chunk(_bags(lookup, offsets, first, last))
            for first, last in _bag_chunks(offsets, len(lookup.ids), limit)
        ]
        return torch.cat(chunks)

    def _forward_chunk(self, lookup: Lookup) -> torch.Tensor:
        return self.store.pool([lookup])[0]

    def get_extra_state(self) -> dict[str, Any]:
        """All rows, streamed out of the tiers.

        Returns:
            "steps": optimizer steps so far; "tables": {name: (weights as they are stored, state [rows, S])},
            see `EmbeddingStore.read_stored_rows`.
        """
        tables = {
            table.name: tuple(
                torch.cat(parts)
                for parts in zip(*(rows[1:] for rows in self.store.stored_rows(position)), strict=True)
            )
            for position, table in enumerate(self.store.tables)
        }
        return {"steps": self.store.steps, "tables": tables}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Replaces all rows by those of a state dict.

        Raises:
            ConfigError: if tables, shapes or row types differ; no row has changed then.
        """
        names = [table.name for table in self.store.tables]
        if sorted(state) != ["steps", "tables"]:
            raise ConfigError(f'a state has "steps" and "tables", this one has {sorted(state)}')
        tables, steps = state["tables"], state["steps"]
        if not isinstance(steps, int) or not 0 <= steps < 2**63:
            raise ConfigError(f"steps are counted from 0, the state has {steps!r}")
        if sorted(tables) != sorted(names):
            raise ConfigError(f"the state has tables {sorted(tables)}; this collection has {sorted(names)}")
        for position, name in enumerate(names):
            _check_rows(self.store, position, *tables[name])
            table = self.store.tables[position]
            if tables[name][1].dtype != torch.float32:
                raise ConfigError(
                    f'the optimizer state of table "{name}" is {tables[name][1].dtype}, not float32'
                )
            if (dtype := tables[name][0].dtype) != STORED_AS[table.row_type]:
                raise ConfigError(
                    f'table "{name}" of the state has rows of {dtype}; here they are {table.row_type},'
                    f" which is {STORED_AS[table.row_type]}"
                )
        for position, name in enumerate(names):
            load_rows(self.store, position, *tables[name])
        self.store.steps = steps


def load_rows(store: EmbeddingStore, table: int, weights: torch.Tensor, state: torch.Tensor | None) -> None:
    """Writes a whole table in chunks of bounded size.

    Args:
        store: the store.
        table: number of the table.
        weights: float32 [rows, D], or as they are stored.
        state: float32 [rows, S]; zero without.

    Raises:
        ConfigError: if the shape is not that of the table.
    """
    _check_rows(store, table, weights, state)
    config = store.tables[table]
    write = store.write_rows if weights.dtype == torch.float32 else store.write_stored_rows
    chunk = max(1, 2**22 // config.dim)
    for start in range(0, config.rows, chunk):
        part = slice(start, start + chunk)
        write(table, start, weights[part], None if state is None else state[part])


def _check_rows(store: EmbeddingStore, table: int, weights: torch.Tensor, state: torch.Tensor | None) -> None:
    config = store.tables[table]
    width = config.weight_bytes if weights.dtype == torch.uint8 else config.dim
    expected = {"weights": (config.rows, width)}
    found = {"weights": tuple(weights.shape)}
    if state is not None:
        expected["state"] = (config.rows, store.state_floats(table))
        found["state"] = tuple(state.shape)
    for part, shape in expected.items():
        if found[part] != shape:
            raise ConfigError(
                f'{part} of table "{config.name}" are {list(found[part])}; expected {list(shape)}'
            )


def _are_offsets(offsets: torch.Tensor, ids: int) -> bool:
    starts = offsets.tolist()
    return bool(starts) and starts[0] == 0 and starts == sorted(starts) and starts[-1] <= ids


def _bag_chunks(offsets: torch.Tensor, ids: int, limit: int) -> Iterator[tuple[int, int]]:
    """Ranges of whole bags with at most `limit` ids each."""
    ends = torch.cat([offsets[1:], torch.tensor([ids])]).tolist()
    first, begin = 0, 0
    for bag, end in enumerate(ends):
        if end - begin > limit:
            if bag > first:
                yield first, bag
                first, begin = bag, ends[bag - 1]
            if end - begin > limit:
                # One bag alone: its distinct rows may still fit, and the store says so if not.
                yield bag, bag + 1
                first, begin = bag + 1, end
    if first < len(ends):
        yield first, len(ends)


def _bags(lookup: Lookup, offsets: torch.Tensor, first: int, last: int) -> Lookup:
    if first == 0 and last == len(offsets):
        return lookup
    begin = int(offsets[first])
    end = int(offsets[last]) if last < len(offsets) else len(lookup.ids)
    weights = None if lookup.sample_weights is None else lookup.sample_weights[begin:end]
    return Lookup(lookup.table, lookup.ids[begin:end], offsets[first:last] - begin, weights)
