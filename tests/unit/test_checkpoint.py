"""Snapshots and table files: whole or not there, and refused when a byte of them is not as it was."""

import dataclasses
import doctest
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiermem.checkpoint import (
    SnapshotFolder,
    TableFile,
    TableHeader,
    TableShape,
    claim,
    experiment_hash,
    find_resume_point,
    list_snapshots,
    load_state,
    rows_path,
    table_file,
    verify_snapshot,
    write_experiment,
    write_table,
)
from tiermem.config import Experiment, available
from tiermem.errors import ConfigError, CorruptionError, DeviceError, InputError, TiermemError

EXPERIMENT = Experiment.load("demo-tiering")
COMMAND = "tiermem train --resume"
STATE = {"weights": torch.arange(2000.0), "position": 3, "wide": 2**127 + 1, "text": "x", "list": [1.5]}


def _rows(path: Path) -> None:
    path.write_bytes(np.random.default_rng(1).bytes(3 * 2**20 + 17))


def _folder(run: Path, keep_latest: int = 2) -> SnapshotFolder:
    return SnapshotFolder(
        run_directory=run,
        experiment_hash=experiment_hash(EXPERIMENT),
        tables=(TableShape("item", 10, 4, "fp32"),),
        steps=500,
        keep_latest=keep_latest,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with snapshots of steps 100 and 200."""
    path = tmp_path / "run"
    path.mkdir()
    write_experiment(path, EXPERIMENT)
    for step in (100, 200):
        _folder(path).write(step, STATE, _rows)
    return path


def _steps(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in list_snapshots(run)]


def _flips(size: int) -> Iterator[int]:
    """Both ends, both sides of each MiB, and places in between."""
    edges = [0, 1, size // 3, size // 2, size - 2, size - 1]
    edges += [mib + side for mib in range(2**20, size, 2**20) for side in (-1, 0)]
    return iter(sorted({place for place in edges if 0 <= place < size}))


def _refused(path: Path, check: Callable[[], object]) -> str:
    with pytest.raises(CorruptionError) as caught:
        check()
    assert str(path) in str(caught.value)
    assert "offset" in str(caught.value)
    return str(caught.value)


def _flip(path: Path, place: int, *, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


def test_what_was_written_comes_back(run: Path) -> None:
    assert _steps(run) == [100, 200]
    point = find_resume_point(run, COMMAND)
    assert point.experiment == EXPERIMENT
    assert point.snapshot == run / "snapshots" / "step-000000200"
    assert (point.manifest.step, point.manifest.steps) == (200, 500)
    assert point.manifest.tables == (TableShape("item", 10, 4, "fp32"),)
    state = load_state(point.snapshot)
    assert torch.equal(state.pop("weights"), STATE["weights"])  # type: ignore[arg-type]
    assert state == {key: value for key, value in STATE.items() if key != "weights"}
    assert rows_path(point.snapshot).stat().st_size == 3 * 2**20 + 17
    named = find_resume_point(run / "snapshots" / "step-000000100", COMMAND)
    assert (named.manifest.step, named.run_directory) == (100, run)


@pytest.mark.parametrize("name", available("experiments"))
def test_an_experiment_comes_back_from_its_run_directory(name: str, tmp_path: Path) -> None:
    experiment = Experiment.load(name)
    write_experiment(tmp_path, experiment)
    found = json.loads((tmp_path / "experiment.json").read_text())["experiment"]
    assert Experiment.from_mapping(found) == experiment
    assert experiment_hash(Experiment.from_mapping(found)) == experiment_hash(experiment)
    other = experiment.replace(train={**experiment.train.model_dump(), "dense_lr": 1.0000000000001e-3})
    assert experiment_hash(other) != experiment_hash(experiment)


@pytest.mark.parametrize("name", ["manifest.json", "rows.tms", "trainer.pt"])
def test_a_flipped_byte_is_refused_and_the_snapshot_before_is_offered(run: Path, name: str) -> None:
    snapshot = run / "snapshots" / "step-000000200"
    older = run / "snapshots" / "step-000000100"
    path = snapshot / name
    places = range(path.stat().st_size) if name == "manifest.json" else _flips(path.stat().st_size)
    for place in places:
        _flip(path, place, bit=place % 8)
        message = _refused(path, lambda: find_resume_point(run, COMMAND))
        assert f"the snapshot of step 100 is good: {COMMAND} {older}" in message
        _flip(path, place, bit=place % 8)
    assert find_resume_point(run, COMMAND).snapshot == snapshot


def test_the_offset_of_a_flipped_byte_is_named(run: Path) -> None:
    path = run / "snapshots" / "step-000000200" / "rows.tms"
    _flip(path, 2**20 + 5)
    message = _refused(path, lambda: verify_snapshot(path.parent))
    assert f"between offset {2**20} and offset {2**21 - 1}" in message


@pytest.mark.parametrize("name", ["manifest.json", "rows.tms", "trainer.pt"])
def test_a_snapshot_of_another_length_is_refused(run: Path, name: str) -> None:
    path = run / "snapshots" / "step-000000200" / name
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 26, len(whole) - 1):
        path.write_bytes(whole[:length])
        _refused(path, lambda: find_resume_point(run, COMMAND))
    path.write_bytes(whole + b"\n")
    _refused(path, lambda: find_resume_point(run, COMMAND))
    path.unlink()
    with pytest.raises(CorruptionError, match=f"cannot read .*{name}: No such file"):
        find_resume_point(run, COMMAND)


def test_only_a_good_snapshot_is_offered(run: Path) -> None:
    _folder(run, keep_latest=3).write(300, STATE, _rows)
    for step in (200, 300):
        _flip(run / "snapshots" / f"step-000000{step}" / "rows.tms", 7)
    with pytest.raises(CorruptionError, match="the snapshot of step 100 is good"):
        find_resume_point(run, COMMAND)
    _flip(run / "snapshots" / "step-000000100" / "trainer.pt", 7)
    with pytest.raises(CorruptionError, match="none of the 2 before it is good either, so start the run"):
        find_resume_point(run, COMMAND)
    with pytest.raises(CorruptionError, match="there is none before it, so start the run anew"):
        find_resume_point(run / "snapshots" / "step-000000100", COMMAND)


def test_a_snapshot_under_another_name_is_refused(run: Path) -> None:
    moved = run / "snapshots" / "step-000000300"
    (run / "snapshots" / "step-000000200").rename(moved)
    with pytest.raises(CorruptionError, match="holds a snapshot of step 200; its name was changed"):
        find_resume_point(run, COMMAND)


def _as_another_version(path: Path) -> None:
    """What a later version would write: another number, another content, the same last line."""
    values = {**json.loads(path.read_text()), "format_version": 7, "tiermem_version": "9.9.0"}
    values = {key: value for key, value in values.items() if key not in ("crc32", "files")}
    body = json.dumps(values, indent=1).removesuffix("\n}").encode()
    path.write_bytes(body + b',\n "crc32": "%08x"\n}\n' % zlib.crc32(body))


def test_another_version_is_refused_by_name(run: Path) -> None:
    _as_another_version(run / "snapshots" / "step-000000200" / "manifest.json")
    with pytest.raises(TiermemError, match=r"format version 7, which tiermem 9\.9\.0 wrote") as caught:
        find_resume_point(run, COMMAND)
    assert "the snapshot of step 100 is good" in str(caught.value)
    assert not isinstance(caught.value, CorruptionError)
    path = run / "experiment.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(TiermemError, match=r"experiment\.json has format version 2.*reads version 1: start"):
        find_resume_point(run, COMMAND)


def test_snapshots_of_another_experiment_are_refused(run: Path) -> None:
    path = run / "experiment.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2', 1))
    with pytest.raises(ConfigError, match="is of another experiment than"):
        find_resume_point(run, COMMAND)
    path.write_text(path.read_text().replace('"seed": 2', '"sead": 2', 1))
    with pytest.raises(ConfigError, match=r'unknown key "sead".*tiermem .* wrote it, this is'):
        find_resume_point(run, COMMAND)


def test_a_later_version_may_have_more_to_configure(tmp_path: Path) -> None:
    write_experiment(tmp_path, EXPERIMENT)
    path = tmp_path / "experiment.json"
    values = json.loads(path.read_text())
    # As a version would have written it that did not know this key yet.
    del values["experiment"]["train"]["keep_latest"]
    path.write_text(json.dumps(values))
    older = json.dumps(values["experiment"], sort_keys=True, separators=(",", ":"))
    folder = _folder(tmp_path)
    dataclasses.replace(folder, experiment_hash=hashlib.sha256(older.encode()).hexdigest()).write(
        100, STATE, _rows
    )
    assert find_resume_point(tmp_path, COMMAND).experiment == EXPERIMENT


def test_wrong_folders_are_refused(run: Path, tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "nothing", "does not exist; give a run directory"),
        (run / "experiment.json", "is not a folder; give a run directory"),
        (tmp_path, "is not a run directory of this version of tiermem train: it has no experiment.json"),
        (run / "snapshots" / "step-000000300", "does not exist"),
        (run / "snapshots", "is not a run directory"),
    ):
        with pytest.raises(ConfigError, match=message):
            find_resume_point(path, COMMAND)
    shutil.rmtree(run / "snapshots")
    with pytest.raises(ConfigError, match=r"has no snapshots; .* --set train\.snapshot_every_steps=N"):
        find_resume_point(run, COMMAND)
    for text in ("{", "[]", '{"kind": "something"}'):
        (run / "experiment.json").write_text(text)
        with pytest.raises(ConfigError, match=r"is not JSON|was not written by tiermem train"):
            find_resume_point(run, COMMAND)


def test_a_new_run_does_not_mix_with_snapshots_of_another(run: Path) -> None:
    with pytest.raises(ConfigError, match="has snapshots of an earlier run; go on with it by --resume"):
        write_experiment(run, EXPERIMENT)


def test_two_processes_do_not_train_in_one_directory(tmp_path: Path) -> None:
    with (
        claim(tmp_path),
        pytest.raises(ConfigError, match=f"another process trains in {tmp_path}"),
        claim(tmp_path),
    ):
        pass
    with claim(tmp_path):
        pass


def test_the_newest_are_kept_and_those_of_a_replaced_continuation_do_not_count(run: Path) -> None:
    for step in (300, 400):
        _folder(run).write(step, STATE, _rows)
    assert _steps(run) == [300, 400]
    _folder(run, keep_latest=1).write(250, STATE, _rows)
    assert _steps(run) == [250, 300, 400]
    _folder(run).write(300, {"position": 77}, _rows)
    assert _steps(run) == [250, 300, 400]
    assert load_state(run / "snapshots" / "step-000000300") == {"position": 77}
    assert sorted(path.name for path in (run / "snapshots").iterdir()) == [
        path.name for path in list_snapshots(run)
    ]


def test_leftovers_of_a_kill_are_removed_and_those_of_the_living_are_not(run: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    folder = run / "snapshots"
    gone = [f"step-000000150.tmp-{ended.pid}", f"step-000000050.gone-{ended.pid}"]
    gone.append(f"step-000000150.tmp-{os.getpid()}")
    stay = [f"step-000000150.tmp-{os.getppid()}", "step-000000150.tmp-1", f"mine.tmp-{ended.pid}", "notes"]
    for name in gone + stay:
        (folder / name).mkdir()
        (folder / name / "rows.tms").write_bytes(b"half")
    _folder(run).write(300, STATE, _rows)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*stay, "step-000000200", "step-000000300"]
    )
    assert find_resume_point(run, COMMAND).manifest.step == 300


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing_behind(run: Path, tmp_path: Path, fault: BaseException) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise fault

    expected = DeviceError if isinstance(fault, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        _folder(run).write(300, STATE, fail)
    if isinstance(fault, OSError):
        assert "step-000000300: No space left on device" in str(caught.value)
    assert [path.name for path in sorted((run / "snapshots").iterdir())] == [
        "step-000000100",
        "step-000000200",
    ]
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    with pytest.raises(expected):
        _folder(fresh).write(100, STATE, fail)
    assert list(fresh.iterdir()) == []


# --- table files ---


@pytest.fixture
def table(tmp_path: Path) -> tuple[Path, "np.typing.NDArray[np.float32]"]:
    """3 MiB and a bit, so that there are four checksums, in chunks that do not end where these do."""
    weights = np.random.default_rng(2).random((50_001, 17), dtype=np.float32)
    header = TableHeader(name="item/id", rows=50_001, dim=17, step=9, experiment_hash="abc")
    path = tmp_path / "tables" / "item.tmtable"
    write_table(path, header, (weights[start : start + 9999] for start in range(0, 50_001, 9999)))
    return path, weights


def test_a_table_comes_back(table: tuple[Path, "np.typing.NDArray[np.float32]"]) -> None:
    path, weights = table
    opened = TableFile(path)
    opened.verify()
    assert (len(opened), opened.header.dim, opened.header.name) == (50_001, 17, "item/id")
    assert opened.header.chunks == 4
    ids = np.array([0, 50_000, 7, 7, 123])
    found = opened.rows(ids)
    assert found.dtype == np.float32
    assert found.tobytes() == weights[ids].tobytes()
    assert opened.rows([]).shape == (0, 17)
    # The place of a row needs nothing but the header.
    at = opened.header.header_bytes + 123 * opened.header.row_bytes
    assert path.read_bytes()[at : at + 68] == weights[123].tobytes()
    assert path.stat().st_mode & 0o777 == 0o444
    assert path.stat().st_size == opened.header.file_bytes
    assert [each.name for each in path.parent.iterdir()] == ["item.tmtable"]
    assert doctest.testmod(table_file).failed == 0


def test_wrong_ids_are_refused(table: tuple[Path, "np.typing.NDArray[np.float32]"]) -> None:
    opened = TableFile(table[0])
    for ids, message in (
        ([50_001], 'id 50001 is not a row of table "item/id", which has 50001 rows'),
        ([3, -1], "id -1 is not a row"),
        ([2**64 - 1], "is not a row"),
        ([0.5], "ids are a list of integers, not float64"),
        ([[1]], "of 2 dimensions"),
    ):
        with pytest.raises(InputError, match=message):
            opened.rows(ids)


def test_a_changed_table_is_refused(table: tuple[Path, "np.typing.NDArray[np.float32]"]) -> None:
    path, _ = table
    path.chmod(0o644)
    size = path.stat().st_size
    places = {*_flips(size), 8, 12, 20, 400, 4091, 4092, 4095, 4096, size - 4, size - 5, size - 20}
    for place in sorted(places):
        _flip(path, place, bit=place % 8)
        _refused(path, lambda: TableFile(path).verify())
        _flip(path, place, bit=place % 8)
    TableFile(path).verify()
    whole = path.read_bytes()
    for length in (0, 7, 100, 4095, 4096, size // 2, size - 1):
        path.write_bytes(whole[:length])
        _refused(path, lambda: TableFile(path))
    path.write_bytes(whole + b"x")
    _refused(path, lambda: TableFile(path))


def test_a_table_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    header = TableHeader(name="item", rows=2, dim=1, step=0, experiment_hash="")

    def chunks() -> Iterator["np.typing.NDArray[np.float32]"]:
        yield np.zeros((1, 1), dtype=np.float32)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DeviceError, match=r"cannot write .*item\.tmtable: No space left"):
        write_table(tmp_path / "item.tmtable", header, chunks())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=r"cannot read .*nothing\.tmtable: No such file"):
        TableFile(tmp_path / "nothing.tmtable")
