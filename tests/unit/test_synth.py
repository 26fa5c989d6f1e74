"""Generated traces: parts, seeds, and the law of each generator."""

import hashlib
import itertools
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tiermem.config import SynthConfig, available
from tiermem.data.accesses import Bags, TraceTable
from tiermem.data.synth import synthesize
from tiermem.data.trace_file import TraceReader, TraceWriter
from tiermem.data.trace_stats import stream_stats

Ids = npt.NDArray[np.int64]
SMALL = ("batches=10", "bags_per_batch=24")


def _table(rows: int, pooling: float = 1.0, name: str = "t") -> dict[str, Any]:
    return {"name": name, "rows": rows, "pooling": pooling}


def _make(path: Path, law: dict[str, Any], *tables: dict[str, Any], **values: Any) -> list[list[Bags]]:
    """The bags of each table, batch by batch, of a generated trace."""
    config = SynthConfig.from_mapping({
        "batches": 20, "bags_per_batch": 1000, "tables": list(tables), "law": law, **values
    })  # fmt: skip
    synthesize(config, path)
    return [list(bags) for bags in zip(*TraceReader(path), strict=True)]


def _ids(bags: list[Bags]) -> Ids:
    return np.concatenate([each.ids for each in bags])


def _lists(bags: list[Bags]) -> list[list[int]]:
    """Every bag as a list."""
    found = []
    for each in bags:
        ends = np.cumsum(each.lengths)
        found += [part.tolist() for part in np.split(each.ids, ends[:-1])]
    return found


def _within_5_sigma(count: float, share: float, draws: int) -> bool:
    return abs(count - share * draws) <= 5 * math.sqrt(share * (1 - share) * draws) + 1e-9


