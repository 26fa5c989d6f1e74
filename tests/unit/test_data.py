"""Readers and generators of data."""

import gzip
import lzma
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tiermem.config import CriteoData, Ml100kData, RecboleData, SyntheticData, TraceData
from tiermem.config.experiment import SplitConfig
from tiermem.data import fetch as fetch_module
from tiermem.data import fetch_ml_100k, load_dataset
from tiermem.data.dataset import SparseColumn, random_split
from tiermem.data.hashing import mix
from tiermem.data.trace import read_trace
from tiermem.errors import ConfigError, CorruptionError


def test_bags_of_a_column_are_cut_out_as_a_loop_would() -> None:
    generator = np.random.default_rng(1)
    lengths = generator.integers(0, 4, 50)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    column = SparseColumn("c", 100, generator.integers(0, 100, offsets[-1]), offsets)
    samples = generator.permutation(50)[:20].astype(np.int64)
    ids, starts = column.take(samples)
    ends = np.append(starts[1:], len(ids))
    for sample, start, end in zip(samples, starts, ends, strict=True):
        np.testing.assert_array_equal(ids[start:end], column.ids[offsets[sample] : offsets[sample + 1]])


def test_ml_100k_columns(tiny_ml_100k: Path) -> None:
    data = load_dataset(Ml100kData(name="ml-100k", path=str(tiny_ml_100k)), seed=1)
    names = [column.name for column in data.sparse]
    assert names == [
        "user_id",
        "item_id",
        "age",
        "gender",
        "occupation",
        "zip_code",
        "release_year",
        "hour",
        "weekday",
        "genres",
    ]
    assert len(data) == 12
    np.testing.assert_array_equal(data.labels, [n % 5 + 1 >= 4 for n in range(12)])
    columns = {column.name: column for column in data.sparse}
    assert columns["age"].rows == 2, "24 and 53"
    assert columns["release_year"].rows == 3, "1994, 1995, and missing"
    # 15, 16, ..., 23, 00, 01, 02 by rank; Thursday, then Friday from the tenth on.
    np.testing.assert_array_equal(columns["hour"].ids, [*range(3, 12), 0, 1, 2])
    np.testing.assert_array_equal(columns["weekday"].ids, [0] * 9 + [1] * 3)
    lengths = np.diff(columns["genres"].offsets)
    np.testing.assert_array_equal(lengths, [2, 1, 0, 1] * 3)
    training = data.dense[data.split == 0]
    assert abs(training.mean()) < 1e-6
    assert training.std() == pytest.approx(1, abs=1e-6)


def test_the_real_ml_100k_has_its_published_counts(ml_100k: Path) -> None:
    data = load_dataset(Ml100kData(name="ml-100k", path=str(ml_100k)), seed=1)
    rows = {column.name: column.rows for column in data.sparse}
    # Counts of reference data: 943 users, 1,682 items, 55.375 % positives, 2.13 genres per interaction.
    assert (len(data), rows["user_id"], rows["item_id"], rows["age"], rows["zip_code"]) == (
        100_000,
        943,
        1682,
        61,
        795,
    )
    assert data.labels.mean() == pytest.approx(0.55375)
    assert len(data.sparse[-1].ids) / len(data) == pytest.approx(2.13, abs=0.01)
    assert np.bincount(data.split).tolist() == [80_000, 10_000, 10_000]


