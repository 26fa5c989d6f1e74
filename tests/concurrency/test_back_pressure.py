"""Staging memory that is full: loaders run ahead, waiting blocks or says why not, and no bit changes."""

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import tiermem as tm
import torch
from tiermem import _core
from tiermem.embedding import EmbeddingStore, Lookup, Ticket
from tiermem.errors import CapacityError, ClosedError

ROWS, DIM, BATCH = 400, 16, 24
IMAGE_BYTES = 4 * (DIM + 1)
PATIENCE_S = 120
"""After so long a thread hangs."""


def _store(staged_batches: int, *, gate: _core.Gate | None = None, clock: Any = "virtual") -> EmbeddingStore:
    staging = staged_batches * BATCH * IMAGE_BYTES
    budgets: dict[str, float | str] = {"dram": 8 * IMAGE_BYTES}
    hierarchy = tm.Hierarchy.load("dram-nand", budgets=budgets, staging_bytes=staging, clock=clock)
    table = tm.TableConfig(name="t", rows=ROWS, dim=DIM)
    return EmbeddingStore([table], hierarchy=hierarchy, optimizer=tm.RowWiseAdagrad(lr=0.1), gate=gate)


def _lookups(step: int) -> list[Lookup]:
    """Rows that the batches before and after have in part; no two in the same batch are the same."""
    return [Lookup(0, (torch.arange(BATCH) * 7 + step * 11) % ROWS, torch.tensor([0, 5, 16]))]


def _train(store: EmbeddingStore, ticket: Ticket, step: int) -> torch.Tensor:
    pooled = store.gather(ticket, 0)
    store.backward(ticket, 0, pooled * 0.5 + 0.01 * (step % 3), lr=0.1)
    return pooled


def _bits(store: EmbeddingStore) -> list[bytes]:
    return [part.numpy().tobytes() for part in store.read_rows(0, 0, ROWS)]


def _in_one_thread(steps: Iterable[int]) -> tuple[list[bytes], list[bytes]]:
    store = _store(1)
    pooled = []
    for step in steps:
        ticket = store.prefetch(_lookups(step))
        store.wait(ticket)
        pooled.append(_train(store, ticket, step).numpy().tobytes())
        store.release(ticket)
    rows = _bits(store)
    store.close()
    return pooled, rows


class _Threads:
    """Threads that hand over what they raise, and that must end."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.threads: list[threading.Thread] = []

    def start(self, work: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 (a thread hands everything over)
                self.failures.append(error)

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()
        return self.threads[-1]

    def join(self) -> None:
        for thread in self.threads:
            thread.join(timeout=PATIENCE_S)
            assert not thread.is_alive(), "a thread hangs"
        assert not self.failures


@pytest.fixture
def threads() -> Iterator[_Threads]:
    started = _Threads()
    yield started
    started.join()


def _until_in_wait(thread: threading.Thread) -> None:
    """Returns once a thread is in `Ticket.wait`: it gave the interpreter away there, and so this one runs."""
    while True:
        frame = sys._current_frames().get(thread.ident or 0)
        if frame is not None and frame.f_code is Ticket.wait.__code__:
            return


@pytest.mark.parametrize("clock", ["virtual", "wall"])
def test_a_loader_far_ahead_neither_blocks_nor_changes_a_bit(clock: str, threads: _Threads) -> None:
    """Staging has room for two batches; the loader hands over two hundred at once."""
    steps = 200
    store = _store(2, clock=clock)
    tickets: queue.Queue[Ticket] = queue.Queue()

    def load() -> None:
        for step in range(steps):
            tickets.put(store.prefetch(_lookups(step)))

    loader = threads.start(load)
    # All of them are queued before the first is used: prefetch never blocks.
    loader.join(timeout=PATIENCE_S)
    assert store.stats().open_tickets == steps == tickets.qsize()
    pooled = []
    for step in range(steps):
        ticket = tickets.get(timeout=PATIENCE_S)
        store.wait(ticket)
        pooled.append(_train(store, ticket, step).numpy().tobytes())
        store.release(ticket)
    expected, rows = _in_one_thread(range(steps))
    assert pooled == expected
    assert _bits(store) == rows
    stats = store.stats()
    assert (stats.open_tickets, stats.rows_written_back > 0) == (0, True)
    assert stats.tier("nand").device_reads > 0
    store.close()


def test_loader_and_trainer_side_by_side(threads: _Threads) -> None:
    steps = 300
    store = _store(2)
    tickets: queue.Queue[Ticket] = queue.Queue()
    pooled: list[bytes] = []

    def train() -> None:
        for step in range(steps):
            ticket = tickets.get(timeout=PATIENCE_S)
            store.wait(ticket)
            pooled.append(_train(store, ticket, step).numpy().tobytes())
            store.release(ticket)

    threads.start(train)
    for step in range(steps):
        tickets.put(store.prefetch(_lookups(step)))
    threads.join()
    assert (pooled, _bits(store)) == _in_one_thread(range(steps))
    store.close()


def test_tickets_that_wait_in_many_threads_get_their_rows_in_order(threads: _Threads) -> None:
    """Each thread waits for its own ticket, all at once, and releases it; none of them holds another's."""
    steps = 16
    store = _store(1)
    tickets = [store.prefetch(_lookups(step)) for step in range(steps)]
    order: list[int] = []

    def work(step: int) -> Callable[[], None]:
        def wait_and_release() -> None:
            store.wait(tickets[step])
            order.append(step)
            _train(store, tickets[step], step)
            store.release(tickets[step])

        return wait_and_release

    # The last one first, so that threads have to wait.
    for step in reversed(range(steps)):
        threads.start(work(step))
    threads.join()
    assert order == list(range(steps))
    assert _bits(store) == _in_one_thread(range(steps))[1]
    store.close()


