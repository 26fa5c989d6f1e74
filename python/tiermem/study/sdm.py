"""Power of a fleet with tables on storage-class memory: three scenarios, each at the same queries a second.

After Software Defined Memory (arXiv 2110.11489). Rates and power of devices come from the emulation, power of
hosts from the study's file. A ratio below 1 is power that is saved.
"""

import dataclasses
from collections.abc import Callable

from tiermem.config import DeviceSpec, ServeConfig
from tiermem.config.sdm import FleetStudyConfig, HostConfig
from tiermem.errors import CapacityError, ConfigError
from tiermem.serve.loadgen import LoadResult, NoRateError, Simulator
from tiermem.serve.tables import ServedTable, imagined_tables

__all__ = ["FleetStudy", "HostPoint", "Scenario", "Sensitivity", "run_fleet_study"]

_GIB = 2**30
_FAST_FLOPS = 1e18
"""Of a host that has no dense layers."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HostPoint:
    """A host at its highest rate within the bound."""

    queries_per_s: float
    watts: float
    """With DRAM and devices."""
    device_watts: float
    """Of the devices under the tables, by the emulation."""
    p99_ms: float
    row_hit_rate: float
    reads_per_query: float

    @property
    def joules_per_query(self) -> float:
        """Power over rate."""
        return self.watts / self.queries_per_s


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One way to use storage-class memory, and what it is compared with."""

    name: str
    device: str
    base: HostPoint
    other: HostPoint | None
    """`None` if no rate keeps the bound."""
    power_ratio: float | None
    """Power of the fleet with the device over that without, at the same queries a second."""
    hosts: tuple[float, float]
    """Before, and with the device: for a million queries a second; of co-location, for a thousand models."""
    problem: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sensitivity:
    """The small host with one thing changed."""

    what: str
    value: float
    ratios: tuple[tuple[str, float | None], ...]
    """Power ratio by device."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FleetStudy:
    """All that was found."""

    config: FleetStudyConfig
    engine: ServeConfig
    scenarios: tuple[Scenario, ...]
    sensitivities: tuple[Sensitivity, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class _Fleet:
    """Runs hosts of a study."""

    config: FleetStudyConfig
    engine: ServeConfig

    def _on(self, host: HostConfig, engine: ServeConfig) -> ServeConfig:
        compute = engine.host.compute
        if host.flops_per_s:
            compute = compute.replace(flops_per_s=host.flops_per_s)
        return engine.replace(host=engine.host.replace(threads=host.threads, compute=compute))

    def budget(self, host: HostConfig) -> float:
        """DRAM for tables, as a share of their bytes."""
        return min(1.0, host.dram_bytes * self.config.usable_share / self.config.model_bytes)

    def _dram_watts(self, host: HostConfig) -> float:
        return host.dram_bytes / _GIB * self.config.dram_watts_per_gib

    def in_memory(
        self, host: HostConfig, engine: ServeConfig | None = None, tables: list[ServedTable] | None = None
    ) -> HostPoint:
        """A host with all tables in DRAM."""
        config = self._on(host, self.engine if engine is None else engine)
        found = Simulator(config, tables=tables, baseline="memory").highest_rate()
        return _point(found, host, host.watts + self._dram_watts(host), 0.0)

    def with_device(
        self, host: HostConfig, device: str, *, budget: float | None = None, engine: ServeConfig | None = None
    ) -> HostPoint:
        """A host with user tables on a device."""
        engine = self.engine if engine is None else engine
        config = self._on(host, engine)
        config = config.replace(
            device=config.device.model_dump() | {"spec": device, "replicas": self._replicas(device)},
            memory=config.memory.replace(budget=self.budget(host) if budget is None else budget),
        )
        simulator = Simulator(config)
        simulator.warm_up()
        found = simulator.highest_rate()
        device_watts = _device_watts(found) * self.config.devices_per_host / len(found.devices)
        return _point(found, host, host.watts + self._dram_watts(host) + device_watts, device_watts)

    def _replicas(self, device: str) -> int:
        """Loads of byte-addressable devices go to one, however many there are."""
        return self.config.devices_per_host if DeviceSpec.load(device).kind == "block" else 1


def _device_watts(found: LoadResult) -> float:
    return sum(device.energy_joules for device in found.devices) / (found.elapsed_ns * 1e-9)


def _point(found: LoadResult, host: HostConfig, watts: float, device_watts: float) -> HostPoint:
    return HostPoint(
        queries_per_s=min(found.queries_per_s, host.queries_per_s_max or found.queries_per_s),
        watts=watts,
        device_watts=device_watts,
        p99_ms=found.quantile_ms("p99"),
        row_hit_rate=found.caches.row_hit_rate,
        reads_per_query=found.reads.reads / found.queries,
    )


def _tried(run: Callable[[], HostPoint]) -> tuple[HostPoint | None, str]:
    try:
        return run(), ""
    except (NoRateError, CapacityError) as error:
        return None, str(error)


def _one_model(fleet: _Fleet, name: str, base: HostPoint, host: HostConfig, device: str) -> Scenario:
    """A host whose only model has its user tables on a device, beside hosts without one."""
    other, problem = _tried(lambda: fleet.with_device(host, device))
    return Scenario(
        name=name,
        device=device,
        base=base,
        other=other,
        power_ratio=None if other is None else other.joules_per_query / base.joules_per_query,
        hosts=(1e6 / base.queries_per_s, 0.0 if other is None else 1e6 / other.queries_per_s),
        problem=problem,
    )


def _scale_out_base(fleet: _Fleet) -> HostPoint:
    """An accelerated host whose user tables are on remote hosts, of which it keeps a part busy."""
    config, engine = fleet.config, fleet.engine
    asking = engine.replace(
        host=engine.host.replace(query_ns=engine.host.query_ns + config.scale_out.call_ns)
    )
    tables = imagined_tables(engine)
    # Rows of users are looked up elsewhere; what they cost there is that of a host with nothing else to do.
    items = [table for table in tables if not table.is_user]
    users = [table for table in tables if table.is_user]
    own = fleet.in_memory(config.accelerated, asking, items)
    alone = engine.replace(
        host=engine.host.replace(
            query_ns=config.scale_out.call_ns, compute=engine.host.compute.replace(flops_per_s=_FAST_FLOPS)
        )
    )
    remote = fleet.in_memory(config.remote, alone, users)
    remote_watts = remote.watts * own.queries_per_s / remote.queries_per_s
    return dataclasses.replace(own, watts=own.watts + remote_watts)


def _co_location(fleet: _Fleet, base: HostPoint, device: str) -> Scenario:
    """Models on a host, by its DRAM or by its threads, whichever ends first; fractions are of a fleet."""
    config = fleet.config
    usable = config.shared.dram_bytes * config.usable_share
    budget = fleet.engine.memory.budget
    if not isinstance(budget, float):
        raise ConfigError("the engine of a study has a budget that is a share of the bytes of its rows")
    other, problem = _tried(lambda: fleet.with_device(config.shared, device, budget=budget))
    before = min(usable / config.model_bytes, 1 / config.co_location.load_share)
    if other is None:
        return Scenario(
            name="co-location", device=device, base=base, other=None, power_ratio=None,
            hosts=(1e3 / before, 0.0), problem=problem,
        )  # fmt: skip
    # What a model asks of threads grows as its rate falls.
    load_share = config.co_location.load_share * base.queries_per_s / other.queries_per_s
    after = min(usable / (budget * config.model_bytes), 1 / load_share)
    ratio = (other.watts / after) / (base.watts / before)
    return Scenario(
        name="co-location", device=device, base=base, other=other, power_ratio=ratio,
        hosts=(1e3 / before, 1e3 / after),
    )  # fmt: skip


def _sensitivities(fleet: _Fleet, base: HostPoint) -> list[Sensitivity]:
    config = fleet.config
    found: list[Sensitivity] = []

    def ratios(
        engine: ServeConfig, base: HostPoint, budget: float | None
    ) -> tuple[tuple[str, float | None], ...]:
        points = []
        for device in config.devices:
            point, _ = _tried(
                lambda device=device: fleet.with_device(config.small, device, budget=budget, engine=engine)  # type: ignore[misc]
            )
            points.append((device, None if point is None else point.joules_per_query / base.joules_per_query))
        return tuple(points)

    found += [
        Sensitivity(what="DRAM, share of the rows", value=budget, ratios=ratios(fleet.engine, base, budget))
        for budget in config.sweep.budgets
    ]
    for exponent in config.sweep.exponents:
        tables = tuple(
            table.replace(exponent=exponent) if table.side == "user" else table
            for table in fleet.engine.tables
        )
        engine = fleet.engine.replace(tables=tables)
        found.append(Sensitivity(what="skew of user rows", value=exponent, ratios=ratios(engine, base, None)))
    for times in config.sweep.dense_work:
        host = fleet.engine.host
        compute = host.compute.replace(flops_per_s=host.compute.flops_per_s / times)
        engine = fleet.engine.replace(host=host.replace(compute=compute))
        own = fleet.in_memory(config.large, engine)
        found.append(Sensitivity(what="dense work, times", value=times, ratios=ratios(engine, own, None)))
    for sla_ms in config.sweep.sla_ms:
        engine = fleet.engine.replace(load=fleet.engine.load.replace(sla_ms=sla_ms))
        bound, _ = _tried(lambda engine=engine: fleet.in_memory(config.large, engine))  # type: ignore[misc]
        cannot: tuple[tuple[str, float | None], ...] = tuple((device, None) for device in config.devices)
        points = cannot if bound is None else ratios(engine, bound, None)
        found.append(Sensitivity(what="bound, ms", value=sla_ms, ratios=points))
    return found


def run_fleet_study(
    config: FleetStudyConfig, engine: ServeConfig, say: Callable[[str], None] = lambda _: None
) -> FleetStudy:
    """Runs all scenarios and sensitivities.

    Args:
        config: hosts, scenarios, what is varied.
        engine: the engine that `config.engine` names.
        say: called with what is being done.
    """
    for device in config.devices:
        # An unknown one is an error now, not after minutes.
        DeviceSpec.load(device)
    fleet = _Fleet(config, engine)
    large = fleet.in_memory(config.large)
    scaled = _scale_out_base(fleet)
    shared = fleet.in_memory(config.shared)
    scenarios = []
    for device in config.devices:
        say(f"{device}: three scenarios")
        scenarios += [
            _one_model(fleet, "small host", large, config.small, device),
            _one_model(fleet, "scale-out", scaled, config.accelerated, device),
            _co_location(fleet, shared, device),
        ]
    say("sensitivities of the small host")
    return FleetStudy(
        config=config,
        engine=engine,
        scenarios=tuple(scenarios),
        sensitivities=tuple(_sensitivities(fleet, large)),
    )
