"""Hit rates and speed of every cache policy on the Scarab trace, beside libcachesim.

`python benches/python/replay_speed.py [--small] [--json FILE]` prints markdown tables. Speeds are of one
thread; policies are interleaved, and median and spread are over the repetitions.
`scarab_reference_hit_rates.json` holds hit rates of libcachesim 0.3.5 with its default parameters, and of an
own MIN, at 1, 5, 10 and 20 % of the distinct keys. libcachesim itself (GPL-3;
`pip install --no-deps libcachesim==0.3.5`) is timed where it is installed, and not needed otherwise.
"""

import argparse
import datetime
import functools
import importlib
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tiermem
from markdown import markdown_table
from tiermem.data.access_stream import POLICIES, AccessStream
from tiermem.data.importers import ImportOptions, open_source
from tiermem.data.trace_file import TraceReader, write_trace
from tiermem.results import host

SHARES = (0.01, 0.05, 0.1, 0.2)
REFERENCE = {
    "lru": "LRU",
    "lfu": "LFU",
    "clock": "Clock",
    "s3fifo": "S3FIFO",
    "sieve": "Sieve",
    "min": "MIN(insert-always)",
}
KEYS_SMALL = 100_000


def _import(folder: Path, *, small: bool) -> Path:
    """The trace as ours; a small one has the first keys alone."""
    shipped = Path(tiermem.__file__).parent / "data" / "traces" / "scarab-recs.trace.xz"
    trace = folder / "scarab.tmtrace"
    write_trace(trace, open_source("caffeine", [shipped], ImportOptions()), origin="Scarab")
    if small:
        ids = np.concatenate([batch[0].ids for batch in TraceReader(trace)])[:KEYS_SMALL]
        ids.tofile(folder / "small")
        write_trace(trace, open_source("int64", [folder / "small"], ImportOptions()), origin="Scarab, cut")
    return trace


def _peers(trace: Path, folder: Path) -> dict[str, Callable[[int], float]]:
    """For each policy that libcachesim has: replays all keys at a size and gives the hit rate."""
    if importlib.util.find_spec("libcachesim") is None:
        return {}
    peer: Any = importlib.import_module("libcachesim")
    ids = np.concatenate([batch[0].ids for batch in TraceReader(trace)])
    # libcachesim's own binary format, which is the fastest for it to read.
    record = np.dtype([("time", "<u4"), ("id", "<u8"), ("bytes", "<u4"), ("next_use", "<i8")])
    records = np.zeros(len(ids), dtype=record)
    records["id"], records["bytes"] = ids, 1
    records.tofile(folder / "keys.oracleGeneral")
    how = peer.ReaderInitParam(ignore_obj_size=True)
    reader = peer.TraceReader(str(folder / "keys.oracleGeneral"), peer.TraceType.ORACLE_GENERAL_TRACE, how)

    def run(name: str) -> Callable[[int], float]:
        def replay(rows: int) -> float:
            reader.reset()
            cache = getattr(peer, name)(cache_size=rows)
            return float(1 - cache.process_trace(reader)[0])

        return replay

    return {policy: run(name) for policy, name in REFERENCE.items() if policy != "min"}


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _hit_rates(rates: dict[str, list[float]]) -> list[str]:
    reference = json.loads((Path(__file__).parent / "scarab_reference_hit_rates.json").read_text())
    rows = []
    for policy, found in rates.items():
        cells = [policy]
        for share, rate in zip(SHARES, found, strict=True):
            cell = f"{100 * rate:.2f}"
            if policy in REFERENCE:
                other = reference[f"scarab-recs@{share:g}"][REFERENCE[policy]]
                cell += f" / {100 * other:.2f} ({100 * (rate - other):+.2f})"
            cells.append(cell)
        rows.append(cells)
    return markdown_table(("policy, ours / reference (difference)", "1 %", "5 %", "10 %", "20 %"), rows)


def _speed_table(sizes: list[int], speeds: dict[str, list[float]], names: list[tuple[str, str]]) -> list[str]:
    rows = []
    for program, policy in names:
        cells = [program, policy]
        for size in sizes:
            found = speeds[f"{program} {policy} {size}"]
            cells.append(f"{statistics.median(found):.1f} ({min(found):.1f} - {max(found):.1f})")
        rows.append(cells)
    return markdown_table(("million accesses/s", "policy", *(f"{size:,} rows" for size in sizes)), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--small", action="store_true", help="a size that the checks run, without libcachesim"
    )
    parser.add_argument("--json", metavar="FILE", help="all figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trace = _import(folder, small=options.small)
        stream = AccessStream(trace)
        sizes = [round(share * stream.distinct) for share in SHARES]
        peers = {} if options.small else _peers(trace, folder)
        runs: dict[tuple[str, str, int], Callable[[], object]] = {}
        for policy in POLICIES:
            for size in sizes:
                runs["tiermem", policy, size] = functools.partial(stream.replay_hits, policy, size)
                if policy in peers:
                    runs["libcachesim", policy, size] = functools.partial(peers[policy], size)
        seconds: dict[tuple[str, str, int], list[float]] = {key: [] for key in runs}
        for _ in range(2 if options.small else 7):
            for key, run in runs.items():
                seconds[key].append(_timed(run))
        rates = {p: [point.hit_rate for point in stream.curve(p, sizes)] for p in POLICIES}
    speeds = {
        " ".join(map(str, key)): [stream.accesses / each / 1e6 for each in found]
        for key, found in seconds.items()
    }
    if not options.small:
        print("\n".join(_hit_rates(rates)))
    names = list(dict.fromkeys((program, policy) for program, policy, _ in runs))
    print("\n".join(_speed_table(sizes, speeds, names)))
    if not peers and not options.small:
        print("libcachesim is not installed and left out: pip install --no-deps libcachesim==0.3.5\n")
    about = host()
    today = datetime.datetime.now(tz=datetime.UTC).date()
    print(f"{stream.accesses:,} accesses, one thread; {about['processor']}, {about['cores']} cores, {today}")
    if options.json:
        Path(options.json).write_text(
            json.dumps({"host": about, "rates": rates, "million_per_s": speeds}, indent=1)
        )


if __name__ == "__main__":
    main()
