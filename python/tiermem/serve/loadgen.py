"""An engine in virtual time, and the highest load that keeps a bound on its latency."""

import dataclasses
import json
import math
from typing import Any, Literal, Self, get_args

from tiermem import _core
from tiermem.config import ServeConfig
from tiermem.config.serve import RATE_MAX
from tiermem.errors import ConfigError
from tiermem.perf import serving_costs
from tiermem.serve.tables import ServedModel, core_config, imagined_model
from tiermem.stats import DeviceStats, LatencyStats

__all__ = [
    "Baseline",
    "CacheCounts",
    "LoadResult",
    "MemoryUse",
    "NoRateError",
    "ReadCounts",
    "Simulator",
    "WarmUpPart",
]

_GIVE_UP_SLAS = 50
"""A query that takes so many times the bound ends a run: the load is too high."""
_RATE_SPAN = 256.0
"""The highest rate is looked for between one that keeps the bound and so many times that."""
_RUN_SLAS = 20
"""A run lasts so many times the bound at least: less would not see that a queue grows."""
_LEAST_RATE = 1.0
"""An engine that cannot answer a query a second cannot answer any."""
_DENSE_NS_MAX = 10**12
_PROBE_QUERIES = 400
"""Queries whose cost on the threads bounds the rate."""
_WARM_UP_PARTS = 20
_PS_PER_NS = 1000

Baseline = Literal["mapped", "memory"]
"""`mapped`: tables in a mapped file, pages cached by the kernel; `memory`: all tables in memory."""


class NoRateError(ConfigError):
    """No rate keeps the bound on the latency."""


@dataclasses.dataclass(frozen=True, slots=True)
class CacheCounts:
    """What the caches did."""

    rows: int
    """Rows of tables on the device that were asked for, those of pooled results not counted."""
    row_hits: int
    updated_rows: int
    lists: int
    """Lists that were looked for among the pooled results."""
    list_hits: int
    list_hit_rows: int
    """Rows that those would have asked for."""

    @property
    def row_hit_rate(self) -> float:
        """Share of the rows that were cached."""
        return self.row_hits / self.rows if self.rows else 0.0

    @property
    def list_hit_rate(self) -> float:
        """Share of the lists whose result was cached."""
        return self.list_hits / self.lists if self.lists else 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class ReadCounts:
    """What was read; second copies count in the bytes of the bus."""

    reads: int
    asked_bytes: int
    bus_bytes: int
    hedged: int
    hedged_won: int


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryUse:
    """Where the memory goes, in bytes."""

    total_bytes: int
    fixed_bytes: int
    index_map_bytes: int
    buffer_bytes: int
    update_bytes: int
    pooled_bytes: int
    row_cache_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class WarmUpPart:
    """A part of a warm-up: queries until its end, and what the caches did in it."""

    queries: int
    caches: CacheCounts
    pages: int
    page_misses: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LoadResult:
    """What a run found."""

    queries_per_s: float
    """That arrived."""
    latency: LatencyStats
    """From arrival to answer."""
    queries: int
    """That were answered."""
    elapsed_ns: int
    gave_up: bool
    """Whether a query took so long that the run ended."""
    busy_ns: int
    """Time for which threads worked, all together."""
    caches: CacheCounts
    reads: ReadCounts
    pages: int
    page_misses: int
    devices: tuple[DeviceStats, ...]
    cached_bytes: int

    @classmethod
    def from_json(cls, text: str, queries_per_s: float) -> Self:
        """Reads what the extension gives."""
        values: dict[str, Any] = json.loads(text)
        values["latency"] = LatencyStats(**values["latency"])
        values["caches"] = CacheCounts(**values["caches"])
        values["reads"] = ReadCounts(**values["reads"])
        values["devices"] = tuple(DeviceStats.from_dict(device) for device in values["devices"])
        return cls(queries_per_s=queries_per_s, **values)

    def quantile_ms(self, quantile: str) -> float:
        """A quantile of the latency, in milliseconds."""
        return float(getattr(self.latency, f"{quantile}_ns")) / 1e6

    def keeps(self, quantile: str, sla_ms: float) -> bool:
        """Whether the load keeps its bound."""
        return not self.gave_up and self.quantile_ms(quantile) <= sla_ms

    @property
    def media_bytes(self) -> int:
        """Bytes that the media read."""
        return sum(device.media_read_bytes for device in self.devices)


