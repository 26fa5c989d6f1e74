"""The shipped experiment on four tiers: the bits of the same training in DRAM, in both clocks."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiermem.checkpoint import list_snapshots
from tiermem.cli.main import main
from tiermem.config import Experiment, Hierarchy
from tiermem.data import load_dataset
from tiermem.train import Trainer

CLOCKS = ("virtual", "wall")
STEPS = 40
# Dies by SIGKILL in step 27, after the snapshot of step 20 and with batches in flight.
KILLED = """
import os, signal, sys
from tiermem.cli import common
from tiermem.cli.main import main

def die_at_step(self, done, *_):
    if done == 27:
        os.kill(os.getpid(), signal.SIGKILL)

common.StepProgress.step = die_at_step
main(sys.argv[1:])
"""


def _arguments(clock: str) -> list[str]:
    return ["train", "--config", "four-tiers", "--set", f"hierarchy.clock={clock}", "--quiet"]


def _record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "record.json").read_text())
    return found


def _bits(record: dict[str, Any]) -> tuple[str, list[float]]:
    """The digest covers all rows, their optimizer state, and the dense parameters."""
    digest: str = record["quality"]["runs"]["synthetic"]["weights_digest"]
    return digest, record["series"]["synthetic"]["losses"]


@pytest.fixture(scope="module", params=CLOCKS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A clock, and the run directory of an uninterrupted training on it."""
    clock: str = request.param
    out = tmp_path_factory.mktemp(clock) / "run"
    assert main([*_arguments(clock), "--out", str(out)]) == 0
    return clock, out


@pytest.fixture(scope="module")
def in_dram() -> tuple[str, list[float]]:
    """The bits of the same training with all rows in DRAM: no cache, no placement, no snapshot."""
    experiment = Experiment.load("four-tiers", ["train.snapshot_every_steps=0"])
    plain = experiment.replace(hierarchy=Hierarchy.load("dram"), placement=None)
    dataset = load_dataset(plain.data, plain.seed)
    run = Trainer(plain, dataset, name="dram").fit()
    return run.weights_digest, [round(loss, 9) for loss in run.losses]


def test_four_tiers_train_to_the_bits_of_dram(
    whole: tuple[str, Path], in_dram: tuple[str, list[float]]
) -> None:
    clock, out = whole
    record = _record(out)
    result = record["results"]["runs"]["synthetic"]
    assert (result["clock"], result["steps"]) == (clock, STEPS)
    assert _bits(record) == in_dram
    names = [tier["name"] for tier in result["store"]["tiers"]]
    assert names == ["dram", "cxl", "optane", "nand"]
    for tier in result["store"]["tiers"][1:]:
        assert tier["device"]["reads"] > 0, tier["name"]
        assert tier["device"]["writes"] > 0, tier["name"]
        assert tier["hit_rows"] > 0, tier["name"]


def test_every_table_lives_where_the_placement_says(whole: tuple[str, Path]) -> None:
    store = _record(whole[1])["results"]["runs"]["synthetic"]["store"]
    tables = {table["name"]: table for table in store["tables"]}
    looked_for = {
        name: [tier["name"] for tier in table["tiers"] if tier["probed_rows"]]
        for name, table in tables.items()
    }
    assert looked_for == {
        "table_0": ["dram", "cxl", "optane", "nand"],
        "table_1": ["dram", "cxl", "optane", "nand"],
        "table_2": ["dram", "optane"],
        "table_3": ["dram", "cxl", "optane", "nand"],
    }
    assert store["memory"]["resident_bytes"] > 0, "a range of table_0 is in DRAM for good"
    assert store["rows_written_back"] > 0
    for table in tables.values():
        assert table["initialised_rows"] > 0
        assert table["rows_written_back"] > 0
        for tier in table["tiers"][1:]:
            assert (tier["reads"] > 0) == (tier["probed_rows"] > 0), tier["name"]
    # A block of a log has rows of several tables and counts for one of them.
    for position in (1, 2, 3):
        assert sum(table["tiers"][position]["writes"] for table in tables.values()) > 0
    # A table whose rows are in one tier at a time puts into CXL memory what falls out of DRAM, and no more.
    exclusive, inclusive = tables["table_1"]["tiers"][1], tables["table_3"]["tiers"][1]
    assert exclusive["writes"] < inclusive["writes"]


def test_what_tables_count_adds_up_to_what_tiers_count(whole: tuple[str, Path]) -> None:
    store = _record(whole[1])["results"]["runs"]["synthetic"]["store"]
    tables = store["tables"]
    for key in ("asked_rows", "unique_rows", "in_flight_hits", "initialised_rows", "rows_written_back"):
        assert sum(table[key] for table in tables) == store[key], key
    assert sum(table["read_modify_writes"] for table in tables) == store["read_modify_writes"]
    for table in tables:
        assert table["asked_rows"] == table["unique_rows"] + table["deduplicated_rows"]
    for number, tier in enumerate(store["tiers"]):
        for key in ("probed_rows", "hit_rows", "asked_bytes"):
            assert sum(table["tiers"][number][key] for table in tables) == tier[key], (tier["name"], key)
        for table in tables:
            counts = table["tiers"][number]
            assert counts["hit_rows"] <= counts["probed_rows"]
            if counts["probed_rows"]:
                rate = counts["hit_rows"] / counts["probed_rows"]
                assert counts["conditional_hit_rate"] == pytest.approx(rate)
            rate = counts["hit_rows"] / table["unique_rows"]
            assert counts["unconditional_hit_rate"] == pytest.approx(rate)


def test_killed_and_resumed_it_gives_the_bits_of_one_run(whole: tuple[str, Path], tmp_path: Path) -> None:
    clock, out = whole
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, *_arguments(clock), "--out", str(killed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert [path.name for path in list_snapshots(killed)] == ["step-000000010", "step-000000020"]
    assert not (killed / "record.json").exists()
    assert main(["train", "--resume", str(killed), "--quiet"]) == 0
    resumed = _record(killed)
    assert resumed["results"]["runs"]["synthetic"]["resumed_from_step"] == 20
    assert resumed["results"]["runs"]["synthetic"]["clock"] == clock
    whole_record = _record(out)
    assert _bits(resumed) == _bits(whole_record)
    assert resumed["quality"] == whole_record["quality"]
    for tier in resumed["results"]["runs"]["synthetic"]["store"]["tiers"][1:]:
        assert tier["device"]["reads"] > 0, tier["name"]
        assert tier["device"]["writes"] > 0, tier["name"]


def test_it_repeats(whole: tuple[str, Path], tmp_path: Path) -> None:
    clock, out = whole
    again = tmp_path / "again"
    assert main([*_arguments(clock), "--out", str(again)]) == 0
    assert _record(again)["quality"] == _record(out)["quality"]
    if clock == "virtual":
        assert _record(again)["results_digest"] == _record(out)["results_digest"]
