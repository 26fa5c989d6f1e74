"""`tiermem device fit`: a device file from a data sheet's numbers or from a fio run."""

import argparse
from pathlib import Path
from typing import Any

import tomli_w

from tiermem.cli.common import Output, add_output_options
from tiermem.config import DeviceSpec
from tiermem.errors import ConfigError
from tiermem.report import Table
from tiermem.results import write_text

__all__ = ["add"]

_NUMBERS = ("read_latency_us", "max_read_iops", "read_bandwidth")
_WRITES = ("write_latency_us", "max_write_iops", "write_bandwidth")


def add(actions: "argparse._SubParsersAction[Any]") -> None:
    """Adds the action."""
    fit = actions.add_parser(
        "fit",
        help="make a device file from published numbers or from a fio run",
        description="Latencies are means in microseconds, bandwidths bytes per second. The number of media"
        " units is found by running the model.",
    )
    fit.add_argument("--name", required=True, metavar="N", help="name of the device")
    fit.add_argument("--out", required=True, metavar="FILE.toml", help="where the device file goes")
    fit.add_argument("--read-latency-us", type=float, metavar="X")
    fit.add_argument("--max-read-iops", type=float, metavar="Y")
    fit.add_argument("--read-bandwidth", type=float, metavar="BYTES_PER_S")
    fit.add_argument(
        "--loaded",
        action="append",
        default=[],
        metavar="QD:US",
        help="mean latency of random reads at a queue depth; may be given more than once",
    )
    fit.add_argument("--write-latency-us", type=float, metavar="X")
    fit.add_argument("--max-write-iops", type=float, metavar="Y", help="sustained")
    fit.add_argument("--write-bandwidth", type=float, metavar="BYTES_PER_S")
    fit.add_argument("--block-bytes", type=int, metavar="N", help="size of the requests (default: 4096)")
    fit.add_argument(
        "--max-iops-queue-depth",
        type=int,
        metavar="N",
        help="requests outstanding where the highest IOPS were reached (default: 256)",
    )
    fit.add_argument(
        "--fio-json",
        metavar="FILE",
        help="take the numbers from a fio run: random reads at one or more queue depths, 1 among them",
    )
    add_output_options(fit)
    fit.set_defaults(run=_run)


def _loaded(text: str) -> tuple[int, float]:
    try:
        depth, latency = text.split(":")
        return int(depth), float(latency)
    except ValueError:
        raise ConfigError(f'--loaded "{text}" is not QD:US, such as 16:93.9') from None


def _run(options: argparse.Namespace) -> int:
    from tiermem.emulator import FitTargets, fit_device, targets_from_fio  # noqa: PLC0415 (loads the extension)

    output = Output(options)
    out = Path(options.out)
    if out.suffix != ".toml":
        raise ConfigError(f"--out {out} must end in .toml, as every device file does")
    notes: list[str] = []
    given = [
        name
        for name in (*_NUMBERS, *_WRITES, "block_bytes", "max_iops_queue_depth")
        if getattr(options, name) is not None
    ]
    if options.fio_json is not None:
        if given or options.loaded:
            raise ConfigError("--fio-json takes all numbers from the run; leave the other numbers out")
        targets, notes = targets_from_fio(Path(options.fio_json), name=options.name)
    else:
        missing = [name for name in _NUMBERS if getattr(options, name) is None]
        if missing:
            names = ", ".join("--" + name.replace("_", "-") for name in missing)
            raise ConfigError(f"give {names}, or a run with --fio-json")
        numbers = {name: getattr(options, name) for name in given}
        targets = FitTargets(
            name=options.name, loaded=tuple(_loaded(text) for text in options.loaded), **numbers
        )
    fit = fit_device(targets, notes=notes)
    header = f"# {options.name}: made by tiermem device fit. What was not given is marked assumed.\n"
    write_text(out, header + tomli_w.dumps(fit.document))
    DeviceSpec.load(out)
    rows = tuple(
        (point.given_as, f"{point.given:,.6g}", f"{point.model:,.6g}", f"{point.error:+.2%}")
        for point in fit.points
    )
    output.table(
        Table(
            f"{options.name}: {fit.spec.units} media units", ("given as", "given", "model", "residual"), rows
        )
    )
    for note in fit.notes:
        output.result(note)
    output.result(f"written to {out}; {len(fit.spec.assumed())} numbers in it are assumed")
    output.document(
        {
            "name": options.name,
            "file": str(out),
            "units": fit.spec.units,
            "residuals": [
                {"given_as": point.given_as, "given": point.given, "model": point.model, "error": point.error}
                for point in fit.points
            ],
            "notes": list(fit.notes),
            "assumed": fit.spec.assumed(),
        }
    )
    return 0
