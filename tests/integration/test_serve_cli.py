"""Train, export, serve, drive, tune: the commands of docs/serving.md on a small run."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiermem.cli.main import main

EXPERIMENT = """
hierarchy = "dram-optane"
seed = 3

[data]
name = "synthetic"
samples = 1500
tables = 4
rows_per_table = 2000
ids_per_bag = 4

[model]
dim = 16
dense_layers = [8]
over_layers = [8]

[train]
epochs = 1
batch_size = 64
snapshot_every_steps = 100

[train.optimizer]
name = "rowwise_adagrad"
lr = 0.05

[compute]
flops_per_s = 1e11
bytes_per_s = 20_000_000_000
source = "assumed"
"""
SERVING = """
[model]
path = "{path}"
user_tables = ["table_0", "table_1"]

[device]
spec = "optane-p5800x"
reads_max = 16

[memory]
budget = 0.85
pooled_ids_min = 2
updates = "4KiB"

[load]
sla_ms = 5.0
warm_up_queries = 300
measured_queries = 300
rate_tolerance = 0.2

[load.queries]
users = 200
candidates = 10
ids_per_list = 4

[tune]
pooled_shares = [0.1, 0.3]
pooled_ids_mins = [2]
reads_per_table_maxima = [64]
reads_maxima = [16]
placements = false
rounds = 1
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with its export, and a configuration to serve it."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "experiment.toml").write_text(EXPERIMENT)
    run = folder / "run"
    assert main(["train", "--config", str(folder / "experiment.toml"), "--out", str(run), "--quiet"]) == 0
    assert main(["export", str(run), "--quiet"]) == 0
    (folder / "serving.toml").write_text(SERVING.format(path=run / "export"))
    return run, folder / "serving.toml"


def trained_again(config: Path, out: Path, *settings: str) -> None:
    """Another run of the same experiment, exported."""
    options = [option for setting in settings for option in ("--set", setting)]
    experiment = str(config.parent / "experiment.toml")
    assert main(["train", "--config", experiment, *options, "--out", str(out), "--quiet"]) == 0
    assert main(["export", str(out), "--quiet"]) == 0


