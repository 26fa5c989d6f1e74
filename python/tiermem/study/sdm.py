"""Power of a fleet with tables on storage-class memory: three scenarios, each at the same queries a second.

After Software Defined Memory (arXiv 2110.11489). Rates and power of devices come from the emulation, power of
hosts from the study's file. A ratio below 1 is power that is saved.
"""

import dataclasses
from collections.abc import Callable, Iterator

from tiermem.config import DeviceSpec, ServeConfig
from tiermem.config.sdm import FleetStudyConfig, HostConfig
from tiermem.config.serve import RATE_MAX
from tiermem.errors import CapacityError, ConfigError
from tiermem.serve.loadgen import LoadResult, NoRateError, Simulator
from tiermem.serve.tables import ServedModel, imagined_model

__all__ = ["FleetStudy", "HostPoint", "Scenario", "Sensitivity", "run_fleet_study"]

_GIB = 2**30


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
    """A scenario with one thing changed."""

    scenario: str
    what: str
    value: float
    ratios: tuple[tuple[str, float | None], ...]
    """Power ratio by device."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FleetStudy:
    """All that was found."""

    config: FleetStudyConfig
    engine: ServeConfig
    remote_hosts: float
    """That the lookups of an accelerated host keep busy."""
    scenarios: tuple[Scenario, ...]
    sensitivities: tuple[Sensitivity, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class _Fleet:
    """Runs hosts of a study."""

    config: FleetStudyConfig
    engine: ServeConfig
    dense_work: float = 1.0
    """Dense layers take so many times as long, on every host."""

    def _on(self, host: HostConfig) -> ServeConfig:
        compute = self.engine.host.compute
        compute = compute.replace(
            flops_per_s=(host.flops_per_s or compute.flops_per_s) / self.dense_work,
            bytes_per_s=max(1, round(compute.bytes_per_s / self.dense_work)),
            overhead_ns_per_step=round(compute.overhead_ns_per_step * self.dense_work),
        )
        return self.engine.replace(host=self.engine.host.replace(threads=host.threads, compute=compute))

    def budget(self, host: HostConfig) -> float:
        """DRAM for tables, as a share of their bytes."""
        return min(1.0, host.dram_bytes * self.config.usable_share / self.config.model_bytes)

    def _dram_watts(self, host: HostConfig) -> float:
        return host.dram_bytes / _GIB * self.config.dram_watts_per_gib

    def in_memory(self, host: HostConfig, model: ServedModel | None = None) -> HostPoint:
        """A host with all tables in DRAM."""
        simulator = Simulator(self._on(host), model=model, baseline="memory")
        found = _highest(simulator, host)
        return _point(found, host.watts + self._dram_watts(host), 0.0)

    def with_device(self, host: HostConfig, device: str, *, budget: float | None = None) -> HostPoint:
        """A host with user tables on a device."""
        config = self._on(host)
        replicas = self._replicas(device)
        # One device cannot be asked twice.
        hedge_after = config.device.hedge_after if replicas > 1 else None
        config = config.replace(
            device=config.device.model_dump()
            | {"spec": device, "replicas": replicas, "hedge_after": hedge_after},
            memory=config.memory.replace(budget=self.budget(host) if budget is None else budget),
        )
        simulator = Simulator(config)
        simulator.warm_up()
        found = _highest(simulator, host)
        device_watts = _device_watts(found) * self.config.devices_per_host / len(found.devices)
        return _point(found, host.watts + self._dram_watts(host) + device_watts, device_watts)

    def _replicas(self, device: str) -> int:
        """Loads of byte-addressable devices go to one, however many there are."""
        return self.config.devices_per_host if DeviceSpec.load(device).kind == "block" else 1


def _highest(simulator: Simulator, host: HostConfig) -> LoadResult:
    """The highest rate within the bound that the host's accelerators can do, too."""
    return simulator.highest_rate(at_most=host.queries_per_s_max or RATE_MAX)


def _device_watts(found: LoadResult) -> float:
    return sum(device.energy_joules for device in found.devices) / (found.elapsed_ns * 1e-9)


