"""Configurations on which plans are verified: the same each time, all different, and as they should be."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
from tiermem.data.accesses import Batch
from tiermem.embedding import EmbeddingStore
from tiermem.train.plan_cases import PlanCase, calibration_cases, plan_cases
from tiermem.train.replay import Replayed, replay

CASES = plan_cases()


def _replayed(case: PlanCase) -> Replayed:
    return replay(
        case.store_tables,
        hierarchy=case.hierarchy,
        optimizer=case.optimizer,
        batches=case.replay_batches(),
        warm_up_steps=case.warm_up_steps,
        steps=case.steps,
        dense_ns=case.dense_ns,
        prefetch_distance=case.prefetch_distance,
    )


def _equal(first: Iterable[Batch], second: Iterable[Batch]) -> bool:
    return all(
        np.array_equal(one.lengths, other.lengths) and np.array_equal(one.ids, other.ids)
        for batches in zip(first, second, strict=True)
        for one, other in zip(*batches, strict=True)
    )


def _bytes(case: PlanCase) -> int:
    return sum(table.rows * table.row_bytes for table in case.profile_source().tables)


def test_cases_follow_from_seed_and_number() -> None:
    assert plan_cases(count=4) == plan_cases(count=6)[:4] == CASES[:4]
    assert plan_cases(7, 3) == plan_cases(7, 3)
    assert all(one != other for one, other in zip(plan_cases(7, 3), CASES, strict=False))


def test_they_are_forty_and_all_different() -> None:
    assert [case.number for case in CASES] == list(range(40))
    assert [case.stream for case in CASES] == ["iid", "drift"] * 20
    shapes = [tuple((table.rows, table.dim) for table in case.store_tables) for case in CASES]
    calibration = calibration_cases()
    shapes += [tuple((table.rows, table.dim) for table in case.store_tables) for case in calibration]
    assert len(set(shapes)) == 80
    assert len({case.name for case in CASES}) == 40
    assert {case.seed for case in CASES}.isdisjoint(case.seed for case in calibration)


def test_both_kinds_of_streams_meet_each_hierarchy() -> None:
    of = Counter(
        (case.stream, tuple(tier.device.name for tier in case.hierarchy.tiers[1:])) for case in CASES
    )
    assert len(of) == 26
    assert set(of.values()) == {1, 2}
    assert Counter(len(case.hierarchy.tiers) for case in CASES).keys() == {2, 3}
    assert {case.prefetch_distance for case in CASES} == {0, 1, 2}
    assert {case.bags for case in CASES} == {128, 256, 512}


@pytest.mark.parametrize(
    "case", [*CASES, *calibration_cases()], ids=lambda case: f"{case.seed}-{case.number}"
)
def test_tables_laws_and_budgets_are_within_their_bounds(case: PlanCase) -> None:
    rows = [table.rows for table in case.store_tables]
    assert 8 <= len(rows) <= 24
    assert all(2_000 <= each <= 60_000 for each in rows)
    assert 150_000 <= sum(rows) <= 400_000
    for table in case.tables:
        assert 1 <= table.pooling <= 20
        assert table.exponent == 0 or 0.3 <= table.exponent <= 1.3
        drift = table.working_set, table.turnover, table.once
        assert (drift == (1, 0, 0)) == (case.stream == "iid")
        assert table.working_set <= 0.5 or case.stream == "iid"
    memory, *middle, _ = case.hierarchy.tiers
    assert memory.cache == 0.1
    assert all(isinstance(tier.cache, float) and 0.2 <= tier.cache <= 0.3 for tier in middle)
    assert {tier.policy for tier in case.hierarchy.tiers} == {"lru"}
    assert {table.config.dim for table in case.tables} <= {16, 32, 64}


@pytest.mark.parametrize("case", CASES[:6], ids=lambda case: str(case.number))
def test_a_store_of_a_case_has_its_budget_and_room_for_its_batches(case: PlanCase) -> None:
    store = EmbeddingStore(case.store_tables, hierarchy=case.hierarchy, optimizer=case.optimizer)
    widths = len({table.dim for table in case.store_tables})
    cached = store.stats().memory.cached_bytes
    store.close()
    # A share is rounded up to a row of each width.
    assert 0 <= cached - 0.1 * _bytes(case) <= widths * 260
    # One more batch than the pipeline has at once.
    ahead = dataclasses.replace(case, prefetch_distance=case.prefetch_distance + 1, steps=2, warm_up_steps=0)
    assert _replayed(ahead).steps == 2


@pytest.mark.parametrize("case", CASES[:4], ids=lambda case: str(case.number))
def test_batches_are_the_same_whenever_they_are_asked_for(case: PlanCase) -> None:
    few = dataclasses.replace(case, profile_batches=5, warm_up_steps=2, steps=3)
    every = list(few.batches(0, 10))
    assert _equal(few.batches(0, 10), every)
    assert _equal(few.batches(7, 2), every[7:9])
    source = few.profile_source()
    assert _equal(source.batches(), every[:5])
    assert _equal(few.replay_batches(), few.batches(3, 2 + 3 + case.prefetch_distance))
    for batch in every:
        for table, bags in zip(source.tables, batch, strict=True):
            assert len(bags.lengths) == case.bags
            assert bags.lengths.sum() == len(bags.ids)
            assert 0 <= bags.ids.min() <= bags.ids.max() < table.rows
    # Neither batches nor tables repeat one another.
    assert not any(_equal([one], [other]) for one, other in itertools.combinations(every, 2))


def test_profile_warm_up_and_measurement_are_one_stream() -> None:
    case = CASES[0]
    assert (case.profile_batches, case.warm_up_steps, case.steps) == (120, 60, 60)
    first = next(case.replay_batches())
    assert _equal([first], case.batches(60, 1))


def test_pooling_and_popularity_are_those_of_the_law() -> None:
    case = CASES[0]
    batches = list(case.batches(0, 20))
    for position, table in enumerate(case.tables):
        lengths = np.concatenate([batch[position].lengths for batch in batches])
        assert lengths.mean() == pytest.approx(table.pooling, rel=0.02)
        assert set(lengths) <= {int(table.pooling), int(table.pooling) + 1}
        counts = np.bincount(
            np.concatenate([batch[position].ids for batch in batches]), minlength=table.config.rows
        )
        weights = np.arange(1, table.config.rows + 1) ** -table.exponent
        expected = weights[0] / weights.sum() * counts.sum()
        assert counts.max() <= max(2 * expected, expected + 10 * np.sqrt(expected) + 10)
        if table.exponent > 0.8:
            assert counts.max() == pytest.approx(expected, abs=5 * np.sqrt(expected))
            # Hot rows are no neighbours.
            assert np.abs(np.diff(np.argsort(-counts)[:5])).min() > 1


def test_a_drifting_stream_leaves_its_rows_and_the_other_does_not() -> None:
    iid, drifting = (_still_asked_for(case, 60) for case in CASES[:2])
    assert iid == pytest.approx(1, abs=0.02)
    assert drifting < 0.6


def _still_asked_for(case: PlanCase, apart: int) -> float:
    """Ids of a batch whose rows five batches long after it ask for too, over those of the five next to it."""
    asked = next(case.batches(0, 1))

    def shared(first: int) -> int:
        later = zip(*case.batches(first, 5), strict=True)
        seen = (np.concatenate([bags.ids for bags in batches]) for batches in later)
        return sum(int(np.isin(bags.ids, rows).sum()) for bags, rows in zip(asked, seen, strict=True))

    return shared(1 + apart) / shared(1)


_NEAREST = [case for case in CASES if case.hierarchy.tiers[-1].device.kind == "byte"]


@pytest.mark.parametrize("case", _NEAREST, ids=lambda case: str(case.number))
def test_the_devices_take_most_of_a_step_if_all_is_cached(case: PlanCase) -> None:
    """Those whose slowest tier is a memory have the smallest share of all."""
    found = _replayed(dataclasses.replace(case, steps=15, warm_up_steps=25))
    assert found.device_share >= 0.5
