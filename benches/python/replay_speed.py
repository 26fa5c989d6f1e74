"""Hit rates and speed of every cache policy on the Scarab trace, beside libcachesim.

`python benches/python/replay_speed.py [--small] [--json FILE]` prints markdown tables. Speeds are of one
thread; policies and programs are interleaved, and median and spread are over the repetitions. libcachesim
0.3.5 (GPL-3) is timed where it is installed, and not needed otherwise. The comparison favours it: its table
of keys has the size that is fastest for each cache (its default of 2^24 buckets makes it several times
slower), and only its loop is timed, while ours is timed with the making of the cache. Its loop reads records
of 24 bytes from a mapped file, ours keys of 8 bytes from memory.
"""

# scarab_reference_hit_rates.json: libcachesim 0.3.5 with its default parameters, and for MIN a replay that
# always admits, computed once from scarab-recs.trace.xz at 1, 5, 10 and 20 % of the distinct keys.

import argparse
import datetime
import functools
import importlib
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tiermem
from markdown import markdown_table
from tiermem.data.access_stream import POLICIES, AccessStream
from tiermem.data.importers import ImportOptions, open_source
from tiermem.data.trace_file import TraceReader, write_trace
from tiermem.results import host, write_text

SHARES = (0.01, 0.05, 0.1, 0.2)
REFERENCE = {
    "lru": "LRU",
    "lfu": "LFU",
    "clock": "Clock",
    "s3fifo": "S3FIFO",
    "sieve": "Sieve",
    "min": "MIN(insert-always)",
}
PEERS = {**{policy: REFERENCE[policy] for policy in REFERENCE if policy != "min"}, "min": "Belady"}
KEYS_SMALL = 100_000
HASHPOWERS_TRIED = 5
"""From as many buckets as rows on, each twice as many as before."""

Key = tuple[str, str, int]
Outcome = tuple[float, float]
"""Seconds and hit rate."""


def _import(folder: Path, *, small: bool) -> Path:
    """The trace as ours; a small one has the first keys alone."""
    shipped = Path(tiermem.__file__).parent / "data" / "traces" / "scarab-recs.trace.xz"
    trace = folder / "scarab.tmtrace"
    write_trace(trace, open_source("caffeine", [shipped], ImportOptions()), origin="Scarab")
    if small:
        _ids(trace)[:KEYS_SMALL].tofile(folder / "small")
        write_trace(trace, open_source("int64", [folder / "small"], ImportOptions()), origin="Scarab, cut")
    return trace


def _ids(trace: Path) -> npt.NDArray[np.int64]:
    return np.concatenate([batch[0].ids for batch in TraceReader(trace)])


