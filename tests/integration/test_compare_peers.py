"""The comparison with torch and FBGEMM at small size: its shape and its checks of values, not its times."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HAS_FBGEMM = importlib.util.find_spec("fbgemm_gpu") is not None
SECTIONS = {
    "W1 forward",
    "W1 forward, peers on 4 KiB pages",
    "W1 row-wise AdaGrad",
    "W1 Adam and LAMB",
    "W1 threads",
    "W1L forward",
    "W1L row-wise AdaGrad",
    "W1L threads",
    "W2 forward",
    "W2 row-wise AdaGrad, rounding nearest",
    "W2 row-wise AdaGrad, rounding stochastic",
    "W2L forward",
    "W2L row-wise AdaGrad, rounding nearest",
    "W2L row-wise AdaGrad, rounding stochastic",
    "W3 forward",
    "W3 row-wise AdaGrad",
    "W3H row-wise AdaGrad, rounding nearest",
    "W3H row-wise AdaGrad, rounding stochastic",
    "W5 forward",
    "W5 forward, peers on 4 KiB pages",
}


def _run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "benches" / "python" / "compare_peers.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _document(root: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    out = folder / "peers.json"
    done = _run(root, "--small", "--json", str(out), *arguments)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(done.stdout.splitlines()[-1]) == document, "one JSON object ends the output"
    assert "### All targets" in done.stdout
    return document


@pytest.fixture(scope="module")
def found(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _document(root, tmp_path_factory.mktemp("peers"), "--without-fbgemm")


def test_every_section_is_there(found: dict[str, Any]) -> None:
    assert set(found["sections"]) == SECTIONS
    assert found["small"]
    assert found["fbgemm"] is None
    assert found["build_profile"] in ("release", "debug")
    assert found["host"]["cores"]
    assert found["read_bandwidth_bytes_per_s"]["torch.sum"] > 0


def test_threads_are_pinned_before_torch_is_loaded(found: dict[str, Any]) -> None:
    assert found["threads"] == 1
    assert found["host"]["omp_num_threads"] == "1"
    assert found["thp_mem_alloc_enable"] == "1"


def test_every_target_says_what_was_measured(found: dict[str, Any]) -> None:
    missed = []
    for name, section in found["sections"].items():
        for target in section["targets"]:
            measured = target["measured"]
            assert measured["min"] <= measured["median"] <= measured["max"]
            assert target["met"] == (measured["median"] >= target["bound"])
            if not target["met"]:
                missed.append(f"{name}: {target['what']}")
    assert found["targets_missed"] == missed


def test_every_side_has_times_and_bytes(found: dict[str, Any]) -> None:
    figures = found["sections"]["W3 forward"]["figures"]
    kind = figures["A: pooled forward, lowest call"]
    assert {"tiermem", "torch"} <= set(kind["sides"])
    for side in kind["sides"].values():
        assert side["wall_ms_per_batch"]["median"] > 0
        assert side["batches_per_repetition"] % 3 == 0, "whole rounds of the batches"
        assert side["share_of_read_bandwidth"] > 0
    held = figures["held_bytes_per_row"]
    assert held["tiermem"] >= held["weights alone"]
    assert set(figures["anon_huge_pages_bytes"]) == {
        "at the start",
        "with tiermem open",
        "with the peers, too",
    }


def test_a_difference_of_values_is_noticed(root: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(root / "benches" / "python")!r})
from compare_peers_measure import OURS, check_outputs, check_rows
from compare_peers_ours import How, Ours
from compare_peers_torch import Torch, new_tables
from compare_peers_workloads import SHAPES, prepare, small
work = prepare(small(SHAPES["W3"]))
tables = new_tables(work)
ours, other = Ours(work, How()), Torch(work, tables)
def check():
    check_outputs({{OURS: (ours, ours.pooled(0)), "torch": (other, other.pooled(0))}}, 1e-5)
def rows():
    check_rows(ours, "torch", other, rtol=1e-4, atol=1e-5)
check()
rows()
tables[3][work.batches[0].ids[3][0]] += 1e-3
for refuses in (check, rows):
    try:
        refuses()
    except AssertionError as error:
        assert "torch and tiermem differ" in str(error), error
    else:
        raise SystemExit(f"{{refuses.__name__}} did not notice")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_unknown_workload_is_refused(root: Path) -> None:
    done = _run(root, "--workload", "W1,W9")
    assert done.returncode == 2
    assert "W9" in done.stderr


@pytest.mark.skipif(HAS_FBGEMM, reason="FBGEMM is installed")
def test_without_fbgemm_it_says_what_to_do(root: Path) -> None:
    done = _run(root, "--small")
    assert done.returncode == 2
    assert "make peers" in done.stderr
    assert "--without-fbgemm" in done.stderr


@pytest.mark.skipif(not HAS_FBGEMM, reason="FBGEMM is not installed; .venv-peers has it, see make peers")
def test_beside_fbgemm(root: Path, tmp_path: Path) -> None:
    found = _document(root, tmp_path, "--workload", "W1,W2,W3")
    assert found["fbgemm"]["version"] == "1.8.0"
    section = found["sections"]["W3 row-wise AdaGrad"]
    assert section["figures"]["checked"]["largest_weight_difference"] < 1e-5
    assert any("FBGEMM over tiermem" in target["what"] for target in section["targets"])