def test_recbole_files_in_general(tiny_ml_100k: Path) -> None:
    config = RecboleData(
        name="recbole", path=str(tiny_ml_100k), dataset="ml-100k", label="rating", label_threshold=4
    )
    data = load_dataset(config, seed=1)
    assert [column.name for column in data.sparse][:2] == ["user_id", "item_id"]
    assert "movie_title" in [column.name for column in data.sparse]
    assert data.dense.shape == (12, 1)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("user_id\trating:float\n1\t2\n", 'line 1: "user_id" is not NAME:TYPE'),
        ("user_id:token\trating:float\n1\n", "line 2: 1 values; the header has 2 columns"),
        ("user_id:token\trating:float\n1\tx\n", 'line 2: "x" in column "rating" is not a number'),
        ("user_id:token\trating:float\n", "has no rows"),
        ("user_id:token\tstars:float\n1\t2\n", 'has no column "rating"'),
    ],
)
def test_malformed_atomic_files_name_the_line(tmp_path: Path, contents: str, message: str) -> None:
    (tmp_path / "d.inter").write_text(contents)
    config = RecboleData(name="recbole", path=str(tmp_path), dataset="d", label="rating", label_threshold=4)
    with pytest.raises(ConfigError) as caught:
        load_dataset(config, seed=1)
    assert message in str(caught.value)


def _criteo_line(label: str, first: str, token: str) -> str:
    return "\t".join([label, first, *["3"] * 12, token, *["68fd1e64"] * 25])


def test_criteo_lines(tmp_path: Path) -> None:
    path = tmp_path / "day.tsv.gz"
    lines = [
        _criteo_line("1", "7", "80e26c9b"),
        _criteo_line("0", "", ""),
        _criteo_line("0", "-2", "80e26c9b"),
    ]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    data = load_dataset(CriteoData(name="criteo", path=str(path), rows_per_table=1000), seed=1)
    assert (len(data), data.dense.shape, len(data.sparse)) == (3, (3, 13), 26)
    np.testing.assert_allclose(data.dense[:, 0], [np.log1p(7), 0, 0], rtol=1e-6)
    ids = data.sparse[0].ids
    assert ids[1] == 0, "a missing token is row 0"
    assert ids[0] == ids[2] != 0
    assert data.sparse[1].ids[0] != data.sparse[2].ids[0], "columns hash the same token apart"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\t2", "line 1: 2 values, expected 40"),
        (_criteo_line("2", "7", "80e26c9b"), 'line 1: label "2" is neither 0 nor 1'),
        (_criteo_line("1", "x", "80e26c9b"), "line 1: could not convert"),
        (_criteo_line("1", "7", "xyz"), "line 1: invalid literal"),
    ],
)
def test_malformed_criteo_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "day.tsv"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError) as caught:
        load_dataset(CriteoData(name="criteo", path=str(path)), seed=1)
    assert message in str(caught.value)


def test_the_scarab_trace_is_the_published_one() -> None:
    keys = read_trace(None)
    assert (len(keys), len(np.unique(keys))) == (1_245_184, 258_368)


def test_a_trace_keeps_its_order_and_its_reuse() -> None:
    data = load_dataset(
        TraceData(name="trace", tables=2, rows_per_table=2**22, ids_per_bag=4, samples_max=5000), seed=1
    )
    keys = read_trace(None)[:20_000]
    for column in data.sparse:
        assert column.ids.max() < 2**22
        # Same keys, same rows; different keys almost always differ.
        assert len(np.unique(column.ids)) == pytest.approx(len(np.unique(keys)), rel=0.01)
        _, first = np.unique(keys, return_index=True)
        assert len(first) >= len(np.unique(column.ids))
    assert (data.sparse[0].ids != data.sparse[1].ids).mean() > 0.99
    assert 0.3 < data.labels.mean() < 0.7


def test_files_that_are_not_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.xz"
    path.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="is not an xz file"):
        load_dataset(TraceData(name="trace", path=str(path)), seed=1)
    path.write_bytes(lzma.compress(b"12345"))
    with pytest.raises(ConfigError, match="not a whole number of 8-byte keys"):
        load_dataset(TraceData(name="trace", path=str(path)), seed=1)


def test_synthetic_data_is_learnable_and_repeats() -> None:
    config = SyntheticData(name="synthetic", samples=2000)
    a, b = load_dataset(config, seed=1), load_dataset(config, seed=1)
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(a.sparse[0].ids, b.sparse[0].ids)
    assert not np.array_equal(a.labels, load_dataset(config, seed=2).labels)
    counts = np.sort(np.bincount(a.sparse[0].ids))[::-1]
    assert counts[0] > 50 * counts[min(len(counts) - 1, 1000)], "popularity is skewed"


