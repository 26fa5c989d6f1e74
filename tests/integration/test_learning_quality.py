"""The bench of row types at small size: its shape and its planted task, not how good the types are."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TYPES = ("fp32", "fp16 stochastic", "bf16 stochastic", "int8 stochastic", "fp16 nearest", "bf16 nearest")
TARGETS = ("fp16 stochastic", "bf16 stochastic")


def _run(root: Path, out: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    command = [
        sys.executable, str(root / "benches" / "python" / "learning_quality.py"), "--small",
        "--json", str(out), *arguments,
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(done.stdout.splitlines()[-1]) == document, "one JSON object ends the output"
    return document, done.stdout


def _check(section: dict[str, Any]) -> None:
    assert section["seeds"] == [1, 2]
    assert tuple(section["types"]) == TYPES
    base = section["types"]["fp32"]["auc"]
    for name, values in section["types"].items():
        auc = values["auc"]
        assert all(0 <= value <= 1 for value in auc["values"])
        assert auc["mean"] == pytest.approx(sum(auc["values"]) / 2, abs=1e-8)
        if name == "fp32":
            assert "minus_fp32" not in values
            continue
        less = values["minus_fp32"]
        differences = [ours - theirs for ours, theirs in zip(auc["values"], base["values"], strict=True)]
        assert less["values"] == pytest.approx(differences, abs=1e-8)
        assert less["mean"] == pytest.approx(sum(differences) / 2, abs=1e-8)
        assert less["standard_error"] == pytest.approx(abs(differences[0] - differences[1]) / 2, abs=1e-8)
        assert (less["min"], less["max"]) == (min(less["values"]), max(less["values"]))
        assert (values["target"] is not None) == (name in TARGETS)
        if values["target"] is not None:
            assert values["target"] == {"bound": 0.002, "met": abs(less["mean"]) <= 0.002}


def test_all_types_are_compared_on_the_planted_task(root: Path, tmp_path: Path) -> None:
    document, text = _run(root, tmp_path / "found.json", "--task", "synthetic")
    assert set(document["sections"]) == {"synthetic, rowwise_adagrad", "synthetic, sgd"}
    assert document["small"]
    assert document["threads"] == 1
    assert document["host"]["cores"]
    missed = []
    for name, section in document["sections"].items():
        _check(section)
        assert section["best_possible_auc"]["min"] > section["types"]["fp32"]["auc"]["max"]
        missed += [f"{name}: {kind}" for kind in TARGETS if not section["types"][kind]["target"]["met"]]
    assert document["sections"]["synthetic, rowwise_adagrad"]["types"]["fp32"]["auc"]["min"] > 0.6
    assert document["targets_missed"] == missed
    assert "| rows | test AUC, mean of 2 seeds | minus fp32, mean |" in text
    assert "Plain rounding against fp32: " in text


def test_types_are_compared_on_movielens(root: Path, tmp_path: Path, ml_100k: Path) -> None:
    document, _ = _run(root, tmp_path / "found.json", "--task", "ml-100k")
    assert set(document["sections"]) == {"ml-100k, rowwise_adagrad"}
    section = document["sections"]["ml-100k, rowwise_adagrad"]
    _check(section)
    assert section["best_possible_auc"] is None
    assert section["types"]["fp32"]["auc"]["min"] > 0.6


def test_the_planted_probabilities_are_calibrated_and_follow_from_the_seed(root: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(root / "benches" / "python")!r})
import json
import numpy as np
from learning_quality_data import PlantedTask, planted
task = PlantedTask(rows=(50, 100, 200), train_samples=40_000, test_samples=20_000)
(first, best), (again, same), (other, _) = planted(task, 1), planted(task, 1), planted(task, 2)
assert best == same
assert (first.labels == again.labels).all()
assert not (first.labels == other.labels).all()
for column, copy, rows in zip(first.sparse, again.sparse, task.rows):
    assert (column.ids == copy.ids).all()
    assert column.rows == rows and 0 <= column.ids.min() and column.ids.max() < rows
    counts = np.sort(np.bincount(column.ids, minlength=rows))[::-1]
    assert counts[0] / counts[1] > 1.5
print(json.dumps([best, float(first.labels.mean()), len(first.samples(0)), len(first.samples(2))]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    best, rate, train, test = json.loads(done.stdout)
    assert (train, test) == (40_000, 20_000)
    # A logit with mean -1 and standard deviation 2 is positive with a chance of about a third.
    assert 0.8 < best < 0.92
    assert math.isclose(rate, 1 / 3, abs_tol=0.06)
