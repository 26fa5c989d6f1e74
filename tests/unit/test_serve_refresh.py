"""Refresh intervals against the rating of a device, and warm-up against its curve."""

import pytest
from tiermem.config import DeviceSpec
from tiermem.serve.loadgen import CacheCounts, WarmUpPart
from tiermem.serve.refresh import least_refresh_interval_s, refresh_plan

DAY_S = 86_400


def part(queries: int, hits: int) -> WarmUpPart:
    return WarmUpPart(queries, CacheCounts(100, hits, 0, 0, 0, 0), 0, 0)


def test_writing_the_rated_bytes_uses_the_device_up() -> None:
    spec = DeviceSpec.load("nand-p3700")
    wear = spec.wear
    # In order nothing is amplified: the medium takes the rating times the amplification of random writes.
    on_medium = wear.endurance_bytes * wear.write_amplification_percent / 100
    interval_s = least_refresh_interval_s(spec, 10**9, life_years=3)
    assert 3 * 365.25 * DAY_S / interval_s * 10**9 == pytest.approx(on_medium)
    assert least_refresh_interval_s(DeviceSpec.load("cxl-asic"), 10**9) == 0.0


def test_a_fleet_has_as_many_cold_hosts_as_warm_up_over_interval() -> None:
    spec = DeviceSpec.load("nand-p3700")
    curve = [part(100, 20), part(200, 60), part(300, 79), part(400, 80)]
    plan = refresh_plan(spec, 10**12, curve, queries_per_s=10.0)
    assert plan.warm_up_s == 30.0
    assert plan.least_interval_s == least_refresh_interval_s(spec, 10**12)
    assert plan.warming_share == pytest.approx(30.0 / plan.least_interval_s)
    often = refresh_plan(spec, 1, curve, queries_per_s=1e-6)
    assert often.warming_share == 1.0, "never warm"
    assert refresh_plan(spec, 1, [], queries_per_s=1.0).warm_up_s == 0.0
