"""`tiermem study mtrains`: how many nodes storage-class memory saves, after MTrainS (arXiv 2305.01515)."""

import dataclasses
import functools
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Self, TypeVar

from tiermem.config.node import NodeConfig
from tiermem.config.study import NodeStudyConfig
from tiermem.errors import ConfigError
from tiermem.planner.target import smallest_that_fits
from tiermem.study.character import Character, characterised
from tiermem.study.emulate import Emulated, emulated
from tiermem.study.nodes import Point, Trainer, Variant
from tiermem.study.workload import Drift, Workload

__all__ = ["Ablation", "Calibration", "NodeStudy", "Scaled", "run_study"]

Progress = Callable[[str], None]
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The step model beside a published throughput."""

    model: str
    nodes: int
    modelled_samples_per_s: float
    published_samples_per_s: float
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scaled:
    """A model at one scale: the fewest nodes of each system."""

    model: str
    scale: int
    nbytes: float
    target_samples_per_s: float
    """That all other systems must reach; the first one has more."""
    systems: Mapping[str, Point | None]
    """`None`: not reached with as many nodes as the first system has, of which there always is one."""

    @property
    def base(self) -> Point:
        """What others are compared with."""
        return next(point for point in self.systems.values() if point is not None)

    def ratio(self, system: str) -> float:
        """Nodes of the first system over nodes of this one; 1 where that needs as many or more."""
        point = self.systems[system]
        return 1.0 if point is None else max(1.0, self.base.nodes / point.nodes)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """One thing changed."""

    what: str
    system: str
    samples_per_s: float | None
    """At the nodes of the unchanged system; `None`: the tables do not fit."""
    base_nodes: int
    """Of the first system under the same change; its own target follows from it."""
    nodes: int | None
    """That reach the target; `None`: not with as many as the first system has."""

    @property
    def ratio(self) -> float:
        """Nodes of the first system over those of this one; 1 if that needs as many or more."""
        return 1.0 if self.nodes is None else max(1.0, self.base_nodes / self.nodes)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NodeStudy:
    """Everything that was found."""

    config: NodeStudyConfig
    node: NodeConfig
    characters: tuple[Character, ...]
    calibrations: tuple[Calibration, ...]
    scaled: tuple[Scaled, ...]
    """By model, then by scale."""
    curves: Mapping[str, tuple[Point, ...]]
    """The headline model of the ablations at the headline's scale, by system: more and more nodes."""
    ablations: tuple[Ablation, ...]
    """At the target of the unchanged study."""
    sensitivities: tuple[Ablation, ...]
    """Each at a target of its own."""
    emulations: tuple[tuple[str, Emulated], ...]
    """By model and system."""

    def at(self, model: str, scale: int) -> Scaled:
        """One model at one scale."""
        return next(each for each in self.scaled if (each.model, each.scale) == (model, scale))


def run_study(config: NodeStudyConfig, say: Progress = lambda _: None, *, jobs: int = 1) -> NodeStudy:
    """Runs the study; the same whatever the number of jobs.

    Args:
        config: what it covers.
        say: takes a line for each part that is done.
        jobs: processes that share the work.

    Raises:
        ConfigError: if a system has a tier that the node lacks.
        CapacityError: if a model fits on no system.
    """
    node = NodeConfig.load(config.node)
    _check_systems(config, node)
    names, scales = config.headline.models, config.sweep.scales
    chosen = config.headline.ablation_model, config.headline.scale
    with _Jobs(jobs, say) as run:
        scaled = run.all(
            [
                (f"{name} x{scale}", _scaled_of, (config, node, name, scale))
                for name in names
                for scale in scales
            ]
        )
        headline = _at(scaled, *chosen)
        varied = f"{chosen[0]} x{chosen[1]}"
        curves = run.all(
            [(f"{varied}, {name}", _curve, (config, node, headline, name)) for name in config.systems]
        )
        ablations = run.all(
            [
                (f"{varied}: {change.what}", _ablation, (config, headline, change))
                for change in _ablations(config, node)
            ]
        )
        sensitivities = run.all(
            [
                (f"{varied}: {change.what}", _sensitivity, (config, change))
                for change in _sensitivities(config, node)
            ]
        )
        calibrations = run.all(
            [
                (f"{model.name} beside a published figure", _calibration, (config, node, model.name))
                for model in config.models
                if model.published_nodes
            ]
        )
    return NodeStudy(
        config=config,
        node=node,
        characters=tuple(
            characterised(_workload(config, name, scales[0]), _at(scaled, name, scales[0]).base.samples_per_s)
            for name in names
        ),
        calibrations=tuple(each for each in calibrations if each is not None),
        scaled=tuple(scaled),
        curves=dict(zip(config.systems, curves, strict=True)),
        ablations=tuple(ablations),
        sensitivities=tuple(sensitivities),
        emulations=tuple(_emulations(config, node, scaled)),
    )


