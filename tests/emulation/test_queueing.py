"""The timing model against a simulation that was written for this test alone, and against Little's law."""

import heapq

import numpy as np
import numpy.typing as npt
import pytest
import tiermem as tm
from tiermem.config import DeviceSpec
from tiermem.emulator import Load, bench_device
from tiermem.errors import ConfigError

DEPTHS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
REQUESTS = 60_000


def _constant(name: str) -> DeviceSpec:
    """A shipped device without its latency tail, so that the simulation needs no draws."""
    spec = DeviceSpec.load(name).replace(background=None)
    return spec.replace(read=spec.read.replace(latency_quantiles_ns=(), latency_max_ns=0).model_dump())


def simulate(spec: DeviceSpec, queue_depth: int, count: int) -> tuple[float, float]:
    """Closed loop of 4 KiB random reads: units drawn uniformly, then a controller, then a link.

    Written from the description in docs/design/device-model.md; shares no code with the core.
    Gives the mean latency in ns and the requests per second, after a tenth of the requests.
    """
    generator = np.random.default_rng(7)
    warm_up = count // 10
    units: npt.NDArray[np.int64] = generator.integers(0, spec.units, 2 * count + queue_depth)
    transfer = 4096 * 10**9 / spec.read.bandwidth_bytes_per_s
    fixed = spec.host.submit_ns + spec.read.command_ns + transfer + spec.host.complete_ns
    media = spec.read.latency_ns - fixed
    unit_free = [0.0] * spec.units
    controller_free = link_free = total = begin = 0.0
    issued = completed = 0
    events: list[tuple[float, int, int, float]] = []

    def issue(at: float) -> None:
        nonlocal issued
        unit = int(units[issued])
        unit_free[unit] = max(unit_free[unit], at + spec.host.submit_ns) + media
        heapq.heappush(events, (unit_free[unit], 1, issued, at))
        issued += 1

    for _ in range(queue_depth):
        issue(0.0)
    while True:
        now, stage, number, begun = heapq.heappop(events)
        if stage == 1:
            controller_free = max(controller_free, now) + spec.read.command_ns
            link_free = max(link_free, controller_free) + transfer
            heapq.heappush(events, (link_free + spec.host.complete_ns, 0, number, begun))
            continue
        completed += 1
        if completed == warm_up:
            begin = now
        elif completed > warm_up:
            total += now - begun
        if completed == warm_up + count:
            return total / count, count / (now - begin) * 1e9
        issue(now)


@pytest.mark.parametrize("name", ["nand-p3700", "optane-p4800x", "xlflash-fl6", "nand-pm983"])
def test_sweep_agrees_with_the_simulation_and_with_littles_law(name: str) -> None:
    spec = _constant(name)
    for depth in DEPTHS:
        found = bench_device(spec, Load(queue_depth=depth, operations=REQUESTS, span="64GiB"))
        latency, iops = simulate(spec, depth, REQUESTS)
        assert found.latency.mean_ns == pytest.approx(latency, rel=0.01), f"depth {depth}"
        assert found.iops == pytest.approx(iops, rel=0.01), f"depth {depth}"
        assert found.outstanding == pytest.approx(depth, rel=0.01)


def test_the_clock_that_waits_never_runs_ahead_of_the_model() -> None:
    """How late a shared host is says nothing about the model; benches/python/fidelity.py reports it."""
    for depth in (1, 4):
        device = tm.open_device("nand-p3700", capacity="16MiB", queue_depth=depth, clock="wall")
        offsets = np.random.default_rng(1).integers(0, 4096, (50, depth)) * 4096
        began = device.now_ns()
        for batch in offsets:
            device.read_batch(batch, nbytes=4096)
        assert device.now_ns() - began > 50 * 60_000, "no read of this drive takes less than 60 us"
        assert 0 <= device.lateness().late_share <= 1
        assert device.lateness().requests == 50 * depth


def test_latency_draws_do_not_depend_on_how_requests_are_batched() -> None:
    offsets = np.random.default_rng(3).integers(0, 1000, 500) * 4096

    def run(size: int) -> tuple[int, int]:
        device = tm.open_device("nand-p3700", capacity="16MiB", queue_depth=1)
        for start in range(0, len(offsets), size):
            device.read_batch(offsets[start : start + size], nbytes=4096)
        return device.now_ns(), device.stats().read_latency.p99_ns

    whole, single, seven = run(500), run(1), run(7)
    assert whole[1] == single[1] == seven[1]
    # A caller counts in whole nanoseconds, so each pause between batches rounds up once.
    assert whole[0] <= seven[0] <= single[0] <= whole[0] + len(offsets)


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
    device = tm.open_device(spec, capacity="1GiB", queue_depth=4096)
    device.read_batch([0], nbytes=64)
    first = device.now_ns()
    assert first == pytest.approx(90, abs=1), "the idle latency"
    count = 100_000
    device.read_batch(np.zeros(count, dtype=np.int64), nbytes=512)
    expected = count * 512 / spec.read.bandwidth_bytes_per_s * 1e9
    assert device.now_ns() - first == pytest.approx(expected, rel=0.01), "bound by the bandwidth"
    stats = device.stats()
    assert stats.reads == 1 + 8 * count, "one access a line of 64 bytes"


def test_a_memory_on_the_wall_clock_pays_its_debts_or_is_refused() -> None:
    # No host has memory this fast.
    with pytest.raises(
        ConfigError, match="moves bytes more slowly than the device would; use the virtual clock"
    ):
        tm.open_device("hbm2e", capacity="64MiB", clock="wall")
    slow = DeviceSpec.load("pmem-100")
    read = slow.read.replace(latency_ns=50_000, latency_by_bytes_ns=())
    slow = slow.replace(read=read.model_dump(), queue_depth=4, units=4)
    device = tm.open_device(slow, capacity="16MiB", clock="wall")
    offsets = np.random.default_rng(1).integers(0, 2**16, 200) * 256
    began = device.now_ns()
    for _ in range(5):
        device.read_batch(offsets, nbytes=256)
    debt = device.debt()
    assert debt.modelled_ns > 5 * 200 * 50_000 / 4, "at most four accesses at a time"
    # Whoever is late once waits less the next time, so the sum is the model's, and no less.
    assert device.now_ns() - began >= debt.modelled_ns - debt.incurred_ns
    assert debt.outstanding_ns <= debt.incurred_ns


@pytest.mark.parametrize("name", ["pmem-100", "dram-ddr4-2933"])
def test_a_load_on_a_memory_goes_by_accesses_of_one_page(name: str) -> None:
    """A request of many pages is as many accesses, each with its place in the queue; so says Little."""
    spec = DeviceSpec.load(name)
    for depth in (1, 16):
        point = bench_device(spec, Load(queue_depth=depth, block_bytes=4096, operations=5000))
        assert point.accesses_per_operation == 4096 // spec.page_bytes
        assert point.latency.count == point.device.reads == 5000 * point.accesses_per_operation
        assert point.outstanding == pytest.approx(depth, rel=0.01)
    one = bench_device(spec, Load(queue_depth=1, block_bytes=spec.page_bytes, operations=5000))
    many = bench_device(spec, Load(queue_depth=1, block_bytes=4 * spec.page_bytes, operations=5000))
    assert many.bytes_per_s == pytest.approx(one.bytes_per_s, rel=0.01)


def test_a_clock_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match='clock must be "virtual" or "wall", got \'WALL\''):
        tm.open_device("nand-p3700", capacity="1MiB", clock="WALL")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="capacity must be at least one byte"):
        tm.open_device("nand-p3700", capacity=0)
