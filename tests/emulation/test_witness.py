"""Programs that nobody here wrote drive emulated devices: fio by its engine and over NBD, nbdcopy, qemu.

What they see is real time on this host. Laws that hold on any host are asserted (data, counts, nothing
faster than the device); distances from the model are recorded, and benches/python/fidelity.py
publishes them. Whatever cannot run says why; CI, which installs fio, does not accept that.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

BENCHES = Path(__file__).resolve().parents[2] / "benches" / "python"
sys.path.insert(0, str(BENCHES))

import witness  # noqa: E402
from tiermem.config import DeviceSpec  # noqa: E402
from tiermem.emulator import Load, bench_device  # noqa: E402

DEVICES = ["nand-p3700", "optane-p4800x"]
# A clock that ticks in whole nanoseconds on both sides, and histograms of fio with 1/64 resolution.
RESOLUTION = 0.02
_T = TypeVar("_T")


def _or_skip(found: Callable[[], _T]) -> _T:
    try:
        return found()
    except witness.CannotRunError as reason:
        if os.environ.get("TIERMEM_REQUIRE_FIO"):
            raise
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def engine() -> Path:
    """The engine, compiled for the fio that is installed."""
    return _or_skip(witness.build_engine)


@pytest.fixture(scope="session")
def fio_nbd() -> str:
    """The version of an fio that speaks NBD."""
    return _or_skip(lambda: witness.find_fio(needs="nbd"))


def _check_seen(
    found: witness.Seen, name: str, queue_depth: int, record: Callable[[str, object], None]
) -> None:
    load = Load(queue_depth=queue_depth, operations=20_000, span="256MiB")
    model = bench_device(DeviceSpec.load(name), load)
    record("iops_error", found.iops / model.iops - 1)
    record("mean_error", found.mean_ns / model.latency.mean_ns - 1)
    assert found.operations > 0
    # Waiting can only add: no host makes a device faster than its model.
    assert found.iops < model.iops * (1 + RESOLUTION)
    if queue_depth == 1:
        # With more, a client that is late finds a shorter queue.
        assert found.p50_ns > model.latency.p50_ns * (1 - RESOLUTION)
        # Tails are drawn, and a short run has not seen all of them.
        assert found.mean_ns > model.latency.mean_ns * 0.9
    # Little's law, of a client that is never more than busy.
    assert found.iops * found.mean_ns * 1e-9 <= queue_depth * 1.01


def test_the_engine_says_which_fio_it_was_built_for(engine: Path) -> None:
    version = witness.find_fio().removeprefix("fio-")
    assert f"tiermem_fio: built for fio {version}, engine interface".encode() in engine.read_bytes()


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("queue_depth", [1, 16])
def test_fio_drives_a_device_through_the_engine(
    engine: Path, name: str, queue_depth: int, record_property: Callable[[str, object], None]
) -> None:
    load = witness.load(queue_depth=queue_depth, seconds=0.3)
    report = witness.run_fio({**witness.through_engine(engine, name), **load})[0]
    assert report["error"] == 0
    _check_seen(witness.seen(report), name, queue_depth, record_property)


@pytest.mark.parametrize("name", DEVICES)
def test_what_fio_writes_through_the_engine_it_reads_back(engine: Path, name: str) -> None:
    job = {"rw": "randwrite", "bs": 4096, "iodepth": 16, "verify": "crc32c", "verify_fatal": 1}
    report = witness.run_fio({**witness.through_engine(engine, name, size="8M"), **job})[0]
    assert report["error"] == 0
    assert report["write"]["total_ios"] == report["read"]["total_ios"] == (8 << 20) // 4096


def test_fio_trims_and_reads_zeros_and_verify_notices(engine: Path) -> None:
    base = witness.through_engine(engine, "nand-p3700", size="1M")
    report = witness.run_fio({**base, "rw": "randtrim", "bs": 65_536})[0]
    assert report["trim"]["total_ios"] == 16
    # The device lasts as long as the job: a new one is empty, and has no pattern to find.
    with pytest.raises(RuntimeError, match="verify"):
        witness.run_fio({**base, "rw": "read", "bs": 4096, "verify": "crc32c", "verify_fatal": 1})


def test_poisson_arrivals_find_an_idle_device_as_it_is(
    engine: Path, record_property: Callable[[str, object], None]
) -> None:
    load = witness.load(queue_depth=16, seconds=0.5, rate_iops=5_000, rate_process="poisson", ramp_time=0)
    found = witness.seen(witness.run_fio({**witness.through_engine(engine, "optane-p4800x"), **load})[0])
    _check_seen(found, "optane-p4800x", 1, record_property)
    # 5,000 arrivals a second for half a second; six standard deviations, and a slow host makes fewer.
    assert found.operations < 2_500 + 6 * 50


def test_latency_that_is_subtracted_is_not_seen(engine: Path) -> None:
    load = witness.load(queue_depth=1, seconds=0.3)
    seen = [
        witness.seen(
            witness.run_fio({**witness.through_engine(engine, "nand-pm983", transport_ns=ns), **load})[0]
        )
        for ns in (0, 50_000)
    ]
    # 85 us and 35 us; the host can only add.
    assert seen[0].p50_ns > 83_000
    assert 34_000 < seen[1].p50_ns < seen[0].p50_ns


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "give --tiermem_device"),
        ({"tiermem_device": "/nonexistent.toml"}, "path=/nonexistent.toml"),
        ({"tiermem_device": "DEVICES/pmem-100.toml"}, "byte-addressable"),
        ({"tiermem_device": "DEVICES/optane-p4800x.toml", "size": "900G"}, "between one byte and the device"),
    ],
)
def test_the_engine_refuses_what_it_cannot_open(
    engine: Path, root: Path, arguments: dict[str, str], sentence: str
) -> None:
    device = arguments.get("tiermem_device", "").replace(
        "DEVICES", str(root / "emulator_configs" / "devices")
    )
    options = {"ioengine": f"external:{engine}", "size": "1M", "rw": "read", **arguments}
    if device:
        options["tiermem_device"] = device
    with pytest.raises(RuntimeError, match=sentence):
        witness.run_fio(options)


@pytest.mark.parametrize("name", DEVICES)
def test_fio_drives_a_device_over_nbd(
    fio_nbd: str, name: str, record_property: Callable[[str, object], None]
) -> None:
    with witness.through_nbd(name) as (arguments, server):
        report = witness.run_fio({**arguments, **witness.load(queue_depth=4, seconds=0.3)})[0]
        found = witness.seen(report)
        assert report["error"] == 0
        _check_seen(found, name, 4, record_property)
        server.stop()
        stats = server.stats()
    assert stats.connections == 2, "fio asks for the size first"
    assert stats.refused == 0
    # The warm-up is not in the report.
    assert stats.device.reads >= found.operations
    # By the model, whatever the host adds afterwards.
    assert stats.device.read_latency.p50_ns >= DeviceSpec.load(name).read.latency_ns * 0.95


@pytest.mark.parametrize("name", DEVICES)
def test_what_fio_writes_over_nbd_it_reads_back(fio_nbd: str, name: str) -> None:
    job = {"rw": "randwrite", "bs": 4096, "iodepth": 8, "verify": "crc32c", "verify_fatal": 1, "size": "4M"}
    with witness.through_nbd(name, size="4MiB") as (arguments, _):
        report = witness.run_fio({**arguments, **job})[0]
    assert report["error"] == 0
    assert report["write"]["total_ios"] == report["read"]["total_ios"] == (4 << 20) // 4096


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Four megabytes that no two places share, with a hole."""
    path = tmp_path / "image"
    blocks = (n.to_bytes(8, "little") * 512 if n % 5 else bytes(4096) for n in range(1024))
    path.write_bytes(b"".join(blocks))
    return path


