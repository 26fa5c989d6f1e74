"""Access profiles against direct counts, and against an lru cache that is really run."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiermem.data.accesses import Bags, Batch, TraceTable
from tiermem.errors import ConfigError, CorruptionError, InputError
from tiermem.planner.profile import AccessProfile
from tiermem.planner.profiling import profile_batches

ROWS, BAGS, POOLING = 2_000, 64, 4
TABLE = TraceTable("t", ROWS, 68)


def _batches(count: int, *, drift: float = 0.0, seed: int = 1) -> list[Batch]:
    draws = np.random.default_rng(seed)
    weights = np.arange(1, ROWS + 1) ** -0.8
    order = draws.permutation(ROWS)
    found: list[Batch] = []
    for number in range(count):
        rank = draws.choice(ROWS, BAGS * POOLING, p=weights / weights.sum())
        ids = order[(rank + int(number * drift) * (rank % 3 == 0)) % ROWS]
        found.append((Bags(np.full(BAGS, POOLING), ids.astype(np.int64)),))
    return found


def _profile(batches: list[Batch]) -> AccessProfile:
    return profile_batches([TABLE], batches, origin="test", weight_bytes={"t": 64})


def _distinct(batches: list[Batch]) -> list[npt.NDArray[np.int64]]:
    return [np.unique(batch[0].ids) for batch in batches]


def test_counts_are_those_of_the_second_half() -> None:
    batches = _batches(40)
    (table,) = _profile(batches).tables
    half = batches[20:]
    assert table.segment_rows.sum() == ROWS
    assert table.ids == pytest.approx(BAGS * POOLING)
    assert table.distinct.sum() == pytest.approx(np.mean([len(rows) for rows in _distinct(half)]))
    np.testing.assert_allclose(table.misses[:, 0], table.distinct)
    assert (np.diff(table.misses, axis=1) <= 1e-12).all()
    assert (table.pooling, table.coverage) == (POOLING, 1.0)


def test_rows_are_ranked_by_the_first_half() -> None:
    batches = _batches(40)
    (table,) = _profile(batches).tables
    counts = np.bincount(np.concatenate([batch[0].ids for batch in batches[:20]]), minlength=ROWS)
    assert (np.diff(counts[table.hot_rows]) <= 0).all()
    assert len(table.hot_rows) == np.count_nonzero(counts)


def test_windows_that_are_short_need_no_estimate() -> None:
    """No access is censored within a window that the first half covers."""
    batches = _batches(60)
    profile = _profile(batches)
    (table,) = profile.tables
    rows = _distinct(batches)
    for place, window in enumerate(profile.windows):
        if 0 < window <= 16:
            missed = [
                len(np.setdiff1d(rows[at], np.concatenate(rows[at - window : at]))) for at in range(30, 60)
            ]
            assert table.misses[:, place].sum() == pytest.approx(np.mean(missed), rel=1e-9), window


@pytest.mark.parametrize("drift", [0.0, 0.5])
@pytest.mark.parametrize("capacity", [100, 300, 700])
def test_an_lru_cache_misses_what_the_profile_says(drift: float, capacity: int) -> None:
    batches = _batches(160, drift=drift)
    profile = _profile(batches[:120])
    misses = profile.tables[0].misses.sum(axis=0)
    windows = profile.windows.astype(float)
    steps = np.diff(windows)
    held = np.append(0.0, np.cumsum(steps * (misses[:-1] + misses[1:]) / 2 + (misses[:-1] - misses[1:]) / 2))
    predicted = np.interp(np.interp(capacity, held, windows), windows, misses)
    cache: OrderedDict[int, None] = OrderedDict()
    missed = 0
    for number, rows in enumerate(_distinct(batches)):
        missed += number >= 120 and sum(int(row) not in cache for row in rows)
        for row in rows.tolist():
            cache[row] = None
            cache.move_to_end(row)
        # A batch is in flight as a whole; what is over leaves when it is given back.
        while len(cache) > capacity:
            cache.popitem(last=False)
    assert predicted == pytest.approx(missed / 40, rel=0.06)


def test_a_profile_is_the_same_after_a_file(tmp_path: Path) -> None:
    profile = _profile(_batches(12))
    profile.save(tmp_path / "p.npz")
    again = AccessProfile.load(tmp_path / "p.npz")
    assert again.hash() == profile.hash()
    np.testing.assert_array_equal(again.tables[0].misses, profile.tables[0].misses)
    assert profile.hash() != _profile(_batches(12, seed=2)).hash()


def test_what_is_no_profile_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no profile")
    with pytest.raises(CorruptionError, match="is not an access profile"):
        AccessProfile.load(tmp_path / "text")
    with pytest.raises(ConfigError, match="cannot read"):
        AccessProfile.load(tmp_path / "missing")


def test_too_little_to_profile_is_refused() -> None:
    with pytest.raises(InputError, match=r"test has 3 batches to profile.*at least 4"):
        _profile(_batches(3))
    empty: list[Batch] = [(Bags(np.zeros(4, dtype=np.int64), np.zeros(0, dtype=np.int64)),)] * 6
    with pytest.raises(InputError, match="no accesses"):
        _profile(empty)