def _check_systems(config: NodeStudyConfig, node: NodeConfig) -> None:
    for name, tiers in config.systems.items():
        for tier in tiers:
            if tier not in node.tiers:
                raise ConfigError(
                    f'system "{name}" has a tier "{tier}", and node {node.name} has {", ".join(node.tiers)}'
                )
        if len(tiers) < 2:
            raise ConfigError(f'system "{name}" has {len(tiers)} tier; it needs two or more')


Task = tuple[str, Callable[..., Result], tuple[Any, ...]]


class _Jobs:
    """Runs tasks in their order, some at a time."""

    def __init__(self, jobs: int, say: Progress) -> None:
        self.say = say
        # Threads of a linear algebra library do not outlive a fork.
        self.pool = (
            ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) if jobs > 1 else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def all(self, tasks: list[Task[Result]]) -> list[Result]:
        """What each returns."""
        if self.pool is None:
            waiting: list[Callable[[], Result]] = [functools.partial(run, *given) for _, run, given in tasks]
        else:
            waiting = [self.pool.submit(run, *given).result for _, run, given in tasks]
        found = []
        for (name, _, _), wait in zip(tasks, waiting, strict=True):
            found.append(wait())
            self.say(name)
        return found


def _workload(config: NodeStudyConfig, name: str, scale: int) -> Workload:
    return Workload.of(
        config.model(name),
        config.locality,
        scale=scale,
        groups_max=config.tables_merged_max,
        segments=config.segments,
    )


def _at(scaled: Sequence[Scaled], model: str, scale: int) -> Scaled:
    return next(each for each in scaled if (each.model, each.scale) == (model, scale))


def _first(config: NodeStudyConfig) -> tuple[str, ...]:
    return next(iter(config.systems.values()))


def _last(config: NodeStudyConfig) -> str:
    return list(config.systems)[-1]


def _scaled_of(config: NodeStudyConfig, node: NodeConfig, name: str, scale: int) -> Scaled:
    return _scaled(
        config, Trainer(_workload(config, name, scale), node), _plain(config), list(config.systems)
    )


def _plain(config: NodeStudyConfig) -> Variant:
    return Variant(prefetch_distance=config.prefetch_distance)


def _scaled(config: NodeStudyConfig, trainer: Trainer, variant: Variant, names: list[str]) -> Scaled:
    """The target is fixed before any other system is looked at."""
    first, *others = names
    base = smallest_that_fits(functools.partial(trainer.at, config.systems[first], variant=variant))
    target = config.target_share * base.samples_per_s
    workload = trainer.workload
    return Scaled(
        model=workload.config.name,
        scale=workload.scale,
        nbytes=workload.nbytes,
        target_samples_per_s=target,
        systems={
            first: base,
            **{
                name: trainer.fewest(
                    config.systems[name],
                    target_samples_per_s=target,
                    nodes_max=base.nodes,
                    variant=variant,
                )
                for name in others
            },
        },
    )


def _calibration(config: NodeStudyConfig, node: NodeConfig, name: str) -> Calibration | None:
    model = config.model(name)
    trainer = Trainer(_workload(config, name, 1), node)
    # Where the rows do not fit without it, with what the node may have.
    point = trainer.at(_first(config), model.published_nodes) or trainer.at(
        config.systems[_last(config)], model.published_nodes
    )
    if point is None:
        return None
    return Calibration(
        model=name,
        nodes=model.published_nodes,
        modelled_samples_per_s=point.samples_per_s,
        published_samples_per_s=float(model.published_samples_per_s),
        source=model.published_source,
    )


def _emulations(
    config: NodeStudyConfig, node: NodeConfig, scaled: Sequence[Scaled]
) -> list[tuple[str, Emulated]]:
    return [
        (f"{each.model}, {system}", run)
        for each in scaled
        if each.scale == config.headline.scale
        for system, point in each.systems.items()
        if point is not None
        for run in emulated(point, node, config.seed)
    ]


