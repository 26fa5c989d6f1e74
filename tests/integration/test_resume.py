"""Killed and resumed, a run gives the bits of an uninterrupted one; what was exported is what was trained."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiermem.checkpoint import TableFile, find_resume_point, list_snapshots, rows_path, write_experiment
from tiermem.cli.main import main
from tiermem.cli.runs import open_store
from tiermem.config import Experiment
from tiermem.data import load_dataset
from tiermem.data.trace_file import TraceReader
from tiermem.errors import ConfigError
from tiermem.train import Run, Trainer

TINY = """
hierarchy = "dram-nand"
budgets = { dram = 0.1 }

[data]
name = "synthetic"
samples = 250
tables = 2
rows_per_table = 150

[model]
dim = 4
dense_layers = [4]
over_layers = [4]

[train]
epochs = 3
batch_size = 32
dense_lr = 1e-2
prefetch_distance = 2

[train.optimizer]
name = "rowwise_adagrad"
lr = 0.05
eps = 1e-10

[compute]
flops_per_s = 1e12
bytes_per_s = "100GB/s"
source = "assumed: for a test"
"""
# 200 samples to train on are 7 steps an epoch, the last of 8 samples, and 21 in all.
STEPS = 21
KILLED = """
import os, signal, sys
from tiermem.cli import common
from tiermem.cli.main import main
from tiermem.embedding import EmbeddingStore
from tiermem.train import Trainer

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def at_step(self, done, *_):
    if done == int(sys.argv[2]):
        die()

def in_save(self, path, save=EmbeddingStore.save_rows):
    save(self, path)
    if f"step-{int(sys.argv[2]):09d}" in str(path):
        die()

if sys.argv[1] == "step":
    common.StepProgress.step = at_step
elif sys.argv[1] == "save":
    EmbeddingStore.save_rows = in_save
else:
    Trainer.evaluate = die
main(sys.argv[3:])
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def _experiment(tiny: Path, **train: object) -> Experiment:
    return Experiment.load(tiny, [f"train.{key}={json.dumps(value)}" for key, value in train.items()])


def _fit(experiment: Experiment, **more: Any) -> Run:
    dataset = load_dataset(experiment.data, experiment.seed)
    return Trainer(experiment, dataset, name="tiny", **more).fit()


def _bits(run: Run) -> tuple[object, ...]:
    return run.losses, run.epochs, run.weights_digest, run.samples


def _record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "record.json").read_text())
    return found


def _quality(run: Path) -> tuple[object, ...]:
    record = _record(run)
    series = record["series"]["synthetic"]
    return record["quality"], series["losses"], [step for step, _ in series["hit_rates"]]


@pytest.mark.parametrize("distance", range(5))
@pytest.mark.parametrize("shuffle", [True, False])
def test_resumed_at_any_step_the_bits_are_those_of_one_run(
    tiny: Path, tmp_path: Path, distance: int, *, shuffle: bool
) -> None:
    """Every second step for the usual case, a few telling ones for the others."""
    choices = {"prefetch_distance": distance, "shuffle": shuffle, "keep_latest": 99}
    without = _fit(_experiment(tiny, **choices))
    assert without.stats is not None
    assert without.stats.tiers[1].device_reads > 0
    assert without.stats.tiers[1].device_writes > 0
    experiment = _experiment(tiny, **choices, snapshot_every_steps=1)
    directory = tmp_path / "run"
    directory.mkdir()
    write_experiment(directory, experiment)
    with_snapshots = _fit(experiment, run_directory=directory)
    assert _bits(with_snapshots) == _bits(without)
    assert with_snapshots.results() == without.results(), "taking snapshots costs no virtual time"
    assert len(list_snapshots(directory)) == STEPS
    # The first, in an epoch, its end, the step after, the last but one, the last.
    chosen = range(1, STEPS + 1, 2) if (distance, shuffle) == (2, True) else (1, 5, 7, 8, 20, 21)
    for step in chosen:
        point = find_resume_point(directory / "snapshots" / f"step-{step:09d}", "")
        elsewhere = tmp_path / f"from-{step}"
        elsewhere.mkdir()
        resumed = _fit(point.experiment, run_directory=elsewhere, resume=point)
        assert _bits(resumed) == _bits(without), f"resumed from step {step}"
        assert resumed.results()["resumed_from_step"] == step
        assert resumed.results()["steps"] == STEPS
        assert [each for each, _ in resumed.hit_rates] == [each for each, _ in without.hit_rates]
        assert resumed.steps[:step] == with_snapshots.steps[:step]


