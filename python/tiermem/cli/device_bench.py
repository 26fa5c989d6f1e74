"""`tiermem device bench`: loads on one emulated device, closed or open loop, in virtual or in real time."""

import argparse
import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tiermem.cli.common import Output, add_output_options
from tiermem.config import DeviceSpec, Operation
from tiermem.errors import ConfigError
from tiermem.report import Table
from tiermem.results import digest, write_text
from tiermem.units import format_bytes, format_duration, parse_bytes

if TYPE_CHECKING:
    from tiermem.emulator import BenchPoint, Load

__all__ = ["add"]

_DEPTHS = "1,2,4,8,16,32,64,128"
_LATE_SHARE_MAX = 0.01
_LITTLE_ERROR_MAX = 0.01
_LATENCIES = {
    "mean": "mean_ns",
    "p50": "p50_ns",
    "p90": "p90_ns",
    "p99": "p99_ns",
    "p99.9": "p999_ns",
    "p99.99": "p9999_ns",
    "max": "max_ns",
}
# On a narrow terminal these are left to --json and --csv.
_WIDE = 140
_WIDE_ONLY = ("bandwidth", "p90", "p99.99", "busiest")


def add(actions: "argparse._SubParsersAction[Any]") -> None:
    """Adds the action."""
    bench = actions.add_parser("bench", help="throughput and latency over queue depths or arrival rates")
    bench.add_argument("name", metavar="NAME_OR_FILE", help="a shipped name, or a path")
    bench.add_argument(
        "--clock",
        choices=("virtual", "wall"),
        default="virtual",
        help="compute time, or run in real time (default: %(default)s)",
    )
    bench.add_argument("--op", choices=get_args(Operation), default="randread", help="default: %(default)s")
    bench.add_argument(
        "--read-percent", type=int, metavar="P", help="share of reads of a randrw (default: 50)"
    )
    bench.add_argument(
        "--block-bytes",
        metavar="N",
        help="size of a request (default: what the device's latency was stated for)",
    )
    load = bench.add_mutually_exclusive_group()
    load.add_argument("--queue-depth", metavar="N,N", help=f"closed loop: queue depths (default: {_DEPTHS})")
    load.add_argument(
        "--rate-iops", metavar="R,R", help="open loop: rates of Poisson arrivals, operations a second"
    )
    bench.add_argument(
        "--ops",
        type=int,
        default=100_000,
        metavar="N",
        help="operations measured per point (default: %(default)s)",
    )
    bench.add_argument(
        "--span",
        default="1GiB",
        metavar="SIZE",
        help="requests go to so many bytes; --clock wall keeps them in memory (default: %(default)s)",
    )
    bench.add_argument(
        "--state", choices=("fresh", "steady"), help="what was written before (default: as the file says)"
    )
    bench.add_argument(
        "--seed",
        type=int,
        default=1,
        metavar="S",
        help="seed of places, arrivals and latency draws (default: 1)",
    )
    bench.add_argument("--plot", metavar="FILE.svg", help="draw the loaded-latency curve")
    bench.add_argument("--csv", metavar="FILE", help="write the points as comma-separated values")
    add_output_options(bench)
    bench.set_defaults(run=_run)


def _numbers(option: str, text: str, kind: type) -> list[Any]:
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f'{option} "{text}" is not a list of numbers such as 1,8,32') from None
    if min(found) <= 0:
        raise ConfigError(f"{option} takes numbers above zero, got {text}")
    return found


def _size(text: str) -> int:
    return parse_bytes(int(text) if text.isdecimal() else text)


def _loads(options: argparse.Namespace, spec: DeviceSpec) -> "list[Load]":
    from tiermem.emulator import Load  # noqa: PLC0415 (loads the extension)

    block_bytes = spec.read.reference_bytes if options.block_bytes is None else _size(options.block_bytes)
    if options.rate_iops is not None:
        how: list[dict[str, Any]] = [
            {"rate_iops": rate} for rate in _numbers("--rate-iops", options.rate_iops, float)
        ]
    else:
        depths = _numbers(
            "--queue-depth", _DEPTHS if options.queue_depth is None else options.queue_depth, int
        )
        how = [{"queue_depth": depth} for depth in depths]
    return [
        Load(
            operation=options.op,
            block_bytes=block_bytes,
            read_percent=options.read_percent,
            operations=options.ops,
            span=_size(options.span),
            seed=options.seed,
            **each,
        )
        for each in how
    ]


