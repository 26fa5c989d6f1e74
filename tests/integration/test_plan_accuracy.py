"""The bench of plans at small size: the planner against the emulator, with room for short streams."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def cases(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two configurations, independent and drifting, each with the plan and five baselines."""
    out = tmp_path_factory.mktemp("plans") / "plans.json"
    bench = root / "benches" / "python" / "plan_accuracy.py"
    command = [sys.executable, str(bench), "--count", "2", "--steps", "24", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rank_correlation" in done.stdout
    found: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))
    return found


def test_predictions_are_near_what_the_emulator_measures(cases: list[dict[str, Any]]) -> None:
    assert [case["stream"] for case in cases] == ["iid", "drift"]
    errors = [
        abs(plan["predicted_ns"] / plan["emulated_ns"] - 1)
        for case in cases
        for plan in case["plans"].values()
    ]
    assert len(errors) == 12
    assert sum(errors) / len(errors) < 0.15


def test_the_plan_is_no_worse_than_a_baseline_and_near_the_bound(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        plans = case["plans"]
        best = min(plan["emulated_ns"] for name, plan in plans.items() if name != "chosen")
        assert plans["chosen"]["emulated_ns"] < 1.05 * best
        assert case["gap"] < 0.3
        assert case["device_share"] > 0.5