@pytest.mark.parametrize(("how", "step", "snapshots"), [("step", 12, [5, 10]), ("save", 15, [5, 10])])
def test_killed_and_resumed_by_command(  # noqa: PLR0917 (pytest passes fixtures by name)
    tiny: Path, tmp_path: Path, how: str, step: int, snapshots: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--config", str(tiny), "--set", "train.snapshot_every_steps=5"]
    assert main([*arguments, "--out", str(tmp_path / "whole"), "--json", "--quiet"]) == 0
    whole = json.loads(capsys.readouterr().out)
    directory = tmp_path / "killed"
    _kill(how, step, [*arguments, "--out", str(directory)])
    assert _steps(directory) == snapshots
    assert not (directory / "record.json").exists()
    left = [path for path in (directory / "snapshots").iterdir() if ".tmp-" in path.name]
    assert len(left) == (how == "save")
    assert main(["train", "--resume", str(directory), "--json", "--quiet"]) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert _quality(directory) == _quality(tmp_path / "whole")
    assert resumed["quality"] == whole["quality"]
    assert resumed["results"]["runs"]["synthetic"]["resumed_from_step"] == 10
    assert "resumed_from_step" not in whole["results"]["runs"]["synthetic"]
    assert sorted(path.name for path in (directory / "snapshots").iterdir()) == [
        "step-000000020",
        "step-000000021",
    ]


def test_killed_while_an_epoch_is_scored(tiny: Path, tmp_path: Path) -> None:
    arguments = ["train", "--config", str(tiny), "--set", "train.snapshot_every_steps=7", "--quiet"]
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    _kill("score", 0, [*arguments, "--out", str(tmp_path / "killed")])
    assert _steps(tmp_path / "killed") == [7]
    assert main(["train", "--resume", str(tmp_path / "killed" / "snapshots" / "step-000000007")]) == 0
    assert _quality(tmp_path / "killed") == _quality(tmp_path / "whole")


def _kill(how: str, step: int, arguments: list[str]) -> None:
    command = [sys.executable, "-c", KILLED, how, str(step), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr


def _steps(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in list_snapshots(run)]


def test_a_bad_snapshot_is_refused_and_the_one_before_works(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--config", str(tiny), "--set", "train.snapshot_every_steps=10", "--quiet"]
    assert main([*arguments, "--out", str(out)]) == 0
    expected = _quality(out)
    (out / "record.json").unlink()
    path = rows_path(out / "snapshots" / "step-000000021")
    path.write_bytes(path.read_bytes()[:-9])
    capsys.readouterr()
    assert main(["train", "--resume", str(out), "--quiet"]) == 1
    message = capsys.readouterr().err
    older = str(out / "snapshots" / "step-000000020")
    assert message.startswith(f"tiermem: error: {path} was cut short at offset {path.stat().st_size}")
    assert message.endswith(f"tiermem train --resume {older}\n")
    assert main(["train", "--resume", older, "--quiet"]) == 0
    assert _quality(out) == expected
    assert find_resume_point(out, "").manifest.step == STEPS, "the bad one was replaced"


def test_export_gives_the_rows_of_the_store(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--config", str(tiny), "--set", "train.snapshot_every_steps=10", "--quiet"]
    assert main([*arguments, "--out", str(out)]) == 0
    capsys.readouterr()
    for source, chosen, folder, step in (
        (out, ["--out", str(tmp_path / "tables")], tmp_path / "tables", STEPS),
        (out / "snapshots" / "step-000000020", [], out / "export", 20),
    ):
        assert main(["export", str(source), *chosen, "--json", "--quiet"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["step"] == step
        names = ["000-table_0.tmtable", "001-table_1.tmtable", "dense.pt", "model.json"]
        assert sorted(path.name for path in folder.iterdir()) == names
        point = find_resume_point(source, "")
        store = open_store(point.experiment, point.manifest.tables)
        store.load_rows(rows_path(point.snapshot))
        for number, each in enumerate(found["tables"]):
            opened = TableFile(each["path"])
            opened.verify()
            assert (opened.header.step, len(opened)) == (step, 150)
            expected = store.read_rows(number, 0, 150)[0].numpy()
            assert opened.rows(range(150)).tobytes() == expected.tobytes()
        store.close()


@pytest.mark.parametrize(
    ("row_type", "optimizer"),
    [("fp16", "adam"), ("bf16", "rowwise_adagrad"), ("int8", "adam"), ("fp16", "lamb")],
)
def test_narrow_rows_resume_to_the_same_bits(
    tiny: Path, tmp_path: Path, row_type: str, optimizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The count of steps is in the correction of Adam and in the rounding by chance."""
    path = tmp_path / "narrow.toml"
    path.write_text(
        TINY.replace("dim = 4", f'dim = 4\nrow_type = "{row_type}"').replace(
            'name = "rowwise_adagrad"', f'name = "{optimizer}"'
        )
    )
    arguments = ["train", "--config", str(path), "--quiet"]
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "run"
    chosen = ["--set", "train.snapshot_every_steps=5", "--set", "train.keep_latest=99"]
    assert main([*arguments, *chosen, "--out", str(out)]) == 0
    assert _quality(out) == _quality(tmp_path / "whole")
    wide = tmp_path / "wide"
    assert main(["train", "--config", str(tiny), "--quiet", "--out", str(wide)]) == 0
    assert _quality(wide)[0] != _quality(out)[0]
    for step in (5, 10, 20):
        (out / "record.json").unlink()
        snapshot = out / "snapshots" / f"step-{step:09d}"
        assert [table.row_type for table in find_resume_point(snapshot, "").manifest.tables] == [row_type] * 2
        assert main(["train", "--resume", str(snapshot), "--quiet"]) == 0
        assert _quality(out) == _quality(tmp_path / "whole"), f"resumed from step {step}"
        assert _record(out)["results"]["runs"]["synthetic"]["resumed_from_step"] == step
    capsys.readouterr()


def test_a_snapshot_of_another_row_type_is_refused_with_both_named(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["train", "--config", str(tiny), "--quiet", "--set", "train.epochs=1"]
    arguments += ["--set", "model.row_type=fp16", "--set", "train.snapshot_every_steps=5"]
    assert main([*arguments, "--out", str(out)]) == 0
    point = find_resume_point(out, "")
    other = point.experiment.replace(model={**point.experiment.model.model_dump(), "row_type": "int8"})
    store = open_store(other, point.manifest.tables)
    with pytest.raises(ConfigError, match=r"in fp16 .*; the store has .* in int8"):
        store.load_rows(rows_path(point.snapshot))
    store.close()
    path = out / "experiment.json"
    path.write_text(path.read_text().replace('"row_type": "fp16"', '"row_type": "int8"'))
    capsys.readouterr()
    for verb in (["train", "--resume", str(out)], ["export", str(out)]):
        assert main([*verb, "--quiet"]) == 2
        message = capsys.readouterr().err
        assert f'{point.snapshot} has table "table_0" in fp16, {path} has it in int8; one' in message
        assert message.count("\n") == 1


def test_a_captured_trace_has_rows_with_their_state(tiny: Path, tmp_path: Path) -> None:
    for row_type, nbytes in (("fp32", 16 + 4), ("bf16", 8 + 4), ("int8", 12 + 4)):
        trace = tmp_path / f"{row_type}.tmtrace"
        arguments = ["train", "--config", str(tiny), "--quiet", "--set", f"model.row_type={row_type}"]
        assert main([*arguments, "--out", str(tmp_path / row_type), "--capture-trace", str(trace)]) == 0
        assert [table.row_bytes for table in TraceReader(trace).tables] == [nbytes] * 2


def test_wrong_use_of_resume_ends_in_one_sentence(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plain = tmp_path / "run", tmp_path / "plain"
    base = ["train", "--config", str(tiny), "--quiet", "--set", "train.epochs=1"]
    assert main([*base, "--set", "train.snapshot_every_steps=5", "--out", str(out)]) == 0
    assert main([*base, "--out", str(plain)]) == 0
    capsys.readouterr()
    resume = ["train", "--resume", str(out)]
    for arguments, code, message in (
        ([*resume, "--set", "train.epochs=9"], 2, "--set cannot go with --resume"),
        ([*resume, "--config", "demo-tiering", "--seed", "1"], 2, "--config and --seed cannot go with"),
        ([*resume, "--out", str(plain)], 2, "--out cannot go with --resume"),
        ([*resume, "--capture-trace", "x"], 2, "--capture-trace cannot go with --resume"),
        (["train"], 2, "give an experiment by --config FILE, or a run to go on with by --resume"),
        (resume, 2, "has done all of its 7 steps"),
        (["train", "--resume", str(plain)], 2, "has no snapshots"),
        (["train", "--resume", str(tmp_path)], 2, "is not a run directory"),
        (["train", "--resume", str(tmp_path / "nothing")], 2, "does not exist"),
        (["export", str(plain)], 2, "has no snapshots"),
        (["export", str(tmp_path / "nothing")], 2, "does not exist"),
        (["export", str(out), "--out", "/proc/nothing"], 1, "cannot write /proc/nothing"),
        ([*base, "--out", str(out)], 2, "has snapshots of an earlier run"),
    ):
        assert main([*arguments, "--quiet"]) == code, arguments
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.startswith("tiermem: error: ")
        assert captured.err.count("\n") == 1


def test_other_data_is_refused(tiny: Path, tmp_path: Path) -> None:
    experiment = _experiment(tiny, snapshot_every_steps=5)
    write_experiment(tmp_path, experiment)
    _fit(experiment, run_directory=tmp_path)
    point = find_resume_point(tmp_path, "")
    dataset = load_dataset(experiment.data, experiment.seed)
    dataset.labels[3] = 1 - dataset.labels[3]
    with pytest.raises(ConfigError, match=r"the data .* has changed since the snapshot was taken"):
        Trainer(experiment, dataset, name="x", run_directory=tmp_path, resume=point).fit()
    with pytest.raises(ConfigError, match="is of another experiment"):
        _fit(_experiment(tiny), run_directory=tmp_path, resume=point)
    with pytest.raises(ConfigError, match="snapshot_every_steps needs a run directory"):
        _fit(experiment)
