"""`tiermem study mtrains` at small size: one digest on every host, one page, pictures, wrong input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
from tiermem.cli.main import main
from tiermem.config import Experiment
from tiermem.config.node import NodeConfig
from tiermem.config.study import NodeStudyConfig
from tiermem.study.wall import run_wall

DIGEST = "6707818cf8ced9b4"
SMALL = (
    'headline.models=["mlperf-dlrm-v2"]', 'headline.ablation_model="mlperf-dlrm-v2"', "headline.scale=30",
    "sweep.scales=[30]", "segments=8", "tables_merged_max=2", "sweep.turnovers=[]", "sweep.message_ns=[0]",
    "sweep.overhead_ns_per_step=[]", "sweep.cache_shares=[]", "target_share=0.5",
)  # fmt: skip
WALL_SMALL = (
    "data.samples_max=1280", "data.rows_per_table=8192", "train.batch_size=64", "model.dense_layers=[64]",
    "model.over_layers=[64]", "hierarchy.staging_bytes=524288", "hierarchy.memory_limit_bytes=1064960",
    "budgets.dram=393216",
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of a study of one model, one scale and two systems."""
    values = NodeStudyConfig.load("mtrains", SMALL).model_dump(mode="json")
    values["systems"] = {name: values["systems"][name] for name in ("scale-out", "block")}
    path = tmp_path_factory.mktemp("study") / "small.toml"
    path.write_text(tomli_w.dumps(values))
    return ["study", "mtrains", "--config", str(path), "--quiet"]


@pytest.fixture(scope="module")
def made(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page, the pictures and the numbers of the small study."""
    folder = tmp_path_factory.mktemp("made")
    options = ["--out", str(folder / "page.html"), "--plots", str(folder / "plots"), "--jobs", "2"]
    assert main([*small, *options, "--json", str(folder / "study.json")]) == 0
    return folder


def test_the_digest_is_the_same_on_every_host(made: Path) -> None:
    assert json.loads((made / "study.json").read_text())["results_digest"] == DIGEST


def test_the_digest_does_not_depend_on_the_processor(small: list[str], made: Path, tmp_path: Path) -> None:
    """Without the wide instructions of this processor sums are made in another order."""
    out = tmp_path / "plain.json"
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX"}
    command = [sys.executable, "-W", "ignore", "-m", "tiermem", *small, "--json", str(out)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    assert json.loads(out.read_text())["results"] == json.loads((made / "study.json").read_text())["results"]


def test_systems_reach_the_target_with_no_more_nodes(made: Path) -> None:
    results = json.loads((made / "study.json").read_text())["results"]
    for each in results["scaled"]:
        base = each["systems"]["scale-out"]
        assert each["target_samples_per_s"] == pytest.approx(0.5 * base["samples_per_s"], rel=1e-4)
        point = each["systems"]["block"]
        assert point["nodes"] < base["nodes"]
        assert point["samples_per_s"] >= 0.999 * each["target_samples_per_s"]
        assert each["node_ratios"]["block"] == pytest.approx(base["nodes"] / point["nodes"], rel=1e-4)
    assert all(abs(each["error"]) < 0.1 for each in results["emulations"])


def test_the_page_holds_everything(made: Path) -> None:
    page = (made / "page.html").read_text()
    assert DIGEST in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']?https?:""", page)
    parts = ("MTrainS reported 4 to 8 times", "How true it is", "Assumptions", "no prefetch", "wears out")
    for text in parts:
        assert text in page
    assert page.count("<svg") == len({path.stem for path in (made / "plots").glob("*.csv")})


def test_pictures_are_light_and_dark_with_their_numbers(made: Path) -> None:
    names = {path.stem for path in (made / "plots").glob("*.csv")}
    assert names >= {
        "miss-ratio-curves",
        "nodes-against-scale",
        "placement-map",
        "throughput-against-dram",
        "tier-roofline",
    }
    for name in names:
        for theme in ("light", "dark"):
            assert (made / "plots" / f"{name}-{theme}.png").stat().st_size > 5_000
            assert (made / "plots" / f"{name}-{theme}.svg").read_text().startswith("<svg")
        assert len((made / "plots" / f"{name}.csv").read_text().splitlines()) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "mtrain"], 'did you mean "mtrains"'),
        (["--jobs", "0"], "--jobs is a number of processes from 1"),
        (["--wall", "-1"], "--wall is how often to train"),
        (["--set", "headline.scale=7"], "headline.scale 7 is none of sweep.scales"),
        (["--set", "target_share=2"], "target_share"),
        (["--set", 'headline.ablation_model="mine"'], 'headline has a model "mine"'),
        (["--set", 'node="zion"'], 'did you mean "zionex"'),
        (["--set", 'systems.both=["hbm", "drum"]'], 'system "both" has a tier "drum"'),
        (["--set", 'systems.both=["hbm"]'], 'system "both" has 1 tier'),
        (["--set", "sweep.scales=[1, 10, 1000000000]"], "sweep.scales"),
        (["--wall", "1", "--wall-config", "scaled-out"], "has a virtual clock"),
    ],
)
def test_wrong_input_is_one_sentence(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "mtrains", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "mtrains", "--out", str(tmp_path)]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_training_in_wall_time_is_the_same_tiered_and_in_memory() -> None:
    found = run_wall(Experiment.load("scaled-out-wall", WALL_SMALL), 1)
    (memory,), (tiered,) = found.in_memory, found.tiered
    assert memory.weights_digest == tiered.weights_digest
    assert memory.missed_share == 0.0
    assert 0 < tiered.missed_share < 1
    assert tiered.device_reads > 0
    assert tiered.device_bytes > 4096 * tiered.device_reads * 0.9
    assert tiered.budget_factor > 1.5
    assert found.ratios == [tiered.samples_per_s / memory.samples_per_s]


def test_the_study_in_the_documentation_is_of_these_assumptions(root: Path) -> None:
    """The page and the text have one digest, and the page names every number that is assumed."""
    text = (root / "docs" / "study-mtrains.md").read_text()
    page = (root / "docs" / "studies" / "mtrains.html").read_text()
    (found,) = re.findall(r"results digest `([0-9a-f]{16})`", text)
    assert f"Results digest {found}" in page
    study = NodeStudyConfig.load("mtrains")
    node = NodeConfig.load(study.node)
    for key in node.assumed():
        assert key in page
    for name in study.headline.models:
        for scale in study.sweep.scales:
            assert f"{name} x{scale}" in page
