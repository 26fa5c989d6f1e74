"""The bench of the tiered store at small size: its shape and its memory, not its times."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SECTIONS = {"scaled-out (a)", "scaled-out (b)", "layouts", "all-hit", "cold", "warm", "memory"}


@pytest.fixture(scope="module")
def found(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tiering")
    out = folder / "tiering.json"
    command = [
        sys.executable, str(root / "benches" / "python" / "tiering.py"), "--small",
        "--directory", str(folder), "--json", str(out),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(done.stdout.splitlines()[-1]) == document, "one JSON object ends the output"
    assert "| condition |" in done.stdout
    assert not [path for path in folder.iterdir() if path != out], "files are gone afterwards"
    return document


def test_every_section_is_there(found: dict[str, Any]) -> None:
    assert set(found["sections"]) == SECTIONS
    assert found["small"]
    assert found["threads"] == 1
    assert found["omp_num_threads"] == "1"
    assert found["build_profile"] in ("release", "debug")
    assert found["host"]["cores"]


def test_every_target_says_what_was_measured(found: dict[str, Any]) -> None:
    missed = []
    for name, section in found["sections"].items():
        for target in section["targets"]:
            measured = target["measured"]
            assert measured["min"] <= measured["median"] <= measured["max"]
            within = measured["median"] <= target["bound"]
            assert target["met"] == (within if target["at_most"] else measured["median"] >= target["bound"])
            if not target["met"]:
                missed.append(f"{name}: {target['what']}")
    assert found["targets_missed"] == missed


def test_rows_are_sixteen_times_the_budget(found: dict[str, Any]) -> None:
    for name in ("scaled-out (a)", "scaled-out (b)"):
        targets = {target["what"]: target for target in found["sections"][name]["targets"]}
        assert targets["bytes of rows over the DRAM budget"]["met"]
        assert targets["unique rows of a batch that miss DRAM, prefetched, %"]["met"]
        assert found["sections"][name]["figures"]["tiered, prefetched"]["device_reads"]["median"] > 0


def test_the_cost_of_a_row_is_stated(found: dict[str, Any]) -> None:
    figures = found["sections"]["all-hit"]["figures"]
    assert figures["cpu_ns_per_probed_row"]["median"] > 0
    assert 0 < figures["missed_share"] < 1
    assert "cpu_ns_per_missed_row" in figures


def test_rows_that_were_trained_went_down_to_the_file(found: dict[str, Any]) -> None:
    section = found["sections"]["cold"]
    report = section["figures"]["training"]["tiermem"]["reports"][-1]["figures"]
    assert report["device_reads"] > 0
    assert report["rows_written_back"] > 0
    assert any("np.memmap" in note for note in section["notes"]), "what is left out is said"


def test_memory_stays_within_the_declared_budget(found: dict[str, Any]) -> None:
    section = found["sections"]["memory"]
    assert section["parameters"]["steps"] == 2_000
    assert max(section["figures"]["over_budget_bytes"]) <= 64 << 20


def test_all_other_stores_read_and_train_the_same_values(root: Path, tmp_path: Path) -> None:
    present = [name for name in ("rocksdict", "lmdb") if importlib.util.find_spec(name) is not None]
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(root / "benches" / "python")!r})
from tiering_ids import Workload, zipf_ids
from tiering_sides import PEERS, Tiermem, TiermemOptions
workload = Workload(rows=5_000, dim=8, ids_per_batch=400, ids_per_bag=4)
batches = zipf_ids(workload, 3, seed=1)
ours = Tiermem(workload, TiermemOptions(cache=64_000, staging=256_000))
ours.materialise()
sides = [ours]
for name in {[*present, "np.memmap"]!r}:
    PEERS[name].fill(workload, Path({str(tmp_path)!r}))
    more = (1 << 20,) if name == "rocksdict" else ()
    sides.append(PEERS[name](workload, Path({str(tmp_path)!r}), *more))
sums = [(side.read(batches), side.train(batches), side.read(batches)) for side in sides]
for found in sums[1:]:
    assert all(abs(a - b) <= 1e-4 * abs(b) for a, b in zip(found, sums[0])), sums
for side in sides:
    side.close()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