def _curve(config: NodeStudyConfig, node: NodeConfig, headline: Scaled, name: str) -> tuple[Point, ...]:
    """From the fewest nodes on which a system fits to as many as the first one has."""
    trainer = Trainer(_workload(config, headline.model, headline.scale), node)
    measure = functools.partial(trainer.at, config.systems[name], variant=_plain(config))
    least, most = smallest_that_fits(measure).nodes, headline.base.nodes
    counts = {least, most} | {2**power for power in range(17) if least < 2**power < most}
    counts |= {point.nodes for point in (headline.systems[name],) if point is not None}
    points = (measure(nodes) for nodes in sorted(counts))
    return tuple(point for point in points if point is not None)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Change:
    """What an ablation or a sensitivity changes."""

    what: str
    node: NodeConfig
    variant: Variant
    tiers: tuple[str, ...] = ()


def _ablations(config: NodeStudyConfig, node: NodeConfig) -> list[_Change]:
    """What each mechanism is worth to the system with all tiers."""
    plain, tiers = _plain(config), config.systems[_last(config)]
    slowest = tiers[-1]
    nand = node.replace(
        tiers={
            name: tier.replace(device="nand-pm9a3") if name == slowest else tier
            for name, tier in node.tiers.items()
        }
    )

    def change(what: str, *, on: NodeConfig = node, without: str = "", **changes: Any) -> _Change:  # noqa: ANN401 (fields)
        return _Change(
            what=what,
            node=on,
            variant=dataclasses.replace(plain, **changes),
            tiers=tuple(name for name in tiers if name != without),
        )

    return [
        change("nothing"),
        *(change(f"no {name}", without=name) for name in tiers[2:]),
        change("NAND in the place of Optane", on=nand),
        change("NAND, however soon it wears out", on=nand, is_worn=False),
        change("Optane, however soon it wears out", is_worn=False),
        change("no prefetch", prefetch_distance=0),
        change("tables placed at random", placement="random"),
        change("tables placed by size", placement="size"),
        change("everything cached by lru", placement="all-cached"),
        change("rows asked for as often as looked up", deduplicated=False),
        *(
            change(f"{share:.0%} of the memory above the slowest tier", cache_share=share)
            for share in config.sweep.cache_shares
        ),
    ]


def _ablation(config: NodeStudyConfig, headline: Scaled, change: _Change) -> Ablation:
    """At the target of the study, and at the nodes of the unchanged system."""
    trainer = Trainer(_workload(config, headline.model, headline.scale), change.node)
    system = _last(config)
    whole = headline.systems[system] or headline.base
    point = trainer.at(change.tiers, whole.nodes, change.variant)
    fewest = trainer.fewest(
        change.tiers,
        target_samples_per_s=headline.target_samples_per_s,
        nodes_max=headline.base.nodes,
        variant=change.variant,
    )
    return Ablation(
        what=change.what,
        system=system,
        samples_per_s=None if point is None else point.samples_per_s,
        base_nodes=headline.base.nodes,
        nodes=None if fewest is None else fewest.nodes,
    )


def _sensitivities(config: NodeStudyConfig, node: NodeConfig) -> list[_Change]:
    """Assumptions changed for all systems alike, so that the target moves too."""
    plain, sweep = _plain(config), config.sweep
    return [
        *(
            _Change(
                what=f"{turnover:.2%} of the ranks pass to other rows in each batch",
                node=node,
                variant=dataclasses.replace(
                    plain, drift=Drift(turnover=turnover, batches=sweep.turnover_batches)
                ),
            )
            for turnover in sweep.turnovers
        ),
        *(
            _Change(
                what=f"{message_ns:,} ns for each accelerator of another node",
                node=node.replace(network=node.network.replace(message_ns=message_ns)),
                variant=plain,
            )
            for message_ns in sweep.message_ns
        ),
        *(
            _Change(
                what=f"{overhead_ns / 1e6:g} ms of overhead in each step",
                node=node.replace(compute=node.compute.replace(overhead_ns_per_step=overhead_ns)),
                variant=plain,
            )
            for overhead_ns in sweep.overhead_ns_per_step
        ),
        _Change(
            what=f"{sweep.local_batch} samples for each accelerator: the batch grows with the nodes",
            node=node,
            variant=dataclasses.replace(plain, local_batch=sweep.local_batch),
        ),
    ]


def _sensitivity(config: NodeStudyConfig, change: _Change) -> Ablation:
    """Of the system with all tiers, at a target of its own."""
    headline, system = config.headline, _last(config)
    trainer = Trainer(_workload(config, headline.ablation_model, headline.scale), change.node)
    scaled = _scaled(config, trainer, change.variant, [next(iter(config.systems)), system])
    point = scaled.systems[system]
    return Ablation(
        what=change.what,
        system=system,
        samples_per_s=None if point is None else point.samples_per_s,
        base_nodes=scaled.base.nodes,
        nodes=None if point is None else point.nodes,
    )