def test_wait_for_a_queued_ticket_returns_only_after_another_thread_releases(threads: _Threads) -> None:
    store = _store(1)
    first, second = store.prefetch(_lookups(0)), store.prefetch(_lookups(9))
    store.wait(first)
    events: list[str] = []

    def wait() -> None:
        store.wait(second)
        events.append("waited")
        store.release(second)

    waiter = threads.start(wait)
    _until_in_wait(waiter)
    events.append("released")
    store.release(first)
    threads.join()
    assert events == ["released", "waited"]
    store.close()


def test_a_queued_ticket_is_given_up_without_its_rows(threads: _Threads) -> None:
    """Released while it waits for room, it makes way for the one behind it."""
    store = _store(1)
    first, second, third = (store.prefetch(_lookups(step)) for step in (0, 9, 0))
    asked = store.stats().asked_rows
    store.release(second)
    # The rows of the third are those of the first, which are in flight.
    store.wait(third)
    store.release(first)
    store.release(third)
    stats = store.stats()
    assert (asked, stats.asked_rows, stats.open_tickets) == (BATCH, 2 * BATCH, 0)
    assert stats.in_flight_hits == BATCH
    store.close()


def test_a_thread_that_holds_the_room_itself_is_told_what_to_do() -> None:
    store = _store(1)
    first, second = store.prefetch(_lookups(0)), store.prefetch(_lookups(9))
    store.wait(first)
    for _ in range(2):
        with pytest.raises(
            CapacityError, match=r"release them first, or raise staging_bytes \(ticket=1, open_tickets=2\)"
        ):
            store.wait(second)
    # Gradients that wait for a step keep the rows of a ticket that was released.
    store.backward(first, 0, torch.ones(3, DIM), lr=None)
    store.release(first)
    with pytest.raises(CapacityError, match="release them first"):
        store.wait(second)
    store.step(0.1)
    store.wait(second)
    store.release(second)
    store.close()


@pytest.mark.parametrize(
    "send",
    [lambda: os.kill(os.getpid(), signal.SIGINT), lambda: signal.raise_signal(signal.SIGINT)],
    ids=["process", "thread"],
)
def test_ctrl_c_ends_a_wait_and_the_store_goes_on(send: Callable[[], None], threads: _Threads) -> None:
    store = _store(1)
    taken, can_release = threading.Event(), threading.Event()
    first, second = store.prefetch(_lookups(0)), store.prefetch(_lookups(9))

    def hold() -> None:
        store.wait(first)
        taken.set()
        assert can_release.wait(timeout=PATIENCE_S)
        _train(store, first, 0)
        store.release(first)

    threads.start(hold)
    assert taken.wait(timeout=PATIENCE_S)

    def interrupt() -> None:
        _until_in_wait(threading.main_thread())
        send()

    threads.start(interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.wait(second)
    # Nothing is lost: the ticket is still queued, and gets its rows once there is room.
    assert store.stats().open_tickets == 2
    can_release.set()
    store.wait(second)
    _train(store, second, 9)
    store.release(second)
    assert store.stats().open_tickets == 0
    threads.join()
    other = _store(4)
    for step in (0, 9):
        ticket = other.prefetch(_lookups(step))
        other.wait(ticket)
        _train(other, ticket, step)
        other.release(ticket)
    assert _bits(store) == _bits(other)
    store.close()
    other.close()


def test_close_ends_a_wait_for_room(threads: _Threads) -> None:
    store = _store(1)
    _, second = store.prefetch(_lookups(0)), store.prefetch(_lookups(9))
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            store.wait(second)
        except ClosedError as error:
            outcome.append(error)

    _until_in_wait(threads.start(wait))
    store.close()
    threads.join()
    assert len(outcome) == 1


def test_back_pressure_while_a_device_stands_still(threads: _Threads) -> None:
    """The device is behind a closed gate: prefetch does not block, waiting does, until it opens."""
    gate = _core.Gate()
    store = _store(2, gate=gate)
    first = store.prefetch(_lookups(0))
    # Fresh rows need no device.
    store.wait(first)
    _train(store, first, 0)
    store.release(first)
    gate.wait_until_blocked(1)
    steps = [0, 1, 2, 3, 4]
    tickets = [store.prefetch(_lookups(step)) for step in steps]
    done: list[int] = []

    def train() -> None:
        for step, ticket in zip(steps, tickets, strict=True):
            store.wait(ticket)
            _train(store, ticket, step)
            store.release(ticket)
            done.append(step)

    # Two of them have room. Rows of the first left memory changed; their write stands before the gate.
    _until_in_wait(threads.start(train))
    assert store.stats().asked_rows == 3 * BATCH
    assert not done
    gate.open()
    threads.join()
    assert done == steps
    assert _bits(store) == _in_one_thread([0, *steps])[1]
    store.close()