def _point(found: LoadResult, watts: float, device_watts: float) -> HostPoint:
    return HostPoint(
        queries_per_s=found.queries_per_s,
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


def _one_model(
    fleet: _Fleet, name: str, base: HostPoint, host: HostConfig, device: str, *, remote_hosts: float = 0.0
) -> Scenario:
    """A host whose only model has its user tables on a device, beside hosts without one.

    `remote_hosts`: that each of the latter keeps busy.
    """
    other, problem = _tried(lambda: fleet.with_device(host, device))
    return Scenario(
        name=name,
        device=device,
        base=base,
        other=other,
        power_ratio=None if other is None else other.joules_per_query / base.joules_per_query,
        hosts=(
            1e6 / base.queries_per_s * (1 + remote_hosts),
            0.0 if other is None else 1e6 / other.queries_per_s,
        ),
        problem=problem,
    )


def _calling(engine: ServeConfig, query_ns: int) -> ServeConfig:
    return engine.replace(host=engine.host.replace(query_ns=query_ns))


def _scale_out(fleet: _Fleet) -> tuple[HostPoint, HostPoint]:
    """An accelerated host whose user tables are elsewhere, and a remote host that has them."""
    config, engine = fleet.config, fleet.engine
    call_ns = config.scale_out.call_ns
    model = imagined_model(engine)
    # Rows of users are looked up elsewhere, and what comes back goes into the layers here.
    items = model.with_tables([table for table in model.tables if not table.is_user])
    users = dataclasses.replace(
        model, tables=tuple(table for table in model.tables if table.is_user), dense=None
    )
    asking = dataclasses.replace(fleet, engine=_calling(engine, engine.host.query_ns + call_ns))
    asked = dataclasses.replace(fleet, engine=_calling(engine, call_ns))
    return asking.in_memory(config.accelerated, items), asked.in_memory(config.remote, users)


def _helped(own: HostPoint, remote: HostPoint, remote_hosts: float) -> HostPoint:
    """A host with the power of the remote hosts that it keeps busy."""
    return dataclasses.replace(own, watts=own.watts + remote.watts * remote_hosts)


def _co_location(fleet: _Fleet, base: HostPoint, device: str) -> Scenario:
    """Models on a host, by its DRAM or by its threads, whichever ends first; fractions are of a fleet."""
    config = fleet.config
    usable = config.shared.dram_bytes * config.usable_share
    budget = fleet.engine.memory.budget
    assert isinstance(budget, float), "checked at the start"  # noqa: S101
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


def _ratios(
    fleet: _Fleet, base: HostPoint | None, budget: float | None = None
) -> tuple[tuple[str, float | None], ...]:
    """The small host's energy of a query over that of a base, by device."""

    def ratio(device: str) -> float | None:
        if base is None:
            return None
        point, _ = _tried(lambda: fleet.with_device(fleet.config.small, device, budget=budget))
        return None if point is None else point.joules_per_query / base.joules_per_query

    return tuple((device, ratio(device)) for device in fleet.config.devices)


def _sensitivities(fleet: _Fleet, base: HostPoint) -> Iterator[Sensitivity]:
    sweep, engine = fleet.config.sweep, fleet.engine
    for budget in sweep.budgets:
        yield Sensitivity(
            scenario="small host",
            what="DRAM, share of the rows",
            value=budget,
            ratios=_ratios(fleet, base, budget),
        )
    for exponent in sweep.exponents:
        tables = tuple(
            table.replace(exponent=exponent) if table.side == "user" else table for table in engine.tables
        )
        skewed = dataclasses.replace(fleet, engine=engine.replace(tables=tables))
        yield Sensitivity(
            scenario="small host", what="skew of user rows", value=exponent, ratios=_ratios(skewed, base)
        )
    for times in sweep.dense_work:
        yield _with_base("dense work, times", times, dataclasses.replace(fleet, dense_work=times))
    for sla_ms in sweep.sla_ms:
        bound = engine.replace(load=engine.load.replace(sla_ms=sla_ms))
        yield _with_base("bound, ms", sla_ms, dataclasses.replace(fleet, engine=bound))


def _more_remote_hosts(
    config: FleetStudyConfig, own: HostPoint, remote: HostPoint, local: dict[str, HostPoint | None]
) -> Iterator[Sensitivity]:
    """Scale-out, if a host needs more remote hosts than its lookups keep busy: spares, or the network."""
    for remote_hosts in config.sweep.remote_hosts:
        base = _helped(own, remote, remote_hosts).joules_per_query
        ratios = tuple(
            (device, None if point is None else point.joules_per_query / base)
            for device, point in local.items()
        )
        yield Sensitivity(
            scenario="scale-out", what="remote hosts for a host", value=remote_hosts, ratios=ratios
        )


def _with_base(what: str, value: float, fleet: _Fleet) -> Sensitivity:
    """What changes the large host, too."""
    base, _ = _tried(lambda: fleet.in_memory(fleet.config.large))
    return Sensitivity(scenario="small host", what=what, value=value, ratios=_ratios(fleet, base))


def _check(config: FleetStudyConfig, engine: ServeConfig) -> None:
    """What would be an error after minutes is one now."""
    for device in config.devices:
        DeviceSpec.load(device)
    sides = {table.side for table in engine.tables}
    if sides != {"user", "item"}:
        raise ConfigError(
            f'engine: "{config.engine}" needs imagined tables of users and of items; a study has no model'
        )
    if not isinstance(engine.memory.budget, float):
        raise ConfigError(
            f'engine: the memory.budget of "{config.engine}" is to be a share of the bytes of its rows, not'
            f" {engine.memory.budget} bytes"
        )


def run_fleet_study(
    config: FleetStudyConfig, engine: ServeConfig, say: Callable[[str], None] = lambda _: None
) -> FleetStudy:
    """Runs all scenarios and sensitivities.

    Args:
        config: hosts, scenarios, what is varied.
        engine: the engine that `config.engine` names.
        say: called with what is being done.
    """
    _check(config, engine)
    fleet = _Fleet(config, engine)
    large = fleet.in_memory(config.large)
    own, remote = _scale_out(fleet)
    remote_hosts = own.queries_per_s / remote.queries_per_s
    scaled = _helped(own, remote, remote_hosts)
    shared = fleet.in_memory(config.shared)
    scenarios = []
    for device in config.devices:
        say(f"{device}: three scenarios")
        scenarios += [
            _one_model(fleet, "small host", large, config.small, device),
            _one_model(fleet, "scale-out", scaled, config.accelerated, device, remote_hosts=remote_hosts),
            _co_location(fleet, shared, device),
        ]
    say("sensitivities")
    local = {each.device: each.other for each in scenarios if each.name == "scale-out"}
    sensitivities = [*_sensitivities(fleet, large), *_more_remote_hosts(config, own, remote, local)]
    return FleetStudy(
        config=config,
        engine=engine,
        remote_hosts=remote_hosts,
        scenarios=tuple(scenarios),
        sensitivities=tuple(sensitivities),
    )