def document(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*arguments, "--json", "--quiet"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_an_exported_model_scores_as_the_trainer_did(
    served: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = served
    found = document(capsys, ["serve", "--config", str(config), "--check", str(run)])
    scores = found["scores"]
    assert scores["queries"] == 150
    assert abs(scores["auc"] - scores["trainer_auc"]) <= 1e-6
    assert abs(scores["logloss"] - scores["trainer_logloss"]) <= 1e-6
    assert found["stats"]["reads"] > 0
    assert found["stats"]["written_blocks"] == 0
    narrow = document(
        capsys, ["serve", "--config", str(config), "--check", str(run), "--set", 'model.row_type="int8_fp16"']
    )
    assert 0 < abs(narrow["scores"]["logloss"] - scores["logloss"]) < 1e-3


def test_a_pruned_export_is_smaller_and_serves(
    served: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = served
    pruned = tmp_path / "pruned"
    found = document(capsys, ["export", str(run), "--out", str(pruned), "--prune-below", "0.02"])
    assert 0 < found["tables"][0]["rows"] < 2000
    arguments = ["serve", "--config", str(config), "--check", str(run), "--set", f'model.path="{pruned}"']
    scores = document(capsys, arguments)["scores"]
    assert abs(scores["auc"] - scores["trainer_auc"]) < 0.1
    assert main(["export", str(run), "--out", str(pruned), "--prune-below", "0"]) == 2


def test_load_baselines_and_ablation(served: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, config = served
    arguments = ["loadgen", "--config", str(config), "--baselines", "--ablate"]
    found = document(capsys, arguments)
    names = [variant["name"] for variant in found["results"]["variants"]]
    assert names == [
        "all on", "no row cache", "no overlap", "no pooled results", "no limits on reads", "whole blocks",
        "interrupts", "no de-pruning", "de-quantised", "mapped file", "all in memory",
    ]  # fmt: skip
    rates = {v["name"]: v["result"]["queries_per_s"] for v in found["results"]["variants"] if v["result"]}
    assert set(names) - set(rates) == {"no limits on reads"}, "so many buffers do not fit"
    assert rates["mapped file"] < rates["all on"] <= rates["all in memory"] * 1.2
    again = document(capsys, arguments)
    assert again["digest"] == found["digest"]
    one = document(capsys, ["loadgen", "--config", str(config), "--rate", "1000"])
    assert one["keeps"]
    too_much = ["loadgen", "--config", str(config), "--rate", "100000000", "--set", "load.sla_ms=0.05"]
    assert not document(capsys, too_much, code=1)["keeps"]


def test_tuning_writes_what_it_found(
    served: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, config = served
    out = tmp_path / "tuned.toml"
    arguments = ["tune", "--config", str(config), "--sla-ms", "2", "--quantile", "p95", "--out", str(out)]
    found = document(capsys, arguments)
    assert found["gain"] >= 1.0
    assert {each["setting"] for each in found["results"]["tried"]} == {"memory.pooled_share"}
    again = document(capsys, ["loadgen", "--config", str(out), "--quiet"])
    best = found["results"]["best"]["result"]["queries_per_s"]
    assert again["results"]["variants"][0]["result"]["queries_per_s"] == best, "it can be run as it is"
    assert main(["tune", "--config", str(config), "--out", str(config)]) == 2


def test_an_export_costs_what_its_own_layers_cost(
    served: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, config = served
    tables = "".join(
        f"""
[[tables]]
name = "table_{number}"
rows = 2000
columns = 16
row_type = "fp32"
side = "{"user" if number < 2 else "item"}"
ids_per_list = 4
exponent = 1.0
"""
        for number in range(4)
    )
    # The layers of the experiment; synthetic data has no dense features.
    dense = "dense_features = 0\ndense = {dim = 16, dense_layers = [8], over_layers = [8]}\n"
    of_model, rest = SERVING.split("[device]", 1)
    assert "[model]" in of_model
    imagined = config.parent / "imagined.toml"
    imagined.write_text(f"{dense}{tables}\n[device]{rest}")
    compute = '{flops_per_s = 1e6, bytes_per_s = 10000000, source = "assumed"}'
    arguments = ["--rate", "1000", "--set", "memory.budget=10000000", "--set", f"host.compute={compute}"]
    busy_ns = [
        document(capsys, ["loadgen", "--config", str(path), *arguments], code=1)["results"]["busy_ns"]
        for path in (config, imagined)
    ]
    assert busy_ns[0] == busy_ns[1] > 0


def test_tables_change_under_load_without_a_wrong_answer(
    served: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = served
    other = tmp_path / "other"
    trained_again(config, other, "seed=4")
    arguments = ["serve", "--config", str(config), "--check", str(run), "--drive", "400", "--seconds", "1.5"]
    settings = ["--set", "versions=2", "--set", "memory.budget=900000", "--set", "host.threads=2"]
    found = document(capsys, [*arguments, "--refresh", str(other / "export"), *settings])["driven"]
    assert found["queries"] == 600
    assert found["wrong"] == found["refused"] == 0
    assert len(found["states"]) == 4
    assert sum(found["states"]) == 600
    assert min(found["states"][0], found["states"][2]) > 0, "answers of both versions were asked for"
    assert list(found["changes_s"]) == ["updating rows", "refreshing all tables", "rolling back"]


def test_what_an_export_does_not_go_with(
    served: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = served
    other = tmp_path / "other"
    trained_again(config, other, "seed=5", "train.snapshot_every_steps=10")
    first = min((other / "snapshots").iterdir())
    assert main(["export", str(first), "--out", str(tmp_path / "early"), "--quiet"]) == 0
    early = ["--set", f'model.path="{tmp_path / "early"}"']
    serve = ["serve", "--config", str(config), "--check"]
    driven = [*serve, str(run), "--drive", "5"]
    for arguments, what in (
        ([*serve, str(other)], "give the run that was exported"),
        ([*serve, str(other), *early], "give the run that was exported"),
        ([*serve, str(first), *early], "is not the end of its run"),
        ([*driven, "--refresh", str(other)], "versions = 2"),
        ([*driven, "--set", 'model.row_type="int8"'], "row_type"),
        ([*serve, str(run), "--json", str(config)], "is what is read here"),
        (["loadgen", "--config", str(config), "--json", str(config)], "is what is read here"),
        (["loadgen", "--config", str(config), "--set", "dense_features=3"], "leave dense_features out"),
    ):
        assert main(arguments) == 2
        assert what in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["serve", "--config", "users-optane"], "needs a model"),
        (["serve", "--config", "users-optane", "--drive", "5"], "--check"),
        (["serve", "--config", "users-optane", "--refresh", "x"], "--drive"),
        (["serve", "--config", "users-optane", "--check", "x", "--drive", "nan"], "more than 0"),
        (["serve", "--config", "users-optane", "--check", "x", "--drive", "1e8"], "10,000,000 queries"),
        (["serve", "--config", "users-optane", "--check", "x", "--seconds", "5"], "--drive"),
        (["loadgen", "--config", "users-optane", "--rate", "9", "--ablate"], "leave one out"),
        (["loadgen", "--config", "users-optan"], "users-optane"),
        (["loadgen", "--config", "users-optane", "--set", "seed=100000000000000000000"], "seed"),
        (["loadgen", "--config", "users-optane", "--set", "load.queries.users=100000000000"], "users"),
        (["loadgen", "--config", "users-optane", "--set", "memory.budget=0.001"], "needed_bytes"),
        (["loadgen", "--config", "users-optane", "--set", "device.hedge_after=1ms"], "replicas"),
        (["loadgen", "--config", "users-optane", "--rate", "0"], "--rate is more than 0"),
        (["loadgen", "--config", "users-optan"], "not one of the serving engines"),
        (["loadgen", "--config", "users-optane", "--set", "placement.users=dram"], "placement.users: input"),
        (["loadgen", "--config", "users-optane", "--set", "memory.bugdet=1"], "budget"),
        (["loadgen", "--config", "users-optane", "--set", "load.sla_ms=0"], "sla_ms"),
    ],
)
def test_wrong_usage(arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) in (1, 2)
    assert what in capsys.readouterr().err
