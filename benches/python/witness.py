"""Stock fio in front of an emulated device, by the engine of tests/fio_engine or over NBD.

`client_views.py` and the tests use this. What fio reports is real time on this host; the device under
it is emulated.
"""

import contextlib
import dataclasses
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tiermem.config import DeviceSpec
from tiermem.emulator import NbdServer
from tiermem.errors import TiermemError

ROOT = Path(__file__).resolve().parents[2]
_CANNOT = 77
_PERCENTILES = {"p50_ns": "50.000000", "p99_ns": "99.000000", "p999_ns": "99.900000"}


class CannotRunError(TiermemError):
    """This host lacks something; the text says what."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What fio saw."""

    operations: int
    iops: float
    mean_ns: float
    """From issue to completion, as fio's `lat`."""
    p50_ns: float
    p99_ns: float
    p999_ns: float


def find_fio(*, needs: str = "") -> str:
    """fio's version; `needs` names an engine that it must have.

    Raises:
        CannotRunError: if there is none.
    """
    if shutil.which("fio") is None:
        raise CannotRunError("fio is not installed (Debian: apt-get install fio)")
    engines = subprocess.run(["fio", "--enghelp"], capture_output=True, text=True, check=True).stdout
    if needs and needs not in engines.split():
        raise CannotRunError(f"this fio was built without its {needs} engine")
    return subprocess.run(["fio", "--version"], capture_output=True, text=True, check=True).stdout.strip()


def build_engine(directory: Path = ROOT / "target" / "fio_engine") -> Path:
    """Compiles the engine for the installed fio.

    Raises:
        CannotRunError: where the headers of that fio cannot be had.
    """
    command = [str(ROOT / "tests" / "fio_engine" / "build.sh"), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == _CANNOT:
        raise CannotRunError(done.stderr.strip())
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr}")
    return Path(done.stdout.strip())


def run_fio(arguments: Mapping[str, object], *, timeout_s: float = 300) -> list[dict[str, Any]]:
    """Runs one job; gives its reports. The nbd engine talks on standard output, hence the file."""
    options = [f"--{key}={value}" for key, value in {"name": "witness", **arguments}.items()]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "fio.json"
        # The engine is loaded before its own options are read.
        options.sort(key=lambda option: not option.startswith(("--name=", "--ioengine=")))
        done = subprocess.run(
            ["fio", *options, "--output-format=json", f"--output={out}"],
            capture_output=True, text=True, timeout=timeout_s, cwd=folder, check=False,
        )  # fmt: skip
        text = out.read_text(encoding="utf-8") if out.exists() else ""
        if done.returncode != 0:
            raise RuntimeError(f"fio ended with {done.returncode}: {done.stdout}{done.stderr}{text[:2000]}")
        # Notes of engines may precede the document.
        reports: list[dict[str, Any]] = json.loads(text[text.index("{") :])["jobs"]
        return reports


def seen(report: Mapping[str, Any], side: str = "read") -> Seen:
    """The figures of one side of a report."""
    found = report[side]
    percentiles = found["clat_ns"].get("percentile", {})
    # Percentiles leave the time of submission out, the mean does not.
    submission_ns = found["lat_ns"]["mean"] - found["clat_ns"]["mean"]
    return Seen(
        operations=int(found["total_ios"]),
        iops=float(found["iops"]),
        mean_ns=float(found["lat_ns"]["mean"]),
        **{name: percentiles.get(key, 0) + submission_ns for name, key in _PERCENTILES.items()},
    )


def load(*, queue_depth: int, seconds: float, seed: int = 1, **more: object) -> dict[str, object]:
    """4 KiB random reads in a closed loop."""
    return {
        "rw": "randread", "bs": 4096, "iodepth": queue_depth, "norandommap": 1, "randseed": seed,
        "time_based": 1, "runtime": f"{round(seconds * 1000)}ms", "ramp_time": f"{round(seconds * 100)}ms",
        "percentile_list": "50:99:99.9", **more,
    }  # fmt: skip


def through_engine(engine: Path, name: str, *, size: str = "256M", **options: object) -> dict[str, object]:
    """Arguments by which fio drives a shipped device through the engine, whose own options `options` are."""
    return {
        "ioengine": f"external:{engine}",
        "size": size,
        "tiermem_device": ROOT / "emulator_configs" / "devices" / f"{name}.toml",
        **{f"tiermem_{option}": value for option, value in options.items()},
    }


@contextlib.contextmanager
def through_nbd(
    name: str, *, size: str = "256MiB", transport_ns: int = 0, zero_latency: bool = False
) -> Iterator[tuple[dict[str, object], NbdServer]]:
    """Arguments by which fio drives a device through a server on another thread, and the server."""
    with (
        tempfile.TemporaryDirectory() as folder,
        NbdServer(
            DeviceSpec.load(name),
            size=size,
            socket=Path(folder) / "device.sock",
            transport_ns=transport_ns,
            zero_latency=zero_latency,
        ) as server,
    ):
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield {"ioengine": "nbd", "uri": server.uri}, server
        finally:
            server.stop()
            thread.join()
