"""Generated traces beside what they are to be like: Scarab's curve, Meta's published histograms of reuse."""

import re
from pathlib import Path

import numpy as np
import pytest
from tiermem.config import SynthConfig, SynthTable
from tiermem.config.locality import REUSE_BINS, read_locality_stats
from tiermem.config.synth import ReuseLaw
from tiermem.data.access_stream import AccessStream
from tiermem.data.importers import ImportOptions, open_source
from tiermem.data.synth import synthesize
from tiermem.data.trace_file import TraceReader, write_trace

SIZES = [round(258_368 * share) for share in (0.01, 0.05, 0.1, 0.2)]
"""Cache sizes: 1, 5, 10, 20 % of Scarab's distinct rows."""
YEARS = (2021, 2022)
Histogram = tuple[int, int, list[float], list[float]]
"""Lookups, different rows, shares of the rows and of the lookups in each bin."""


@pytest.fixture(scope="module")
def scarab(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = root / "python" / "tiermem" / "data" / "traces" / "scarab-recs.trace.xz"
    path = tmp_path_factory.mktemp("scarab") / "scarab.tmtrace"
    write_trace(path, open_source("caffeine", [keys], ImportOptions()), origin="Scarab")
    return path


def _lru(path: Path) -> list[float]:
    return [point.hit_rate for point in AccessStream(path).curve("lru", SIZES)]


class TestScarab:
    @pytest.mark.parametrize("times", [1, 2])
    def test_a_trace_of_its_stack_distances_caches_as_it_does(
        self, times: int, scarab: Path, tmp_path: Path
    ) -> None:
        config = SynthConfig.load("stack-distance", [f"law.like={scarab}", f"batches={1216 * times}"])
        totals = synthesize(config, tmp_path / "t")
        assert totals.ids == times * 1_245_184
        assert TraceReader(tmp_path / "t").tables[0].rows == times * 258_368
        found, wanted = _lru(tmp_path / "t"), _lru(scarab)
        assert found == pytest.approx(wanted, abs=0.03)
        ids = [
            np.concatenate([bags.ids for (bags,) in TraceReader(path)]) for path in (tmp_path / "t", scarab)
        ]
        assert (ids[0][:1_245_184] == ids[1]).mean() < 0.01, "it is another trace"
        assert len(np.unique(ids[0])) == pytest.approx(times * 258_368, rel=0.02)

    def test_independent_draws_with_the_exponent_that_fits_do_not(self, scarab: Path, tmp_path: Path) -> None:
        config = SynthConfig.from_mapping(
            {
                "batches": 1216,
                "bags_per_batch": 1024,
                "tables": [{"name": "table_0", "rows": 258_368}],
                "law": {"kind": "zipf", "skew": {"exponent": 0.82}},
            }
        )
        synthesize(config, tmp_path / "t")
        off = [abs(found - wanted) for found, wanted in zip(_lru(tmp_path / "t"), _lru(scarab), strict=True)]
        assert max(off) > 0.03


def _file(root: Path, year: int) -> Path:
    return root / "emulator_configs" / "traces" / f"meta-locality-stats-{year}.txt"


def _parsed(path: Path) -> dict[str, Histogram]:
    """The file by other means than the package's."""
    found = {}
    for part in re.split(r"^(?=\S+\.pt$)", path.read_text(), flags=re.M)[1:]:
        indices, rows = (
            int(re.findall(rf"# of {what}: (\d+)$", part, re.M)[0]) for what in ("indices", "unique cols")
        )
        shares = [float(share) for share in re.findall(r"^\(.*: (\d\.\d{3})$", part, re.M)]
        found[part.split(".pt")[0]] = (indices, rows, shares[:17], shares[17:])
    return found


ENTRIES = [
    (year, name) for year in YEARS for name in _parsed(_file(Path(__file__).resolve().parents[2], year))
]


class TestReuse:
    def test_there_are_33_batches_and_the_package_reads_them_alike(self, root: Path) -> None:
        assert len(ENTRIES) == 33
        for year in YEARS:
            parsed, read = _parsed(_file(root, year)), read_locality_stats(_file(root, year))
            assert list(parsed) == list(read)
            for name, (indices, rows, row_shares, lookup_shares) in parsed.items():
                stats = read[name]
                assert (stats.name, stats.indices, stats.rows) == (name, indices, rows)
                assert (list(stats.row_shares), list(stats.lookup_shares)) == (row_shares, lookup_shares)
                # What is read is what was meant: shares add up to 1, within rounding of 17 of them.
                assert sum(row_shares) == pytest.approx(1, abs=17 * 0.0005)
                assert sum(lookup_shares) == pytest.approx(1, abs=17 * 0.0005)

    def test_the_bins_are_those_of_the_files(self, root: Path) -> None:
        lines = re.findall(r"^\((\d+)(?:, (\d+)\]|\+): ", _file(root, 2021).read_text(), re.M)
        assert [(int(low), int(high) if high else None) for low, high in lines[:17]] == list(REUSE_BINS)

    @pytest.mark.parametrize(("year", "entry"), ENTRIES)
    def test_at_a_thousandth_of_the_lookups_the_histograms_are_the_published_ones(
        self, year: int, entry: str, root: Path, tmp_path: Path
    ) -> None:
        # Scaled down: lookups and different rows are a thousandth of Meta's, so that reuse is the same.
        indices, rows, row_shares, lookup_shares = _parsed(_file(root, year))[entry]
        config = SynthConfig(
            batches=round(indices / 1_000_000),
            bags_per_batch=1000,
            tables=(SynthTable(name="all", rows=1_000_000),),
            law=ReuseLaw(kind="reuse", stats=str(_file(root, year)), entry=entry),
        )
        synthesize(config, tmp_path / "t")
        counts = np.bincount(np.concatenate([bags.ids for (bags,) in TraceReader(tmp_path / "t")]))
        counts = counts[counts > 0]
        assert counts.sum() == pytest.approx(indices / 1000, abs=500)
        assert len(counts) == pytest.approx(rows / 1000, rel=0.05)
        for bin_, (low, high) in enumerate(REUSE_BINS):
            inside = counts[(counts > low) & (counts <= (high or counts.sum()))]
            assert len(inside) / len(counts) == pytest.approx(row_shares[bin_], rel=0.1, abs=0.005), bin_
            share, published = inside.sum() / counts.sum(), lookup_shares[bin_]
            if (low + 1) / counts.sum() > published + max(published * 0.1, 0.005):
                # At a thousandth of the lookups, one row of this bin alone would take more than its share.
                assert share <= published, bin_
            else:
                assert share == pytest.approx(published, rel=0.1, abs=0.005), bin_