def _run(options: argparse.Namespace) -> int:
    from tiermem.emulator import bench_device  # noqa: PLC0415

    output = Output(options)
    spec = DeviceSpec.load(options.name)
    if options.state is not None:
        spec = spec.replace(state=options.state)
    loads = _loads(options, spec)
    points = []
    for load in loads:
        points.append(bench_device(spec, load, clock=options.clock))
        output.line(f"point {len(points)}/{len(loads)}") if options.clock == "wall" else None
    title = (
        f"{spec.name} (emulated, {spec.state}), {options.op} of {format_bytes(loads[0].block_bytes)},"
        f" {options.clock} clock"
    )
    rows = [point.row() for point in points]
    output.table(_table(title, points, wide=output.console.width >= _WIDE))
    accesses = points[0].accesses_per_operation
    if accesses > 1:
        output.result(
            f"latency and queue depth are those of accesses of {spec.page_bytes} bytes, of which a request"
            f" makes {accesses}"
        )
    _check_littles_law(output, points)
    if options.clock == "wall" and any(row["late_fraction"] > _LATE_SHARE_MAX for row in rows):
        output.result(
            "INVALID where more than 1 % were late: this host cannot run such a point in real time;"
            " use --clock virtual, a slower device, or a quieter host"
        )
    if any(row["saturated"] for row in rows):
        output.result(
            "saturated: requests arrived faster than the device serves them; their latency has no limit"
        )
    document = {
        "device": spec.name,
        "state": spec.state,
        "clock": options.clock,
        "operation": options.op,
        "block_bytes": loads[0].block_bytes,
        "seed": options.seed,
        "points": rows,
    }
    if options.clock == "virtual":
        document["results_digest"] = digest(rows)
        output.result(f"digest of the results: {document['results_digest']}")
    if options.plot is not None:
        from tiermem.report import loaded_latency_svg  # noqa: PLC0415 (loads matplotlib)

        write_text(Path(options.plot), loaded_latency_svg(rows, title=title))
    if options.csv is not None:
        write_text(Path(options.csv), _csv(rows))
    output.document(document)
    return 0


def _check_littles_law(output: Output, points: "list[BenchPoint]") -> None:
    """IOPS x mean latency is the queue depth, or the benchmark is wrong."""
    closed = [point for point in points if point.load.queue_depth is not None]
    if closed:
        worst = max(abs(point.outstanding / (point.load.queue_depth or 1) - 1) for point in closed)
        verdict = "holds" if worst <= _LITTLE_ERROR_MAX else "IS VIOLATED: measure more operations"
        output.result(
            f"IOPS x mean latency = queue depth within {worst:.2%} at every point: Little's law {verdict}"
        )


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _table(title: str, points: "list[BenchPoint]", *, wide: bool) -> Table:
    columns = {
        "load": [_load_name(point) for point in points],
        "IOPS": [f"{point.iops:,.0f}" for point in points],
        "bandwidth": [f"{format_bytes(point.bytes_per_s)}/s" for point in points],
    }
    for head, field in _LATENCIES.items():
        columns[head] = [format_duration(getattr(point.latency, field)) for point in points]
    columns["late"] = [f"{point.lateness.late_share:.2%}" for point in points]
    columns["busiest"] = [f"{point.device.busiest_stage} {point.device.utilisation:.0%}" for point in points]
    heads = tuple(head for head in columns if wide or head not in _WIDE_ONLY)
    return Table(title, heads, tuple(zip(*(columns[head] for head in heads), strict=True)))


def _load_name(point: "BenchPoint") -> str:
    depth = point.load.queue_depth
    return f"{point.load.rate_iops:,.0f}/s" if depth is None else f"QD {depth}"
