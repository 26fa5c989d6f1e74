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


def _machine(trace: Path, samples_per_s: float, *options: str) -> int:
    target = f"samples_per_s={samples_per_s}" + ", fastest_shares=[1.0], nodes_max=4, source='assumed'"
    values = "{" + target + ", objective='cost', node_watts=300, node_price_dollars=5000}"
    return _plan(trace, "--set", f"target={values}", *options)


def test_the_machine_for_a_throughput_is_verified_too(trace: Path, tmp_path: Path) -> None:
    document, plots = tmp_path / "plan.json", tmp_path / "plots"
    assert _machine(trace, 1e5, "--verify", "--plots", str(plots), "--json", str(document)) == 0
    found = json.loads(document.read_text())
    best = min(found["machines"], key=lambda each: each["price_dollars"])
    assert best["nodes"] == 1
    assert found["plan"]["samples_per_s"] == pytest.approx(best["samples_per_s"], rel=1e-4)
    assert {tier["name"] for tier in found["plan"]["tiers"]} == set(best["tiers"])
    assert abs(found["verified"][0]["error"]) < 0.1
    names = {path.stem for path in plots.glob("*.csv")}
    assert names == {
        "miss-ratio-curves",
        "placement-map",
        "predicted-against-emulated",
        "throughput-against-dram",
        "tier-roofline",
    }
    assert all((plots / f"{name}-dark.svg").exists() for name in names)


def test_machines_that_cannot_be_had(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _machine(trace, 1e15) == 1
    assert "no machine of up to 4 nodes reaches 1,000,000,000,000,000 samples/s" in capsys.readouterr().err
    assert _machine(trace, 4e5, "--verify") == 2
    assert "--verify runs the plan of one node" in capsys.readouterr().err
    assert _machine(trace, 1.0, "--set", "milp_seconds=1.0") == 2
    assert "with a target no integer program runs" in capsys.readouterr().err
    assert _machine(trace, 1.0, "--plan", "plan.toml") == 2


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
