"""Injected faults as a user meets them: through a device and through a store."""

import errno

import numpy as np
import pytest
import tiermem as tm
import torch
from tiermem.errors import ClosedError, CorruptionError, DeviceError

ROWS, DIM = 2000, 32


def _bag(faults: tm.FaultConfig, **tier: object) -> tm.TieredEmbeddingBag:
    hierarchy = tm.Hierarchy.load("dram-nand", budgets={"dram": 0.02})
    dram, nand = hierarchy.tiers
    # Rows in place: random writes, and blocks that are written again.
    nand = nand.replace(faults=faults.model_dump(), layout="in_place", **tier)
    hierarchy = hierarchy.replace(tiers=(dram, nand))
    return tm.TieredEmbeddingBag(ROWS, DIM, mode="sum", hierarchy=hierarchy, optimizer=tm.SGD(lr=0.1))


def _train(bag: tm.TieredEmbeddingBag, steps: int) -> list[bytes]:
    generator = torch.Generator().manual_seed(3)
    optimizer = bag.optimizer()
    seen = []
    for _ in range(steps):
        pooled = bag(torch.randint(0, ROWS, (16, 8), generator=generator))
        pooled.square().sum().backward()
        optimizer.step()
        seen.append(pooled.detach().numpy().tobytes())
    return seen


def test_a_store_without_faults_is_the_store() -> None:
    assert _train(_bag(tm.FaultConfig()), 5) == _train(_bag(tm.FaultConfig(seed=9)), 5)


def test_a_device_that_goes_away_fails_every_step_that_needs_it_with_its_errno() -> None:
    bag = _bag(tm.FaultConfig(gone_after_requests=300))
    for _ in range(3):
        with pytest.raises(DeviceError, match="gone away") as caught:
            _train(bag, 200)
        assert caught.value.errno == errno.ENODEV
        assert "tier=nand" in str(caught.value)
    with pytest.raises(DeviceError, match="gone away"):
        bag.close()
    with pytest.raises(ClosedError):
        _train(bag, 1)


def test_a_worn_out_device_stops_the_store() -> None:
    with pytest.raises(DeviceError, match="worn out and read-only") as caught:
        _train(_bag(tm.FaultConfig(read_only_after_bytes=2**20)), 200)
    assert caught.value.errno == errno.EROFS


def test_a_latent_error_is_an_error_and_repeats_from_its_seed() -> None:
    def failed_at(seed: int) -> str:
        with pytest.raises(DeviceError, match="latent read error") as caught:
            _train(_bag(tm.FaultConfig(seed=seed, torn_write_probability=1.0, latent_error_share=0.2)), 300)
        return str(caught.value)

    # A torn write does not cure a block, so blocks that were written are still bad.
    assert failed_at(1) == failed_at(1)


def test_dropped_writes_are_found_when_the_block_is_read() -> None:
    # A block that was never stored has no header, and the store checks each header.
    with pytest.raises(CorruptionError, match="is not the block that was written there"):
        _train(_bag(tm.FaultConfig(seed=2, dropped_write_probability=0.3)), 200)


def test_bit_flips_change_what_is_trained_in_silence_or_break_a_header() -> None:
    clean = _train(_bag(tm.FaultConfig()), 30)
    try:
        flipped = _train(_bag(tm.FaultConfig(seed=4, bit_flip_probability=0.05)), 30)
    except CorruptionError:
        return
    assert flipped != clean, "rows carry no checksum yet"


def test_storms_and_states_change_times_and_no_bit() -> None:
    storm = tm.FaultConfig(storm_every_ns="10ms", storm_duration_ns="5ms", storm_extra_ns="3ms")  # type: ignore[arg-type]
    calm_bag, stormy_bag, fresh_bag = (
        _bag(tm.FaultConfig()),
        _bag(storm),
        _bag(tm.FaultConfig(), state="fresh"),
    )
    calm = _train(calm_bag, 40)
    assert _train(stormy_bag, 40) == calm
    assert _train(fresh_bag, 40) == calm
    devices = {
        name: bag.stats().tier("nand").device
        for name, bag in (("calm", calm_bag), ("stormy", stormy_bag), ("fresh", fresh_bag))
    }
    assert devices["stormy"].read_latency.p99_ns > devices["calm"].read_latency.p99_ns + 2_000_000
    assert devices["fresh"].write_amplification == pytest.approx(1.0)
    assert devices["calm"].write_amplification > 2
    assert devices["calm"].endurance_parts_per_billion > 2 * devices["fresh"].endurance_parts_per_billion


def test_faults_of_a_single_device() -> None:
    device = tm.open_device(
        "nand-p3700", capacity="1MiB", faults=tm.FaultConfig(seed=5, torn_write_probability=1.0)
    )
    data = np.full((1, 4096), 7, dtype=np.uint8)
    device.write_batch([0], data)
    found = device.read_batch([0], nbytes=4096)
    kept = int((found == 7).sum())
    assert 512 <= kept < 4096
    assert kept % 512 == 0


def test_wear_energy_and_cost_follow_from_the_counters() -> None:
    """Each figure by its formula in docs/metrics.md, from the counters and the device's numbers."""
    device = tm.open_device("nand-p3700", capacity="64MiB", queue_depth=8)
    offsets = np.random.default_rng(1).permutation(8192)[:4000] * 8192
    device.write_batch(offsets, np.ones((4000, 4096), dtype=np.uint8))
    device.read_batch(offsets, nbytes=4096)
    stats, spec = device.stats(), device.spec
    assert stats.media_write_bytes == pytest.approx(stats.write_bytes * 3, rel=1e-3)
    endurance = spec.wear.endurance_bytes * 3
    assert stats.endurance_parts_per_billion == pytest.approx(stats.media_write_bytes / endurance * 1e9)
    years = stats.elapsed_ns * 1e-9 / (365.25 * 86_400)
    assert stats.lifetime_years == pytest.approx(years / (stats.media_write_bytes / endurance))
    assert stats.cost_dollars == pytest.approx(64 * 2**20 * 1e-9 * 1.0)
    idle = spec.power.idle_milliwatts * 1e-3 * stats.elapsed_ns * 1e-9
    most = spec.power.write_milliwatts * 1e-3 * stats.elapsed_ns * 1e-9
    assert idle < stats.energy_joules < most
    active = stats.energy_joules - idle
    assert stats.nanojoules_per_operation == pytest.approx(active * 1e9 / 8000, rel=1e-6)
