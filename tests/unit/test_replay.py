"""Batches through a store without a model: counts by hand, where measurements begin and end, new numbers."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiermem as tm
import torch
from tiermem.config import Placement, RowWiseAdagrad
from tiermem.data.accesses import Bags, Batch, flat_bags
from tiermem.embedding import EmbeddingStore, Lookup, TieredEmbeddingBagCollection
from tiermem.embedding.table import StageTimes
from tiermem.errors import CapacityError, ConfigError, InputError
from tiermem.train.replay import Replayed, replay

ROWS, DIM = 400, 16
ROW_BYTES = 4 * DIM + 4
ROWS_PER_BLOCK = (4096 - 32) // ROW_BYTES
ITEM = tm.TableConfig(name="item", rows=ROWS, dim=DIM)
ADAGRAD = RowWiseAdagrad(lr=0.1)
RESIDENT = Placement.from_mapping({"tables": [{"table": "item", "home": "dram"}]})


def _hierarchy(home: str = "optane-p4800x", rows: int = 1, **options: Any) -> tm.Hierarchy:
    """Memory that caches so many rows, and a home."""
    tiers = (
        tm.TierConfig(name="dram", device="dram-ddr4-2933", cache=rows * ROW_BYTES, policy="lru"),  # type: ignore[arg-type]
        tm.TierConfig(name="home", device=home),  # type: ignore[arg-type]
    )
    return tm.Hierarchy(tiers=tiers, **options)


def _batches(*rows: npt.ArrayLike) -> Iterator[Batch]:
    return ((flat_bags(np.array(each, dtype=np.int64)),) for each in rows)


def _random(count: int, ids: int = 40, tables: int = 1, seed: int = 5) -> list[Batch]:
    draws = np.random.default_rng(seed)
    return [
        tuple(
            Bags(np.full(ids // 4, 4), np.minimum(draws.zipf(1.3, ids) - 1, ROWS - 1)) for _ in range(tables)
        )
        for _ in range(count)
    ]


def _replay(batches: Iterable[Batch], steps: int, warm_up_steps: int = 0, **options: Any) -> Replayed:
    values = {"hierarchy": _hierarchy(), "dense_ns": 1000, "prefetch_distance": 0, **options}
    tables = values.pop("tables", [ITEM])
    return replay(
        tables, optimizer=ADAGRAD, batches=batches, warm_up_steps=warm_up_steps, steps=steps, **values
    )


def test_resident_rows_read_no_device() -> None:
    found = _replay(_random(8), 8, placement=RESIDENT)
    memory, home = found.tiers
    assert (memory.name, home.name) == ("dram", "home")
    assert (found.asked_rows, found.unique_rows) == (40, 40)
    assert (memory.probed_rows, memory.hit_rows) == (40, 40)
    assert dataclasses.replace(home, name="") == dataclasses.replace(
        home, name="", **dict.fromkeys(_COUNTS, 0)
    )
    assert found.parts_ns["wait"] == 0
    assert found.device_share == 0
    # Weights of 64 bytes are a page of memory, and a row image of 68 is one and a bit.
    assert memory.reads >= 40


_COUNTS = ("probed_rows", "hit_rows", "reads", "writes", "read_bytes", "write_bytes", "active_ns")


def test_with_a_cache_of_one_row_every_distinct_row_is_read() -> None:
    # Three rows in blocks that are no neighbours; the last one of a batch stays.
    a, b, c = 0, 2 * ROWS_PER_BLOCK, 4 * ROWS_PER_BLOCK
    found = _replay(_batches(*[[a, b, a, c, b]] * 6), 4, warm_up_steps=2)
    memory, home = found.tiers
    assert (found.asked_rows, found.unique_rows, memory.probed_rows) == (5, 3, 3)
    # `c` stayed.
    assert (memory.hit_rows, home.probed_rows, home.hit_rows) == (1, 2, 2)
    # `a` and `b` leave with their update: their blocks are read for the rows, and again to be written.
    assert (found.rows_written_back, found.read_modify_writes) == (2, 2)
    assert (home.reads, home.writes) == (4, 2)
    assert (home.read_bytes, home.write_bytes) == (4 * 4096, 2 * 4096)
    assert found.rows_compacted == 0


def test_without_training_nothing_is_written() -> None:
    a, b = 0, 2 * ROWS_PER_BLOCK
    found = _replay(_batches(*[[a, b]] * 6), 4, warm_up_steps=2, training=False)
    assert (found.tiers[1].reads, found.tiers[1].writes, found.rows_written_back) == (1, 0, 0)
    assert found.parts_ns["update"] == 0
    assert found.parts_ns["gather"] > 0


def test_a_step_is_the_sum_of_its_parts() -> None:
    for distance in (0, 1, 3):
        found = _replay(_random(30), 10, 15, prefetch_distance=distance, dense_ns=7_000)
        assert list(found.parts_ns) == ["wait", "gather", "dense", "update", "release"]
        assert sum(found.parts_ns.values()) == pytest.approx(found.step_ns, abs=1e-6)
        assert found.parts_ns["dense"] == 7_000


def test_virtual_time_is_the_same_each_time() -> None:
    hierarchy = _hierarchy("nand-p3700", rows=20)
    first, second = (_replay(_random(40), 20, 15, hierarchy=hierarchy, prefetch_distance=2) for _ in range(2))
    assert first == second
    # That device has a distribution of latencies.
    assert _replay(_random(40), 20, 15, hierarchy=hierarchy, prefetch_distance=2, seed=2) != first


def test_it_asks_of_the_store_what_the_pipeline_of_a_collection_does() -> None:
    """The loop of the trainer over the same batches, with the gradients that backward would give."""
    hierarchy, distance, warm_up, steps = _hierarchy("nand-p3700", rows=30), 2, 5, 12
    batches = _random(warm_up + steps + distance, tables=2)
    tables = [ITEM, tm.TableConfig(name="user", rows=ROWS, dim=8)]
    found = _replay(batches, steps, warm_up, hierarchy=hierarchy, tables=tables, prefetch_distance=distance)

    bags = TieredEmbeddingBagCollection(
        tables,
        hierarchy=hierarchy,
        optimizer=ADAGRAD,
        fused_in_backward=True,
        prefetch_distance=distance,
        threads=1,
    )
    store = bags.store
    for number, table in enumerate(tables):
        store.write_rows(number, 0, torch.zeros(table.rows, table.dim))
    marks, waits = [], []
    for step, (_, ticket) in enumerate(bags.pipeline(batches, _lookups)):
        if step in (warm_up, warm_up + steps):
            marks.append(store.now_ns())
            waits.append(store.times.wait_ns)
            store.times = StageTimes()
        outputs = bags(ticket)
        store.advance(1000)
        sum(output.sum() * 0 for output in outputs).backward()
    bags.close()
    assert (marks[1] - marks[0]) / steps == found.step_ns
    assert waits[1] / steps == found.parts_ns["wait"] > 0


def _lookups(batch: Batch) -> list[Lookup]:
    return [
        Lookup(number, torch.from_numpy(bags.ids), torch.from_numpy(np.cumsum(bags.lengths) - bags.lengths))
        for number, bags in enumerate(batch)
    ]


@pytest.mark.parametrize("distance", [0, 1, 2])
def test_counts_are_of_the_batches_fetched_in_between(distance: int) -> None:
    """Those fetched before, during and after the measurement ask for 1, 10 and 100 rows each."""
    warm_up, steps = 3, 5
    counts = [1] * (warm_up + distance) + [10] * steps + [100] * 3
    starts = np.cumsum([0, *counts])
    batches = _batches(
        *(np.arange(start, start + count) for start, count in zip(starts, counts, strict=False))
    )
    found = _replay(batches, steps, warm_up, hierarchy=_hierarchy(rows=ROWS), prefetch_distance=distance)
    assert (found.asked_rows, found.tiers[1].hit_rows) == (10, 10)


@pytest.mark.parametrize("distance", [0, 1, 2])
def test_time_is_of_the_batches_trained_on_in_between(distance: int) -> None:
    """Only they ask for 10 rows; all is in memory, so that a step depends on its own batch."""
    warm_up, steps = 3, 5
    counts = [1] * warm_up + [10] * steps + [100] * distance
    found, alike = (
        _replay(
            _batches(*map(np.arange, each)), steps, warm_up, placement=RESIDENT, prefetch_distance=distance
        )
        for each in (counts, [10] * len(counts))
    )
    assert (found.step_ns, found.parts_ns) == (alike.step_ns, alike.parts_ns)


@pytest.mark.parametrize("distance", [0, 2])
def test_no_more_batches_are_taken_than_needed_and_no_fewer_will_do(distance: int) -> None:
    taken = 0

    def batches(count: int) -> Iterator[Batch]:
        nonlocal taken
        for batch in _random(count):
            taken += 1
            yield batch

    _replay(batches(20), 4, 3, prefetch_distance=distance)
    assert taken == 7 + distance
    with pytest.raises(
        InputError, match=f"takes {7 + distance} batches.* there are {6 + distance}; replay fewer"
    ):
        _replay(batches(6 + distance), 4, 3, prefetch_distance=distance)


def test_new_numbers_of_rows_that_all_are_alike_change_no_time() -> None:
    # A row of 64 bytes is one page of the memory below, wherever it lies.
    tables = [tm.TableConfig(name="item", rows=ROWS, dim=15)]
    shuffled = np.random.default_rng(3).permutation(ROWS)
    options: dict[str, Any] = {
        "hierarchy": _hierarchy("cxl-asic", rows=9),
        "prefetch_distance": 1,
        "tables": tables,
    }
    plain, *others = (
        _replay(_random(20), 10, 5, numbers=numbers, **options)
        for numbers in (None, [None], [np.arange(ROWS)], [shuffled])
    )
    assert plain.tiers[1].reads > 0
    assert all(other == plain for other in others)
    resident = [_replay(_random(9), 8, placement=RESIDENT, numbers=each) for each in (None, [shuffled])]
    assert resident[0] == resident[1]


def test_a_placement_goes_by_the_new_numbers() -> None:
    # The last ten rows are the hot ones, and get the first numbers.
    hot = np.arange(ROWS - 10, ROWS)
    numbers = (np.arange(ROWS) + 10) % ROWS
    split = Placement.from_mapping(
        {
            "tables": [
                {"table": "item", "rows": [0, 10], "home": "dram"},
                {"table": "item", "rows": [10, ROWS], "home": "home", "cached_by": []},
            ]
        }
    )
    misplaced = _replay(_batches(*[hot] * 8), 4, 4, placement=split)
    found = _replay(_batches(*[hot] * 8), 4, 4, placement=split, numbers=[numbers])
    assert misplaced.tiers[1].hit_rows == 10
    assert (found.tiers[0].hit_rows, found.tiers[1].probed_rows, found.parts_ns["wait"]) == (10, 0, 0)
    assert found.step_ns < misplaced.step_ns


def test_batches_that_cannot_be_written_to_and_empty_bags_are_fine() -> None:
    ids, lengths = np.array([3, 3, 9]), np.array([0, 2, 0, 1])
    for array in (ids, lengths):
        array.setflags(write=False)
    batch = (Bags(lengths, ids), Bags(np.zeros(4, dtype=np.int64), np.zeros(0, dtype=np.int64)))
    tables = [ITEM, tm.TableConfig(name="user", rows=ROWS, dim=8)]
    found = _replay(
        [batch] * 5, 5, tables=tables, numbers=[None, np.arange(ROWS)], hierarchy=_hierarchy(rows=4)
    )
    assert (found.asked_rows, found.unique_rows) == (3, 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"hierarchy": _hierarchy(clock="wall")},
            ConfigError,
            'virtual clock; that of the hierarchy is "wall"',
        ),
        ({"steps": 0}, ConfigError, "at least one step.* steps is 0"),
        ({"warm_up_steps": -1}, ConfigError, "warm_up_steps -1"),
        ({"prefetch_distance": -1}, ConfigError, "prefetch_distance -1"),
        ({"numbers": []}, ConfigError, "new numbers for 0 tables, and there are 1 tables"),
        ({"numbers": [np.arange(3)]}, ConfigError, r'of table "item" are \[3\]; it has 400 rows'),
        ({"batches": [()] * 3}, InputError, "bags of 0 tables, and there are 1 tables"),
        ({"batches": _batches([ROWS])}, InputError, "item"),
        (
            {"batches": _batches([ROWS]), "numbers": [np.arange(ROWS)]},
            InputError,
            'rows that table "item" of 400',
        ),
        (
            {"batches": _batches([-1]), "numbers": [np.arange(ROWS)]},
            InputError,
            'rows that table "item" of 400',
        ),
        ({"hierarchy": _hierarchy(staging_bytes=2 * ROW_BYTES)}, CapacityError, "raise staging_bytes"),
    ],
)
def test_what_cannot_be_replayed_is_one_sentence(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    values = {"batches": _random(3), "steps": 1, **options}
    with pytest.raises(error, match=message) as caught:
        _replay(**values)
    assert "\n" not in str(caught.value)


def test_the_store_is_closed_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    close = EmbeddingStore.close

    def counted(store: EmbeddingStore) -> None:
        closed.append(store)
        close(store)

    monkeypatch.setattr(EmbeddingStore, "close", counted)
    _replay(_random(3), 2)
    with pytest.raises(InputError):
        _replay(_random(1), 2)
    assert len(closed) == 2
