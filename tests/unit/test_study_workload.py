"""Closed forms of the study's workload, against draws."""

import numpy as np
import pytest
from tiermem.config import TableSet
from tiermem.config.study import NodeStudyConfig
from tiermem.errors import ConfigError
from tiermem.study.workload import Drift, Workload, fitted_exponent, like_tables, zipf_misses


def _drawn(
    rows: int, draws: int, exponent: float, *, window: int, turnover: float, seed: int, batches: int = 400
) -> tuple[float, float]:
    """Distinct rows of a batch, and those that none of `window` batches before had; by simulation."""
    generator = np.random.default_rng(seed)
    weights = np.arange(1, rows + 1, dtype=np.float64) ** -exponent
    cumulative = np.cumsum(weights / weights.sum())
    # The row that has each rank now; a new one comes from a supply that nobody asked for.
    at_rank, supply = np.arange(rows), rows
    last: dict[int, int] = {}
    used = missed = counted = 0
    for batch in range(batches):
        passed = np.flatnonzero(generator.random(rows) < turnover)
        at_rank[passed] = np.arange(supply, supply + len(passed))
        supply += len(passed)
        ranks = np.minimum(np.searchsorted(cumulative, generator.random(draws)), rows - 1)
        asked = np.unique(at_rank[ranks])
        if batch > 2 * window:
            counted += 1
            used += len(asked)
            missed += sum(batch - last.get(int(row), -(10**9)) > window for row in asked)
        last.update(dict.fromkeys(asked.tolist(), batch))
    return used / counted, missed / counted


@pytest.mark.parametrize("turnover", [0.0, 0.02])
@pytest.mark.parametrize("exponent", [0.0, 0.8, 1.0, 1.3])
def test_distinct_rows_and_misses_are_those_of_draws(exponent: float, turnover: float) -> None:
    rows, draws, window = 800, 300, 8
    used, missed = _drawn(rows, draws, exponent, window=window, turnover=turnover, seed=3)
    segment_rows, ids, misses = zipf_misses(
        rows, draws, exponent, np.array([0.0, float(window)]), segments=24, turnover=turnover
    )
    assert segment_rows.sum() == rows
    assert ids.sum() == pytest.approx(draws)
    assert misses[:, 0].sum() == pytest.approx(used, rel=0.03)
    assert misses[:, 1].sum() == pytest.approx(missed, rel=0.06)


def test_the_fitted_law_reuses_rows_as_the_published_batch_does() -> None:
    study = NodeStudyConfig.load("mtrains")
    rows = 5e6
    exponent = fitted_exponent(study.locality, rows)
    draws = 887_017_990 / 856
    _, _, misses = zipf_misses(rows, draws, exponent, np.zeros(1), segments=32)
    assert draws / misses.sum() == pytest.approx(887_017_990 / 128_435_723, rel=1e-6)


def test_an_unknown_batch_is_named() -> None:
    locality = NodeStudyConfig.load("mtrains").locality.replace(entry="elsewhere")
    with pytest.raises(ConfigError, match='has no batch "elsewhere"; it has fbgemm'):
        fitted_exponent(locality, 1e6)


@pytest.mark.parametrize("name", ["torchrec-1935", "mlperf-dlrm-v2", "meta-dlrm-a"])
def test_groups_keep_tables_bytes_and_lookups(name: str) -> None:
    tables = TableSet.load(name)
    groups = like_tables(tables, 8, scale=3)
    assert sum(group.tables for group in groups) == pytest.approx(len(tables.tables))
    lookups = sum(group.tables * group.pooling for group in groups)
    assert lookups == pytest.approx(tables.lookups_per_sample)
    weights = sum(group.tables * group.rows * group.weight_bytes for group in groups)
    assert weights == pytest.approx(3 * tables.bytes_total, rel=0.02)
    assert len(groups) <= 8


def test_a_node_of_ten_has_a_tenth() -> None:
    study = NodeStudyConfig.load("mtrains")
    workload = Workload.of(study.model("mlperf-dlrm-v2"), study.locality, scale=1, groups_max=4, segments=12)
    whole, tenth = (workload.profile(65_536, Drift()).divided(nodes) for nodes in (1, 10))
    for one, part in zip(whole.tables, tenth.tables, strict=True):
        assert part.ids == pytest.approx(one.ids / 10)
        assert part.misses == pytest.approx(one.misses / 10)
        assert part.rows == pytest.approx(one.rows / 10, rel=0.01, abs=len(part.segment_rows))


def test_an_old_plan_finds_its_hot_rows_cold() -> None:
    """After 1,000 batches in which one of a thousand ranks passed on, e^-1 of the hot lookups are left."""
    study = NodeStudyConfig.load("mtrains")
    workload = Workload.of(study.model("meta-dlrm-a"), study.locality, scale=1, groups_max=8, segments=24)
    still, moved = (
        workload.profile(65_536, drift).tables[0]
        for drift in (Drift(turnover=0.001), Drift(turnover=0.001, batches=1000))
    )
    assert moved.ids == pytest.approx(still.ids)
    assert moved.misses.sum() == pytest.approx(still.misses.sum())
    kept = 0.999**1000
    assert moved.segment_ids[0] == pytest.approx(kept * still.segment_ids[0], rel=1e-3)