def _tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        reason = f"{name} is not installed (Debian: apt-get install {package})"
        if os.environ.get("TIERMEM_REQUIRE_FIO"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def test_nbdcopy_copies_an_image_to_a_device_and_back(image: Path, tmp_path: Path) -> None:
    tool = _tool("nbdcopy", "libnbd-bin")
    with witness.through_nbd("optane-p4800x", size="4MiB") as (arguments, _):
        uri = str(arguments["uri"])
        subprocess.run([tool, image, uri], check=True, timeout=60)
        subprocess.run([tool, uri, tmp_path / "back"], check=True, timeout=60)
    assert (tmp_path / "back").read_bytes() == image.read_bytes()


def test_qemu_finds_the_size_and_the_bytes_of_a_device(image: Path) -> None:
    tool = _tool("qemu-img", "qemu-utils")
    with witness.through_nbd("nand-p3700", size="4MiB") as (arguments, _):
        uri = str(arguments["uri"])
        convert = [tool, "convert", "-n", "-f", "raw", "-O", "raw", str(image), uri]
        subprocess.run(convert, check=True, timeout=60)
        compare = [tool, "compare", "-f", "raw", "-F", "raw", str(image), uri]
        done = subprocess.run(compare, check=True, timeout=60, capture_output=True, text=True)
    assert "identical" in done.stdout
