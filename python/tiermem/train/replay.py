"""Batches of ids through a store in virtual time, without a model: what a step costs under a placement."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from tiermem.config import Hierarchy, OptimizerConfig, Placement
from tiermem.data.accesses import Batch
from tiermem.embedding import EmbeddingStore, Lookup, TableConfig
from tiermem.embedding.table import StageTimes
from tiermem.errors import ConfigError, InputError
from tiermem.stats import StoreStats, TierStats

__all__ = ["NewNumbers", "Replayed", "ReplayedTier", "replay"]

NewNumbers = Sequence[npt.NDArray[np.int64] | None]
"""By table the new number of each row, int64 [rows]; `None` where rows keep theirs."""

_WRITE_BYTES = 4 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReplayedTier:
    """One tier in the mean step."""

    name: str
    probed_rows: float
    """Distinct rows looked for here."""
    hit_rows: float
    """Of these, found here."""
    reads: float
    """Requests that the device completed; accesses of one page to a memory."""
    writes: float
    """The same for writes."""
    read_bytes: float
    write_bytes: float
    active_ns: float
    """Time for which the device had requests to serve."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """The mean of the measured steps, in virtual time."""

    steps: int
    """Measured steps."""
    step_ns: float
    """From the release of one batch to that of the next."""
    parts_ns: dict[str, float]
    """ "wait", "gather", "dense", "update" and "release" in nanoseconds; they add up to `step_ns`."""
    tiers: tuple[ReplayedTier, ...]
    """The fastest first."""
    asked_rows: float
    """Ids looked up."""
    unique_rows: float
    """Distinct rows; of resident rows every id, since nothing is deduplicated there."""
    rows_written_back: float
    """Changed rows that left memory."""
    read_modify_writes: float
    """Blocks read to change a part of them."""
    rows_compacted: float
    """Rows that compaction of logs moved."""

    @property
    def device_share(self) -> float:
        """Active time of the busiest tier below the fastest, over the step; 0 if there is no such tier."""
        return max((tier.active_ns for tier in self.tiers[1:]), default=0.0) / self.step_ns


def replay(
    tables: Sequence[TableConfig],
    *,
    hierarchy: Hierarchy,
    optimizer: OptimizerConfig,
    batches: Iterable[Batch],
    warm_up_steps: int,
    steps: int,
    dense_ns: int,
    placement: Placement | None = None,
    numbers: NewNumbers | None = None,
    prefetch_distance: int = 1,
    training: bool = True,
    seed: int = 1,
) -> Replayed:
    """Runs a placement on a stream of batches as the trainer does, with gradients of zero and one thread.

    All rows exist before the first step, so that each read is a real one. One pipeline runs through warm-up
    and measured steps, and on: when the measurement begins and when it ends, a step has just given its rows
    back, and `prefetch_distance` batches are under way.

    Args:
        tables: the tables; entry n of a batch has the bags of table n.
        hierarchy: tiers, budgets, and a virtual clock.
        optimizer: of all tables; its state is part of the rows.
        batches: at least `warm_up_steps + steps + prefetch_distance`; no more are taken.
        warm_up_steps: steps before the measured ones.
        steps: measured steps.
        dense_ns: dense work of a step.
        placement: where tables live; `None`: in the slowest tier, cached by all others.
        numbers: new numbers of rows, by which the placement goes; `None`: all rows keep theirs.
        prefetch_distance: batches fetched ahead; 0: each only when it is needed.
        training: whether rows are updated.
        seed: of latency draws.

    Raises:
        ConfigError: if the clock is not virtual, a count is out of range, or placement or numbers are for
            other tables.
        InputError: if there are too few batches, or one is of other tables.
        CapacityError: if a budget, a device or staging memory is too small.
    """
    if hierarchy.clock != "virtual":
        raise ConfigError(f'a replay needs a virtual clock; that of the hierarchy is "{hierarchy.clock}"')
    if steps < 1 or warm_up_steps < 0 or prefetch_distance < 0:
        raise ConfigError(
            f"a replay measures at least one step, and nothing else of it is negative; steps is {steps},"
            f" warm_up_steps {warm_up_steps}, prefetch_distance {prefetch_distance}"
        )
    new_numbers: NewNumbers = [None] * len(tables) if numbers is None else numbers
    _check_numbers(tables, new_numbers)
    store = EmbeddingStore(
        tables, hierarchy=hierarchy, optimizer=optimizer, placement=placement, threads=1, seed=seed
    )
    source = _exactly(batches, warm_up_steps + steps + prefetch_distance)
    lookups = (_lookups(tables, batch, new_numbers) for batch in source)
    try:
        _make_all_rows(store)
        stepper = _Stepper(store, lookups, prefetch_distance, dense_ns, optimizer.lr if training else None)
        for _ in range(warm_up_steps):
            stepper.step()
        began_ns, before = store.now_ns(), store.stats()
        store.times = StageTimes()
        for _ in range(steps):
            stepper.step()
        return _mean(store, steps, store.now_ns() - began_ns, dense_ns, before)
    finally:
        store.close()


class _Stepper:
    """What a trainer asks of its store, step by step."""

    def __init__(
        self,
        store: EmbeddingStore,
        lookups: Iterator[list[Lookup]],
        ahead: int,
        dense_ns: int,
        lr: float | None,
    ) -> None:
        self.store = store
        self.lookups = lookups
        self.dense_ns = dense_ns
        self.lr = lr
        self.tickets = deque(store.prefetch(asked) for asked in itertools.islice(lookups, ahead))

    def step(self) -> None:
        """Fetches a batch and trains on the oldest, as on the `pipeline` of a collection."""
        store = self.store
        self.tickets.append(store.prefetch(next(self.lookups)))
        ticket = self.tickets.popleft()
        store.wait(ticket)
        store.gather_all(ticket)
        store.advance(self.dense_ns)
        if self.lr is not None:
            shapes = [(len(lookup.offsets), store.tables[lookup.table].dim) for lookup in ticket.lookups]
            store.backward_all(ticket, [torch.zeros(shape) for shape in shapes], lr=self.lr)
        store.release(ticket)


def _mean(store: EmbeddingStore, steps: int, elapsed_ns: int, dense_ns: int, before: StoreStats) -> Replayed:
    times, after = store.times, store.stats()
    counters = ("asked_rows", "unique_rows", "rows_written_back", "read_modify_writes", "rows_compacted")
    return Replayed(
        steps=steps,
        step_ns=elapsed_ns / steps,
        parts_ns={
            "wait": times.wait_ns / steps,
            "gather": times.gather_ns / steps,
            "dense": float(dense_ns),
            "update": times.update_ns / steps,
            "release": times.release_ns / steps,
        },
        tiers=tuple(_tier_mean(steps, *sides) for sides in zip(before.tiers, after.tiers, strict=True)),
        **_grown(steps, counters, before, after),
    )


def _tier_mean(steps: int, before: TierStats, after: TierStats) -> ReplayedTier:
    of_device = ("reads", "writes", "read_bytes", "write_bytes", "active_ns")
    return ReplayedTier(
        name=after.name,
        **_grown(steps, ("probed_rows", "hit_rows"), before, after),
        **_grown(steps, of_device, before.device, after.device),
    )


def _grown(steps: int, counters: Iterable[str], before: object, after: object) -> dict[str, float]:
    """By how much counters grew per step."""
    return {name: (getattr(after, name) - getattr(before, name)) / steps for name in counters}


def _make_all_rows(store: EmbeddingStore) -> None:
    """Writes every row, in chunks of bounded size; costs no virtual time."""
    for number, table in enumerate(store.tables):
        chunk = max(1, _WRITE_BYTES // (4 * table.dim))
        zeros = torch.zeros(min(chunk, table.rows), table.dim)
        for start in range(0, table.rows, chunk):
            store.write_rows(number, start, zeros[: table.rows - start])


def _exactly(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    taken = 0
    for batch in itertools.islice(batches, count):
        taken += 1
        yield batch
    if taken < count:
        raise InputError(
            f"the replay takes {count} batches, those fetched ahead of the last step included, and there are"
            f" {taken}; replay fewer steps, or give a longer trace"
        )


def _lookups(tables: Sequence[TableConfig], batch: Batch, numbers: NewNumbers) -> list[Lookup]:
    if len(batch) != len(tables):
        raise InputError(f"a batch has the bags of {len(batch)} tables, and there are {len(tables)} tables")
    lookups = []
    for number, (table, bags, new_number) in enumerate(zip(tables, batch, numbers, strict=True)):
        ids = bags.ids
        if new_number is not None and len(ids):
            if ids.min() < 0 or ids.max() >= table.rows:
                raise InputError(
                    f'a batch asks for rows that table "{table.name}" of {table.rows} rows lacks'
                )
            ids = new_number[ids]
        offsets = np.cumsum(bags.lengths) - bags.lengths
        # Batches of a trace file cannot be written to, which torch does not share.
        lookups.append(Lookup(number, torch.tensor(ids), torch.from_numpy(offsets)))
    return lookups


def _check_numbers(tables: Sequence[TableConfig], numbers: NewNumbers) -> None:
    if len(numbers) != len(tables):
        raise ConfigError(
            f"there are new numbers for {len(numbers)} tables, and there are {len(tables)} tables"
        )
    for table, new_number in zip(tables, numbers, strict=True):
        if new_number is not None and new_number.shape != (table.rows,):
            raise ConfigError(
                f'the new numbers of table "{table.name}" are {list(new_number.shape)};'
                f" it has {table.rows} rows"
            )
