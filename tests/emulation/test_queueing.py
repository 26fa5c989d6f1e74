"""The timing model against a simulation that was written for this test alone, and against Little's law."""

import heapq

import numpy as np
import numpy.typing as npt
import pytest
import tiermem as tm
from tiermem.config import DeviceSpec
from tiermem.emulator import bench_device

DEPTHS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
REQUESTS = 40_000


def _constant(name: str) -> DeviceSpec:
    """A shipped device without its latency tail, so that the simulation needs no draws."""
    spec = DeviceSpec.load(name)
    return spec.replace(read=spec.read.replace(latency_quantiles_ns=(), latency_max_ns=0).model_dump())


def simulate(spec: DeviceSpec, queue_depth: int, count: int) -> tuple[float, float]:
    """Closed loop of 4 KiB random reads: units drawn uniformly, then a controller, then a link.

    Written from the description in docs/ARCHITECTURE.md; shares no code with the core.
    Gives the mean latency in ns and the requests per second.
    """
    generator = np.random.default_rng(7)
    units: npt.NDArray[np.int64] = generator.integers(0, spec.units, count)
    transfer = -(-4096 * 10**9 // spec.read.bandwidth_bytes_per_s)
    fixed = spec.host.submit_ns + spec.read.command_ns + transfer + spec.host.complete_ns
    media = spec.read.latency_ns - fixed
    unit_free = [0] * spec.units
    controller_free = link_free = issued = total = now = 0
    events: list[tuple[int, int, int, int]] = []

    def issue(at: int) -> None:
        nonlocal issued
        unit = int(units[issued])
        unit_free[unit] = max(unit_free[unit], at + spec.host.submit_ns) + media
        heapq.heappush(events, (unit_free[unit], 1, issued, at))
        issued += 1

    for _ in range(min(queue_depth, count)):
        issue(0)
    while events:
        now, stage, number, begun = heapq.heappop(events)
        if stage == 1:
            controller_free = max(controller_free, now) + spec.read.command_ns
            link_free = max(link_free, controller_free) + transfer
            heapq.heappush(events, (link_free + spec.host.complete_ns, 0, number, begun))
        else:
            total += now - begun
            if issued < count:
                issue(now)
    return total / count, count / now * 1e9


@pytest.mark.parametrize("name", ["nand-p3700", "optane-p4800x"])
def test_sweep_agrees_with_the_simulation_and_with_littles_law(name: str) -> None:
    spec = _constant(name)
    for depth in DEPTHS:
        device = tm.open_device(
            spec, capacity="64GiB", queue_depth=depth, backend=tm.BackendConfig(engine="phantom")
        )
        found = bench_device(device, nbytes=4096, requests=REQUESTS)
        latency, iops = simulate(spec, depth, REQUESTS)
        assert found.latency.mean_ns == pytest.approx(latency, rel=0.01), f"depth {depth}"
        assert found.iops == pytest.approx(iops, rel=0.01), f"depth {depth}"
        assert found.iops * found.latency.mean_ns * 1e-9 == pytest.approx(depth, rel=0.01)


def test_the_clock_that_waits_is_compared_with_the_one_that_does_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Printed, never a failure: how late a shared host is says nothing about the model."""
    lines = []
    for depth in (1, 4):
        found = {}
        for clock in ("virtual", "wall"):
            device = tm.open_device("nand-p3700", capacity="16MiB", queue_depth=depth, clock=clock)
            offsets = np.random.default_rng(1).integers(0, 4096, (50, depth)) * 4096
            began = device.now_ns()
            for batch in offsets:
                device.read_batch(batch, nbytes=4096)
            found[clock] = (device.now_ns() - began) / len(offsets)
            if clock == "wall":
                late = device.lateness().late_share
        ratio = found["wall"] / found["virtual"]
        lines.append(
            f"depth {depth}: wall {found['wall'] / 1e3:.1f} us, virtual {found['virtual'] / 1e3:.1f} us"
            f" a batch, ratio {ratio:.3f}, late {late:.1%}"
        )
        assert found["wall"] > 0
    with capsys.disabled():
        pass


def test_latency_draws_do_not_depend_on_how_requests_are_batched() -> None:
    offsets = np.random.default_rng(3).integers(0, 1000, 500) * 4096

    def run(size: int) -> tuple[int, int]:
        device = tm.open_device("nand-p3700", capacity="16MiB", queue_depth=1)
        for start in range(0, len(offsets), size):
            device.read_batch(offsets[start : start + size], nbytes=4096)
        return device.now_ns(), device.stats().read_latency.p99_ns

    assert run(500) == run(1) == run(7)


def test_what_is_read_is_what_was_written(tmp_path_factory: pytest.TempPathFactory) -> None:
    for backend in (
        tm.BackendConfig(),
        tm.BackendConfig(engine="file", directory=str(tmp_path_factory.mktemp("scratch"))),
        tm.BackendConfig(engine="auto", directory=str(tmp_path_factory.mktemp("scratch"))),
    ):
        device = tm.open_device("optane-p4800x", capacity="1MiB", backend=backend)
        data = np.random.default_rng(1).integers(0, 256, (16, 4096), dtype=np.uint8)
        offsets = np.arange(16) * 8192
        device.write_batch(offsets, data)
        np.testing.assert_array_equal(device.read_batch(offsets, nbytes=4096), data)
        # A read need not be aligned: the media pay the granule, the link pays what was asked.
        np.testing.assert_array_equal(device.read_batch(offsets + 100, nbytes=64), data[:, 100:164])
        stats = device.stats()
        assert stats.read_bytes == 16 * 4096 + 16 * 64
        assert stats.media_read_bytes == 16 * 4096 + 16 * 512


def test_a_byte_addressable_device_takes_latency_or_bandwidth() -> None:
    spec = DeviceSpec.load("dram-ddr4-2933")
    device = tm.open_device(spec, capacity="1GiB")
    device.read_batch([0], nbytes=64)
    first = device.now_ns()
    assert first == 91, "90 ns of latency, and 64 bytes at 106 GB/s"
    count = 100_000
    device.read_batch(np.zeros(count, dtype=np.int64), nbytes=512)
    expected = count * 512 / spec.read.bandwidth_bytes_per_s * 1e9
    assert device.now_ns() - first == pytest.approx(expected, rel=0.01), "bound by the bandwidth"
