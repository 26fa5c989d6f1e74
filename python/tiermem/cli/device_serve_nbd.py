"""`tiermem device serve-nbd`: an emulated device for other programs, on a unix socket."""

import argparse
import dataclasses
import signal
from types import FrameType
from typing import Any

from tiermem.cli.common import Output, add_output_options
from tiermem.config import BackendConfig, DeviceSpec
from tiermem.units import format_bytes, format_duration, parse_bytes, parse_duration_ns

__all__ = ["add"]


def add(actions: "argparse._SubParsersAction[Any]") -> None:
    """Adds the action."""
    serve = actions.add_parser(
        "serve-nbd", help="serve a device on a unix socket to fio, nbdcopy, qemu and other clients of NBD"
    )
    serve.add_argument("name", metavar="NAME_OR_FILE", help="a shipped name, or a path")
    serve.add_argument("--size", required=True, metavar="SIZE", help="bytes to serve, such as 1GiB")
    serve.add_argument("--socket", required=True, metavar="PATH", help="where to listen; made with mode 0600")
    serve.add_argument("--directory", metavar="DIR", help="keep the bytes in a file there and not in memory")
    serve.add_argument(
        "--transport",
        default="0ns",
        metavar="TIME",
        help="what client and socket take by themselves, such as 35us (measure it with --zero-latency); it is"
        " subtracted, so that the client sees the latency of the device (default: %(default)s)",
    )
    serve.add_argument(
        "--zero-latency",
        action="store_true",
        help="answer at once, to measure client and socket by themselves",
    )
    serve.add_argument(
        "--seed", type=int, default=1, metavar="S", help="seed of the latency draws (default: 1)"
    )
    add_output_options(serve)
    serve.set_defaults(run=_run)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(options: argparse.Namespace) -> int:
    from tiermem.emulator import NbdServer  # noqa: PLC0415 (loads the extension)

    output = Output(options)
    spec = DeviceSpec.load(options.name)
    size = parse_bytes(int(options.size) if options.size.isdecimal() else options.size)
    backend = BackendConfig()
    if options.directory is not None:
        backend = BackendConfig(engine="auto", directory=options.directory, direct="off")
    server = NbdServer(
        spec,
        size=size,
        socket=options.socket,
        seed=options.seed,
        backend=backend,
        transport_ns=parse_duration_ns(options.transport),
        zero_latency=options.zero_latency,
    )
    # A service manager stops by SIGTERM; the socket is removed then as well.
    signal.signal(signal.SIGTERM, _terminate)
    with server:
        timing = "without its latency" if options.zero_latency else "emulated"
        output.line(f"{spec.name} ({timing}), {format_bytes(size)}, at {server.uri}; Ctrl-C ends it")
        try:
            server.run()
        except KeyboardInterrupt:
            output.line("")
        found = server.stats()
    device = found.device
    output.result(
        f"{found.connections} connections, {device.reads:,} reads (model: mean"
        f" {format_duration(device.read_latency.mean_ns)}), {device.writes:,} writes (model: mean"
        f" {format_duration(device.write_latency.mean_ns)}), {found.lateness.late_share:.1%} late"
    )
    if found.refused:
        output.result(f"{found.refused} connections were refused, the last: {found.last_refusal}")
    output.document({"device": spec.name, "size_bytes": size, **dataclasses.asdict(found)})
    return 0
