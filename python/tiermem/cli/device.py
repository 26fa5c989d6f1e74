"""`tiermem device`: shipped devices, their numbers and sources, and what the model makes of them."""

import argparse
import dataclasses
from typing import Any

from tiermem.cli import device_bench, device_fit, device_serve_nbd
from tiermem.cli.common import Output, add_output_options
from tiermem.config import DeviceSpec, available
from tiermem.report import Table
from tiermem.units import format_bytes, format_duration

__all__ = ["add"]


def add(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Adds the verb."""
    parser = verbs.add_parser("device", help="list, show, fit, benchmark and serve emulated devices")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="shipped devices")
    add_output_options(listing)
    listing.set_defaults(run=_list)
    show = actions.add_parser(
        "show", help="every number of a device with its source, and what follows from them"
    )
    show.add_argument("name", metavar="NAME", help="a shipped name, or a path")
    add_output_options(show)
    show.set_defaults(run=_show)
    device_fit.add(actions)
    device_bench.add(actions)
    device_serve_nbd.add(actions)


def _list(options: argparse.Namespace) -> int:
    output = Output(options)
    specs = [DeviceSpec.load(name) for name in available("devices")]
    heads = ("name", "kind", "capacity", "read latency", "read bandwidth", "assumed", "description")
    rows = tuple(
        (
            spec.name,
            spec.kind,
            format_bytes(spec.capacity_bytes),
            format_duration(spec.read.latency_ns),
            f"{format_bytes(spec.read.bandwidth_bytes_per_s)}/s",
            f"{len(spec.assumed())} of {len(spec.source)}",
            spec.description,
        )
        for spec in specs
    )
    output.table(Table("Devices", heads, rows), wrap_last=True)
    output.document({"devices": [spec.name for spec in specs]})
    return 0


def _show(options: argparse.Namespace) -> int:
    from tiermem.emulator import predict  # noqa: PLC0415 (loads the extension)

    output = Output(options)
    spec = DeviceSpec.load(options.name)
    rows = []
    for path, value in spec.numbers().items():
        source = spec.source[path]
        shown = f"{len(value)} curves" if path == "curves" else str(value)
        rows.append((path, shown, source.kind, source.ref))
    title = f"{spec.name}: {spec.description}"
    output.table(Table(title, ("field", "value", "kind", "source"), tuple(rows)), wrap_last=True)
    predictions = [predict(spec, operation=operation) for operation in ("randread", "randwrite")]
    heads = ("load", "QD1 mean", "most IOPS", "95 % at QD", "binds", "IOPS ceiling of each stage")
    output.table(
        Table(
            "What the model predicts",
            heads,
            tuple(
                (
                    f"{found.operation} {found.block_bytes} B",
                    format_duration(found.latency_ns),
                    f"{found.iops_max:,.0f}",
                    str(found.saturation_queue_depth),
                    found.binding_stage,
                    ", ".join(f"{stage} {iops:,.0f}" for stage, iops in found.ceilings_iops.items()),
                )
                for found in predictions
            ),
        ),
        wrap_last=True,
    )
    document = {
        **spec.model_dump(mode="json"),
        "predictions": [dataclasses.asdict(found) for found in predictions],
    }
    output.document(document)
    return 0
