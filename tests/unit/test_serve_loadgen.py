"""An engine in virtual time keeps to closed forms, and every mechanism does what it is for."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from tiermem.config import DeviceSpec, ServeConfig
from tiermem.config.synth import SynthConfig
from tiermem.data.synth import synthesize
from tiermem.errors import CapacityError, ConfigError
from tiermem.results import digest
from tiermem.serve.ablate import ablation, baselines, run_variant
from tiermem.serve.loadgen import Baseline, LoadResult, Simulator
from tiermem.serve.tables import imagined_model, row_bytes
from tiermem.serve.tune import tune

QUERY, PROBE, ROW, SUBMIT, COMPLETE = 5_000, 60, 10, 200, 800
ROWS = (("user-0", 100_000), ("user-1", 100_000), ("item", 1_000))
LOWER_FLOPS = 2 * (4 * 8 + 8 * 16)


def constant_device() -> dict[str, Any]:
    """An SSD whose reads all take the same time."""
    spec = DeviceSpec.load("nand-pm9a3").model_dump(mode="json")
    spec["read"] = {
        **spec["read"],
        "latency_quantiles_ns": [],
        "latency_max_ns": 0,
        "latency_by_bytes_ns": [],
    }
    spec["source"] = {
        key: value
        for key, value in spec["source"].items()
        if not key.startswith(("read.latency_quantiles", "read.latency_max", "read.latency_by_bytes"))
    }
    return spec


def engine(**changes: Any) -> ServeConfig:
    """Two user tables and an item table; keys are `part__key`."""
    values: dict[str, Any] = {
        "tables": tables_of(100_000, 10, 1.05),
        "dense": {"dim": 16, "dense_layers": [8], "over_layers": [8]},
        "dense_features": 4,
        "device": {"spec": "nand-pm9a3", "reads_max": 64},
        "memory": {"budget": 1_600_000, "pooled_ids_min": 4, "updates": 0},
        "host": {
            "threads": 4, "query_ns": QUERY, "probe_ns": float(PROBE), "row_ns": float(ROW), "byte_ns": 0.0,
            "dequantise_ns": 0.0, "submit_ns": float(SUBMIT), "interrupt_ns": float(COMPLETE),
            "polling_ns": 200.0, "fault_ns": 1000.0,
            "compute": {"flops_per_s": 1e9, "bytes_per_s": 10**15, "source": "assumed"}, "source": "assumed",
        },
        "load": {
            "sla_ms": 5.0, "warm_up_queries": 3_000, "measured_queries": 1_500, "rate_tolerance": 0.05,
            "queries": {"users": 2_000, "items": 500, "candidates": 8},
        },
    }  # fmt: skip
    for name, value in changes.items():
        *parts, key = name.split("__")
        place = values
        for part in parts:
            place = place.setdefault(part, {})
        place[key] = value
    return ServeConfig.from_mapping(values)


def tables_of(rows: int, ids_per_list: int, exponent: float) -> list[dict[str, Any]]:
    """Two tables of users, and a small one of items."""
    return [
        {"name": "user", "count": 2, "rows": rows, "columns": 60, "side": "user",
         "ids_per_list": ids_per_list, "exponent": exponent},
        {"name": "item", "rows": 1_000, "columns": 60, "side": "item", "ids_per_list": 2, "exponent": 0.9},
    ]  # fmt: skip


def upper_ns(candidates: int, tables: int) -> int:
    """Interaction and over arch at a FLOP a nanosecond, by hand."""
    vectors, dim = tables + 1, 16
    crossed = dim + vectors * (vectors - 1) // 2
    return candidates * (2 * vectors**2 * dim + 2 * (crossed * 8 + 8))


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("candidates", [1, 400])
def test_one_query_takes_what_its_parts_take(overlap: bool, candidates: int) -> None:
    tables = [
        {"name": "user", "rows": 100_000, "columns": 60, "side": "user", "ids_per_list": 1, "exponent": 0.0},
        {"name": "item", "rows": 1_000, "columns": 60, "side": "item", "ids_per_list": 1, "exponent": 0.0},
    ]
    config = engine(
        tables=tables,
        device__spec=constant_device(),
        device__completion="interrupt",
        placement={"user": "uncached"},
        overlap=overlap,
        memory__budget=200_000,
        memory__pooled_share=0.0,
        load__queries={"users": 100_000, "items": 500, "candidates": candidates},
    )
    simulator = Simulator(config)
    found = simulator.run(1.0, queries=50)
    device = config.device.effective_spec()
    # 60 codes, scale and bias: 64 bytes cross the bus, at most one unit of 4 bytes more on either side.
    link_ns = 64 / device.read.bandwidth_bytes_per_s * 1e9
    reference_ns = device.read.reference_bytes / device.read.bandwidth_bytes_per_s * 1e9
    read_ns = device.read.latency_ns - reference_ns + link_ns
    probing_ns = QUERY + PROBE + SUBMIT
    items_ns = LOWER_FLOPS + candidates * ROW
    finishing_ns = COMPLETE + ROW + upper_ns(candidates, 2)
    middle_ns = max(read_ns, items_ns) if overlap else read_ns + items_ns
    expected_ns = probing_ns + middle_ns + finishing_ns
    assert found.latency.count == 50
    assert found.latency.mean_ns == pytest.approx(expected_ns, abs=20)
    assert found.reads.reads == 50
    assert found.reads.asked_bytes == 50 * 64
    assert found.media_bytes == 50 * device.granule_bytes
    assert found.busy_ns == pytest.approx(50 * (probing_ns + items_ns + finishing_ns), rel=1e-4)
    whole = Simulator(config.replace(device=config.device.replace(sub_block=False))).run(1.0, queries=50)
    assert whole.reads.bus_bytes == 50 * 512


def test_who_has_no_dense_layers_spends_no_time_on_them() -> None:
    config = engine()
    model = imagined_model(config)
    both = [
        Simulator(config, model=each, baseline="memory").run(1.0, queries=50)
        for each in (model, dataclasses.replace(model, dense=None))
    ]
    assert both[0].busy_ns - both[1].busy_ns == 50 * (LOWER_FLOPS + upper_ns(8, 3))
    # Rows that were looked up elsewhere go into the layers all the same.
    users_elsewhere = model.with_tables(model.tables[2:])
    items = [
        Simulator(config, model=each, baseline="memory").run(1.0, queries=50)
        for each in (users_elsewhere, dataclasses.replace(users_elsewhere, dense=None))
    ]
    assert items[0].busy_ns - items[1].busy_ns == 50 * (LOWER_FLOPS + upper_ns(8, 3))


def test_threads_are_the_bound_of_an_engine_in_memory() -> None:
    config = engine(load__sla_ms=1000.0, load__measured_queries=4_000)
    simulator = Simulator(config, baseline="memory")
    idle = simulator.run(1.0, queries=200)
    capacity = config.host.threads / (idle.busy_ns / idle.queries * 1e-9)
    over = simulator.run(capacity * 2)
    assert over.queries / (over.elapsed_ns * 1e-9) == pytest.approx(capacity, rel=0.02)
    # At half the capacity threads are busy half of the time.
    half = simulator.run(capacity / 2)
    assert half.busy_ns / half.elapsed_ns / config.host.threads == pytest.approx(0.5, rel=0.05)
    assert half.latency.mean_ns < 1.3 * idle.latency.mean_ns


def highest(config: ServeConfig, baseline: Baseline | None = None) -> LoadResult:
    variant = run_variant("it", config, baseline=baseline)
    assert variant.result is not None, variant.problem
    return variant.result


def test_the_highest_rate_keeps_the_bound_and_a_higher_one_does_not() -> None:
    config = engine(load__sla_ms=2.0)
    simulator = Simulator(config)
    simulator.warm_up()
    best = simulator.highest_rate()
    assert best.keeps("p99", 2.0)
    assert not simulator.run(best.queries_per_s * 1.1, queries=4 * best.queries).keeps("p99", 2.0)
    again = simulator.run(best.queries_per_s, queries=best.queries)
    assert dataclasses.asdict(again) == dataclasses.asdict(best), "a run leaves nothing behind"
    with pytest.raises(ConfigError, match="an idle engine needs"):
        Simulator(engine(load__sla_ms=0.001)).highest_rate()


def test_caches_save_reads_and_raise_the_rate() -> None:
    rates = {variant.name: variant for variant in ablation(engine(), imagined_model(engine()))}
    results = {name: variant.result for name, variant in rates.items() if variant.result is not None}
    assert set(rates) == set(results), "every variant keeps some rate"
    full = results["all on"]
    per_query = {name: result.reads.reads / result.queries for name, result in results.items()}
    assert per_query["no row cache"] > 2 * per_query["all on"]
    assert per_query["no pooled results"] != per_query["all on"]
    assert results["no pooled results"].caches.lists == 0 < full.caches.list_hits
    assert results["no row cache"].queries_per_s < 0.7 * full.queries_per_s
    assert results["no overlap"].latency.p50_ns > 0
    bus = {name: result.reads.bus_bytes / result.reads.reads for name, result in results.items()}
    assert bus["whole blocks"] == 512
    assert bus["all on"] == 64
    assert bus["de-quantised"] == 240
    memory = rates["all on"].memory
    assert memory is not None
    used = dataclasses.asdict(memory)
    assert (
        sum(value for key, value in used.items() if key != "total_bytes") <= used["total_bytes"] == 1_600_000
    )


def test_baselines_lie_on_both_sides() -> None:
    config = engine()
    mapped, memory = baselines(config, imagined_model(config))
    assert mapped.result is not None
    assert memory.result is not None
    ours = highest(config)
    assert 3 * mapped.result.queries_per_s < ours.queries_per_s < memory.result.queries_per_s
    assert mapped.result.page_misses == mapped.result.reads.reads, "one read a fault"
    assert mapped.result.reads.bus_bytes == 4096 * mapped.result.page_misses
    assert memory.result.reads.reads == 0


def test_pruned_tables_trade_memory_for_reads() -> None:
    tables = [
        {"name": "user", "rows": 20_000, "columns": 60, "side": "user", "ids_per_list": 10, "exponent": 1.05,
         "pruned_share": 0.5},
        {"name": "item", "rows": 1_000, "columns": 60, "side": "item", "ids_per_list": 2, "exponent": 0.9},
    ]  # fmt: skip
    config = engine(tables=tables, memory__budget=400_000)
    whole, pruned = Simulator(config), Simulator(config.replace(load_time={"deprune": False}))
    assert whole.memory.index_map_bytes == 0
    assert pruned.memory.index_map_bytes == 4 * 20_000
    assert whole.memory.row_cache_bytes > pruned.memory.row_cache_bytes
    idle = [simulator.run(1.0, queries=300) for simulator in (whole, pruned)]
    assert idle[0].caches.rows > 1.5 * idle[1].caches.rows, "rows that were pruned are read, too"


def test_hedged_reads_cut_the_tail_under_stalls() -> None:
    config = engine(
        tables=tables_of(100_000, 60, 1.05),
        device__spec="nand-p3700",
        device__replicas=2,
        placement={"user": "uncached"},
        load__sla_ms=50.0,
        load__measured_queries=3_000,
        memory__updates=20_000,
        load__updates={"updates_per_s": 20_000},
    )
    hedged = config.replace(device=config.device.replace(hedge_after=400_000))
    plain_run, hedged_run = (Simulator(each).run(300.0) for each in (config, hedged))
    assert plain_run.reads.hedged == 0
    assert 0 < hedged_run.reads.hedged_won <= hedged_run.reads.hedged < 0.3 * hedged_run.reads.reads
    assert hedged_run.latency.p99_ns <= 0.7 * plain_run.latency.p99_ns
    assert hedged_run.reads.bus_bytes > plain_run.reads.bus_bytes
    with pytest.raises(ConfigError, match=r"device\.replicas = 2"):
        engine(device__hedge_after="400us")


def test_limits_hold_reads_back() -> None:
    config = engine(placement={"user": "uncached"}, device__reads_max=4, device__reads_per_table_max=4)
    narrow = Simulator(config).run(1.0, queries=200)
    wide = Simulator(config.replace(device=config.device.replace(reads_max=64, reads_per_table_max=64)))
    assert narrow.latency.p50_ns > 2 * wide.run(1.0, queries=200).latency.p50_ns * 0.9, (
        "four at a time take turns"
    )
    assert narrow.reads.reads > 0


def test_loads_of_byte_addressable_memory_keep_the_thread() -> None:
    uncached = {"placement": {"user": "uncached"}}
    cxl, nand = (
        Simulator(engine(device__spec=spec, **uncached)).run(1.0, queries=300)
        for spec in ("cxl-asic", "nand-pm9a3")
    )
    assert cxl.reads.reads == pytest.approx(nand.reads.reads, rel=0.01)
    assert cxl.latency.p50_ns < nand.latency.p50_ns / 2
    assert cxl.reads.hedged == 0


def test_a_warm_up_warms() -> None:
    parts = Simulator(engine()).warm_up()
    assert parts[-1].queries == 3_000
    assert parts[-1].caches.row_hit_rate > parts[0].caches.row_hit_rate + 0.1
    assert len(parts) == 20


@pytest.mark.parametrize("sla_ms", [0.5, 2.0])
def test_a_device_that_is_hardly_fast_enough_still_has_its_highest_rate(sla_ms: float) -> None:
    """Where the threads could do thousands of times what the device can."""
    spec = constant_device()
    spec["read"] |= {"latency_ns": 900_000, "command_ns": 700_000}
    config = engine(
        device__spec=spec,
        memory__budget=500_000,
        placement={"user": "uncached"},
        load__sla_ms=sla_ms * 1e3,
        load__measured_queries=200,
        load__warm_up_queries=0,
    )
    simulator = Simulator(config)
    best = simulator.highest_rate()
    assert best.queries_per_s > 1.0
    assert best.keeps("p99", sla_ms * 1e3)
    assert not simulator.run(best.queries_per_s * 1.3, queries=2_000).keeps("p99", sla_ms * 1e3)
    capped = simulator.highest_rate(at_most=best.queries_per_s / 2)
    assert capped.queries_per_s == best.queries_per_s / 2


def test_an_idle_engine_whose_rows_change_does_not_bound_the_rate() -> None:
    config = engine(
        tables=tables_of(20_000, 60, 0.5),
        device__spec="optane-p5800x",
        placement={"user": "uncached"},
        memory__budget=1_500_000,
        memory__pooled_share=1.0,
        memory__updates=20_000,
        load__updates={"updates_per_s": 200},
        load__queries={"users": 100, "candidates": 1},
        load__sla_ms=50.0,
    )
    simulator = Simulator(config)
    simulator.warm_up()
    idle, best = simulator.run(1.0, queries=400), simulator.highest_rate()
    assert idle.caches.list_hit_rate < 0.5
    assert best.caches.list_hit_rate > 0.9
    assert best.queries_per_s > 2 * config.host.threads * idle.queries / (idle.busy_ns * 1e-9)


def test_the_same_on_every_host() -> None:
    config = engine(load__measured_queries=500)
    simulator = Simulator(config)
    simulator.warm_up()
    assert digest(dataclasses.asdict(simulator.run(2_000.0))) == "5f141d90794e0574"


def test_tuning_keeps_what_helps_and_says_what_it_tried() -> None:
    config = engine(
        device__reads_max=2,
        load__measured_queries=500,
        load__rate_tolerance=0.1,
        tune={
            "pooled_shares": (0.1, 0.9), "pooled_ids_mins": (4,), "reads_per_table_maxima": (64,),
            "reads_maxima": (2, 64), "placements": True, "rounds": 1,
        },
    )  # fmt: skip
    tuned = tune(config, imagined_model(config))
    tried = {(each.setting, each.value): each for each in tuned.tried}
    assert tried["device.reads_max", "64"].kept
    assert tuned.config.device.reads_max == 64
    assert not tried["placement.user-0", "fixed"].kept, "it does not fit, and says so"
    assert "memory" in tried["placement.user-0", "fixed"].problem
    assert tuned.gain > 1.0
    assert tuned.changes["device"] == {"reads_max": 64}
    again = run_variant("found", tuned.config)
    assert again.result == tuned.best.result, "what was found can be run"


def test_a_placement_that_is_found_is_part_of_the_configuration() -> None:
    config = engine(
        memory__budget=16_000_000,
        memory__pooled_share=0.0,
        load__measured_queries=300,
        tune={
            "pooled_shares": (), "pooled_ids_mins": (), "reads_per_table_maxima": (), "reads_maxima": (),
            "rounds": 1,
        },
    )  # fmt: skip
    tuned = tune(config, imagined_model(config))
    assert tuned.changes["placement"]["user-0"] == "fixed"
    assert tuned.config.placement["user-0"] == "fixed"
    again = run_variant("found", ServeConfig.from_mapping(tuned.config.model_dump()))
    assert again.result == tuned.best.result


def test_queries_of_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "it.tmtrace"
    tables = tuple({"name": name, "rows": rows, "row_bytes": 64, "pooling": 4.0} for name, rows in ROWS)
    law = {"kind": "zipf", "skew": {"exponent": 1.0}}
    synthesize(
        SynthConfig.from_mapping({"batches": 8, "bags_per_batch": 64, "tables": tables, "law": law}), path
    )
    config = engine(load__queries={"trace": str(path), "candidates": 4}, load__warm_up_queries=40)
    found = Simulator(config).run(10.0, queries=20)
    assert found.queries == 20
    with pytest.raises(ConfigError, match="fewer queries"):
        Simulator(config).run(10.0, queries=10**6)
    with pytest.raises(ConfigError, match="3"):
        Simulator(engine(tables=engine().model_dump()["tables"][1:], load__queries={"trace": str(path)}))


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(CapacityError, match="needed_bytes"):
        Simulator(engine(memory__budget=10_000))
    with pytest.raises(ConfigError, match="no table"):
        engine(placement={"nothing": "fixed"})
    with pytest.raises(ConfigError, match='two tables are called "user-1"'):
        engine(
            tables=[*engine().model_dump()["tables"], engine().tables[1].model_dump() | {"name": "user-1"}]
        )
    with pytest.raises(ConfigError, match="leave dense_features out"):
        engine(tables=[], dense=None, model={"path": "it", "user_tables": ["user"]})
    with pytest.raises(ConfigError, match="mapped, memory, not 'mappd'"):
        Simulator(engine(), baseline="mappd")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="compute is too slow"):
        Simulator(engine(host__compute__flops_per_s=1e-9))
    with pytest.raises(ConfigError, match="more than 0"):
        Simulator(engine()).run(0.0)
    with pytest.raises(ConfigError, match="block_bytes"):
        Simulator(engine(device__block_bytes=600))
    assert [row_bytes(kind, 61) for kind in ("fp32", "fp16", "bf16", "int8", "int8_fp16", "int4")] == [
        244, 122, 122, 69, 65, 35,
    ]  # fmt: skip