@pytest.fixture(scope="module")
def like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tables with bags of many lengths."""
    path = tmp_path_factory.mktemp("like") / "like.tmtrace"
    generator = np.random.default_rng(5)
    with TraceWriter(path, (TraceTable("a", 60, 64), TraceTable("b", 900, 128)), origin="") as writer:
        for _ in range(8):
            lengths = generator.integers(0, 4, (2, 20))
            writer.write(
                tuple(
                    Bags(lengths[n], np.minimum(generator.geometric(0.05, lengths[n].sum()), 59))
                    for n in range(2)
                )
            )
    return path


class TestEveryGenerator:
    @pytest.fixture(params=available("traces"))
    def config(self, request: pytest.FixtureRequest, like: Path) -> SynthConfig:
        name: str = request.param
        more = [f"law.like={like}"] if name == "stack-distance" else []
        return SynthConfig.load(name, [*SMALL, *more])

    def test_parts_are_the_whole(self, config: SynthConfig, tmp_path: Path) -> None:
        whole = synthesize(config, tmp_path / "whole")
        assert (whole.batches, whole.bags) == (10, 240 * len(TraceReader(tmp_path / "whole").tables))
        parts = [tmp_path / f"part{n}" for n in (1, 2, 3)]
        totals = [synthesize(config, path, part=(n, 3)) for n, path in enumerate(parts, 1)]
        assert [each.batches for each in totals] == [3, 3, 4]
        assert sum(each.ids for each in totals) == whole.ids
        made = itertools.chain.from_iterable(map(TraceReader, parts))
        for found, expected in zip(made, TraceReader(tmp_path / "whole"), strict=True):
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one.lengths, other.lengths)
                np.testing.assert_array_equal(one.ids, other.ids)

    def test_the_seed_says_everything(self, config: SynthConfig, tmp_path: Path) -> None:
        seeds = {"a": config.seed, "b": config.seed, "c": config.seed + 1}
        for name, seed in seeds.items():
            synthesize(config.replace(seed=seed), tmp_path / name)
        hashes = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in seeds]
        assert hashes[0] == hashes[1]
        batches = [list(TraceReader(tmp_path / name)) for name in "ac"]
        for table, described in enumerate(TraceReader(tmp_path / "a").tables):
            ids = [np.concatenate([batch[table].ids for batch in each]) for each in batches]
            assert all(len(each) == 0 or 0 <= each.min() <= each.max() < described.rows for each in ids)
            if described.rows > 50 and len(ids[0]) > 50:
                assert ids[0].tolist() != ids[1].tolist()

    def test_tables_are_those_of_the_generator(self, config: SynthConfig, tmp_path: Path) -> None:
        synthesize(config, tmp_path / "t")
        made = [(table.name, table.rows, table.row_bytes) for table in TraceReader(tmp_path / "t").tables]
        wanted = [(table.name, table.rows, table.row_bytes) for table in config.all_tables()]
        # The other trace has 160 bags of each table; 240 are made, for half as many rows again.
        assert made == (wanted or [("a", 90, 64), ("b", 1350, 128)])


class TestPopularity:
    @pytest.mark.parametrize(
        ("exponent", "shift"), [(0.0, 0.0), (0.6, 0.0), (0.89, 2.75), (1.0, 0.0), (1.5, 1.0)]
    )
    def test_counts_by_rank_follow_zipf_and_mandelbrot(
        self, tmp_path: Path, exponent: float, shift: float
    ) -> None:
        draws, rows = 400_000, 300
        skew = {"exponent": exponent, "shift": shift}
        (bags,) = _make(
            tmp_path / "t", {"kind": "zipf", "skew": skew}, _table(rows, 20.0)
        )  # 20 batches of 1000 bags
        counts = np.sort(np.bincount(_ids(bags), minlength=rows))[::-1]
        weights = (np.arange(1, rows + 1) + shift) ** -exponent
        shares = weights / weights.sum()
        assert counts.sum() == draws
        if exponent:
            assert all(_within_5_sigma(counts[rank], shares[rank], draws) for rank in range(8))
        # Sorting can only bring counts nearer to what is expected of their ranks.
        chi_square = float(((counts - shares * draws) ** 2 / (shares * draws)).sum())
        assert chi_square <= (rows - 1) + 5 * np.sqrt(2 * (rows - 1))
        if not exponent:
            assert chi_square >= (rows - 1) - 5 * np.sqrt(2 * (rows - 1)), "chance is not that even"

    def test_draws_are_independent_and_hot_rows_are_no_neighbours(self, tmp_path: Path) -> None:
        (bags,) = _make(
            tmp_path / "t", {"kind": "zipf", "skew": {"exponent": 1.0}}, _table(1000), bags_per_batch=20_000
        )
        ids = _ids(bags)
        shares = (1 / np.arange(1, 1001)) / (1 / np.arange(1, 1001)).sum()
        two, three = (shares**2).sum(), (shares**3).sum()
        for lag in (1, 2, 20_000):
            repeats = (ids[lag:] == ids[:-lag]).mean()
            # An access is in two pairs: its own variance, and the covariance with the other pair.
            deviation = math.sqrt((two - two**2 + 2 * (three - two**2)) / (len(ids) - lag))
            assert abs(repeats - two) <= 5 * deviation, lag
        hot = np.sort(np.argsort(np.bincount(ids))[::-1][:10])
        assert np.diff(hot).max() > 50
        assert (np.diff(hot) == 1).sum() <= 1

    def test_heavy_hitters_stand_outside_the_law(self, tmp_path: Path) -> None:
        skew = {"exponent": 0.0, "heavy_hitters": [0.3, 0.2, 0.1]}
        (bags,) = _make(tmp_path / "t", {"kind": "zipf", "skew": skew}, _table(100, 5.0))
        counts = np.sort(np.bincount(_ids(bags), minlength=100))[::-1]
        for count, share in zip(counts, (0.3, 0.2, 0.1), strict=False):
            assert _within_5_sigma(count, share, 100_000)
        others, expected = counts[3:], 40_000 / 97
        assert abs(((others - expected) ** 2 / expected).sum() - 96) <= 5 * np.sqrt(2 * 96) + 0.4 * 96

    @pytest.mark.parametrize("pooling", [0.0, 0.3, 1.0, 2.25, 7.0])
    def test_a_fraction_of_pooling_makes_some_bags_one_longer(self, tmp_path: Path, pooling: float) -> None:
        (bags,) = _make(tmp_path / "t", {"kind": "zipf"}, _table(50, pooling))
        lengths = np.concatenate([each.lengths for each in bags])
        longer = lengths - int(pooling)
        assert set(longer.tolist()) <= {0, 1}
        assert _within_5_sigma(longer.sum(), pooling - int(pooling), 20_000)


class TestMultiHot:
    def test_a_bag_is_a_function_of_its_first_id(self, tmp_path: Path) -> None:
        tables = [_table(500, 3.5, "a"), _table(500, 3.5, "b")]
        law = {"kind": "multi-hot", "skew": {"exponent": 1.05}}
        functions = []
        for bags in _make(tmp_path / "t", law, *tables):
            longest: dict[int, list[int]] = {}
            for bag in _lists(bags):
                known = longest.setdefault(bag[0], bag)
                assert all(one == other for one, other in zip(bag, known, strict=False))
                longest[bag[0]] = max(bag, known, key=len)
            assert len(longest) > 400
            functions.append(longest)
            spread = np.bincount([row for bag in longest.values() for row in bag[1:]], minlength=500)
            assert spread.max() < 20, "the other ids of all functions are spread over the rows"
        shared = set(functions[0]) & set(functions[1])
        assert sum(functions[0][row][1:3] == functions[1][row][1:3] for row in shared) <= 2

    def test_first_ids_are_drawn_by_popularity(self, tmp_path: Path) -> None:
        law = {"kind": "multi-hot", "skew": {"exponent": 1.0}}
        (bags,) = _make(tmp_path / "t", law, _table(300, 2.0), bags_per_batch=10_000)
        counts = np.sort(np.bincount([bag[0] for bag in _lists(bags)], minlength=300))[::-1]
        shares = (1 / np.arange(1, 301)) / (1 / np.arange(1, 301)).sum()
        assert all(_within_5_sigma(counts[rank], shares[rank], 200_000) for rank in range(8))


class TestSessions:
    TABLES = (
        _table(10**6, 4.0, "a"),
        _table(10**6, 2.0, "b"),
        _table(10**6, 2.0, "c"),
        _table(10**6, 4.0, "d"),
    )

    def test_bags_of_the_first_tables_repeat_within_a_session(self, tmp_path: Path) -> None:
        law = {"kind": "session", "samples": 8.0, "repeated": 0.5, "skew": {"exponent": 0.0}}
        first, second, *others = map(_lists, _make(tmp_path / "t", law, *self.TABLES))
        starts = [[now != before for before, now in itertools.pairwise(bags)] for bags in (first, second)]
        assert starts[0] == starts[1], "tables share their sessions"
        # The number of sessions is binomial, their lengths are geometric.
        assert _within_5_sigma(sum(starts[0]), 1 / 8, 19_999)
        runs = np.diff(np.flatnonzero(starts[0]))
        assert runs.mean() == pytest.approx(8, rel=0.1)
        assert (runs == 1).mean() == pytest.approx(1 / 8, abs=0.035)
        assert runs.max() > 30
        for bags in others:
            assert not any(now == before for before, now in itertools.pairwise(bags))

    def test_sessions_go_on_over_the_ends_of_batches(self, tmp_path: Path) -> None:
        law = {"kind": "session", "samples": 50.0, "repeated": 1.0, "skew": {"exponent": 0.0}}
        (bags,) = _make(tmp_path / "t", law, _table(10**6), batches=2000, bags_per_batch=2)
        ids = _ids(bags)
        assert (ids[2::2] == ids[1:-1:2]).mean() > 0.9

    @pytest.mark.parametrize("repeated", [0.0, 0.25, 1.0])
    def test_the_share_of_tables_that_repeat(self, tmp_path: Path, repeated: float) -> None:
        law = {"kind": "session", "samples": 8.0, "repeated": repeated, "skew": {"exponent": 0.0}}
        made = map(_lists, _make(tmp_path / "t", law, *self.TABLES))
        same = [sum(now == before for before, now in itertools.pairwise(bags)) > 1000 for bags in made]
        assert same == [n < 4 * repeated for n in range(4)]


class TestNgrams:
    def _texts(self, path: Path, orders: list[int], **law: Any) -> list[list[list[int]]]:
        """Rows of each table, batch by batch; with 2^40 rows no two n-grams share one."""
        tables = [_table(2**40, name=f"t{n}") for n in range(len(orders))]
        made = _make(path, {"kind": "ngram", "orders": orders, **law}, *tables, bags_per_batch=500)
        return [[bags.ids.tolist() for bags in table] for table in made]

    def test_equal_ngrams_and_only_they_have_equal_rows(self, tmp_path: Path) -> None:
        orders = [1, 2, 3, 5, 3]
        tokens, *others = self._texts(tmp_path / "t", orders, vocabulary=100)
        assert 50 < len({token for text in tokens for token in text}) <= 100
        for order, texts in zip(orders[1:], others, strict=True):
            row_of: dict[tuple[int, ...], int] = {}
            repeated = 0
            for text, rows in zip(tokens, texts, strict=True):
                for at, row in enumerate(rows):
                    # A batch is a text: the n-grams at its start are short.
                    gram = (*[-1] * (order - at - 1), *text[max(0, at + 1 - order) : at + 1])
                    repeated += gram in row_of
                    assert row_of.setdefault(gram, row) == row
            assert repeated > 100
            assert len(set(row_of.values())) == len(row_of)
        assert others[1] != others[3], "tables of one order hash apart"

    def test_the_same_trigram_implies_the_same_bigram(self, tmp_path: Path) -> None:
        bigrams, trigrams = self._texts(tmp_path / "t", [2, 3], vocabulary=1000)
        implied: dict[int, set[int]] = defaultdict(set)
        for two, three in zip(itertools.chain(*bigrams), itertools.chain(*trigrams), strict=True):
            implied[three].add(two)
        assert len(implied) < 10_000
        assert all(len(rows) == 1 for rows in implied.values())

    def test_predictable_tokens_have_few_followers(self, tmp_path: Path) -> None:
        means = []
        for predictable in (0.0, 0.5, 1.0):
            (texts,) = self._texts(
                tmp_path / "t", [1], vocabulary=1000, predictable=predictable, skew={"exponent": 0.5}
            )
            followers: dict[int, set[int]] = defaultdict(set)
            counts: dict[int, int] = defaultdict(int)
            for text in texts:
                for token, then in itertools.pairwise(text):
                    followers[token].add(then)
                    counts[token] += 1
            often = [token for token, count in counts.items() if count >= 20]
            means.append(np.mean([len(followers[token]) / counts[token] for token in often]))
            if predictable == 1:
                assert max(map(len, followers.values())) <= 4
        assert means[0] > 0.9
        assert means[0] > means[1] > means[2]


class TestDrift:
    def _working(self, path: Path, **law: Any) -> list[Bags]:
        law = {"kind": "drift", "skew": {"exponent": 0.0}, "working_set": 0.01, "turnover": 0.0, **law}
        (bags,) = _make(path, law, _table(100_000), bags_per_batch=10_000)
        return bags

    @pytest.mark.parametrize("turnover", [0.0, 0.05, 0.5])
    def test_so_many_rows_of_the_working_set_are_replaced_in_a_batch(
        self, tmp_path: Path, turnover: float
    ) -> None:
        sets = [set(bags.ids.tolist()) for bags in self._working(tmp_path / "t", turnover=turnover)]
        assert all(abs(len(rows) - 1000) <= 2 for rows in sets), "ten accesses for each of 1,000 rows"
        for before, now in itertools.pairwise(sets):
            assert _within_5_sigma(len(now - before), turnover, 1000) or len(now - before) <= 2
        assert len(set().union(*sets)) == pytest.approx(1000 * (1 + 19 * turnover), rel=0.02)

    def test_once_is_the_share_of_accesses_to_any_row(self, tmp_path: Path) -> None:
        ids = _ids(self._working(tmp_path / "t", once=0.3))
        counts = np.bincount(ids, minlength=100_000)
        hot = counts > 30
        assert hot.sum() == 1000
        assert _within_5_sigma(counts[hot].sum(), 0.7 + 0.3 * 0.01, len(ids))
        assert _within_5_sigma((counts[~hot] == 0).sum(), np.exp(-60_000 / 100_000), 99_000)

    def test_retention_sees_turnover(self, tmp_path: Path) -> None:
        self._working(tmp_path / "still", skew={"exponent": 0.9})
        assert stream_stats(tmp_path / "still").retention > 0.95
        self._working(tmp_path / "moving", skew={"exponent": 0.9}, turnover=0.5)
        assert stream_stats(tmp_path / "moving").retention < 0.5
        self._working(tmp_path / "all-new", skew={"exponent": 0.9}, turnover=1.0)
        assert stream_stats(tmp_path / "all-new").retention < 0.3
