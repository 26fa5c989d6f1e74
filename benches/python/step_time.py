"""Host time of one training step, all rows in DRAM against a tiered store: a ratio in one run.

`python benches/python/step_time.py [--small]` prints one JSON object. Both sides run interleaved in
this process with the same threads; median and spread are over the repetitions. The emulated devices
run in virtual time, so what is timed is this package, not a device.
"""

import argparse
import json
import os
import statistics
import time

import tiermem as tm
import torch
from tiermem import _core
from tiermem.config import SyntheticData
from tiermem.data import Batch, batches, load_dataset
from tiermem.results import digest, host


def _collection(name: str, dim: int, rows: int, tables: int) -> tm.TieredEmbeddingBagCollection:
    configs = [tm.TableConfig(name=f"t{n}", rows=rows, dim=dim) for n in range(tables)]
    budgets = {"dram": 0.01} if name != "dram" else {}
    return tm.TieredEmbeddingBagCollection(
        configs,
        hierarchy=tm.Hierarchy.load(name, budgets=budgets),
        optimizer=tm.RowWiseAdagrad(lr=0.05),
        fused_in_backward=True,
        prefetch_distance=2,
    )


def _train(bags: tm.TieredEmbeddingBagCollection, samples: list[Batch]) -> tuple[float, float]:
    """Seconds of wall time and of processor time for all batches."""
    wall, cpu = time.perf_counter(), time.process_time()

    def lookups(batch: Batch) -> list[tm.Lookup]:
        pairs = enumerate(batch.sparse)
        return [tm.Lookup(n, torch.from_numpy(ids), torch.from_numpy(offsets)) for n, (ids, offsets) in pairs]

    for _, ticket in bags.pipeline(samples, lookups):
        sum(pooled.square().sum() for pooled in bags(ticket)).backward()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a size that the checks run")
    options = parser.parse_args()
    tables, rows, dim, steps, repetitions = (2, 2_000, 16, 4, 2) if options.small else (4, 250_000, 32, 40, 7)
    torch.set_num_threads(1)
    config = SyntheticData(
        name="synthetic", samples=512 * steps, tables=tables, rows_per_table=rows, ids_per_bag=4
    )
    data = load_dataset(config, seed=1)
    samples = list(batches(data, data.samples(0), 512))
    stores = {name: _collection(name, dim, rows, tables) for name in ("dram", "dram-nand")}
    for bags in stores.values():
        _train(bags, samples)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in stores}
    for _ in range(repetitions):
        for name, bags in stores.items():
            times[name].append(_train(bags, samples))
    weights = {
        name: digest(
            [float(part.double().sum()) for table in range(tables) for _, part, _ in bags.store.rows(table)]
        )
        for name, bags in stores.items()
    }
    assert len(set(weights.values())) == 1, "both sides trained the same bits"
    ratios = [tiered[0] / dram[0] for dram, tiered in zip(times["dram"], times["dram-nand"], strict=True)]

    def median_ms(position: int) -> dict[str, float]:
        return {
            name: statistics.median(pair[position] for pair in found) * 1e3 / len(samples)
            for name, found in times.items()
        }

    result = {
        "bench": "step_time",
        "tables": tables,
        "rows": rows,
        "dim": dim,
        "ids_per_step": 512 * 4 * tables,
        "repetitions": repetitions,
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "step_ms": median_ms(0),
        "cpu_ms": median_ms(1),
        "tiered_over_dram": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "tiered_reads": stores["dram-nand"].stats().tier("nand").device_reads,
        "weights_digest": weights["dram"],
        "build_profile": _core.BUILD_PROFILE,
        "host": host(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
