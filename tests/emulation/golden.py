"""Writes golden.json: what virtual time gives on every host. Run it when the model changes, and say why.

`python tests/emulation/golden.py`
"""

import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

from tiermem.cli.main import main as command
from tiermem.config import DeviceSpec, available
from tiermem.emulator import Load, bench_device
from tiermem.results import canonical, digest

PATH = Path(__file__).parent / "golden.json"
TRAINING = ["data.samples_max=4000", "data.rows_per_table=3000", "train.batch_size=256"]


def loads(spec: DeviceSpec) -> list[Load]:
    """Closed loop and open loop, reads and writes."""
    closed: dict[str, Any] = {"queue_depth": 16, "operations": 5000, "seed": 7}
    rate = 1e9 / spec.read.latency_ns
    return [
        Load(operation="randread", block_bytes=4096, **closed),
        Load(operation="randrw", block_bytes=8192, read_percent=70, **closed),
        Load(operation="seqwrite", block_bytes=65_536, **closed),
        Load(operation="randread", block_bytes=512, rate_iops=rate, operations=5000, seed=7),
    ]


def device_rows(name: str) -> list[dict[str, Any]]:
    """Every load on one shipped device."""
    spec = DeviceSpec.load(name)
    return [bench_device(spec, load).row() for load in loads(spec)]


def training_digest(hierarchy: str, folder: Path) -> str:
    """Results of a short training on the recorded trace through one hierarchy."""
    overrides = [option for each in [*TRAINING, f"hierarchy={hierarchy}"] for option in ("--set", each)]
    if hierarchy != "dram-nand":
        overrides += ["--set", "budgets={}"]
    verb = ["train", "--config", "demo-tiering", *overrides, "--out", str(folder), "--quiet", "--json"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = command(verb)
    assert code == 0, hierarchy
    found: str = json.loads(printed.getvalue())["results_digest"]
    return found


def current() -> dict[str, Any]:
    """Everything that the golden file holds."""
    devices = {}
    for name in available("devices"):
        rows = canonical(device_rows(name))
        devices[name] = {
            "digest": digest(rows),
            "iops": [row["iops"] for row in rows],
            "mean_us": [row["mean_us"] for row in rows],
        }
    trainings = {}
    for name in available("hierarchies"):
        with tempfile.TemporaryDirectory() as folder:
            trainings[name] = training_digest(name, Path(folder))
    return {"devices": devices, "trainings": trainings}


if __name__ == "__main__":
    PATH.write_text(json.dumps(current(), indent=1) + "\n")
