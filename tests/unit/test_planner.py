"""The planner: budgets, the bound, plan files, refusals, machines for a throughput."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tiermem.config import DeviceSpec, Hierarchy, Placement
from tiermem.errors import CapacityError, ConfigError
from tiermem.perf.service import Demand, DeviceService
from tiermem.planner.arrays import Arrays
from tiermem.planner.baselines import BASELINES, baseline
from tiermem.planner.evaluate import evaluate, used_bytes
from tiermem.planner.geometry import block_geometry, log_geometry, log_shape, pages_of_rows
from tiermem.planner.pictures import lru_curve, planned_sizes, roof, tables_by_home
from tiermem.planner.plan import Plan, assignment_of, input_hash, new_numbers, plan_of
from tiermem.planner.problem import Problem
from tiermem.planner.profile import AccessProfile, TableProfile
from tiermem.planner.solve import Solution, fits, solve
from tiermem.planner.target import (
    Machine,
    Target,
    least,
    machines,
    tiers_price_dollars,
    tiers_watts,
    with_some,
)

WINDOWS = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256])


def profile(tables: int = 6, seed: int = 1, rows_most: float = 4.5) -> AccessProfile:
    """Independent draws by Zipf's law, in closed form."""
    draws = np.random.default_rng(seed)
    found = []
    for number in range(tables):
        rows, exponent = int(10 ** draws.uniform(3, rows_most)), draws.uniform(0.2, 1.2)
        ids, dim = 256 * draws.integers(1, 10), int(draws.choice((16, 32)))
        edges = np.unique(np.append(0, np.round(rows * np.geomspace(1e-3, 1, 12)).astype(np.int64)))
        popularity = np.arange(1, rows + 1) ** -exponent
        popularity /= popularity.sum()
        absent = np.exp(-ids * popularity)
        missed = np.stack([np.add.reduceat((1 - absent) * absent**w, edges[:-1]) for w in WINDOWS], axis=1)
        found.append(
            TableProfile(
                name=f"t{number}",
                rows=rows,
                row_bytes=4 * dim + 4,
                weight_bytes=4 * dim,
                pooling=ids / 256,
                coverage=1.0,
                segment_rows=np.diff(edges),
                segment_ids=np.add.reduceat(ids * popularity, edges[:-1]),
                distinct=missed[:, 0],
                misses=missed,
                hot_rows=np.arange(rows)[::-1].copy(),
            )
        )
    return AccessProfile(origin="zipf", bags=256, batches=256, windows=WINDOWS, tables=tuple(found))


def hierarchy(*devices: str, dram: float | int = 0.1, middle: float = 0.2) -> Hierarchy:
    """DRAM over these devices."""
    tiers: list[dict[str, object]] = [
        {"name": "dram", "device": "dram-ddr5-4800", "cache": dram, "policy": "lru"}
    ]
    tiers += [{"name": name, "device": name, "cache": middle, "policy": "lru"} for name in devices[:-1]]
    return Hierarchy.from_mapping({"tiers": [*tiers, {"name": devices[-1], "device": devices[-1]}]})


TIERS = [
    ("optane-p5800x",),
    ("nand-pm9a3",),
    ("cxl-asic",),
    ("pmem-100", "optane-p5800x"),
    ("cxl-asic", "nand-pm9a3"),
]


