"""Places and streams that a trace tool must not get wrong, each found by trying."""

import os
import resource
from pathlib import Path

import numpy as np
import pytest
from tiermem.cli.main import main
from tiermem.config import SynthConfig
from tiermem.data.access_stream import AccessStream
from tiermem.data.accesses import Bags, TraceTable, flat_bags
from tiermem.data.importers import ImportOptions, open_source
from tiermem.data.synth import synthesize
from tiermem.data.trace_file import TraceReader, TraceWriter
from tiermem.errors import ClosedError, ConfigError, DeviceError

TABLES = (TraceTable("t", 1000),)


def _write(path: Path, batches: list[list[list[int]]], names: tuple[str, ...] = ("t",)) -> Path:
    """Batches of the ids of each table, one id per bag."""
    with TraceWriter(path, tuple(TraceTable(name, 1000) for name in names), origin="") as writer:
        for batch in batches:
            writer.write(tuple(flat_bags(np.array(ids, dtype=np.int64)) for ids in batch))
    return path


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link", "."):
        with pytest.raises(ConfigError, match="is not a file"):
            TraceWriter(tmp_path / name, TABLES, origin="")
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(ConfigError, match="is not a file"):
        TraceReader(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="save what comes from a pipe"):
        open_source("text", [tmp_path / "pipe"], ImportOptions())


def test_a_trace_whose_writing_failed_is_never_finished(tmp_path: Path) -> None:
    batch = (flat_bags(np.zeros(400_000, dtype=np.int64)),)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = TraceWriter(tmp_path / "t", TABLES, origin="")
    # What a full disk does, without one. Python ignores the signal that comes with it.
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, limits[1]))
    try:
        writer.write(batch)
        with pytest.raises(DeviceError):
            writer.write(batch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(ClosedError, match="begin again"):
        writer.write(batch)
    with pytest.raises(ClosedError):
        writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_lookahead_counts_batches_in_which_a_table_is_not_used(tmp_path: Path) -> None:
    # Table u is used in one batch of three: a window of two shows nothing of what comes, and it is lru.
    rng = np.random.default_rng(3)
    batches = [[[n % 7], rng.integers(0, 8, 4).tolist() if n % 3 == 0 else []] for n in range(600)]
    stream = AccessStream(_write(tmp_path / "t", batches, ("t", "u")), tables=["u"])
    # Within a batch lookahead knows what is still to come, so it is compared where batches hold one id.
    single = [[[n % 7], [int(rng.integers(0, 8))] if n % 3 == 0 else []] for n in range(900)]
    one = AccessStream(_write(tmp_path / "s", single, ("t", "u")), tables=["u"])
    assert one.curve("lookahead", [4], window_batches=2)[0].hits == one.curve("lru", [4])[0].hits
    assert one.curve("lookahead", [4], window_batches=3)[0].hits > one.curve("lru", [4])[0].hits
    assert stream.accesses == 800


def test_samples_that_say_nothing_are_refused(tmp_path: Path) -> None:
    ids = np.random.default_rng(1).integers(0, 1000, 20_000).tolist()
    path = _write(tmp_path / "t", [[ids]])
    with pytest.raises(ConfigError, match="give it 100 rows at the least"):
        AccessStream(path, sample_rate=0.1).curve("lru", [20])
    with pytest.raises(ConfigError, match="has none of the accesses"):
        AccessStream(path, sample_rate=1e-12)
    # Uniform draws: no cache misses more bytes than are asked for.
    (point,) = AccessStream(path, sample_rate=0.1).curve("lru", [100])
    assert point.missed_row_bytes <= 20_000 * 256


def test_the_second_half_of_a_sample_is_that_of_the_trace(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    hot, cold = rng.integers(0, 40, 100_000), rng.integers(0, 1000, 100_000)
    path = _write(tmp_path / "t", [[hot.tolist()], [cold.tolist()]])
    (exact,) = AccessStream(path).curve("lru", [200])
    for seed in range(5):
        (found,) = AccessStream(path, sample_rate=0.3, sample_seed=seed).curve("lru", [200])
        assert found.hit_rate_second_half == pytest.approx(exact.hit_rate_second_half, abs=0.06)


@pytest.mark.parametrize(
    "arguments",
    [
        ["trace", "import", "--format", "text", "ids", "--out", "./ids"],
        ["trace", "mrc", "t", "--rows", "2", "--csv", "t"],
        ["trace", "mrc", "t", "--rows", "2", "--json", "link"],
        ["trace", "stats", "t", "--json", "t"],
        ["trace", "synth", "--config", "stack-distance", "--set", "law.like=t", "--out", "link"],
    ],
)
def test_an_output_that_is_an_input_is_refused(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ids").write_text("1\n2\n")
    _write(Path("t"), [[[1, 2, 1]]])
    Path("link").symlink_to("t")
    before = Path("ids").read_bytes(), Path("t").read_bytes()
    assert main(arguments) == 2
    assert "is what is read here" in capsys.readouterr().err
    assert (Path("ids").read_bytes(), Path("t").read_bytes()) == before


def test_names_of_tables_do_not_lead_out_of_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _write(tmp_path / "t", [[[1, 1], [2, 2], []]], ("/../../out/x", "user id", "never"))
    arguments = ["trace", "mrc", str(path), "--rows", "1", "--policy", "lru", "--per-table"]
    assert main([*arguments, "--plots", str(tmp_path / "deep" / "plots")]) == 0
    names = {found.name for found in (tmp_path / "deep" / "plots").iterdir()}
    assert {"t-mrc.csv", "t-_.._.._out_x-1-mrc.csv", "t-user_id-2-mrc.csv"} <= names
    assert {found.name for found in tmp_path.iterdir()} == {"t", "deep"}
    # A table without accesses has no curve, and stops nothing.
    assert "never" not in capsys.readouterr().out


def test_laws_that_would_not_hold_are_refused(tmp_path: Path) -> None:
    base = {"batches": 2, "bags_per_batch": 8, "tables": [{"name": "t", "rows": 100}]}
    drift = SynthConfig.from_mapping({**base, "law": {"kind": "drift", "working_set": 0.8, "turnover": 0.1}})
    with pytest.raises(ConfigError, match="up to half of the table"):
        synthesize(drift, tmp_path / "t")
    still = {"kind": "drift", "working_set": 0.8, "turnover": 0.0}
    assert synthesize(SynthConfig.from_mapping({**base, "law": still}), tmp_path / "t").ids == 16
    with pytest.raises(ConfigError, match=r"law\.skew\.shift"):
        SynthConfig.from_mapping({**base, "law": {"kind": "zipf", "skew": {"shift": 1e12}}})


def test_numbers_that_are_not_whole_are_not_cut(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", TABLES, origin="") as writer:
        with pytest.raises(ValueError, match="are integers, not float64"):
            writer.write((Bags(np.array([1]), np.array([1.7])),))
        writer.write((Bags(np.array([1], dtype=np.uint16), np.array([7], dtype=np.int32)),))
    ((bags,),) = TraceReader(tmp_path / "t")
    assert bags.ids.tolist() == [7]