def _next_uses(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Position at which each key is asked for again, int64 [L]; -1: never."""
    order = np.argsort(ids, kind="stable")
    again = ids[order[:-1]] == ids[order[1:]]
    found = np.full(len(ids), -1, dtype=np.int64)
    found[order[:-1][again]] = order[1:][again]
    return found


class Peer:
    """libcachesim with all keys in a file of its own format."""

    def __init__(self, trace: Path, folder: Path) -> None:
        self._module: Any = importlib.import_module("libcachesim")
        self.version = str(self._module.__version__)
        ids = _ids(trace)
        record = np.dtype([("time", "<u4"), ("id", "<u8"), ("bytes", "<u4"), ("next_use", "<i8")])
        records = np.zeros(len(ids), dtype=record)
        records["id"], records["bytes"], records["next_use"] = ids, 1, _next_uses(ids)
        path = folder / "keys.oracleGeneral"
        records.tofile(path)
        how = self._module.ReaderInitParam(ignore_obj_size=True)
        kind = self._module.TraceType.ORACLE_GENERAL_TRACE
        self._reader = self._module.TraceReader(str(path), kind, how)

    def run(self, policy: str, rows: int, hashpower: int) -> Outcome:
        """The loop alone, in C."""
        self._reader.reset()
        cache = getattr(self._module, PEERS[policy])(cache_size=rows, hashpower=hashpower)
        began = time.perf_counter()
        missed = cache.process_trace(self._reader)[0]
        return time.perf_counter() - began, 1 - float(missed)

    def fastest_hashpower(self, policy: str, rows: int) -> int:
        """The best of two runs each."""
        least = (rows - 1).bit_length()
        tried = range(least, least + HASHPOWERS_TRIED)
        return min(tried, key=lambda power: min(self.run(policy, rows, power)[0] for _ in range(2)))


def _ours(stream: AccessStream, policy: str, rows: int) -> Outcome:
    began = time.perf_counter()
    hits = stream.replay_hits(policy, rows)
    return time.perf_counter() - began, hits / stream.accesses


def _measure(runs: Mapping[Key, Callable[[], Outcome]], repetitions: int) -> dict[Key, list[Outcome]]:
    found: dict[Key, list[Outcome]] = {key: [] for key in runs}
    for _ in range(repetitions):
        for key, run in runs.items():
            found[key].append(run())
    return found


def _rate_lines(rates: Mapping[Key, float], sizes: Sequence[int]) -> list[str]:
    """Beside the reference, which is of the whole trace."""
    reference = json.loads(
        (Path(__file__).parents[2] / "tests" / "data" / "scarab_reference_hit_rates.json").read_text()
    )
    rows = []
    for policy in POLICIES:
        cells = [policy]
        for share, size in zip(SHARES, sizes, strict=True):
            ours = rates["tiermem", policy, size]
            cell = f"{100 * ours:.2f}"
            if policy in REFERENCE:
                other = reference[f"scarab-recs@{share:g}"][REFERENCE[policy]]
                cell += f" / {100 * other:.2f} ({100 * (ours - other):+.2f})"
            measured = rates.get(("libcachesim", policy, size))
            if measured is not None:
                cell += f", {100 * measured:.2f} here"
            cells.append(cell)
        rows.append(cells)
    heads = ("hit rate in %: ours / reference (points)", *(f"{100 * share:g} %" for share in SHARES))
    return markdown_table(heads, rows)


def _spread(values: Sequence[float], digits: int) -> str:
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def _speed_lines(speeds: Mapping[Key, list[float]], sizes: Sequence[int]) -> list[str]:
    rows = []
    for policy in POLICIES:
        rows.append(["tiermem", policy, *(_spread(speeds["tiermem", policy, size], 1) for size in sizes)])
        if ("libcachesim", policy, sizes[0]) not in speeds:
            continue
        pairs = [(speeds["tiermem", policy, size], speeds["libcachesim", policy, size]) for size in sizes]
        rows.append(["libcachesim", policy, *(_spread(theirs, 1) for _, theirs in pairs)])
        ratios = [[mine / other for mine, other in zip(*pair, strict=True)] for pair in pairs]
        rows.append(["ratio", policy, *(_spread(each, 2) for each in ratios)])
    return markdown_table(("million accesses/s", "policy", *(f"{size:,} rows" for size in sizes)), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--small", action="store_true", help="a size that the checks run, without libcachesim"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    options = parser.parse_args(arguments)
    repetitions = 2 if options.small else 7
    has_peer = not options.small and importlib.util.find_spec("libcachesim") is not None
    hashpowers: dict[tuple[str, int], int] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trace = _import(folder, small=options.small)
        stream = AccessStream(trace)
        peer = Peer(trace, folder) if has_peer else None
        sizes = [round(share * stream.distinct) for share in SHARES]
        runs: dict[Key, Callable[[], Outcome]] = {}
        for size in sizes:
            for policy in POLICIES:
                runs["tiermem", policy, size] = functools.partial(_ours, stream, policy, size)
                if peer is not None and policy in PEERS:
                    power = hashpowers[policy, size] = peer.fastest_hashpower(policy, size)
                    runs["libcachesim", policy, size] = functools.partial(peer.run, policy, size, power)
        found = _measure(runs, repetitions)
    rates = {key: outcomes[0][1] for key, outcomes in found.items()}
    speeds = {key: [stream.accesses / each[0] / 1e6 for each in outcomes] for key, outcomes in found.items()}
    # The small trace has no reference.
    lines = [] if options.small else _rate_lines(rates, sizes)
    print("\n".join([*lines, *_speed_lines(speeds, sizes)]))
    if not options.small and peer is None:
        print("libcachesim is not installed and left out: pip install --no-deps libcachesim==0.3.5\n")
    about = host()
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    command = " ".join(["replay_speed.py", *(sys.argv[1:] if arguments is None else arguments)])
    omp = os.environ.get("OMP_NUM_THREADS", "not set")
    print(f"{command}: {stream.accesses:,} accesses, {stream.distinct:,} rows; median (least to most) of")
    print(f"{repetitions} repetitions, one thread, OMP_NUM_THREADS {omp}.")
    print(f"{about['processor']}, {about['cores']} cores, {about['system']}, {today}")
    if options.json is not None:
        points = [
            {
                "program": program,
                "policy": policy,
                "rows": size,
                "hit_rate": rates[program, policy, size],
                "million_per_s": values,
                "hashpower": hashpowers.get((policy, size)) if program == "libcachesim" else None,
            }
            for (program, policy, size), values in speeds.items()
        ]
        document = {
            "bench": "replay_speed",
            "small": options.small,
            "command": command,
            "accesses": stream.accesses,
            "distinct": stream.distinct,
            "repetitions": repetitions,
            "threads": 1,
            "libcachesim": None if peer is None else peer.version,
            "points": points,
            "host": about,
            "date": today,
        }
        write_text(options.json, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
