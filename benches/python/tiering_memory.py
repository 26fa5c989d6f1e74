"""Peak memory of 2,000 training steps over the declared budget: in a process of its own, rows in a file.

`python tiering_memory.py SPEC` is that process.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tiermem as tm
import torch
from tiering_limit import peak_resident_bytes, reset_peak, resident_bytes
from tiering_report import Section, Spread, Target
from tiermem.data.hashing import hash_rows

OVER_BUDGET_BYTES_MOST = 64 << 20
STEPS = 2_000
FULL = {"tables": 4, "rows": 500_000, "dim": 64, "batch": 256, "ids_per_bag": 4, "steps": STEPS}
SMALL = {"tables": 1, "rows": 20_000, "dim": 16, "batch": 16, "ids_per_bag": 4, "steps": STEPS}


def _open(spec: dict[str, Any]) -> tm.TieredEmbeddingBagCollection:
    hierarchy = tm.Hierarchy.load(
        "dram-nand", budgets={"dram": 0.05}, directory=spec["directory"], staging_bytes="32MiB"
    )
    tables = [tm.TableConfig(name=f"t{n}", rows=spec["rows"], dim=spec["dim"]) for n in range(spec["tables"])]
    return tm.TieredEmbeddingBagCollection(
        tables,
        hierarchy=hierarchy,
        optimizer=tm.RowWiseAdagrad(lr=0.05),
        fused_in_backward=True,
        prefetch_distance=2,
    )


def _import_the_rest() -> None:
    """A first optimizer and a first backward pass make PyTorch import 160 MB more of itself."""
    parameter = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    parameter.square().sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _train(spec: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    _import_the_rest()
    after_import = resident_bytes()
    reset = reset_peak()
    bags = _open(spec)
    generator = np.random.default_rng(1)
    ids = spec["batch"] * spec["ids_per_bag"]
    offsets = torch.arange(spec["batch"]) * spec["ids_per_bag"]

    def lookups(step: int) -> list[tm.Lookup]:
        # Four accesses in five go to a fiftieth of the rows, which drifts.
        hot = generator.integers(0, spec["rows"] // 50, ids) + step * 10
        keys = np.where(generator.random(ids) < 0.8, hot, generator.integers(0, spec["rows"], ids))
        return [
            tm.Lookup(table, torch.from_numpy(hash_rows(keys, table, spec["rows"])), offsets)
            for table in range(spec["tables"])
        ]

    course = []
    for step, ticket in bags.pipeline(range(spec["steps"]), lookups):
        total = torch.stack([pooled.square().sum() for pooled in bags(ticket)]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        if step % (spec["steps"] // 10) == 0:
            course.append(resident_bytes())
    stats = bags.stats()
    memory = stats.memory
    parts = {
        "resident_bytes": memory.resident_bytes,
        "cached_bytes": memory.cached_bytes,
        "staging_bytes": memory.staging_bytes,
        "metadata_bytes": memory.metadata_bytes,
    }
    home = stats.tiers[-1]
    found = {
        "after_import_bytes": after_import,
        "peak_bytes": peak_resident_bytes(),
        "peak_was_reset": reset,
        "declared": parts,
        "declared_bytes": sum(parts.values()),
        "course_bytes": course,
        "engine": home.device.engine,
        "device_reads": home.device_reads,
        "device_writes": home.device_writes,
    }
    bags.close()
    return found


def memory(folder: Path, *, small: bool) -> Section:
    """The whole section."""
    spec = SMALL if small else FULL
    repetitions = 1 if small else 5
    runs = []
    for _ in range(repetitions):
        done = subprocess.run(
            [sys.executable, __file__, json.dumps({**spec, "directory": str(folder)})],
            capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"the training ended with {done.returncode}: {done.stderr[-2000:]}")
        runs.append(json.loads(done.stdout))
    over = [run["peak_bytes"] - run["after_import_bytes"] - run["declared_bytes"] for run in runs]
    section = Section(
        name="memory",
        title="peak resident size over what the process had after its imports and the declared budget",
        parameters={**spec, "repetitions": repetitions, "threads": 1, "engine": runs[0]["engine"]},
        targets=[
            Target(
                what="over the declared budget, MiB",
                measured=Spread.of([each / 2**20 for each in over]),
                bound=OVER_BUDGET_BYTES_MOST / 2**20,
                at_most=True,
                digits=1,
            )
        ],
        figures={"runs": runs, "over_budget_bytes": over},
    )
    shown = {
        "resident after imports": [run["after_import_bytes"] for run in runs],
        "peak": [run["peak_bytes"] for run in runs],
        "declared: cached": [run["declared"]["cached_bytes"] for run in runs],
        "declared: staging": [run["declared"]["staging_bytes"] for run in runs],
        "declared: metadata": [run["declared"]["metadata_bytes"] for run in runs],
    }
    rows = [(name, Spread.of([each / 2**20 for each in values]).text(1)) for name, values in shown.items()]
    section.add_table(("memory", "MiB"), rows)
    if not all(run["peak_was_reset"] for run in runs):
        section.notes.append("The kernel did not reset the peak after the imports; it includes theirs.")
    assert all(run["device_reads"] and run["device_writes"] for run in runs), "rows went to the file and back"
    return section


if __name__ == "__main__":
    print(json.dumps(_train(json.loads(sys.argv[1]))))