def problem(*devices: str, distance: int = 1, **changes: object) -> Problem:
    """A training step with little dense work."""
    return dataclasses.replace(
        Problem(
            profile=profile(), hierarchy=hierarchy(*devices), dense_ns=20_000, prefetch_distance=distance
        ),
        **changes,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module", params=[(tiers, distance) for tiers in TIERS for distance in (0, 2)], ids=str)
def solution(request: pytest.FixtureRequest) -> Solution:
    """One plan for each hierarchy and distance."""
    tiers, distance = request.param
    return solve(problem(*tiers, distance=distance))


def test_a_plan_keeps_within_the_budgets_and_loses_to_nobody(solution: Solution) -> None:
    assert fits(solution.arrays, solution.chosen.assignment)
    step_ns = solution.chosen.prediction.step_ns
    assert all(step_ns <= each.prediction.step_ns for each in solution.baselines)
    assert all(solution.bound.step_ns <= each.prediction.step_ns * (1 + 1e-9) for each in solution.candidates)
    # Rows in a log share the blocks of what left memory with them, of which the bound's costs know nothing.
    has_log = any(tier.is_log for tier in solution.arrays.tiers)
    assert 0 <= solution.gap < (0.7 if has_log else 0.3)


def test_the_parts_of_a_step_add_up(solution: Solution) -> None:
    for each in (solution.chosen, *solution.baselines):
        assert sum(each.prediction.parts.values()) == pytest.approx(each.prediction.step_ns)
        assert min(each.prediction.parts.values()) >= -1e-6
        for tier in each.prediction.tiers:
            assert 0 <= tier.hit_rows <= tier.probed_rows * (1 + 1e-9)


def test_rows_are_found_somewhere(solution: Solution) -> None:
    for each in (solution.chosen, *solution.baselines):
        tiers = each.prediction.tiers
        assert sum(tier.hit_rows for tier in tiers) == pytest.approx(tiers[0].probed_rows)


def test_a_plan_file_holds_the_plan(solution: Solution, tmp_path: Path) -> None:
    plan = plan_of(solution)
    plan.save(tmp_path / "plan.toml")
    again = Plan.load(tmp_path / "plan.toml")
    assert again == plan
    again.check_input(solution.arrays.problem)
    assert Placement.load(tmp_path / "plan.toml") == plan.placement
    restored = assignment_of(again, solution.arrays)
    assert evaluate(solution.arrays, restored).step_ns == pytest.approx(solution.chosen.prediction.step_ns)
    assert set(plan.why) == {table.name for table in solution.arrays.problem.profile.tables}


def test_planning_twice_gives_the_same_plan() -> None:
    one, other = (plan_of(solve(problem("pmem-100", "optane-p5800x"))) for _ in range(2))
    assert one == other


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_keep_within_the_budgets(name: str) -> None:
    arrays = Arrays(problem("pmem-100", "optane-p5800x"))
    assert fits(arrays, baseline(arrays, name))


def test_more_memory_is_never_slower() -> None:
    steps = []
    for share in (0.02, 0.1, 0.3, 0.9):
        tiers = hierarchy("optane-p5800x", dram=share)
        steps.append(solve(problem("optane-p5800x", hierarchy=tiers)).chosen.prediction.step_ns)
    assert steps == sorted(steps, reverse=True)
    everything = hierarchy("optane-p5800x", dram=10**9)
    found = solve(problem("optane-p5800x", hierarchy=everything))
    assert found.chosen.prediction.step_ns == pytest.approx(found.arrays.host_ns)


def test_the_integer_program_says_what_it_left_open() -> None:
    found = solve(problem("pmem-100", "optane-p5800x"), milp_time_limit_s=2.0)
    assert found.milp_gap is not None
    assert found.milp_gap >= 0
    assert any(each.name.endswith("milp") for each in found.candidates)


def test_budgets_that_are_too_small_say_by_how_much() -> None:
    with pytest.raises(
        CapacityError, match=r'tier "dram" has a budget of 100 bytes.*width takes 200: 100 too few'
    ):
        solve(problem("optane-p5800x", hierarchy=hierarchy("optane-p5800x", dram=100)))
    small = Hierarchy.load("dram-optane").tiers[1].device.replace(capacity_bytes=2**20)
    tiers = hierarchy("optane-p5800x")
    tiers = tiers.replace(tiers=(tiers.tiers[0], tiers.tiers[1].replace(device=small)))
    with pytest.raises(
        CapacityError, match=r"the tables need .* bytes and all tiers together have .* too few"
    ):
        solve(problem("optane-p5800x", hierarchy=tiers))
    with pytest.raises(ConfigError, match="a single tier"):
        solve(problem("optane-p5800x", hierarchy=Hierarchy.load("dram")))


def test_a_plan_of_another_input_is_refused() -> None:
    job = problem("optane-p5800x")
    plan = plan_of(solve(job))
    changed = dataclasses.replace(job, dense_ns=job.dense_ns + 1)
    with pytest.raises(ConfigError, match=rf"{plan.input_hash}.*{input_hash(changed)}.*plan again"):
        plan.check_input(changed)
    others = dataclasses.replace(job, profile=dataclasses.replace(job.profile, tables=job.profile.tables[1:]))
    with pytest.raises(ConfigError, match=r'for other tables: it lacks "t0"'):
        plan.check_input(others)


def test_rows_lie_as_the_store_lays_them_out() -> None:
    # The figures of the unit tests of rust_core/src/tier/layout.rs.
    assert block_geometry(68) == (59, 4096)
    rows, nbytes = block_geometry(4100)
    assert nbytes % 4096 == 0
    assert rows * 4100 >= 0.9 * nbytes
    assert log_geometry(68) == ((4096 - 32) // 76, 4096)
    assert (pages_of_rows(256, 64), pages_of_rows(68, 64)) == (4.0, 2.0)
    shape = log_shape(1_000_000, 68, spare=0.25, segment_bytes=2**20, plan_rows=16_384, row_tiers=1)
    moved = [shape.moved_per_row(live) for live in (0.0, 2e5, 6e5, 1e6)]
    assert moved == sorted(moved)
    assert moved[0] < 1e-6
    # A cleaned segment of which a share v lives: v = m / (1 + m), and the utilisation is (v - 1) / ln v.
    living = moved[2] / (1 + moved[2])
    in_use = shape.segments - 8 - 0.1 * shape.segments
    assert (living - 1) / np.log(living) == pytest.approx(6e5 / (shape.rows_per_segment * in_use))


def test_baselines_take_tables_in_their_order() -> None:
    arrays = Arrays(problem("optane-p5800x", hierarchy=hierarchy("optane-p5800x", dram=0.5)))
    tables = arrays.problem.profile.tables
    keys = {
        "size": [table.rows * table.row_bytes for table in tables],
        "lookups": [table.pooling * table.weight_bytes for table in tables],
        "size-lookups": [table.pooling * table.weight_bytes * np.log10(table.rows) for table in tables],
    }
    for name, values in keys.items():
        left = arrays.tiers[0].budget_bytes - int(arrays.class_row_bytes.sum())
        resident = set()
        for number in np.argsort(-np.array(values), kind="stable"):
            if tables[number].rows * tables[number].row_bytes <= left:
                left -= tables[number].rows * tables[number].row_bytes
                resident.add(int(number))
        assert set(np.flatnonzero(baseline(arrays, name).home[:, 0] == 0)) == resident, name


def test_new_numbers_put_the_hottest_rows_first() -> None:
    of = profile(2)
    numbers, kept = new_numbers(of, np.array([True, False]))
    assert kept is None
    assert numbers is not None
    assert sorted(numbers) == list(range(of.tables[0].rows))
    np.testing.assert_array_equal(numbers[of.tables[0].hot_rows], np.arange(of.tables[0].rows))


def test_the_hash_covers_the_whole_input() -> None:
    job = problem("optane-p5800x")
    others = [
        dataclasses.replace(job, hierarchy=hierarchy("optane-p5800x", dram=0.2)),
        dataclasses.replace(job, profile=profile(seed=2)),
        dataclasses.replace(job, dense_ns=1),
        dataclasses.replace(job, prefetch_distance=2),
        dataclasses.replace(job, training=False),
        dataclasses.replace(job, steady=False),
    ]
    assert len({input_hash(each) for each in (job, *others)}) == 7


def test_used_bytes_are_homes_and_caches() -> None:
    arrays = Arrays(problem("optane-p5800x"))
    cached = baseline(arrays, "all-cached")
    used = used_bytes(arrays, cached)
    assert used[0] == cached.cache_bytes[0]
    blocks = sum(table.rows / block_geometry(table.row_bytes)[0] for table in arrays.problem.profile.tables)
    assert used[1] == pytest.approx(4096 * blocks)


def _target(**changes: object) -> Target:
    return dataclasses.replace(
        Target(
            samples_per_s=1.5e6, objective="cost", nodes_max=64, fastest_shares=(1.0, 0.25), node_watts=300.0,
            node_price_dollars=5_000.0,
        ),
        **changes,  # type: ignore[arg-type]
    )  # fmt: skip


def _asked() -> Problem:
    return problem("pmem-100", "optane-p5800x", profile=profile(tables=3))


@pytest.fixture(scope="module")
def found() -> list[Machine]:
    return machines(_asked(), _target())


def test_every_choice_of_tiers_is_looked_at() -> None:
    assert list(with_some(("a", "b", "c"), always=1)) == [("a",), ("a", "b"), ("a", "c"), ("a", "b", "c")]
    assert list(with_some(("a", "b"), always=2)) == [("a", "b")]


def test_machines_reach_the_target_and_fewer_nodes_do_not(found: list[Machine]) -> None:
    asked = _asked()
    whole = [each for each in found if len(each.tiers) == 3 and each.fastest_share == 1.0]
    assert len(whole) == 1
    assert all(each.samples_per_s >= 1.5e6 for each in found)
    nodes = whole[0].nodes
    assert nodes > 1
    assert whole[0].solution.arrays.problem.dense_ns == round(asked.dense_ns / nodes)
    for fewer in range(1, nodes):
        part = dataclasses.replace(
            asked,
            profile=asked.profile.divided(fewer),
            # Budgets are those of a node, whatever the number of nodes.
            hierarchy=asked.hierarchy.replace(
                tiers=tuple(
                    tier.replace(cache=int(tier.cache * asked.profile.bytes_total)) if tier.cache else tier
                    for tier in asked.hierarchy.tiers
                )
            ),
            dense_ns=round(asked.dense_ns / fewer),
        )
        assert 256 / solve(part).chosen.prediction.step_ns * 1e9 < 1.5e6


@pytest.mark.parametrize("objective", ["nodes", "power", "cost"])
def test_the_least_is_chosen(found: list[Machine], objective: str) -> None:
    best = least(found, objective)  # type: ignore[arg-type]
    key = {"nodes": "nodes", "power": "power_watts", "cost": "price_dollars"}[objective]
    assert getattr(best, key) == min(getattr(each, key) for each in found)


def test_nothing_reaches_what_no_machine_can() -> None:
    assert machines(problem("pmem-100"), _target(samples_per_s=1e12, nodes_max=2)) == []


def test_a_part_of_a_device_costs_and_takes_its_part() -> None:
    spec = DeviceSpec.load("optane-p5800x")
    assert tiers_price_dollars({"ssd": (spec, 0.5)}) == pytest.approx(0.5 * 1_600 * 2.389)
    assert tiers_watts({"ssd": (spec, 2.0)}, {}) == pytest.approx(2 * 4.2)
    assert tiers_watts({"ssd": (spec, 2.0)}, {"ssd": (0.25, 0.5)}) == pytest.approx(2 * (4.2 + 0.75 * 13.8))


def test_a_divided_profile_is_a_part_of_everything() -> None:
    whole = profile()
    half = whole.divided(2)
    for one, part in zip(whole.tables, half.tables, strict=True):
        assert part.ids == pytest.approx(one.ids / 2)
        assert np.allclose(part.misses, one.misses / 2)
        assert abs(part.rows - one.rows / 2) <= len(part.segment_rows)
    assert whole.divided(1) is not half
    assert whole.divided(1).hash() == whole.hash()


def test_a_device_may_be_written_as_often_as_it_lasts() -> None:
    """100 drive writes a day for 5 years, spread over 10, are 50 a day: 80 TB of random writes."""
    service = DeviceService(DeviceSpec.load("optane-p5800x"))
    day = Demand(writes=80e12 / 4096, write_bytes=80e12, write_accesses=80e12 / 4096)
    assert service.worn_ns(day, 10) == pytest.approx(86_400e9, rel=1e-3)
    assert service.worn_ns(day, 0) == 0.0
    assert DeviceService(DeviceSpec.load("dram-ddr5-4800")).worn_ns(day, 10) == 0.0


def test_wear_that_binds_is_the_step() -> None:
    ageless = solve(problem("nand-pm9a3"))
    lasting = solve(problem("nand-pm9a3", life_years=20))
    prediction = lasting.chosen.prediction
    assert prediction.binding == "nand-pm9a3, endurance"
    assert prediction.step_ns > ageless.chosen.prediction.step_ns
    assert prediction.parts["wait"] + lasting.arrays.host_ns == pytest.approx(prediction.step_ns)


class TestPictures:
    def test_the_curve_is_the_sum_of_misses(self) -> None:
        """A cache of what two batches use misses what was not used in the two before."""
        whole = profile()
        used = sum(float(table.distinct.sum()) for table in whole.tables)
        points = lru_curve(whole)
        assert points[0] == (0.0, 1.0)
        at_two = sum(float(table.misses[:, 2].sum()) for table in whole.tables) / used
        held = sum(
            float(table.misses[:, 0].sum() + table.misses[:, 1].sum()) * table.row_bytes
            for table in whole.tables
        )
        assert points[2] == pytest.approx((held, at_two))

    def test_planned_sizes_and_homes_add_up(self) -> None:
        solution = solve(problem("pmem-100", "optane-p5800x"))
        prediction = solution.chosen.prediction
        sizes = planned_sizes(prediction.tiers)
        fastest = prediction.tiers[0]
        assert sizes["dram"][0] == pytest.approx(fastest.home_bytes + fastest.cache_bytes)
        assert sizes["dram"][1] == pytest.approx(1 - fastest.hit_rows / fastest.probed_rows)
        assert sizes["pmem-100"][1] <= sizes["dram"][1]
        homes = tables_by_home(solution.arrays, solution.chosen.assignment, float(prediction.step_ns))
        assert sum(len(points) for points in homes.values()) == len(profile().tables)
        nbytes = sum(size for points in homes.values() for size, _ in points)
        assert nbytes == pytest.approx(profile().bytes_total)

    def test_a_roof_is_the_rated_figure(self) -> None:
        points = dict(roof(DeviceService(DeviceSpec.load("optane-p5800x"))))
        assert points[512.0] == pytest.approx(5e6, rel=0.05)
        assert points[4096.0] == pytest.approx(1.5e6, rel=0.05)
        # A lookup of less than a block reads a block.
        assert points[64.0] == points[512.0]


def test_budgets_as_shares_are_those_of_a_node() -> None:
    """With as many nodes each has the same budget in bytes, so that more nodes have more memory in all."""
    found = machines(
        dataclasses.replace(problem("optane-p5800x"), hierarchy=hierarchy("optane-p5800x", dram=0.5)),
        _target(samples_per_s=2e6, fastest_shares=(1.0,)),
    )
    (only,) = found
    budget = only.solution.arrays.tiers[0].budget_bytes
    assert budget == int(0.5 * profile().bytes_total)