def test_the_hash_is_that_of_the_core() -> None:
    # The first outputs of SplitMix64 with seed 0, as in the test of rust_core/src/rng.rs.
    golden = 0x9E3779B97F4A7C15
    found = mix(np.array([golden, 2 * golden % 2**64], dtype=np.uint64))
    assert [int(word) for word in found] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_splits(tmp_path: Path) -> None:
    split = random_split(1000, (0.8, 0.1, 0.1), seed=3)
    assert np.bincount(split).tolist() == [800, 100, 100]
    path = tmp_path / "split.npz"
    np.savez(path, split=np.array([0, 1, 2] * 4, dtype=np.uint8))
    config = Ml100kData(name="ml-100k", path="x", split=SplitConfig(file=str(path)))
    from tiermem.data.load import load_split

    np.testing.assert_array_equal(load_split(config.split, 12, 1), [0, 1, 2] * 4)
    with pytest.raises(ConfigError, match=r"must be uint8 \[13\]"):
        load_split(config.split, 13, 1)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(ConfigError, match='no array "split"'):
        load_split(config.split, 12, 1)
    path.write_bytes(b"PK nothing")
    with pytest.raises(ConfigError, match=r"split\.npz"):
        load_split(config.split, 12, 1)
    with pytest.raises(ConfigError, match="add up to 1"):
        SplitConfig(fractions=(0.5, 0.1, 0.1))


class TestFetch:
    """Fetching MovieLens-100K: what is not the published data is refused, and nothing is kept."""

    @pytest.fixture(autouse=True)
    def _cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache = tmp_path / "cache"
        monkeypatch.setenv("TIERMEM_DATA", str(self.cache))

    def _nothing_is_kept(self) -> None:
        assert not (self.cache / "ml-100k").exists()
        assert not self.cache.exists() or list(self.cache.iterdir()) == []

    def test_a_folder_with_other_bytes(self, tiny_ml_100k: Path) -> None:
        with pytest.raises(CorruptionError, match="SHA-256"):
            fetch_ml_100k(tiny_ml_100k)
        self._nothing_is_kept()

    def test_a_folder_without_the_files(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"has no ml-100k\.inter"):
            fetch_ml_100k(tmp_path)
        self._nothing_is_kept()

    def test_a_wheel_that_is_damaged_or_another(self, tmp_path: Path) -> None:
        wheel = tmp_path / "recbole-1.2.1-py3-none-any.whl"
        wheel.write_bytes(b"not a zip")
        with pytest.raises(CorruptionError, match="is not a wheel"):
            fetch_ml_100k(wheel)
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("other.txt", "x")
        with pytest.raises(ConfigError, match="is not the wheel"):
            fetch_ml_100k(wheel)
        self._nothing_is_kept()

    def test_a_published_copy_is_taken_and_kept(self, ml_100k: Path) -> None:
        copied = fetch_ml_100k(ml_100k)
        assert copied == self.cache / "ml-100k"
        assert sorted(path.name for path in copied.iterdir()) == [
            "ml-100k.inter",
            "ml-100k.item",
            "ml-100k.user",
        ]
        assert fetch_ml_100k() == copied, "a checked copy needs no network"

    def test_no_network_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fetch_module, "_WHEEL", "tiermem-no-such-package==0")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        with pytest.raises(OSError, match=r"--from recbole-1\.2\.1-py3-none-any\.whl"):
            fetch_ml_100k()
        self._nothing_is_kept()

    def test_a_cache_that_cannot_be_written(
        self, monkeypatch: pytest.MonkeyPatch, tiny_ml_100k: Path
    ) -> None:
        monkeypatch.setenv("TIERMEM_DATA", "/proc/nothing")
        with pytest.raises(OSError, match="cannot write /proc/nothing"):
            fetch_ml_100k(tiny_ml_100k)
