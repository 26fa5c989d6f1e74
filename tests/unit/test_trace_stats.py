"""Statistics of traces: published numbers, counts by hand, and models of the formulas in docs/metrics.md."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from tiermem.data.access_stream import AccessStream
from tiermem.data.accesses import Bags, TraceTable, flat_bags
from tiermem.data.importers import ImportOptions, open_source
from tiermem.data.trace_file import TraceWriter, write_trace
from tiermem.data.trace_stats import (
    stats_document,
    stream_stats,
    table_stats,
    torchrec_statistics,
    zipf_exponent,
)
from tiermem.errors import ConfigError, InputError

Batches = list[list[list[list[int]]]]
"""Batches of tables of bags of ids."""
Key = tuple[int, int]


def _write(path: Path, rows: tuple[int, ...], batches: Batches) -> Path:
    tables = tuple(TraceTable(f"t{n}", count, 64 * (n + 1)) for n, count in enumerate(rows))
    with TraceWriter(path, tables, origin="by hand") as writer:
        for batch in batches:
            writer.write(
                tuple(
                    Bags(
                        np.array([len(bag) for bag in bags], dtype=np.int64),
                        np.array([row for bag in bags for row in bag], dtype=np.int64),
                    )
                    for bags in batch
                )
            )
    return path


def _flat(ids: list[int], batch: int) -> Batches:
    """One table, one id per bag, batches of so many."""
    return [[[[row] for row in ids[start : start + batch]]] for start in range(0, len(ids), batch)]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stats") / "t"


@pytest.fixture(scope="module")
def scarab(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = root / "python" / "tiermem" / "data" / "traces" / "scarab-recs.trace.xz"
    path = tmp_path_factory.mktemp("scarab") / "scarab.tmtrace"
    write_trace(path, open_source("caffeine", [keys], ImportOptions()), origin="Scarab")
    return path


class TestScarab:
    def test_numbers_are_those_that_another_program_measured(self, scarab: Path) -> None:
        stats = stream_stats(scarab)
        assert (stats.accesses, stats.distinct) == (1_245_184, 258_368)
        # At the precision at which they were printed.
        assert f"{stats.once_share:.1%}" == "47.8%"
        assert f"{stats.top_1_percent_share:.1%}" == "38.7%"
        assert f"{stats.top_10_percent_share:.1%}" == "62.1%"
        assert f"{stats.zipf_exponent:.2f}" == "0.82"
        assert f"{stats.reuse_mean:.2f}" == f"{1_245_184 / 258_368:.2f}" == "4.82"
        assert stats.first_share == pytest.approx(258_368 / 1_245_184)

    def test_a_stream_of_single_ids_has_bags_of_one(self, scarab: Path) -> None:
        (stats,) = table_stats(scarab)
        assert (stats.rows, stats.bags, stats.empty_bags, stats.ids) == (258_368, 1_245_184, 0, 1_245_184)
        assert (stats.pooling_mean, stats.pooling_p50, stats.pooling_p99, stats.pooling_max) == (1, 1, 1, 1)


BAGS: Batches = [
    [[[1, 1, 2], [], [3]], [[0, 5]]],
    [[[1], [1, 4, 4, 4, 4]], []],
    [[], [[], []]],
]


class TestTables:
    def test_bags_by_hand(self, tmp_path: Path) -> None:
        first, second = table_stats(_write(tmp_path / "t", (10, 20), BAGS))
        # Lengths 3, 0, 1, 1, 5; rows {1, 2, 3} and {1, 4} in three batches; 10 ids.
        assert (first.name, first.rows, first.row_bytes) == ("t0", 10, 64)
        assert (first.bags, first.empty_bags, first.ids) == (5, 1, 10)
        assert (first.pooling_mean, first.pooling_p50, first.pooling_max) == (2, 1, 5)
        assert first.distinct_per_batch_mean == pytest.approx(5 / 3)
        assert first.duplicate_share == pytest.approx(0.5)
        # Lengths 2, 0, 0; rows {0, 5}.
        assert (second.name, second.rows, second.row_bytes) == ("t1", 20, 128)
        assert (second.bags, second.empty_bags, second.ids) == (3, 2, 2)
        assert (second.pooling_p50, second.pooling_max, second.duplicate_share) == (0, 2, 0)
        assert second.pooling_mean == second.distinct_per_batch_mean == pytest.approx(2 / 3)

    @pytest.mark.parametrize("bags", [1, 2, 10, 99, 100, 101, 200, 1000])
    def test_a_percentile_is_the_smallest_length_with_that_share_at_or_below(
        self, tmp_path: Path, bags: int
    ) -> None:
        # docs/metrics.md defines percentiles so. Lengths 0, 1, 2, ... in another order.
        lengths = np.random.default_rng(bags).permutation(bags)
        with TraceWriter(tmp_path / "t", (TraceTable("t", 1),), origin="") as writer:
            writer.write((Bags(lengths, np.zeros(lengths.sum(), dtype=np.int64)),))
        (stats,) = table_stats(tmp_path / "t")
        ordered = sorted(lengths.tolist())
        assert stats.pooling_p50 == ordered[math.ceil(0.5 * bags) - 1]
        assert stats.pooling_p99 == ordered[math.ceil(0.99 * bags) - 1]

    def test_tables_without_bags_and_traces_without_batches(self, tmp_path: Path) -> None:
        nothing: list[Batches] = [[], [[[], []]]]
        for batches in nothing:
            for stats in table_stats(_write(tmp_path / "t", (10, 20), batches)):
                assert (stats.bags, stats.ids, stats.pooling_mean, stats.pooling_max) == (0, 0, 0, 0)
                assert stats.distinct_per_batch_mean == 0


@st.composite
def traces(draw: st.DrawFn) -> Batches:
    """One or two tables; at least one access."""
    tables = draw(st.integers(1, 2))
    row = st.one_of(st.integers(0, 3), st.integers(0, 99))
    bags = st.lists(st.lists(row, max_size=6), max_size=8)
    batches = draw(st.lists(st.lists(bags, min_size=tables, max_size=tables), max_size=5))
    return [[[[draw(row)]], *[[] for _ in range(tables - 1)]], *batches]


def _keys(batches: Batches) -> list[Key]:
    return [
        (table, row) for batch in batches for table, bags in enumerate(batch) for bag in bags for row in bag
    ]


def _distances(keys: list[Key]) -> list[int | None]:
    """Other rows since the last access to the row."""
    found: list[int | None] = []
    for at, key in enumerate(keys):
        last = next((place for place in range(at - 1, -1, -1) if keys[place] == key), None)
        found.append(None if last is None else len(set(keys[last + 1 : at])))
    return found


class TestStreams:
    @given(traces())
    @settings(deadline=None, max_examples=150)
    def test_counts_and_distances_are_those_of_lists(self, scratch: Path, batches: Batches) -> None:
        _write(scratch, (100,) * len(batches[0]), batches)
        stats = stream_stats(scratch)
        keys = _keys(batches)
        counts = Counter(keys)
        ordered = sorted(counts.values(), reverse=True)
        assert (stats.accesses, stats.distinct) == (len(keys), len(counts))
        assert stats.reuse_mean == pytest.approx(len(keys) / len(counts))
        assert stats.once_share == pytest.approx(ordered.count(1) / len(ordered))
        lows = [0, *(2**n for n in range(16))]
        for number, low in enumerate(lows):
            high = lows[number + 1] if number + 1 < len(lows) else math.inf
            inside = [count for count in ordered if low < count <= high]
            assert stats.reuse_rows[number] == pytest.approx(len(inside) / len(counts))
            assert stats.reuse_lookups[number] == pytest.approx(sum(inside) / len(keys))
        assert len(stats.reuse_rows) == len(stats.reuse_lookups) == len(lows)
        distances = _distances(keys)
        assert stats.first_share == pytest.approx(distances.count(None) / len(keys))
        shares: Counter[int] = Counter(
            distance.bit_length() for distance in distances if distance is not None
        )
        expected = [shares[octave] / len(keys) for octave in range(max(shares, default=-1) + 1)]
        assert list(stats.distance_shares) == pytest.approx(expected)

    def test_the_hottest_rows_by_hand(self, tmp_path: Path) -> None:
        # 20 rows: one with 30 accesses, one with 10, 18 with 1. 1 % of 20 rows is one row at the least.
        ids = [0] * 30 + [1] * 10 + list(range(2, 20))
        stats = stream_stats(_write(tmp_path / "t", (20,), _flat(ids, 7)))
        assert stats.top_1_percent_share == pytest.approx(30 / 58)
        assert stats.top_10_percent_share == pytest.approx(40 / 58)

    def test_retention_by_hand(self, tmp_path: Path) -> None:
        # Ten parts of ten accesses; the hottest tenth of 6 or 7 rows is one row.
        one = [0] * 4 + [1, 2, 3, 4, 5, 6]
        two = [1] * 3 + [0] * 2 + [7, 8, 9, 10, 11]
        # Row 0: 4 of 10, then 2 of 10, five times. Row 1: 3 of 10, then 1 of 10, four times.
        stats = stream_stats(_write(tmp_path / "t", (20,), _flat((one + two) * 5, 8)))
        assert stats.retention == pytest.approx((5 * 2 / 4 + 4 * 1 / 3) / 9)

    def test_what_stands_still_is_retained_and_what_is_new_is_not(self, tmp_path: Path) -> None:
        still = stream_stats(_write(tmp_path / "t", (20,), _flat(([0] * 4 + [1, 2, 3, 4, 5, 6]) * 10, 8)))
        assert still.retention == pytest.approx(1)
        new = stream_stats(_write(tmp_path / "t", (1000,), _flat(list(range(1000)), 8)))
        assert new.retention == 0
        assert new.once_share == 1
        assert new.zipf_exponent == pytest.approx(0, abs=1e-9)

    def test_one_access_is_a_stream(self, tmp_path: Path) -> None:
        stats = stream_stats(_write(tmp_path / "t", (9,), [[[[5]]]]))
        assert (stats.accesses, stats.first_share, stats.distance_shares) == (1, 1, ())
        assert stats.top_1_percent_share == 1

    def test_some_tables_alone(self, tmp_path: Path) -> None:
        path = _write(tmp_path / "t", (10, 20), BAGS)
        assert [stream_stats(path, [name]).accesses for name in ("t0", "t1")] == [10, 2]
        assert stream_stats(path).distinct == stream_stats(path, ["t1", "t0"]).distinct == 6
        with pytest.raises(ConfigError, match='there is no table "t2"'):
            stream_stats(path, ["t2"])

    def test_nothing_has_no_statistics(self, tmp_path: Path) -> None:
        path = _write(tmp_path / "t", (10, 20), [[[[1]], [[]]]])
        with pytest.raises(InputError, match="has no accesses to t1"):
            stream_stats(path, ["t1"])
        with pytest.raises(InputError, match="has no accesses"):
            stream_stats(_write(tmp_path / "t", (10,), []))


class TestZipf:
    @pytest.mark.parametrize("rows", [10, 1000, 50_000])
    @pytest.mark.parametrize("exponent", [0.0, 0.3, 0.82, 1.0, 1.5])
    def test_the_exponent_of_expected_counts_comes_back(self, rows: int, exponent: float) -> None:
        weights = np.arange(1, rows + 1) ** -exponent
        counts = np.rint(weights / weights.sum() * 1e12).astype(np.int64)
        assert zipf_exponent(counts) == pytest.approx(exponent, abs=1e-3)

    def test_the_likelihood_is_greatest_there(self) -> None:
        counts = np.sort(np.random.default_rng(2).geometric(0.02, 300))[::-1]
        logs = np.log(np.arange(1, 301))

        def log_likelihood(exponent: float) -> float:
            return float((counts * (-exponent * logs - np.log(np.exp(-exponent * logs).sum()))).sum())

        found = zipf_exponent(counts)
        assert log_likelihood(found) > max(log_likelihood(found - 1e-3), log_likelihood(found + 1e-3))

    def test_a_single_row_has_no_skew(self) -> None:
        assert zipf_exponent(np.array([7])) == 0


class TestTorchRec:
    def test_by_hand(self, tmp_path: Path) -> None:
        # Deduplicated: 0 1 2 | 1 0 | 3 0 2 1. Distances: - - - | 1 2 | - 1 3 3; five parts of two rows.
        batches: Batches = [[[[0, 1], [0, 2]]], [[[1], [], [0, 0, 1]]], [[[3, 0, 2, 1, 3]]]]
        found = torchrec_statistics(_write(tmp_path / "t", (10,), batches), "t0", bins=5)
        assert found["mrc_hist_counts"] == [2, 3, 0, 0, 0]
        assert found["height"] == 10
        assert found["expected_lookups"] == 3, "3, 2 and 4 different rows"
        # The curve is 1, 3/5, 0, 0, 0, 0 at load factors 0, 0.2, ..., 1; the trapezoids between them.
        assert found["cacheability"] == pytest.approx(0.2 * ((1 + 0.6) / 2 + 0.6 / 2))
        assert json.loads(json.dumps(found)) == found

    @given(traces(), st.integers(1, 100))
    @settings(deadline=None, max_examples=100)
    def test_the_histogram_gives_the_hit_rate_of_lru_without_first_accesses(
        self, scratch: Path, batches: Batches, bins: int
    ) -> None:
        _write(scratch, (100,) * len(batches[0]), batches)
        found: dict[str, Any] = torchrec_statistics(scratch, "t0", bins=bins)
        stream = AccessStream(scratch, tables=["t0"], dedupe=True)
        again = stream.accesses - stream.distinct
        histogram = np.array(found["mrc_hist_counts"])
        assert (len(histogram), histogram.sum()) == (bins, again)
        misses = [1.0]
        for part in range(1, bins + 1):
            # A cache of this load factor, rounded up to whole rows.
            (point,) = stream.curve("lru", [-(-part * 100 // bins)])
            assert histogram[:part].sum() == point.hits
            misses.append(1 - histogram[:part].sum() / again if again else 1)
        assert found["cacheability"] == pytest.approx(np.trapezoid(misses, dx=1 / bins))

    def test_a_table_that_nothing_asks_for_twice_cannot_be_cached(self, tmp_path: Path) -> None:
        path = _write(tmp_path / "t", (10, 20), [[[[1, 1], [2]], []]])
        for name, lookups in (("t0", 2), ("t1", 0)):
            found = torchrec_statistics(path, name)
            assert (found["cacheability"], found["expected_lookups"]) == (1, lookups)
            assert found["mrc_hist_counts"] == [0] * 100


def test_the_document_has_the_statistics_of_every_table(tmp_path: Path) -> None:
    path = _write(tmp_path / "t", (10, 20, 30), [[*batch, [[]]] for batch in BAGS])
    document = stats_document(path, per_table=True)
    assert json.loads(json.dumps(document)) == document
    assert document["origin"] == "by hand"
    assert document["all"]["accesses"] == 12
    assert [table["ids"] for table in document["tables"]] == [10, 2, 0]
    streams = [table["stream"] for table in document["tables"]]
    assert [stream and stream["accesses"] for stream in streams] == [10, 2, None]
    assert all("stream" not in table for table in stats_document(path, per_table=False)["tables"])


def test_flat_bags_and_offsets_are_bags(tmp_path: Path) -> None:
    ids = np.array([3, 1, 2])
    assert flat_bags(ids).lengths.tolist() == [1, 1, 1]
    assert Bags.from_offsets(ids, np.array([0, 0, 2])).lengths.tolist() == [0, 2, 1]
    for offsets, message in (
        ([1, 2], "bags start at 0"),
        ([0, 2, 1], "bag 1 has -1 ids"),
        ([0, 4], "bag 1 has -1"),
    ):
        with pytest.raises(InputError, match=message):
            Bags.from_offsets(ids, np.array(offsets))
