"""The planner: budgets, the bound, plan files, refusals."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tiermem.config import Hierarchy, Placement
from tiermem.errors import CapacityError, ConfigError
from tiermem.planner.arrays import Arrays
from tiermem.planner.baselines import BASELINES, baseline
from tiermem.planner.evaluate import evaluate, used_bytes
from tiermem.planner.geometry import block_geometry, log_geometry, log_shape, pages_of_rows
from tiermem.planner.plan import Plan, assignment_of, input_hash, new_numbers, plan_of
from tiermem.planner.problem import Problem
from tiermem.planner.profile import AccessProfile, TableProfile
from tiermem.planner.solve import Solution, fits, solve

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
