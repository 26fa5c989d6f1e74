"""Blocking calls release the interpreter; prefetch never blocks. No clock is involved: a gate is."""

import threading

import pytest
import tiermem as tm
import torch
from tiermem import _core


def _gated(gate: _core.Gate, **budgets: float | str) -> tm.TieredEmbeddingBagCollection:
    hierarchy = tm.Hierarchy.load("dram-nand", budgets=budgets or {"dram": "64B"})
    table = tm.TableConfig(name="t", rows=1000, dim=16)
    return tm.TieredEmbeddingBagCollection([table], hierarchy=hierarchy, optimizer=tm.SGD(lr=0.1), gate=gate)


def _lookup(start: int) -> list[tm.Lookup]:
    return [tm.Lookup(0, torch.arange(start, start + 8), torch.tensor([0]))]


def _update(bags: tm.TieredEmbeddingBagCollection, start: int) -> None:
    ticket = bags.prefetch(_lookup(start))
    bags(ticket)[0].sum().backward()
    bags.optimizer().step()
    ticket.release()


def test_a_thread_that_waits_lets_another_open_the_gate() -> None:
    gate = _core.Gate()
    bags = _gated(gate)
    _update(bags, 0)  # Rows 0-7 are fresh: no read. Their write-back now stands before the gate.
    gate.wait_until_blocked(1)
    ticket = bags.prefetch(_lookup(0))  # Never blocks, though the read queues behind the write.
    opener = threading.Thread(target=gate.open)
    done = []

    def wait_and_pool() -> None:
        opener.start()
        ticket.wait()
        done.append(bags(ticket)[0])

    waiter = threading.Thread(target=wait_and_pool)
    waiter.start()
    waiter.join(timeout=60)
    opener.join(timeout=60)
    assert done, "wait() held the interpreter, so the gate could not be opened"
    ticket.release()
    bags.close()


def test_gather_through_the_module_releases_the_interpreter() -> None:
    gate = _core.Gate()
    bags = _gated(gate)
    _update(bags, 0)
    gate.wait_until_blocked(1)
    opener = threading.Thread(target=gate.open)
    pooled = []

    def forward() -> None:
        opener.start()
        with torch.no_grad():
            pooled.append(bags(_lookup(0))[0])

    worker = threading.Thread(target=forward)
    worker.start()
    worker.join(timeout=60)
    assert pooled
    bags.close()


def test_many_threads_on_one_store_leave_it_consistent() -> None:
    hierarchy = tm.Hierarchy.load("dram-nand", budgets={"dram": 0.05})
    tables = [tm.TableConfig(name=f"t{n}", rows=500, dim=8, init_bound=0.0) for n in range(4)]
    bags = tm.TieredEmbeddingBagCollection(tables, hierarchy=hierarchy, optimizer=tm.SGD(lr=1.0))
    failures: list[BaseException] = []

    def work(table: int) -> None:
        try:
            for step in range(40):
                ids = (torch.arange(20) * 7 + step * 11) % 500
                ticket = bags.prefetch([tm.Lookup(table, ids, torch.tensor([0]))])
                ticket.wait()
                bags.store.backward(ticket, 0, torch.ones(1, 8), lr=1.0)
                ticket.release()
        except BaseException as error:  # noqa: BLE001 (a thread hands everything over)
            failures.append(error)

    threads = [threading.Thread(target=work, args=(table,)) for table in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not failures
    counts = torch.zeros(500)
    for step in range(40):
        counts += torch.bincount((torch.arange(20) * 7 + step * 11) % 500, minlength=500)
    for table in range(4):
        ((_, weights, _),) = bags.store.rows(table)
        torch.testing.assert_close(weights, -counts[:, None].expand(500, 8), rtol=0, atol=0)
    bags.close()


@pytest.mark.parametrize("how", ["release", "drop"])
def test_forward_only_keeps_memory_constant(how: str) -> None:
    """1,000 batches without a backward: tickets, staging and process memory do not grow."""
    import psutil

    hierarchy = tm.Hierarchy.load("dram-nand", budgets={"dram": 0.01}, staging_bytes="1MiB")
    table = tm.TableConfig(name="t", rows=100_000, dim=32)
    bags = tm.TieredEmbeddingBagCollection([table], hierarchy=hierarchy, optimizer=tm.SGD(lr=0.1))
    bags.store.write_rows(0, 0, torch.zeros(100_000, 32))
    process = psutil.Process()
    before = 0
    for step in range(1000):
        ids = (torch.arange(256) * 97 + step * 5003) % 100_000
        if how == "release":
            with torch.no_grad():
                bags([tm.Lookup(0, ids, torch.arange(0, 256, 2))])
        else:
            # With gradients, but nobody calls backward: the outputs are dropped.
            pooled = bags([tm.Lookup(0, ids, torch.arange(0, 256, 2))])
            del pooled
        if step == 200:
            before = process.memory_info().rss
    stats = bags.stats()
    assert stats.open_tickets == 0
    assert stats.tier("dram").held == 1000
    assert process.memory_info().rss - before < 8 * 2**20
    bags.close()
