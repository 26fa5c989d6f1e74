"""Training through tiers gives the bits of training in DRAM; a plain PyTorch twin agrees within rounding."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import tiermem as tm
import torch
from hypothesis import HealthCheck, given, settings
from tiermem.config import available
from tiermem.embedding.reference import ReferenceTable

ROWS = 300
BATCHES = 6


def _bags(draw: st.DrawFn, *, rows: int) -> tuple[list[int], list[int]]:
    bags = draw(st.lists(st.lists(st.integers(0, rows - 1), max_size=5), min_size=3, max_size=3))
    offsets: list[int] = []
    ids: list[int] = []
    for bag in bags:
        offsets.append(len(ids))
        ids.extend(bag)
    return ids, offsets


@st.composite
def trainings(draw: st.DrawFn) -> dict[str, Any]:
    """Tables, optimizer, tiers, and batches with empty bags and duplicates."""
    tables = draw(st.integers(1, 3))
    return {
        # The first table alone is larger than every cache below, so that the home tier is used.
        "dims": [
            draw(st.sampled_from([16, 40])),
            *draw(st.lists(st.sampled_from([1, 3, 16, 40]), min_size=tables - 1, max_size=tables - 1)),
        ],
        "optimizer": draw(
            st.sampled_from([tm.SGD(lr=0.1), tm.RowWiseAdagrad(lr=0.1), tm.RowWiseAdagrad(lr=0.5, eps=1e-3)])
        ),
        "mode": draw(st.sampled_from(["sum", "mean"])),
        "weighted": draw(st.booleans()),
        "fused": draw(st.booleans()),
        "hierarchy": draw(st.sampled_from([name for name in available("hierarchies") if name != "dram"])),
        "cache": draw(st.one_of(st.floats(0, 0.2), st.just("256B"))),
        "middle": draw(st.sampled_from(["4KiB", "8KiB"])),
        "distance": draw(st.integers(0, 2)),
        "batches": [[_bags(draw, rows=ROWS) for _ in range(tables)] for _ in range(BATCHES)],
    }


def _with_churn(batches: list[Any], tables: int) -> list[Any]:
    """Walks over all rows three times; the batches in flight hold a quarter of the rows at most."""
    churn = []
    for step in range(36):
        ids = [(step * 25 + n) % ROWS for n in range(25)]
        churn.append([(ids, [0, 10, 20])] * tables)
    return batches + churn


def _train(case: dict[str, Any], hierarchy: tm.Hierarchy, distance: int) -> tuple[list[np.ndarray], Any, Any]:
    tables = [tm.TableConfig(name=f"t{n}", rows=ROWS, dim=dim) for n, dim in enumerate(case["dims"])]
    bags = tm.TieredEmbeddingBagCollection(
        tables,
        hierarchy=hierarchy,
        optimizer=case["optimizer"],
        mode=case["mode"],
        fused_in_backward=case["fused"],
        prefetch_distance=distance,
    )
    weighted = case["weighted"] and case["mode"] == "sum"

    def lookups(batch: list[tuple[list[int], list[int]]]) -> list[tm.Lookup]:
        return [
            tm.Lookup(
                table,
                torch.tensor(ids, dtype=torch.int64),
                torch.tensor(offsets),
                torch.linspace(0.5, 1.5, len(ids)) if weighted else None,
            )
            for table, (ids, offsets) in enumerate(batch)
        ]

    references = []
    for table in range(len(tables)):
        weights = torch.cat([rows[1] for rows in bags.store.rows(table)])
        references.append(ReferenceTable(weights, case["optimizer"], case["mode"]))
    seen: list[np.ndarray] = []
    for batch, ticket in bags.pipeline(_with_churn(case["batches"], len(tables)), lookups):
        pooled = bags(ticket)
        loss = sum((p * p).sum() * 0.1 + p.sum() for p in pooled)
        loss.backward()
        if not case["fused"]:
            bags.optimizer().step()
        seen += [p.detach().numpy().copy() for p in pooled]
        for lookup, reference in zip(lookups(batch), references, strict=True):
            other = reference.forward(lookup.ids, lookup.offsets, lookup.sample_weights)
            ((other * other).sum() * 0.1 + other.sum()).backward()  # type: ignore[no-untyped-call]
            reference.step()
    for table in range(len(tables)):
        for _, weights, state in bags.store.rows(table):
            seen += [weights.numpy(), state.numpy()]
    stats = bags.stats()
    bags.close()
    return seen, stats, references


def _bits(arrays: list[np.ndarray]) -> list[bytes]:
    return [array.tobytes() for array in arrays]


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(case=trainings())
def test_tiers_do_not_change_a_bit(case: dict[str, Any]) -> None:
    in_dram, _, references = _train(case, tm.Hierarchy.load("dram"), 0)
    fastest, *middle = [tier.name for tier in tm.Hierarchy.load(case["hierarchy"]).tiers[:-1]]
    # Block caches of one or two blocks, the slower the larger, so that each tier evicts into the next.
    sizes = [case["middle"]] if len(middle) == 1 else ["4KiB", "8KiB"]
    budgets = {fastest: case["cache"], **dict(zip(middle, sizes, strict=False))}
    tiered, stats, _ = _train(case, tm.Hierarchy.load(case["hierarchy"], budgets=budgets), case["distance"])
    assert _bits(in_dram) == _bits(tiered)
    assert stats.open_tickets == 0
    for tier in stats.tiers[1:]:
        assert tier.device_reads > 0, f"{tier.name} was read"
        assert tier.device_writes > 0, f"{tier.name} was written"

    # The twin adds in another order. A row gets at most 5 * 3 + 8 contributions a step; the error of a
    # sum of n terms grows with sqrt(n), that of a training with the number of its steps.
    final = in_dram[len(in_dram) - 2 * len(references) :]
    for table, reference in enumerate(references):
        weights, state = torch.from_numpy(final[2 * table]), torch.from_numpy(final[2 * table + 1])
        scale = float(reference.weights.detach().abs().max())
        torch.testing.assert_close(
            weights, reference.weights.detach(), rtol=1e-4, atol=1e-5 * max(1.0, scale)
        )
        if state.shape[1]:
            torch.testing.assert_close(state[:, 0], reference.accumulator, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("duplicates", [1, 4, 16])
@pytest.mark.parametrize("optimizer", [tm.SGD(lr=0.1), tm.RowWiseAdagrad(lr=0.1)])
def test_one_step_is_within_four_ulp_of_pytorch(duplicates: int, optimizer: Any) -> None:
    """One update from the same bits: weights and state within 4 ulp x sqrt(duplicates) of torch's."""
    table = [tm.TableConfig(name="t", rows=64, dim=32, init_bound=0.5)]
    bags = tm.TieredEmbeddingBagCollection(
        table, hierarchy=tm.Hierarchy.load("dram-nand"), optimizer=optimizer
    )
    ((_, weights, _),) = bags.store.rows(0)
    reference = ReferenceTable(weights, optimizer, "sum")
    ids = torch.arange(64).repeat_interleave(duplicates)[torch.randperm(64 * duplicates)]
    offsets = torch.arange(0, len(ids), 4)
    gradient = torch.rand(len(offsets), 32) + 0.5
    bags([tm.Lookup(0, ids, offsets)])[0].backward(gradient)
    bags.optimizer().step()
    reference.forward(ids, offsets).backward(gradient)  # type: ignore[no-untyped-call]
    reference.step()
    ((_, updated, state),) = bags.store.rows(0)

    def check(found: torch.Tensor, expected: torch.Tensor, magnitude: torch.Tensor) -> None:
        # The rounding of w - lr * g is that of its larger operand.
        ulp = torch.finfo(torch.float32).eps * magnitude
        assert bool(((found - expected).abs() <= 4 * duplicates**0.5 * ulp).all())

    expected = reference.weights.detach()
    moved = (expected - weights).abs()
    check(updated, expected, torch.maximum(weights.abs(), moved))
    if state.shape[1]:
        check(state[:, 0], reference.accumulator, reference.accumulator)