class Simulator:
    """An engine in virtual time. Every run begins with the same warm caches and sees the same queries.

    Args:
        config: the engine.
        model: what it serves; `None`: what the configuration imagines.
        baseline: `mapped` or `memory` instead of the engine.

    Raises:
        ConfigError: for what does not go together, or a trace that is not of these tables.
        CapacityError: if memory or device are too small.
    """

    def __init__(
        self,
        config: ServeConfig,
        *,
        model: ServedModel | None = None,
        baseline: Baseline | None = None,
    ) -> None:
        if baseline not in (None, *get_args(Baseline)):
            raise ConfigError(f"a baseline is one of {', '.join(get_args(Baseline))}, not {baseline!r}")
        self.config = config
        self.model = imagined_model(config) if model is None else model
        self.tables = self.model.tables
        if baseline == "memory":
            self.tables = tuple(dataclasses.replace(table, placement="fixed") for table in self.tables)
        self._core = _core.ServeSimulation(json.dumps(self._core_config(baseline)))
        self.memory = MemoryUse(**json.loads(self._core.memory_json()))

    def _core_config(self, baseline: Baseline | None) -> dict[str, Any]:
        config = self.config
        serve = core_config(config, self.tables)
        if baseline == "memory":
            # However much that is.
            tables = sum(table.nbytes + 4 * table.ids for table in self.tables)
            serve["memory"]["total_bytes"] = config.versions * (tables + config.memory.updates) + 2**30
        return {
            "serve": serve,
            "host": self._host(),
            "threads": config.host.threads,
            "is_overlapped": config.overlap,
            "is_mapped": baseline == "mapped",
            "versions": config.versions,
            "queries": self._queries(),
            "writes": config.load.updates.model_dump(),
            "faults": config.device.faults.model_dump(mode="json"),
            "seed": config.seed,
        }

    def _host(self) -> dict[str, int]:
        host, device = self.config.host, self.config.device
        lower_ns, upper_ns = self._dense_ns()
        complete_ns = host.polling_ns if device.completion == "polling" else host.interrupt_ns
        return {
            "query_ns": host.query_ns,
            "probe_ps": _ps(host.probe_ns),
            "row_ps": _ps(host.row_ns),
            "byte_ps": _ps(host.byte_ns),
            "dequantise_ps": _ps(host.dequantise_ns),
            "submit_ps": _ps(host.submit_ns),
            "complete_ps": _ps(complete_ns),
            "fault_ps": _ps(host.fault_ns),
            "lower_ns": lower_ns,
            "upper_ns": upper_ns,
        }

    def _dense_ns(self) -> tuple[int, int]:
        """Time of the lower dense layers, and of interaction and upper ones."""
        dense, compute = self.model.dense, self.config.host.compute
        if dense is None:
            return 0, 0
        lower, upper = serving_costs(
            dense.model,
            dense_features=dense.dense_features,
            sparse_features=dense.sparse_features,
            candidates=self.config.load.queries.candidates,
        )
        # The overhead of a step is paid once.
        times = lower.time_ns(compute) - compute.overhead_ns_per_step, upper.time_ns(compute)
        if sum(times) > _DENSE_NS_MAX:
            raise ConfigError(
                f"the dense layers of a query would take {sum(times) * 1e-9:.3g} s; host.compute is too slow"
            )
        return times

    def _queries(self) -> dict[str, Any]:
        load = self.config.load.queries
        if load.trace is not None:
            is_user = [table.is_user for table in self.tables]
            return {"trace": {"path": load.trace, "is_user": is_user, "candidates": load.candidates}}
        loaded = [table.loaded(self.config) for table in self.tables]
        laws = [
            {
                "rows": table.rows,
                "is_user": table.is_user,
                # Ids that were pruned are looked for in the index map alone.
                "ids_per_list": max(1, round(table.ids_per_list * table.rows / table.ids)),
                "exponent": table.exponent,
            }
            for table in loaded
        ]
        return {
            "generated": {
                "tables": laws,
                "users": load.users,
                "user_exponent": load.user_exponent,
                "items": load.items,
                "item_exponent": load.item_exponent,
                "candidates": load.candidates,
                "list_life_queries": load.list_life_queries,
                "seed": self.config.seed,
            }
        }

    def warm_up(self) -> list[WarmUpPart]:
        """Warms cold caches with the first queries, which take no time; how the caches did, part by part."""
        self._core.cool_down()
        queries = self.config.load.warm_up_queries
        if queries == 0:
            return []
        parts = json.loads(self._core.warm_up(0, queries, min(_WARM_UP_PARTS, queries)))
        return [
            WarmUpPart(part["queries"], CacheCounts(**part["caches"]), part["pages"], part["page_misses"])
            for part in parts
        ]

    def run(self, queries_per_s: float, *, queries: int | None = None) -> LoadResult:
        """Runs the queries behind the warm-up at a rate; the caches stay as they were.

        Raises:
            ConfigError: if the rate is none, or the trace has fewer queries.
        """
        load = self.config.load
        if not 0 < queries_per_s <= RATE_MAX:
            raise ConfigError(
                f"a rate is more than 0 and at most {RATE_MAX:,} queries/s, not {queries_per_s:g}"
            )
        text = self._core.run(
            json.dumps(
                {
                    "queries_per_s": queries_per_s,
                    "first_query": load.warm_up_queries,
                    "queries": load.measured_queries if queries is None else queries,
                    "give_up_ns": math.ceil(load.sla_ms * 1e6 * _GIVE_UP_SLAS),
                }
            )
        )
        return LoadResult.from_json(text, queries_per_s)

    def _queries_at(self, rate: float) -> int:
        """Queries of a run; of a trace no more than it has."""
        load = self.config.load
        queries = max(load.measured_queries, math.ceil(rate * load.sla_ms * 1e-3 * _RUN_SLAS))
        there = self._core.queries()
        return queries if there is None else min(queries, max(1, there - load.warm_up_queries))

    def _try(self, rate: float) -> tuple[LoadResult, bool]:
        """A run that is long enough for its rate, and whether it kept the bound."""
        found = self.run(rate, queries=self._queries_at(rate))
        return found, found.keeps(self.config.load.quantile, self.config.load.sla_ms)

    def highest_rate(self, *, at_most: float = RATE_MAX) -> LoadResult:
        """The run at the highest rate that keeps the bound, to within `load.rate_tolerance`.

        Args:
            at_most: no higher rate is tried, queries/s.

        Raises:
            NoRateError: if no rate does; the message has the latency of an idle engine.
        """
        load = self.config.load
        if not at_most >= _LEAST_RATE:
            raise ConfigError(
                f"the highest rate is looked for from {_LEAST_RATE:g} query/s on, not {at_most:g}"
            )
        best = self.run(_LEAST_RATE, queries=min(_PROBE_QUERIES, self._queries_at(_LEAST_RATE)))
        if not best.keeps(load.quantile, load.sla_ms):
            found = best.quantile_ms(load.quantile)
            raise NoRateError(
                f"no load keeps {load.quantile} within {load.sla_ms:g} ms: an idle engine needs"
                f" {found:.3g} ms; allow more, or use a faster device"
            )
        high, has_failed = self._most(best), False
        if at_most < high:
            high = at_most
            limited, keeps = self._try(at_most)
            if keeps:
                return limited
            has_failed = True
        low = high / _RATE_SPAN
        while low > _LEAST_RATE:
            found_run, keeps = self._try(low)
            if keeps:
                best = found_run
                break
            high, low, has_failed = low, low / _RATE_SPAN, True
        low = max(low, _LEAST_RATE)
        while high / low > 1 + load.rate_tolerance:
            rate = math.sqrt(low * high)
            found_run, keeps = self._try(rate)
            if keeps:
                best, low = found_run, rate
            else:
                high, has_failed = rate, True
            if high / low <= 1 + load.rate_tolerance and not has_failed:
                # Caches of an idle engine whose rows are updated are emptier than those of a busy one.
                high = max(high, min(self._most(best), at_most))
        return best

    def _most(self, found: LoadResult) -> float:
        """The rate at which threads have as much work as time: beyond it a run only seems to keep a bound."""
        return self.config.host.threads * found.queries / max(1, found.busy_ns) * 1e9


def _ps(nanoseconds: float) -> int:
    return round(nanoseconds * _PS_PER_NS)
