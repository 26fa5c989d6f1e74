"""How far the emulated devices can be trusted: writes docs/fidelity.md.

`python benches/python/fidelity.py [--small] [--out FILE.md] [--json FILE]` compares the model with every
published point of every device, with a published sweep that no profile was made from, and with
itself in real time. Pin nothing: real time runs on one thread, and lateness is part of the result.
"""

import argparse
import dataclasses
import datetime
import json
import statistics
import time
from pathlib import Path
from typing import Any

import tiermem as tm
from client_views import SMALL, ViewSizes, client_views
from markdown import markdown_table
from scipy.stats import wasserstein_distance
from tiermem import _core
from tiermem.config import DeviceSpec, available
from tiermem.emulator import (
    BenchPoint,
    Comparison,
    FitTargets,
    Load,
    bench_device,
    compare_published,
    fit_device,
)
from tiermem.errors import ConfigError
from tiermem.results import host, write_text

DATA = Path(__file__).parent / "published_sweep.json"
LATE_SHARE_MAX = 0.01
LATENESS_US = (1, 2, 5, 10, 20, 50, 100, 1000)
TAILS = ("p50_ns", "p99_ns", "p999_ns", "p9999_ns", "p99999_ns")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is run."""

    operations: int
    wall_seconds: float
    repetitions: int
    wall_depths: tuple[int, ...]
    devices: tuple[str, ...]


def _sizes(*, small: bool) -> Sizes:
    names = tuple(available("devices"))
    if small:
        return Sizes(10_000, 0.01, 2, (1,), ("nand-p3700", "optane-p4800x", "dram-ddr4-2933"))
    return Sizes(200_000, 0.4, 5, (1, 8, 32), names)


def _value(quantity: str, value: float) -> str:
    if quantity == "iops":
        return f"{value:,.0f} IOPS"
    if quantity == "bytes_per_s":
        return f"{value / 1e9:.2f} GB/s"
    return f"{value / 1000:,.4g} us" if value >= 1000 else f"{value:.0f} ns"


def _load(comparison: Comparison) -> str:
    point = comparison.published
    share = f" {point.read_percent} % reads" if point.operation == "randrw" else ""
    load = f"QD {point.queue_depth}"
    if point.offered_bytes_per_s:
        load = f"at {point.offered_bytes_per_s / 1e9:.4g} GB/s"
    return f"{point.operation}{share}, {point.block_bytes} B, {load}"


def _published(devices: dict[str, list[Comparison]]) -> list[str]:
    rows = []
    for name, found in devices.items():
        errors = [abs(each.error) for each in found if each.is_target]
        checks = [abs(each.error) for each in found if each.is_target and each.published.role == "check"]
        first = next((each for each in found if each.is_target and each.published.queue_depth == 1), None)
        throughput = [abs(e.error) for e in found if e.is_target and not e.published.quantity.endswith("_ns")]
        tails = [abs(e.error) for e in found if e.published.quantity in TAILS]
        rows.append(
            (
                name,
                str(len(errors)),
                f"{statistics.mean(errors):.1%}",
                f"{max(errors):.1%}",
                f"{max(checks):.1%} of {len(checks)}" if checks else "-",
                f"{first.error:+.1%}" if first else "-",
                f"{max(throughput):.1%}" if throughput else "-",
                f"{max(tails):.0%} of {len(tails)}" if tails else "-",
            )
        )
    heads = (
        "device", "points", "mean error", "worst", "worst of those not fitted", "at QD 1", "worst throughput",
        "worst percentile",
    )  # fmt: skip
    return markdown_table(heads, rows)


def _points(name: str, found: list[Comparison]) -> list[str]:
    rows = []
    notes: list[str] = []
    for each in found:
        point = each.published
        mark = ""
        if point.note:
            notes.append(f"{len(notes) + 1}. {point.note}.")
            mark = f" ({len(notes)})"
        rows.append(
            (
                _load(each),
                point.quantity.removesuffix("_ns").replace("bytes_per_s", "bandwidth"),
                _value(point.quantity, point.value),
                _value(point.quantity, each.model),
                f"{each.error:+.1%}",
                point.role + mark,
                f"{point.kind}: {point.ref}",
            )
        )
    heads = ("load", "quantity", "published", "model", "error", "role", "source")
    return [f"### {name}", "", *markdown_table(heads, rows), *notes, ""]


def _sweep() -> tuple[list[str], dict[str, float]]:
    """A drive of which only three numbers are given to fit; the rest of its sweep is a check."""
    data = json.loads(DATA.read_text(encoding="utf-8"))
    by_depth = {point["queue_depth"]: point for point in data["points"]}
    fit = fit_device(
        FitTargets(
            name="published-sweep",
            read_latency_us=by_depth[1]["mean_us"],
            max_read_iops=by_depth[256]["iops"],
            read_bandwidth=3e9,
            loaded=((16, by_depth[16]["mean_us"]),),
        )
    )
    rows, errors = [], []
    for depth, point in by_depth.items():
        found = bench_device(fit.spec, Load(queue_depth=depth, operations=100_000, span="500GiB"))
        mean_error = found.latency.mean_ns / 1000 / point["mean_us"] - 1
        iops_error = found.iops / point["iops"] - 1
        errors += [abs(mean_error), abs(iops_error)]
        rows.append(
            (
                str(depth),
                f"{point['mean_us']:.2f}",
                f"{found.latency.mean_ns / 1000:.2f}",
                f"{mean_error:+.1%}",
                f"{point['iops']:,}",
                f"{found.iops:,.0f}",
                f"{iops_error:+.1%}",
            )
        )
    heads = ("QD", "published mean us", "model", "error", "published IOPS", "model", "error")
    summary = {"mean": statistics.mean(errors), "worst": max(errors)}
    text = [
        f"{data['what'][0].upper()}{data['what'][1:]} ({data['source']}). `tiermem device fit` was given the"
        f" latency at QD 1, the IOPS at QD 256 and the latency at QD 16, and found {fit.spec.units} units."
        f" Over all points: {summary['mean']:.1%} on average, {summary['worst']:.1%} at worst.",
        "",
        *markdown_table(heads, rows),
    ]
    return text, summary


def _zero() -> DeviceSpec:
    """A device that takes no time, to see what the harness takes."""
    spec = DeviceSpec.load("optane-p4800x")
    read = spec.read.replace(
        latency_ns=2, command_ns=0, bandwidth_bytes_per_s=2**50, latency_quantiles_ns=(), latency_max_ns=0
    )
    return spec.replace(
        name="zero-latency",
        units=65_536,
        host={"submit_ns": 0, "complete_ns": 0},
        read=read.model_dump(),
    )


def _weights(cdf: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    shares = [share for _, share in cdf]
    return [ns for ns, _ in cdf], [b - a for a, b in zip([0.0, *shares], shares, strict=False)]


def _wall_rows(spec: DeviceSpec, sizes: Sizes) -> list[dict[str, Any]]:
    rows = []
    for depth in sizes.wall_depths:
        virtual = bench_device(spec, Load(queue_depth=depth, operations=sizes.operations, span="256MiB"))
        operations = max(200, int(sizes.wall_seconds * virtual.iops))
        load = Load(queue_depth=depth, operations=operations, span="256MiB")
        runs = [bench_device(spec, load, clock="wall") for _ in range(sizes.repetitions)]
        rows.append(_compare(spec.name, depth, virtual, runs))
    return rows


def _compare(name: str, depth: int, virtual: BenchPoint, runs: list[BenchPoint]) -> dict[str, Any]:
    """The medians of the real-time runs beside the virtual one."""
    values, weights = _weights(virtual.cdf)
    distances = []
    for run in runs:
        other_values, other_weights = _weights(run.cdf)
        distances.append(float(wasserstein_distance(values, other_values, weights, other_weights)))
    ratios = [run.iops / virtual.iops - 1 for run in runs]
    late = [run.lateness.late_share for run in runs]
    return {
        "device": name,
        "queue_depth": depth,
        "iops_error": statistics.median(ratios),
        "iops_error_spread": (min(ratios), max(ratios)),
        "mean_error": statistics.median(run.latency.mean_ns / virtual.latency.mean_ns - 1 for run in runs),
        "p50_error": statistics.median(run.latency.p50_ns / virtual.latency.p50_ns - 1 for run in runs),
        "w1_us": statistics.median(distances) / 1000,
        "w1_share": statistics.median(distances) / virtual.latency.mean_ns,
        "late": statistics.median(late),
        "late_spread": (min(late), max(late)),
        "late_by": runs[late.index(statistics.median_low(late))].late_by_cdf,
    }


def _wall_table(rows: list[dict[str, Any]]) -> list[str]:
    heads = (
        "device", "QD", "IOPS", "(spread)", "mean", "p50", "W1", "W1 / mean", "late", "(spread)", "verdict",
    )  # fmt: skip
    return markdown_table(
        heads,
        (
            (
                row["device"],
                str(row["queue_depth"]),
                f"{row['iops_error']:+.1%}",
                "{:+.1%} to {:+.1%}".format(*row["iops_error_spread"]),
                f"{row['mean_error']:+.1%}",
                f"{row['p50_error']:+.1%}",
                f"{row['w1_us']:.2f} us",
                f"{row['w1_share']:.1%}",
                f"{row['late']:.2%}",
                "{:.2%} to {:.2%}".format(*row["late_spread"]),
                "valid" if row["late"] <= LATE_SHARE_MAX else "virtual only",
            )
            for row in rows
        ),
    )


def _share_below(cdf: list[tuple[int, float]], limit_ns: int) -> float:
    return max((share for ns, share in cdf if ns <= limit_ns), default=0.0)


def _lateness_table(rows: list[dict[str, Any]]) -> list[str]:
    heads = ("device", "QD", *(f"<= {limit} us" for limit in LATENESS_US))
    return markdown_table(
        heads,
        (
            (
                row["device"],
                str(row["queue_depth"]),
                *(f"{_share_below(row['late_by'], limit * 1000):.2%}" for limit in LATENESS_US),
            )
            for row in rows
        ),
    )


def _memories(sizes: Sizes) -> list[str]:
    rows = []
    for name in sizes.devices:
        spec = DeviceSpec.load(name)
        if spec.kind != "byte":
            continue
        try:
            tm.open_device(spec, capacity="256MiB", clock="wall")
            verdict = "batches can run in real time"
        except ConfigError as error:
            verdict = str(error).partition(" (")[2].rstrip(")")
            verdict = f"virtual only: {verdict}"
        rows.append((name, verdict))
    return markdown_table(("memory", "on this host"), rows)


def _overhead(sizes: Sizes) -> list[str]:
    spec = _zero()
    rows = []
    for depth in sizes.wall_depths:
        operations = max(200, int(sizes.wall_seconds * 500_000))
        load = Load(queue_depth=depth, operations=operations, span="256MiB")
        runs = [bench_device(spec, load, clock="wall") for _ in range(sizes.repetitions)]
        iops = [run.iops for run in runs]
        rows.append(
            (
                str(depth),
                f"{statistics.median(iops):,.0f} ({min(iops):,.0f} to {max(iops):,.0f})",
                f"{statistics.median(run.latency.mean_ns for run in runs):,.0f} ns",
                f"{statistics.median(run.latency.p50_ns for run in runs):,.0f} ns",
                f"{statistics.median(run.latency.p99_ns for run in runs):,.0f} ns",
            )
        )
    return markdown_table(("QD", "operations a second", "mean", "p50", "p99"), rows)


def _cost(sizes: Sizes) -> list[str]:
    rows = []
    for name, depth, nbytes in (
        ("nand-p3700", 32, 4096), ("nand-p3700", 256, 4096), ("nand-p3700", 32, 131_072),
        ("optane-p4800x", 32, 4096),
    ):  # fmt: skip
        spec = DeviceSpec.load(name)
        load = Load(queue_depth=depth, block_bytes=nbytes, operations=5 * sizes.operations, span="4GiB")
        took = []
        for _ in range(sizes.repetitions):
            began = time.perf_counter_ns()
            bench_device(spec, load)
            took.append((time.perf_counter_ns() - began) / (1.1 * load.operations))
        rows.append(
            (name, str(depth), str(nbytes), f"{min(took):.0f} ({min(took):.0f} to {max(took):.0f}) ns")
        )
    return markdown_table(("device", "QD", "bytes", "host time a request, best (spread)"), rows)


def _page(
    sizes: Sizes, found: dict[str, list[Comparison]], wall: list[dict[str, Any]], views: list[str]
) -> tuple[str, float, float]:
    every = [each for points in found.values() for each in points if each.is_target]
    targets = [abs(each.error) for each in every]
    checks = [abs(each.error) for each in every if each.published.role == "check"]
    sweep, _ = _sweep()
    here = host()
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    parts = [
        "# Fidelity of the emulated devices",
        "",
        "Made by `python benches/python/fidelity.py --out docs/fidelity.md`; do not edit."
        f" {date}, {here['processor']}, {here['cores']} shared cores, {here['system']},"
        f" tiermem {here['versions']['tiermem']}, {_core.BUILD_PROFILE} build.",
        "",
        "Everything here that a device does is emulated. *Published* figures come from data sheets and"
        " reviews, as the device files say; *model* figures are this package's, in virtual time, and are the"
        " same on every host. Real-time figures depend on the host and on what else runs on it.",
        "",
        "## Published points in virtual time",
        "",
        f"{len(targets)} throughputs and mean latencies: {statistics.mean(targets):.1%} off on average,"
        f" {max(targets):.1%} at worst (wanted: 3 % and 6 %). Of these, {len(checks)} were not used to set"
        f" any number of a profile: {statistics.mean(checks):.1%} on average, {max(checks):.1%} at worst.",
        "",
        "Points marked *fitted* were used to set a number of the profile, so that they say that the model can"
        " meet them all at once; points marked *check* were not. Points marked *context* contradict another"
        " published figure of the same device and do not count; the percentiles have no target.",
        "",
        *_published(found),
        "## A published sweep that no profile was made from",
        "",
        *sweep,
        "## Real time against virtual time",
        "",
        f"The same load on the same model, 4 KiB random reads, {sizes.repetitions} runs of"
        f" {sizes.wall_seconds} s or more each; medians, and the spread where it tells something."
        " W1 is the Wasserstein distance between the two latency distributions. A request is late when it is"
        " delivered more than 2 us or 2 % of its latency after it was due, and with more than 1 % of such"
        " requests a run is invalid. Wanted where valid: IOPS and mean within 10 %, p50 within 5 %.",
        "",
        *_wall_table(wall),
        "Byte-addressable memories are imitated a batch at a time, if the host is faster than the memory:",
        "",
        *_memories(sizes),
        "## Device, API and client",
        "",
        *views,
        "## Lateness",
        "",
        "Share of requests delivered at most so long after they were due, in the run of median lateness.",
        "",
        *_lateness_table(wall),
        "## What the harness itself takes",
        "",
        "A device that takes no time, in real time on one thread: the floor under every figure above.",
        "",
        *_overhead(sizes),
        "The model in virtual time, with tails and histogram, requests drawn as they are needed:",
        "",
        *_cost(sizes),
        "## Every published point",
        "",
        *(line for name, points in found.items() for line in _points(name, points)),
    ]
    return "\n".join(parts).rstrip() + "\n", statistics.mean(targets), max(targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a size that the checks run")
    parser.add_argument("--out", type=Path, help="where the page goes; default: nowhere")
    options = parser.parse_args()
    sizes = _sizes(small=options.small)
    found = {
        name: compare_published(DeviceSpec.load(name), operations=sizes.operations) for name in sizes.devices
    }
    blocks = [spec for spec in map(DeviceSpec.load, sizes.devices) if spec.kind == "block"]
    wall = [row for spec in blocks for row in _wall_rows(spec, sizes)]
    views, summary = client_views(SMALL if options.small else ViewSizes())
    page, mean, worst = _page(sizes, found, wall, views)
    if options.out is not None:
        write_text(options.out, page)
    valid = [row for row in wall if row["late"] <= LATE_SHARE_MAX]
    print(
        json.dumps(
            {
                "bench": "fidelity",
                "small": options.small,
                "devices": len(found),
                "published_mean_error": round(mean, 4),
                "published_worst_error": round(worst, 4),
                "wall_points": len(wall),
                "wall_points_valid": len(valid),
                "wall_worst_valid_iops_error": max((abs(row["iops_error"]) for row in valid), default=None),
                **summary,
                "build_profile": _core.BUILD_PROFILE,
                "page_lines": page.count("\n"),
            }
        )
    )


if __name__ == "__main__":
    main()
