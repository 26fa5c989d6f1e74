"""A store against a dictionary of rows: whatever is called in whatever order, bits and counts agree."""

import dataclasses
import itertools
import sys
import tempfile
from collections import Counter
from operator import itemgetter
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import tiermem as tm
import torch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tiermem.embedding import EmbeddingStore, Lookup, Ticket
from tiermem.errors import CapacityError, InputError
from tiermem.stats import StoreStats

from tests.property.store_model import DIMS, LR, ROWS, TABLES, Floats, Key, Shape, Twin, shapes


@dataclasses.dataclass(eq=False)
class Open:
    """A ticket as the model knows it."""

    number: int
    ticket: Ticket
    lookups: list[Lookup]
    keys: set[Key]
    """Distinct rows that are not resident."""
    is_admitted: bool = False
    is_ready: bool = False
    is_owned: bool = True
    pending: int = 0


IDS = st.lists(st.integers(0, 5) | st.integers(0, 59), max_size=5)
LOOKUP = st.tuples(st.integers(0, 2), st.lists(IDS, min_size=1, max_size=3) | st.just([]), st.booleans())
BATCH = st.lists(LOOKUP, min_size=1, max_size=3)
PICK = st.integers(0, 9)


class StoreMachine(RuleBasedStateMachine):
    """Every rule calls the store and the model, and compares."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    @initialize(
        shape=shapes(), eps=st.sampled_from([None, 1e-8, 1e-2]), mode=st.sampled_from(["sum", "sum", "mean"])
    )
    def begin(self, shape: Shape, eps: float | None, mode: str) -> None:
        self.twin = Twin(eps, mode)
        self.open(shape)

    def open(self, shape: Shape) -> None:
        eps, mode = self.twin.eps, self.twin.mode
        self.shape = shape
        self.store = EmbeddingStore(
            TABLES,
            hierarchy=shape.hierarchy(),
            optimizer=tm.SGD(lr=LR) if eps is None else tm.RowWiseAdagrad(lr=LR, eps=eps),
            mode=mode,  # type: ignore[arg-type]
            placement=shape.placement(),
        )
        self.tickets: list[Open] = []
        self.pending: list[tuple[int, int, int, Open, Floats]] = []
        self.announced: list[list[Lookup]] = []
        self.next_number = 0
        self.pins: Counter[Key] = Counter()
        self.expected: Counter[str] = Counter()
        self.stats_before: StoreStats | None = None
        self.written_when_clean: int | None = None
        # Table 1 is never resident, and so says how much room there is for wide rows.
        self.room = {DIMS[1]: self.store.chunk_rows(1), DIMS[2]: self.store.chunk_rows(2)}

    # The model of staging.

    def in_flight(self, dim: int, also: set[Key]) -> int:
        return len({key for key in also | set(self.pins) if DIMS[key[0]] == dim})

    def admit(self) -> None:
        for entry in self.tickets:
            if entry.is_admitted:
                continue
            if any(self.in_flight(dim, entry.keys) > room for dim, room in self.room.items()):
                return
            entry.is_admitted = True
            ids = [(lookup.table, row) for lookup in entry.lookups for row in lookup.ids.tolist()]
            resident = sum(self.shape.is_resident(*key) for key in ids)
            self.expected["asked"] += len(ids)
            self.expected["unique"] += len(entry.keys) + resident
            self.expected["in flight"] += len(entry.keys & set(self.pins))
            self.pins.update(entry.keys)

    def close_ticket(self, entry: Open) -> None:
        self.tickets.remove(entry)
        if entry.is_admitted:
            self.pins = Counter({key: n - (key in entry.keys) for key, n in self.pins.items()})
            self.pins += Counter()
        self.admit()

    def owned(self, pick: int) -> Open | None:
        found = [entry for entry in self.tickets if entry.is_owned]
        return found[pick % len(found)] if found else None

    def lookups(self, batch: list[tuple[int, list[list[int]], bool]]) -> list[Lookup]:
        lookups = []
        for table, bags, is_weighted in batch:
            ids = torch.tensor([row % ROWS[table] for bag in bags for row in bag], dtype=torch.int64)
            starts = [sum(map(len, bags[:bag])) for bag in range(len(bags))]
            weights = torch.linspace(0.5, 1.5, len(ids)) if is_weighted and self.twin.mode == "sum" else None
            lookups.append(Lookup(table, ids, torch.tensor(starts, dtype=torch.int64), weights))
        return lookups

    def fetch(self, lookups: list[Lookup]) -> Open | None:
        ids = {(lookup.table, row) for lookup in lookups for row in lookup.ids.tolist()}
        keys = {key for key in ids if not self.shape.is_resident(*key)}
        if any(len({key for key in keys if DIMS[key[0]] == dim}) > room for dim, room in self.room.items()):
            with pytest.raises(CapacityError, match="staging_bytes="):
                self.store.prefetch(lookups)
            return None
        entry = Open(self.next_number, self.store.prefetch(lookups), lookups, keys)
        self.next_number += 1
        self.tickets.append(entry)
        self.admit()
        return entry

    def let_go(self, entry: Open) -> None:
        self.store.release(entry.ticket)
        entry.is_owned = False
        if not entry.pending:
            self.close_ticket(entry)

    # Batches.

    @rule(batches=st.lists(BATCH, min_size=1, max_size=3))
    def prefetch(self, batches: list[Any]) -> None:
        for batch in batches:
            self.fetch(self.lookups(batch))

    @rule(batch=BATCH)
    def announce(self, batch: list[Any]) -> None:
        self.announced.append(self.lookups(batch))
        self.store.announce(self.announced[-1])

    @rule(skip=st.booleans())
    @precondition(lambda self: self.announced)
    def prefetch_announced(self, skip: bool) -> None:
        if skip and len(self.announced) > 1:
            self.announced.pop(0)
        self.fetch(self.announced.pop(0))

    @rule(pick=PICK)
    def wait(self, pick: int) -> None:
        entry = self.owned(pick)
        if entry is not None:
            self.wait_for(entry)

    def wait_for(self, entry: Open) -> None:
        """Works if its rows have places; nobody else could give the room back that it lacks."""
        if not entry.is_admitted:
            with pytest.raises(CapacityError, match="release them first, or raise staging_bytes"):
                self.store.wait(entry.ticket)
            return
        self.store.wait(entry.ticket)
        for earlier in self.tickets[: self.tickets.index(entry) + 1]:
            earlier.is_ready = True

    @rule(pick=PICK)
    def use_without_wait(self, pick: int) -> None:
        """Refused, unless everything is there already."""
        entry = self.owned(pick)
        if entry is None:
            return
        refusal = ""
        try:
            pooled = self.store.gather(entry.ticket, 0).numpy()
        except InputError as error:
            refusal = str(error)
        if refusal:
            assert "was not waited for; call wait()" in refusal
            assert not entry.is_ready
        else:
            assert pooled.tobytes() == self.twin.pool(entry.lookups[0]).tobytes()

    @rule(
        pick=PICK,
        batch=BATCH,
        kind=st.sampled_from(["forward", "fused", "fused", "keep", "keep"]),
        is_backwards=st.booleans(),
        is_last=st.booleans(),
    )
    def use(self, pick: int, batch: list[Any], kind: str, is_backwards: bool, is_last: bool) -> None:
        entry = self.owned(pick) or self.fetch(self.lookups(batch))
        if entry is not None:
            self.use_all(entry, kind, is_backwards=is_backwards)
            if is_last:
                self.let_go(entry)

    def use_all(self, entry: Open, kind: str, *, is_backwards: bool = False) -> None:
        if not entry.is_ready:
            self.wait_for(entry)
        if not entry.is_ready:
            return
        self.steps += 1
        order = range(len(entry.lookups))
        for position in reversed(order) if is_backwards else order:
            self.use_lookup(entry, position, kind)

    def use_lookup(self, entry: Open, position: int, kind: str) -> None:
        lookup = entry.lookups[position]
        pooled = self.store.gather(entry.ticket, position).numpy()
        assert pooled.tobytes() == self.twin.pool(lookup).tobytes()
        # Depends on what was gathered, so that one wrong bit spreads.
        pattern = (np.arange(pooled.size, dtype=np.float32) * 7 + self.steps) % 5 - 2
        gradient = np.clip(pooled, -1, 1) * np.float32(0.5) + pattern.reshape(pooled.shape) * np.float32(0.1)
        if kind == "keep":
            self.store.backward(entry.ticket, position, torch.from_numpy(gradient), lr=None)
            self.pending.append((lookup.table, entry.number, position, entry, gradient))
            entry.pending += 1
        elif kind == "fused":
            self.store.backward(entry.ticket, position, torch.from_numpy(gradient), lr=LR)
            self.twin.update(lookup.table, [(lookup, gradient)])
            self.written_when_clean = None

    @rule(is_applied=st.sampled_from([True, True, False]))
    def step(self, is_applied: bool) -> None:
        kept, self.pending = self.pending, []
        if is_applied:
            kept.sort(key=itemgetter(0, 1, 2))
            self.store.step(LR)
            for table, group in itertools.groupby(kept, key=itemgetter(0)):
                self.twin.update(table, [(of.lookups[at], gradient) for _, _, at, of, gradient in group])
            self.written_when_clean = None
        else:
            self.store.discard()
        # Tickets that were let go with gradients waiting are given back now.
        for _, _, _, entry, _ in kept:
            entry.pending -= 1
            if not entry.is_owned and not entry.pending:
                self.close_ticket(entry)

    @rule(pick=PICK, again=st.booleans())
    def release(self, pick: int, again: bool) -> None:
        entry = self.owned(pick)
        if entry is not None:
            self.let_go(entry)
            if again:
                self.store.release(entry.ticket)

    @rule(batch=BATCH)
    def forward_only(self, batch: list[Any]) -> None:
        entry = self.fetch(self.lookups(batch))
        if entry is not None:
            self.use_all(entry, "forward")
            self.let_go(entry)

    # Whole ranges of rows.

    @rule(table=st.integers(0, 2), start=st.integers(0, 59), count=st.integers(0, 60))
    def read_rows(self, table: int, start: int, count: int) -> None:
        start %= ROWS[table]
        count = min(count, ROWS[table] - start)
        weights, state = self.store.read_rows(table, start, count)
        for row, (found, found_state) in enumerate(zip(weights.numpy(), state.numpy(), strict=True), start):
            assert found.tobytes() == self.twin.weights[table, row].tobytes(), f"weights of {table}, {row}"
            assert found_state.tobytes() == self.twin.state[table, row].tobytes(), f"state of {table}, {row}"

    @rule(
        table=st.integers(0, 2), start=st.integers(0, 59), count=st.integers(0, 20), with_state=st.booleans()
    )
    def write_rows(self, table: int, start: int, count: int, with_state: bool) -> None:
        start %= ROWS[table]
        count = min(count, ROWS[table] - start)
        self.steps += 1
        weights = (np.arange(count * DIMS[table], dtype=np.float32) + self.steps).reshape(
            count, DIMS[table]
        ) / 64
        state = np.full((count, self.store.state_floats(table)), self.steps, np.float32)
        self.store.write_rows(
            table, start, torch.from_numpy(weights), torch.from_numpy(state) if with_state else None
        )
        for offset in range(count):
            self.twin.weights[table, start + offset] = weights[offset].copy()
            self.twin.state[table, start + offset] = state[offset] * np.float32(with_state)
        self.written_when_clean = None

    @rule()
    def flush(self) -> None:
        self.store.flush()
        stats = self.store.stats()
        assert stats.dirty_rows == 0
        # A row that a tier holds exclusively stays newer than below, and takes that along when it is fetched.
        if not self.shape.has_exclusive_rows():
            self.written_when_clean = stats.rows_written_back

    @rule(shape=shapes(), chance=st.integers(0, 3))
    def move(self, shape: Shape, chance: int) -> None:
        """Another store, of another hierarchy, goes on with the rows of this one; its batches end."""
        if chance:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows"
            saved = self.store.save_rows(path)
            self.store.close()
            self.open(shape)
            assert self.store.load_rows(path) == saved <= sum(ROWS)

    # Counters.

    @rule()
    def stats(self) -> None:
        stats = self.store.stats()
        assert stats.open_tickets == len(self.tickets)
        found = {"asked": stats.asked_rows, "unique": stats.unique_rows, "in flight": stats.in_flight_hits}
        assert found == {name: self.expected[name] for name in found}
        for table in self.store.table_stats():
            assert table.unique_rows <= table.asked_rows
            not_found = table.unique_rows - table.initialised_rows
            for tier in table.tiers:
                assert 0 <= tier.hit_rows <= tier.probed_rows <= not_found
                not_found -= tier.hit_rows
            assert not not_found
        if self.written_when_clean is not None:
            assert stats.rows_written_back == self.written_when_clean, "a clean row was written back"
        budget = self.shape.hierarchy().tiers[0].cache
        if isinstance(budget, int):
            assert stats.memory.cached_bytes <= budget
        assert stats.memory.staging_bytes <= self.shape.hierarchy().staging_bytes
        if self.stats_before is not None:
            for (name, before), (_, now) in zip(_counters(self.stats_before), _counters(stats), strict=True):
                assert now >= before, f"{name} went from {before} to {now}"
        self.stats_before = stats

    # The end.

    def churn(self) -> None:
        """Changes every row of the large tables three times: every cache overflows down to the home."""
        room = min(self.room[DIMS[0]], ROWS[0] // 3)
        for start in range(0, 3 * ROWS[0], room):
            # Each time in another order, so that segments of a log become sparse rather than empty.
            stride = (1, 7, 11)[start // ROWS[0]]
            for table in (0, 1):
                rows = sorted({(start + n) * stride % ROWS[table] for n in range(room)})
                entry = self.fetch(self.lookups([(table, [rows], False)]))
                assert entry is not None
                self.use_all(entry, "fused")
                self.let_go(entry)

    def teardown(self) -> None:
        # A rule that failed has said what there is to say.
        if hasattr(self, "store") and sys.exc_info()[0] is None:
            self.check_end()
        if hasattr(self, "store"):
            self.store.close()

    def check_end(self) -> None:
        self.step(is_applied=True)
        while self.tickets:
            self.let_go(self.tickets[0])
        self.churn()
        self.store.advance(10**12)
        self.stats()
        for tier in self.store.stats().tiers[1:]:
            assert tier.device_reads > 0, f"{tier.name} was read"
            assert tier.device_writes > 0, f"{tier.name} was written"
        for table, rows in enumerate(ROWS):
            self.read_rows(table, 0, rows)


def _counters(stats: StoreStats) -> list[tuple[str, int]]:
    names = [
        "asked_rows", "unique_rows", "in_flight_hits", "initialised_rows", "rows_written_back",
        "read_modify_writes", "rows_compacted", "compaction_stalls", "non_finite_values",
    ]  # fmt: skip
    counters: list[tuple[str, int]] = [(name, getattr(stats, name)) for name in names]
    for tier in stats.tiers:
        counters += [(f"{tier.name} {name}", getattr(tier, name)) for name in ("probed_rows", "hit_rows")]
        for name in ("reads", "writes", "read_bytes", "write_bytes", "media_read_bytes", "media_write_bytes"):
            counters.append((f"{tier.name} {name}", getattr(tier.device, name)))
    return counters


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=1000,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
