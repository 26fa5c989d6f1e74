"""The closed form of device time against the emulator, which computes the same event by event."""

import dataclasses

import numpy as np
import pytest
import tiermem as tm
from tiermem.emulator import Load, bench_device
from tiermem.perf.service import Demand, DeviceService

BLOCK_DEVICES = ("nand-pm9a3", "nand-p3700", "nand-pm983", "xlflash-fl6", "optane-p4800x", "optane-p5800x")
OPERATIONS = 20_000


def _spec(name: str, queue_depth: int) -> tm.DeviceSpec:
    return tm.DeviceSpec.load(name).replace(queue_depth=queue_depth)


@pytest.mark.parametrize("name", BLOCK_DEVICES)
@pytest.mark.parametrize("queue_depth", [8, 32, 128])
def test_reads_take_as_long_as_in_the_emulator(name: str, queue_depth: int) -> None:
    spec = _spec(name, queue_depth)
    point = bench_device(
        spec, Load(queue_depth=queue_depth, operations=OPERATIONS, span=spec.capacity_bytes // 4)
    )
    demand = Demand(reads=OPERATIONS, read_bytes=OPERATIONS * 4096, read_accesses=OPERATIONS)
    assert OPERATIONS * 1e9 / DeviceService(spec).sustained_ns(demand) == pytest.approx(point.iops, rel=0.03)


@pytest.mark.parametrize("name", BLOCK_DEVICES)
def test_random_writes_drain_as_in_the_emulator(name: str) -> None:
    spec = _spec(name, 128)
    load = Load(operation="randwrite", queue_depth=128, operations=OPERATIONS, span=spec.capacity_bytes // 4)
    demand = Demand(writes=OPERATIONS, write_bytes=OPERATIONS * 4096, write_accesses=OPERATIONS)
    iops = OPERATIONS * 1e9 / DeviceService(spec).stages_ns(demand)[_slowest(spec, demand)]
    assert iops == pytest.approx(bench_device(spec, load).iops, rel=0.03)


def _slowest(spec: tm.DeviceSpec, demand: Demand) -> str:
    stages = DeviceService(spec).stages_ns(demand)
    return max(stages, key=stages.__getitem__)


@pytest.mark.parametrize("name", ["dram-ddr5-4800", "cxl-asic", "hbm2e"])
@pytest.mark.parametrize("rows", [1, 100, 50_000])
def test_a_batch_of_a_memory_with_curves_takes_what_the_emulator_says(name: str, rows: int) -> None:
    device = tm.open_device(name, capacity="64MiB", clock="virtual")
    offsets = np.random.default_rng(1).integers(0, 2**20, rows) * 64
    began_ns = device.now_ns()
    device.read_batch(offsets.tolist(), nbytes=64)
    demand = Demand(reads=rows, read_bytes=64 * rows, read_accesses=rows)
    assert DeviceService(tm.DeviceSpec.load(name)).burst_ns(demand) == pytest.approx(
        device.now_ns() - began_ns, abs=1.5
    )


def test_a_step_of_reads_and_writes_lasts_no_longer_than_both_and_no_less_than_its_busiest_stage() -> None:
    for name in (*BLOCK_DEVICES, "pmem-100", "cxl-asic"):
        service = DeviceService(tm.DeviceSpec.load(name))
        reads = Demand(reads=3_000, read_bytes=3_000 * 4096, read_accesses=3_000)
        writes = Demand(writes=1_000, write_bytes=1_000 * 4096, write_accesses=1_000)
        both = service.sustained_ns(reads + writes)
        assert both >= max(service.stages_ns(reads + writes).values()) * (1 - 1e-9)
        assert (
            both
            <= service.sustained_ns(reads) + service.stages_ns(writes)[_slowest(service.spec, writes)] * 1.2
        )


def test_more_of_anything_takes_no_less_time() -> None:
    service = DeviceService(tm.DeviceSpec.load("nand-p3700"))
    small = Demand(
        reads=100, read_bytes=409_600, read_accesses=100, writes=10, write_bytes=40_960, write_accesses=10
    )
    for field in dataclasses.fields(Demand):
        if field.name == "sequential_share":
            continue
        more = dataclasses.replace(small, **{field.name: 2 * getattr(small, field.name)})
        assert service.sustained_ns(more) >= service.sustained_ns(small) * (1 - 1e-9), field.name
    assert service.burst_ns(Demand()) == 0
    assert (
        service.burst_ns(Demand(reads=1, read_bytes=4096, read_accesses=1))
        >= service.spec.read.latency_ns * 0.99
    )
