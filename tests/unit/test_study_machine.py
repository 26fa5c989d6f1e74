"""Nodes of the study: devices side by side, steps in closed form, searches that find the fewest."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiermem.config import DeviceSpec, resolve
from tiermem.config.node import NodeConfig
from tiermem.config.study import NodeStudyConfig
from tiermem.errors import CapacityError, ConfigError
from tiermem.perf.service import Demand, DeviceService
from tiermem.planner.target import fewest_nodes, smallest_that_fits
from tiermem.study.emulate import emulated
from tiermem.study.machine import Machine, scaled
from tiermem.study.nodes import Point, Trainer, Variant
from tiermem.study.workload import Workload

STUDY = NodeStudyConfig.load("mtrains")
NODE = NodeConfig.load("zionex")


def _demand(times: float, page: int) -> Demand:
    return Demand(
        reads=40_000 * times,
        read_bytes=40_000 * times * 4096,
        read_accesses=40_000 * times * max(1, 4096 / page),
        writes=10_000 * times,
        write_bytes=10_000 * times * 4096,
        write_accesses=10_000 * times * max(1, 4096 / page),
    )


@pytest.mark.parametrize("name", ["dram-ddr4-2933", "pmem-100", "optane-p5800x", "nand-pm9a3"])
@pytest.mark.parametrize("count", [2, 4])
def test_devices_side_by_side_take_as_long_for_as_many_times_the_work(name: str, count: int) -> None:
    spec = DeviceSpec.load(name)
    one = DeviceService(spec)
    all_of_them = DeviceService(scaled(spec, count))
    few, many = _demand(1, spec.page_bytes), _demand(count, spec.page_bytes)
    assert all_of_them.sustained_ns(many) == pytest.approx(one.sustained_ns(few), rel=0.02)
    assert all_of_them.worn_ns(many, 5) == pytest.approx(one.worn_ns(few, 5), rel=1e-6)


def test_a_tier_with_a_stated_bandwidth_reaches_it() -> None:
    spec = NODE.tiers["hbm"].spec()
    nbytes = 10_000_000_000
    time_ns = DeviceService(spec).sustained_ns(
        Demand(reads=nbytes / 64, read_bytes=nbytes, read_accesses=nbytes / 64)
    )
    assert nbytes / time_ns == pytest.approx(1300, rel=0.01)


def test_a_step_on_two_nodes_by_hand() -> None:
    """65,536 samples of 94 x 4,096 columns in fp16 on 16 accelerators, 7 near and 8 far of 16."""
    model = STUDY.model("meta-dlrm-a")
    machine = Machine(node=NODE, tiers=("hbm", "dram"), nodes=2)
    parts = machine.step(model, batch=65_536, dims=94 * 4_096, lookups_per_sample=15 * 4_096)
    samples = 65_536 / 16
    assert parts.compute_ns == pytest.approx(3 * 638e6 * samples / 110e12 * 1e9)
    nbytes = samples * 94 * 4_096 * 2
    exchange_ns = nbytes * 7 / 16 / 200 + nbytes * 8 / 16 / 7 + 8 * 1_000
    assert parts.all_to_all_ns == pytest.approx(2 * exchange_ns)
    ids = samples * 15 * 4_096 * 8
    hidden = 319e6 * 4 / 60 + ids * 7 / 16 / 200 + ids * 8 / 16 / 7 + 8_000 - parts.compute_ns
    assert parts.all_reduce_ns == pytest.approx(hidden)


def test_one_node_sends_nothing_to_others() -> None:
    machine = Machine(node=NODE, tiers=("hbm", "dram"), nodes=1)
    parts = machine.step(STUDY.model("meta-dlrm-f"), batch=65_536, dims=64 * 256, lookups_per_sample=64 * 20)
    assert parts.all_to_all_ns == pytest.approx(2 * 65_536 / 8 * 64 * 256 * 2 * 7 / 8 / 200)


def test_power_and_price_add_up() -> None:
    machine = Machine(node=NODE, tiers=("hbm", "dram", "ssd"), nodes=3)
    dram = 4 * 384 * 6.25
    hbm = 8 * 40 * 20.0
    ssd = 8 * 1_600 * 2.389
    assert machine.price_dollars() == pytest.approx(3 * (150_000 + dram + hbm + ssd), rel=1e-3)
    idle = machine.power_watts({})
    busy = machine.power_watts({"ssd": (1.0, 0.0)})
    assert busy - idle == pytest.approx(3 * 8 * (18.0 - 4.2))


def test_budgets_are_what_is_usable_without_staging_and_index() -> None:
    machine = Machine(node=NODE, tiers=("hbm", "dram", "ssd"), nodes=1)
    found = machine.hierarchy(staging_bytes=10**9, index_bytes=2 * 10**9, layout="log", cache_share=0.5)
    hbm, dram, ssd = found.tiers
    assert hbm.cache == (8 * 40 * 10**9 * 75 // 100 - 10**9) // 2
    assert dram.cache == (4 * 384 * 10**9 * 80 // 100 - 2 * 10**9) // 2
    assert ssd.cache is None
    assert ssd.effective_layout() == "log"
    assert ssd.device.capacity_bytes == 8 * 1_600 * 10**9 * 90 // 100
    assert found.staging_bytes == 10**9
    with pytest.raises(CapacityError, match='take all of tier "hbm"'):
        machine.hierarchy(staging_bytes=10**12, index_bytes=0, layout="log")


def _point(nodes: int) -> Point:
    return Point(
        nodes=nodes, samples_per_s=1.0, step_ns=1.0, parts_ns={"wait": 0.0}, binding="", tiers=(), busy={},
        homes={}, reads={}, plan="", gap=0.0,
    )  # fmt: skip


@given(st.integers(1, 300), st.integers(1, 300))
def test_the_fewest_nodes_are_found_where_more_are_never_worse(enough: int, nodes_max: int) -> None:
    assert smallest_that_fits(lambda nodes: _point(nodes) if nodes >= enough else None).nodes == enough
    found = fewest_nodes(lambda nodes: nodes >= enough, nodes_max)
    assert found == (enough if enough <= nodes_max else None)


def test_a_model_that_fits_nowhere() -> None:
    with pytest.raises(CapacityError, match="do not fit on 65536 nodes"):
        smallest_that_fits(lambda _: None)


class TestTraining:
    """Half and a quarter of the tables of a model of 24 TB."""

    WORKLOAD = Workload.of(STUDY.model("meta-dlrm-f"), STUDY.locality, scale=1, groups_max=8, segments=12)
    WORKLOAD = dataclasses.replace(WORKLOAD, groups=WORKLOAD.groups[:2])
    TRAINER = Trainer(WORKLOAD, NODE)

    def at(self, tiers: tuple[str, ...], nodes: int, **changes: object) -> Point:
        point = self.TRAINER.at(tiers, nodes, dataclasses.replace(Variant(), **changes))  # type: ignore[arg-type]
        assert point is not None
        return point

    def test_more_tiers_are_never_slower_since_they_may_be_left_idle(self) -> None:
        both = self.at(("hbm", "dram", "pmem", "ssd"), 3)
        for fewer in (("hbm", "dram", "pmem"), ("hbm", "dram", "ssd")):
            point = self.TRAINER.at(fewer, 3)
            assert point is None or point.samples_per_s <= both.samples_per_s

    def test_parts_add_up_and_rate_is_batch_over_step(self) -> None:
        point = self.at(("hbm", "dram", "ssd"), 4)
        assert sum(point.parts_ns.values()) == pytest.approx(point.step_ns, rel=1e-6)
        assert point.samples_per_s == pytest.approx(65_536 / point.step_ns * 1e9)

    def test_rows_that_do_not_fit_are_no_point(self) -> None:
        assert self.TRAINER.at(("hbm", "dram"), 8) is None

    def test_what_is_left_out_is_missed(self) -> None:
        tiers = ("hbm", "dram", "ssd")
        plain = self.at(tiers, 4)
        assert plain.parts_ns["wait"] > 0
        for change in (
            {"prefetch_distance": 0},
            {"placement": "all-cached"},
            {"cache_share": 0.5},
        ):
            assert self.at(tiers, 4, **change).samples_per_s < plain.samples_per_s, change

    def test_a_slow_host_link_is_what_a_step_waits_for(self) -> None:
        tiers, slow = ("hbm", "dram", "ssd"), NODE.replace(host_link_bytes_per_s=100_000_000)
        point = Trainer(self.WORKLOAD, slow).at(tiers, 4)
        assert point is not None
        assert point.binding == "host link"
        missed = point.tiers[0].probed_rows - point.tiers[0].hit_rows
        assert point.step_ns == pytest.approx(missed * 516 / (8 * 0.1))

    def test_an_idle_tier_draws_power_and_costs(self) -> None:
        plain, more = (self.at(tiers, 16) for tiers in (("hbm", "dram"), ("hbm", "dram", "pmem")))
        assert more.parts_ns["wait"] == plain.parts_ns["wait"] == 0
        assert more.price_dollars - plain.price_dollars == pytest.approx(16 * 4 * 768 * 4.508, rel=1e-3)
        assert more.power_watts - plain.power_watts == pytest.approx(16 * 4 * 24, rel=1e-3)

    def test_without_deduplication_every_lookup_is_a_row(self) -> None:
        plain, repeated = (
            self.at(("hbm", "dram", "ssd"), 4, placement="size", deduplicated=each) for each in (True, False)
        )
        lookups = 65_536 * 20 * 48 / 4
        assert repeated.tiers[0].probed_rows == pytest.approx(lookups, rel=1e-3)
        assert plain.tiers[0].probed_rows < lookups / 5
        more = repeated.tiers[0].probed_rows / plain.tiers[0].probed_rows
        assert repeated.parts_ns["update"] == pytest.approx(more * plain.parts_ns["update"], rel=0.01)

    def test_nothing_writes_faster_than_lasts(self) -> None:
        """Where wear binds, all that is written in the years of the node is the endurance."""
        nand = NODE.replace(
            tiers={
                name: tier.replace(device="nand-pm9a3") if name == "ssd" else tier
                for name, tier in NODE.tiers.items()
            }
        )
        trainer = Trainer(self.WORKLOAD, nand)
        worn = trainer.at(("hbm", "dram", "ssd"), 4)
        ageless = trainer.at(("hbm", "dram", "ssd"), 4, Variant(is_worn=False))
        assert worn is not None
        assert ageless is not None
        assert worn.binding == "ssd, endurance"
        assert ageless.samples_per_s > 2 * worn.samples_per_s
        load = worn.tiers[-1]
        seconds = 5 * 365 * 86_400
        written = load.write_bytes / 8 * seconds / (worn.step_ns / 1e9)
        spec = DeviceSpec.load("nand-pm9a3")
        # Between only sequential writes, which the medium does not amplify, and only random ones.
        assert spec.wear.endurance_bytes * 0.99 <= written
        assert written <= spec.wear.endurance_bytes * spec.wear.write_amplification_percent / 100 * 1.01

    def test_devices_of_a_plan_take_as_long_in_the_emulator(self) -> None:
        runs = emulated(self.at(("hbm", "dram", "pmem", "ssd"), 3), NODE, seed=1)
        assert {run.tier for run in runs} <= {"pmem", "ssd"}
        assert runs
        for run in runs:
            assert run.error == pytest.approx(0.0, abs=0.1), run


class TestNodeFile:
    def test_every_number_has_a_source(self) -> None:
        assert len(NODE.source) > 15
        assert "network.message_ns" in NODE.assumed()

    def test_a_number_without_one_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(resolve("nodes", "zionex").read_text().replace('"life_years" =', '"lifeyears" ='))
        with pytest.raises(ConfigError, match="life_years has no source"):
            NodeConfig.load(path)
