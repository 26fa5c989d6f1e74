"""Backward passes beside the straight one: what torch refuses is refused, what is unused is untouched."""

import pytest
import tiermem as tm
import torch
from tiermem.errors import CapacityError, ConfigError, InputError


def _bags(
    rows: int = 200, *, fused: bool = False, staging: str = "64MiB", tables: int = 1
) -> tm.TieredEmbeddingBagCollection:
    return tm.TieredEmbeddingBagCollection(
        [tm.TableConfig(name=f"t{n}", rows=rows, dim=4, init_bound=0.0) for n in range(tables)],
        hierarchy=tm.Hierarchy.load("dram-nand", budgets={"dram": 0.05}, staging_bytes=staging),
        optimizer=tm.SGD(lr=1.0),
        fused_in_backward=fused,
    )


def _lookup(ids: list[int], table: int = 0, weights: torch.Tensor | None = None) -> tm.Lookup:
    return tm.Lookup(table, torch.tensor(ids), torch.tensor([0]), weights)


def _row(bags: tm.TieredEmbeddingBagCollection, row: int, table: int = 0) -> float:
    return float(bags.store.read_rows(table, row, 1)[0][0, 0])


@pytest.mark.parametrize("fused", [True, False])
def test_the_ordinary_loop_needs_staging_for_one_batch(fused: bool) -> None:
    bags = _bags(fused=fused, staging=f"{80 * 16}B")
    kept = []
    for step in range(5):
        loss = bags([_lookup([(step * 37 + n) % 200 for n in range(80)])])[0].sum()
        loss.backward()
        if not fused:
            bags.optimizer().step()
        # A loss that somebody collects does not hold rows.
        kept.append(loss)
        assert bags.stats().open_tickets == 0
    assert len(kept) == 5


def test_a_ticket_of_the_caller_stays_his() -> None:
    bags = _bags(fused=True)
    ticket = bags.prefetch([_lookup([1])])
    bags(ticket)[0].sum().backward()
    assert bags.stats().open_tickets == 1
    assert float(bags.store.gather(ticket, 0)[0, 0]) == -1.0
    ticket.release()
    assert bags.stats().open_tickets == 0


@pytest.mark.parametrize("fused", [True, False])
def test_a_second_backward_is_refused_as_torch_does(fused: bool) -> None:
    bags = _bags(fused=fused)
    loss = bags([_lookup([3])])[0].sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    if not fused:
        bags.optimizer().step()
    assert _row(bags, 3) == -1.0


def test_an_output_that_nobody_uses_touches_no_row() -> None:
    bags = _bags(tables=2)
    first, _ = bags([_lookup([1, 2]), _lookup([3, 4], table=1)])
    first.sum().backward()
    bags.optimizer().step()
    bags.store.flush()
    assert bags.stats().rows_written_back == 2


def test_sample_weights_that_were_changed_in_between_are_refused() -> None:
    bags = _bags()
    weights = torch.ones(1)
    loss = bags([_lookup([1], weights=weights)])[0].sum()
    weights.mul_(100)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_fused_updates_of_one_table_in_one_step_are_refused() -> None:
    bags = _bags(fused=True)
    first = bags([_lookup([1])])[0]
    with pytest.raises(ConfigError, match="looked up once per step"):
        bags([_lookup([1])])
    with pytest.raises(ConfigError, match="looked up once per step"):
        bags([_lookup([1], 0), _lookup([2], 0)])
    first.sum().backward()
    bags([_lookup([1])])[0].sum().backward()
    assert _row(bags, 1) == -2.0


def test_the_learning_rate_is_that_of_the_backward() -> None:
    bags = _bags(fused=True)
    loss = bags([_lookup([1])])[0].sum()
    bags.optimizer().param_groups[0]["lr"] = 0.25
    loss.backward()
    assert _row(bags, 1) == -0.25


def test_gradients_that_are_expanded_or_strided_are_taken() -> None:
    bags = _bags()
    pooled = bags([tm.Lookup(0, torch.arange(6), torch.tensor([0, 3]))])[0]
    pooled.backward(torch.ones(4, 2).t())
    bags.optimizer().step()
    assert _row(bags, 0) == -1.0
    bags([_lookup([9])])[0].sum(dim=1).backward(torch.ones(1).expand(1))
    bags.optimizer().step()
    assert _row(bags, 9) == -1.0


@torch.no_grad()
def test_forward_only_refuses_what_training_refuses() -> None:
    bags = _bags(staging="160B")
    ids = torch.arange(20)
    for offsets in ([2, 8, 14], [0, 8, 4, 12], [0, 21]):
        with pytest.raises(InputError, match="offsets must start at 0"):
            bags([tm.Lookup(0, ids, torch.tensor(offsets))])
    with pytest.raises(InputError, match="needs an offset"):
        bags([tm.Lookup(0, ids, torch.tensor([], dtype=torch.int64))])
    empty = bags([tm.Lookup(0, ids[:0], torch.tensor([], dtype=torch.int64))])[0]
    assert empty.shape == (0, 4)
    with pytest.raises(CapacityError, match="needed_bytes=320, staging_bytes=160"):
        bags([tm.Lookup(0, ids, torch.tensor([0]))])
    assert bags.stats().open_tickets == 0


def test_numbers_out_of_range_are_named() -> None:
    bags = _bags()
    with pytest.raises(InputError, match="table 1 does not exist"):
        bags([_lookup([1], table=1)])
    with pytest.raises(InputError, match="table -1 does not exist"):
        bags([_lookup([1], table=-1)])
    with pytest.raises(InputError, match="neither may be negative"):
        bags.store.read_rows(0, -1, 1)
    with pytest.raises(ConfigError, match="seed must be between"):
        tm.TieredEmbeddingBag(10, 4, hierarchy=tm.Hierarchy.load("dram"), optimizer=tm.SGD(lr=1.0), seed=-1)
    with pytest.raises(ConfigError, match="capacity must be at least 0"):
        tm.open_device("nand-p3700", capacity=2**64)
    with pytest.raises(CapacityError, match="exceeds that of the device"):
        tm.open_device("nand-p3700", capacity="1000000TiB")
    with pytest.raises(ConfigError, match="use the virtual clock"):
        tm.open_device("dram-ddr4-2933", clock="wall")


def test_tables_that_no_host_holds_are_capacity_errors() -> None:
    for rows, dim in ((4_000_000_000, 4096), (10**8, 4096)):
        with pytest.raises(CapacityError, match="needed_bytes"):
            tm.TieredEmbeddingBag(rows, dim, hierarchy=tm.Hierarchy.load("dram"), optimizer=tm.SGD(lr=1.0))
    with pytest.raises(ConfigError, match="at most 1,048,576 columns"):
        tm.TieredEmbeddingBag(10, 2**50, hierarchy=tm.Hierarchy.load("dram-nand"), optimizer=tm.SGD(lr=1.0))
