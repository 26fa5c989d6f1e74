"""`tiermem device`: shipped devices, their numbers and sources, and a read benchmark."""

import argparse
import dataclasses
from typing import Any

from tiermem.cli.common import Output, add_output_options
from tiermem.config import BackendConfig, DeviceSpec, available
from tiermem.errors import ConfigError
from tiermem.report import Table
from tiermem.units import format_bytes, format_duration, parse_bytes

__all__ = ["add"]


def add(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Adds the verb."""
    parser = verbs.add_parser("device", help="list, show and benchmark emulated devices")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="shipped devices")
    add_output_options(listing)
    listing.set_defaults(run=_list)
    show = actions.add_parser("show", help="every number of a device with its source")
    show.add_argument("name", metavar="NAME", help="a shipped name, or a path")
    add_output_options(show)
    show.set_defaults(run=_show)
    bench = actions.add_parser("bench", help="random reads over a range of queue depths")
    bench.add_argument("name", metavar="NAME", help="a shipped name, or a path")
    bench.add_argument(
        "--queue-depth",
        default="1,2,4,8,16,32,64,128",
        metavar="N,N",
        help="queue depths (default: %(default)s)",
    )
    bench.add_argument(
        "--block", default="4KiB", metavar="SIZE", help="size of a read (default: %(default)s)"
    )
    bench.add_argument(
        "--capacity", default="1GiB", metavar="SIZE", help="bytes to emulate (default: %(default)s)"
    )
    bench.add_argument(
        "--requests",
        type=int,
        default=50_000,
        metavar="N",
        help="reads per point (default: %(default)s)",
    )
    bench.add_argument(
        "--clock",
        choices=("virtual", "wall"),
        default="virtual",
        help="compute time, or wait (default: %(default)s)",
    )
    bench.add_argument(
        "--directory",
        metavar="DIR",
        help="keep the bytes in a scratch file there instead of in memory",
    )
    bench.add_argument(
        "--seed",
        type=int,
        default=1,
        help="seed of offsets and latency draws (default: %(default)s)",
    )
    add_output_options(bench)
    bench.set_defaults(run=_bench)


def _list(options: argparse.Namespace) -> int:
    output = Output(options)
    specs = [DeviceSpec.load(name) for name in available("devices")]
    heads = ("name", "kind", "capacity", "read latency", "read bandwidth", "assumed numbers")
    rows = tuple(
        (
            spec.name,
            spec.kind,
            format_bytes(spec.capacity_bytes),
            format_duration(spec.read.latency_ns),
            f"{format_bytes(spec.read.bandwidth_bytes_per_s)}/s",
            str(sum(source.kind == "assumed" for source in spec.source.values())),
        )
        for spec in specs
    )
    output.table(Table("Devices", heads, rows))
    output.document({"devices": [spec.name for spec in specs]})
    return 0


def _show(options: argparse.Namespace) -> int:
    output = Output(options)
    spec = DeviceSpec.load(options.name)
    rows = []
    for path, value in spec.numbers().items():
        source = spec.source.get(path)
        rows.append((path, str(value), source.kind if source else "", source.ref if source else ""))
    output.table(Table(f"{spec.name}: {spec.description}", ("field", "value", "kind", "source"), tuple(rows)))
    output.document(spec.model_dump(mode="json"))
    return 0


def _bench(options: argparse.Namespace) -> int:
    from tiermem.emulator import bench_device, open_device  # noqa: PLC0415 (loads the extension)

    output = Output(options)
    try:
        depths = [int(text) for text in options.queue_depth.split(",")]
    except ValueError:
        raise ConfigError(
            f'--queue-depth "{options.queue_depth}" is not a list of integers such as 1,8,32'
        ) from None
    if min(depths) < 1 or options.requests < 1:
        raise ConfigError("queue depths and --requests must be at least 1")
    backend = None if options.directory is None else BackendConfig(engine="auto", directory=options.directory)
    points = []
    for depth in depths:
        device = open_device(
            options.name,
            capacity=options.capacity,
            clock=options.clock,
            backend=backend,
            queue_depth=depth,
            seed=options.seed,
        )
        points.append(
            bench_device(
                device,
                nbytes=parse_bytes(options.block),
                requests=options.requests,
                seed=options.seed,
            )
        )
    rows = tuple(
        (
            str(point.queue_depth),
            f"{point.iops:,.0f}",
            f"{format_bytes(point.bandwidth_bytes_per_s)}/s",
            format_duration(point.latency.mean_ns),
            format_duration(point.latency.p50_ns),
            format_duration(point.latency.p99_ns),
            f"{point.late_share:.1%}",
        )
        for point in points
    )
    heads = ("queue depth", "IOPS", "bandwidth", "mean", "p50", "p99", "late")
    output.table(
        Table(
            f"{options.name} (emulated), random reads of {options.block}, {options.clock} clock",
            heads,
            rows,
        )
    )
    stats = device.stats()
    direct = ", past the page cache" if stats.direct else ""
    reason = f"; {stats.fallback_reason}" if stats.fallback_reason else ""
    output.result(f"bytes kept by: {stats.engine}{direct}{reason}")
    output.document(
        {
            "device": options.name,
            "clock": options.clock,
            "engine": stats.engine,
            "fallback_reason": stats.fallback_reason,
            "points": [dataclasses.asdict(point) for point in points],
        }
    )
    return 0
