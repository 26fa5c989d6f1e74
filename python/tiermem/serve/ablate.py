"""What each mechanism of an engine is worth: the highest rate with it turned off, one at a time."""

import dataclasses
from collections.abc import Callable, Iterator

from tiermem.config import ServeConfig
from tiermem.errors import CapacityError
from tiermem.serve.loadgen import Baseline, LoadResult, MemoryUse, NoRateError, Simulator
from tiermem.serve.tables import ServedModel

__all__ = ["UNLIMITED_READS", "Variant", "ablation", "baselines", "run_variant"]

UNLIMITED_READS = 2_048
"""Reads outstanding at most where limits are turned off: more than any device of the package takes."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One engine and its highest rate."""

    name: str
    result: LoadResult | None
    """`None` if it cannot keep the bound, or cannot be."""
    memory: MemoryUse | None
    problem: str = ""
    """Why there is no result."""


def run_variant(
    name: str,
    config: ServeConfig,
    model: ServedModel | None = None,
    *,
    baseline: Baseline | None = None,
) -> Variant:
    """Warms an engine and finds its highest rate within the bound."""
    try:
        simulator = Simulator(config, model=model, baseline=baseline)
        simulator.warm_up()
        return Variant(name=name, result=simulator.highest_rate(), memory=simulator.memory)
    except (NoRateError, CapacityError) as error:
        return Variant(name=name, result=None, memory=None, problem=str(error))


def _uncached(model: ServedModel) -> ServedModel:
    return model.with_tables(
        [
            dataclasses.replace(table, placement="uncached") if table.placement == "cached" else table
            for table in model.tables
        ]
    )


def _with(**changes: object) -> Callable[[ServeConfig], ServeConfig]:
    """A change of `part.key` values, written `part__key`."""

    def change(config: ServeConfig) -> ServeConfig:
        values = config.model_dump()
        for path, value in changes.items():
            *parts, key = path.split("__")
            place = values
            for part in parts:
                place = place[part]
            place[key] = value
        return ServeConfig.from_mapping(values)

    return change


_SWITCHES: tuple[tuple[str, Callable[[ServeConfig], ServeConfig]], ...] = (
    ("no overlap", _with(overlap=False)),
    ("no pooled results", _with(memory__pooled_share=0.0)),
    (
        "no limits on reads",
        _with(device__reads_per_table_max=UNLIMITED_READS, device__reads_max=UNLIMITED_READS),
    ),
    ("whole blocks", _with(device__sub_block=False)),
    ("interrupts", _with(device__completion="interrupt")),
    ("no de-pruning", _with(load_time__deprune=False)),
    ("de-quantised", _with(load_time__dequantise=True)),
)


def ablation(config: ServeConfig, model: ServedModel) -> Iterator[Variant]:
    """The engine, then with each mechanism off in turn; hedging where there are two devices."""
    yield run_variant("all on", config, model)
    yield run_variant("no row cache", config, _uncached(model))
    switches = list(_SWITCHES)
    if config.device.hedge_after is not None:
        switches.append(("no hedging", _with(device__hedge_after=None)))
    for name, change in switches:
        yield run_variant(name, change(config), model)


def baselines(config: ServeConfig, model: ServedModel) -> Iterator[Variant]:
    """Tables in a mapped file with the same memory for pages, and all tables in memory."""
    yield run_variant("mapped file", config, model, baseline="mapped")
    yield run_variant("all in memory", config, model, baseline="memory")
