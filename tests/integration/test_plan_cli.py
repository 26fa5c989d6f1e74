"""`tiermem plan`: from a trace to a verified plan, and wrong input."""

import json
from pathlib import Path

import pytest
from tiermem.cli.main import main

JOB = "planning"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trace of docs/planning.md, shorter."""
    path = tmp_path_factory.mktemp("plan") / "planning.tmtrace"
    assert (
        main(["trace", "synth", "--config", JOB, "--set", "batches=160", "--out", str(path), "--quiet"]) == 0
    )
    return path


def _plan(trace: Path, *options: str) -> int:
    return main(["plan", "--config", JOB, "--set", f"trace={trace}", *options])


def test_a_plan_is_what_the_emulator_measures(trace: Path, tmp_path: Path) -> None:
    out, document = tmp_path / "plan.toml", tmp_path / "plan.json"
    assert _plan(trace, "--verify", "--out", str(out), "--json", str(document)) == 0
    found = json.loads(document.read_text())
    verified = {each["plan"]: each for each in found["verified"]}
    assert abs(verified["this plan"]["error"]) < 0.1
    best = min(each["emulated_ns"] for name, each in verified.items() if name != "this plan")
    assert verified["this plan"]["emulated_ns"] < best
    assert out.exists()


def test_a_plan_file_can_be_taken_again(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, profile = tmp_path / "plan.toml", tmp_path / "profile.npz"
    assert _plan(trace, "--out", str(out), "--save-profile", str(profile)) == 0
    capsys.readouterr()
    assert _plan(trace, "--plan", str(out), "--profile", str(profile)) == 0
    assert "bound of the linear program" in capsys.readouterr().out
    assert _plan(trace, "--plan", str(out), "--set", "dense_ns_per_step=1ms") == 2
    assert "plan again" in capsys.readouterr().err


def test_wrong_input_is_one_sentence(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _plan(trace, "--set", "budgets.dram=100") == 1
    assert 'tier "dram" has a budget of 100 bytes' in capsys.readouterr().err
    assert _plan(trace, "--set", "profile_share=0.999", "--verify") == 2
    assert "none is left to verify" in capsys.readouterr().err
    assert main(["plan", "--config", "planing"]) == 2
    assert 'did you mean "planning"' in capsys.readouterr().err
    other, profile = tmp_path / "other.tmtrace", tmp_path / "profile.npz"
    synth = ["trace", "synth", "--config", "drift-recency", "--set", "batches=8", "--out", str(other)]
    assert main(synth) == 0
    assert (
        _plan(
            other, "--set", "optimizer.name=sgd", "--set", "optimizer.lr=0.1", "--save-profile", str(profile)
        )
        == 0
    )
    capsys.readouterr()
    assert _plan(trace, "--profile", str(profile)) == 2
    assert "a profile for other tables" in capsys.readouterr().err
    assert _plan(trace, "--profile", str(trace)) == 1
    assert "is not an access profile" in capsys.readouterr().err
