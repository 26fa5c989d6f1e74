"""`tiermem doctor`: what this host can do."""

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from tiermem.cli.common import Output, add_output_options
from tiermem.results import host
from tiermem.units import format_bytes

__all__ = ["add"]


def add(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Adds the verb."""
    parser = verbs.add_parser("doctor", help="what this host can do: io_uring, O_DIRECT, timers, memory")
    parser.add_argument(
        "--directory",
        metavar="DIR",
        help="where scratch files would go (default: the temporary directory)",
    )
    add_output_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from tiermem.emulator import probe_host  # noqa: PLC0415 (loads the extension)

    output = Output(options)
    report = probe_host(Path(options.directory or tempfile.gettempdir()))
    output.result(f"cores            {report.cores}")
    available = format_bytes(report.memory_available_bytes)
    output.result(f"memory           {format_bytes(report.memory_bytes)}, {available} available")
    output.result(f"huge pages       {'yes' if report.huge_pages else 'no'}")
    output.result(f"io_uring         {report.io_uring_refusal or 'yes'}")
    if report.directory_refusal:
        output.result(f"scratch files    {report.directory_refusal}")
    else:
        output.result(f"scratch files    {report.directory}, {format_bytes(report.free_bytes)} free")
        aligned = f"yes, in multiples of {report.alignment_bytes} bytes"
        output.result(f"O_DIRECT         {report.direct_io_refusal or aligned}")
        output.result(f"fixed buffers    {'yes' if report.registered_buffers else 'no'}")
        output.result(f"polled I/O       {report.polling_refusal or 'yes'}")
    output.result(f"sleep of 100 us  overshoots by {report.sleep_overshoot_us:.0f} us; waits spin at the end")
    warning = "" if report.build_profile == "release" else ": do not benchmark it"
    output.result(f"extension        {report.build_profile} build{warning}")
    output.document({**dataclasses.asdict(report), "host": host()})
    return 1 if report.directory_refusal else 0
