"""An engine that answers queries of an exported model, with tables in memory and on a device."""

import dataclasses
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch

from tiermem import _core
from tiermem._interop import bytes_of, float_rows, id_vector
from tiermem.config import ServeConfig
from tiermem.errors import ConfigError, InputError, TiermemError
from tiermem.serve.loadgen import CacheCounts, MemoryUse
from tiermem.serve.model import Model
from tiermem.serve.tables import core_config
from tiermem.stats import DeviceStats, LatenessStats

if TYPE_CHECKING:
    from tiermem.models import DenseParts

__all__ = ["Answer", "Engine", "EngineStats", "Query"]


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """One user and C candidates.

    Attributes:
        dense: float32 [F] of the user, or [C, F]; F may be 0.
        sparse: (ids int64, where each bag begins int64) of every table, in the model's order: a table of
            users has one bag, a table of items C.
    """

    dense: torch.Tensor
    sparse: Sequence[tuple[torch.Tensor, torch.Tensor]]


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What became of a query: its logits, or the error that is its own."""

    logits: torch.Tensor | None
    """float32 [C]."""
    error: TiermemError | None = None
    version: int = 0
    """Of the tables and layers that answered."""

    def unwrap(self) -> torch.Tensor:
        """The logits, float32 [C].

        Raises:
            TiermemError: the query's own.
        """
        if self.error is not None:
            raise self.error
        assert self.logits is not None, "an answer has logits or an error"  # noqa: S101
        return self.logits


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """What an engine did so far."""

    memory: MemoryUse
    cached_bytes: int
    """Memory that caches and updated rows take now."""
    cached_rows: int
    pooled_results: int
    caches: CacheCounts
    reads: int
    asked_bytes: int
    bus_bytes: int
    hedged: int
    """Reads that were asked of a second device."""
    hedged_won: int
    """Of these, the second was first."""
    failed_over: int
    """Reads that failed and were done by the other device."""
    cold_rows: int
    """Rows that a warm hand-over left out: they cannot be read, or other rows of their table were pruned."""
    written_blocks: int
    updated_rows: int
    """That are not yet in their place."""
    version: int
    engine: str
    """What moves the bytes: ram, file, io_uring."""
    direct: bool
    polled: bool
    """Whether the kernel is asked for completions, rather than interrupted."""
    fallback_reason: str
    devices: tuple[DeviceStats, ...]
    """Emulated ones; a real one keeps its own."""
    lateness: LatenessStats

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what the extension gives."""
        values: dict[str, Any] = json.loads(text)
        values.update(values.pop("traffic"))
        values["memory"] = MemoryUse(**values["memory"])
        values["caches"] = CacheCounts(**values["caches"])
        values["devices"] = tuple(DeviceStats.from_dict(device) for device in values["devices"])
        values["lateness"] = LatenessStats.from_dict(values["lateness"])
        return cls(**values)


@dataclasses.dataclass(slots=True)
class _UnderWay:
    """A query whose reads are under way."""

    lookup: _core.QueryLookup
    dense: torch.Tensor
    candidates: int
    bags: list[int]
    out: torch.Tensor
    vector: torch.Tensor | None = None


class Engine:
    """Answers queries. Any number of threads may call it.

    Args:
        config: what to serve and how; it names a model.

    Raises:
        ConfigError: for what does not go together, or a model that is not there.
        CorruptionError: if a file of the model was cut short or changed; names table and offset.
        CapacityError: if memory or device are too small.
        DeviceError: if the device cannot be opened or written.
    """

    def __init__(self, config: ServeConfig) -> None:
        if config.model is None:
            raise ConfigError(
                "an engine that answers needs a model; set model.path to a folder of tiermem export"
            )
        self.config = config
        model = Model.load(Path(config.model.path))
        self.tables = model.tables(config)
        self.columns = model.exported.model.dim
        self.batch_size = model.exported.batch_size
        """Samples of a training step: a query of as many candidates has the trainer's logits to the bit."""
        self._shape = _shape(model, config)
        self._dense_inputs = model.dense.dense_inputs
        self._dense: dict[int, DenseParts] = {}
        self._changing = threading.Lock()
        core = {
            "serve": core_config(config, self.tables),
            "backend": config.device.backend.model_dump(mode="json")
            # An emulated device has completions of its own.
            | {"completion": config.device.completion if config.clock == "real" else "interrupt"},
            "replica_directory": config.device.replica_directory,
            "time": config.clock,
            "versions": config.versions,
            "faults": config.device.faults.model_dump(mode="json"),
            "seed": config.seed,
        }
        self._core = _core.ServeEngine(json.dumps(core))
        self._serve(model, warm=False)

    def _serve(self, model: Model, *, warm: bool) -> int:
        version = self._core.new_version()
        # The version before the served one is gone, and so are the queries that it had.
        served = self.stats().version
        self._dense = {number: parts for number, parts in self._dense.items() if number == served}
        for table in range(len(self.tables)):
            row_type = model.row_type(table)
            loaded, index_map = self.tables[table].loaded(self.config), model.index_maps[table]
            deprune = loaded.rows == loaded.ids
            for rows in model.rows(table, self._core.rows_per_load(table), deprune=deprune):
                version.load(table, row_type, rows)
            if index_map is not None and not deprune:
                version.set_index_map(table, index_map.view(np.uint8))
        # Queries may see the version as soon as it is committed.
        self._dense[version.number] = model.dense
        return version.commit(warm)

    def refresh(self, folder: str | os.PathLike[str], *, warm: bool = True) -> int:
        """Serves another export of the same model from now on; queries under way end with the one before.

        Args:
            folder: of `tiermem export`.
            warm: read the rows that were cached again before this returns, while queries go on.

        Returns:
            The number of the version.

        Raises:
            ConfigError: if it is not of the same tables and layers, or `versions` is 1.
            CorruptionError: if a file was cut short or changed; the served version stays.
        """
        model = Model.load(Path(folder))
        if _shape(model, self.config) != self._shape:
            raise ConfigError(
                f"{os.fspath(folder)} has other tables, row types or layers than the model that is served;"
                " open another engine for it"
            )
        with self._changing:
            return self._serve(model, warm=warm)

    def roll_back(self, *, warm: bool = True) -> int:
        """Serves the version before again, at once; its number.

        Raises:
            ConfigError: if there is none.
        """
        # Not while another one is loaded: there is none to roll back to then. While caches are warmed it may.
        return self._core.roll_back(warm)

    def update_rows(self, table: str, ids: torch.Tensor, rows: torch.Tensor) -> None:
        """Updates rows: every query that begins after this returned sees all of them, none before does.

        They are served from memory until they are written, which waits for the queries under way.

        Args:
            table: its name.
            ids: int64 [n].
            rows: float32 [n, D].

        Raises:
            InputError: if an id is no row, or a row cannot become codes.
            CapacityError: if they are more than `memory.updates` has room for.
            DeviceError: if there is no room because earlier ones cannot be written.
        """
        names = [each.name for each in self.tables]
        if table not in names:
            raise InputError(f'"{table}" is no table of the model (there are {", ".join(names)})')
        values = float_rows("rows", rows)
        numbers = id_vector("ids", ids)
        if values.shape != (len(numbers), self.columns):
            raise InputError(f"rows are float32 [{len(numbers)}, {self.columns}], not {list(values.shape)}")
        self._core.update(names.index(table), bytes_of(numbers), bytes_of(values).reshape(-1))

    def flush(self) -> None:
        """Puts updated rows into their place.

        Raises:
            DeviceError: if some cannot be written; they are served from memory, and tried again.
        """
        self._core.flush()

    def predict(self, queries: Sequence[Query]) -> list[Answer]:
        """Answers queries, each by itself: what is wrong with one is in its own answer.

        Reads of all of them are under way before the item side of the first is looked up.
        """
        begun: list[_UnderWay | Answer] = []
        try:
            with torch.inference_mode():
                begun += map(self._begin, queries)
                if self.config.overlap:
                    for under_way in begun:
                        if isinstance(under_way, _UnderWay):
                            self._item_side(under_way)
                return [each if isinstance(each, Answer) else self._finish(each) for each in begun]
        finally:
            # Whoever changes tables waits for queries under way: not for one that was interrupted.
            for each in begun:
                if isinstance(each, _UnderWay):
                    each.lookup.abandon()

    def _begin(self, query: Query) -> _UnderWay | Answer:
        try:
            dense = self._checked_dense(query)
            bags, views, candidates = self._checked_bags(query)
            if dense.shape[0] not in (1, candidates):
                rows = dense.shape[0]
                raise InputError(
                    f"dense has {rows} rows; a query of {candidates} candidates has 1 or as many"
                )
            lookup = self._core.begin(views)
        except TiermemError as error:
            return Answer(None, error)
        out = torch.empty(sum(bags) * self.columns)
        return _UnderWay(lookup, dense, candidates, bags, out)

    def _checked_dense(self, query: Query) -> torch.Tensor:
        dense = float_rows("dense", query.dense)
        dense = dense.unsqueeze(0) if dense.dim() == 1 else dense
        inputs = self._dense_inputs
        is_width = dense.dim() == 2 and (dense.shape[1] == inputs or (dense.shape[1] == 0 and inputs == 1))
        if not is_width:
            raise InputError(
                f"dense is float32 [{inputs}] or [candidates, {inputs}], not {list(query.dense.shape)}"
            )
        if not bool(torch.isfinite(dense).all()):
            raise InputError("dense has a value that is NaN or infinite")
        return dense

    def _checked_sparse(self, query: Query) -> Sequence[tuple[torch.Tensor, torch.Tensor]]:
        """(ids, offsets) of every table, whatever those are."""
        sparse: object = query.sparse
        if not isinstance(sparse, Sequence) or len(sparse) != len(self.tables):
            found = f"of {len(sparse)}" if isinstance(sparse, Sequence) else f"a {type(sparse).__name__}"
            raise InputError(f"a query has bags of each of {len(self.tables)} tables, not {found}")
        for table, each in zip(self.tables, sparse, strict=True):
            if not isinstance(each, Sequence) or len(each) != 2:
                raise InputError(
                    f'bags of table "{table.name}" are (ids, offsets), not {type(each).__name__}'
                )
        return query.sparse

    def _checked_bags(
        self, query: Query
    ) -> tuple[list[int], list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]], int]:
        bags, views, candidates = [], [], None
        for table, (ids, offsets) in zip(self.tables, self._checked_sparse(query), strict=True):
            ids_vector = id_vector(f'ids of table "{table.name}"', ids)
            starts = id_vector(f'offsets of table "{table.name}"', offsets)
            count = len(starts)
            if table.is_user and count != 1:
                raise InputError(f'table "{table.name}" is of users: a query has one bag of it, not {count}')
            if not table.is_user and candidates is not None and count != candidates:
                raise InputError(
                    f'table "{table.name}" has {count} bags; the other tables of items have {candidates}'
                )
            candidates = candidates if table.is_user else count
            bags.append(count)
            views.append((bytes_of(ids_vector), bytes_of(starts)))
        candidates = 1 if candidates is None else candidates
        if not 1 <= candidates <= self.config.candidates_max:
            raise InputError(f"a query has 1 to {self.config.candidates_max} candidates, not {candidates}")
        return bags, views, candidates

    def _item_side(self, under_way: _UnderWay) -> None:
        under_way.lookup.pool_memory(bytes_of(under_way.out))
        under_way.vector = self._dense[under_way.lookup.version].lower(under_way.dense)

    def _finish(self, under_way: _UnderWay) -> Answer:
        lookup, out = under_way.lookup, under_way.out
        version = lookup.version
        dense = self._dense[version]
        try:
            if not self.config.overlap:
                # Nothing else is done while reads are under way.
                lookup.wait()
                self._item_side(under_way)
            lookup.finish(bytes_of(out))
        except TiermemError as error:
            return Answer(None, error, version)
        assert under_way.vector is not None, "the item side is done"  # noqa: S101
        logits = dense.upper(under_way.vector.expand(under_way.candidates, -1), self._pooled(out, under_way))
        if not bool(torch.isfinite(logits).all()):
            return Answer(None, InputError("a row or a layer of the model is not finite"), version)
        return Answer(logits, None, version)

    def _pooled(self, out: torch.Tensor, under_way: _UnderWay) -> torch.Tensor:
        """Pooled rows [C, tables, D]: those of the user for each candidate."""
        pooled, place = [], 0
        for count in under_way.bags:
            rows = out[place : place + count * self.columns].view(count, self.columns)
            pooled.append(rows.expand(under_way.candidates, -1) if count == 1 else rows)
            place += count * self.columns
        return torch.stack(pooled, dim=1)

    def pooled(self, query: Query) -> list[torch.Tensor]:
        """Pooled rows of each table, float32 [bags, D], as the dense layers get them.

        Raises:
            InputError: if the query is wrong.
            DeviceError: if a read fails.
        """
        bags, views, _ = self._checked_bags(query)
        lookup = self._core.begin(views)
        try:
            out = torch.empty(sum(bags) * self.columns)
            lookup.pool_memory(bytes_of(out))
            lookup.finish(bytes_of(out))
        finally:
            lookup.abandon()
        return [part.view(-1, self.columns) for part in torch.split(out, [n * self.columns for n in bags])]

    def now_ns(self) -> int:
        """Time on the emulated device's clock; 0 if it is real."""
        return self._core.now_ns()

    def stats(self) -> EngineStats:
        """What it did so far."""
        return EngineStats.from_json(self._core.stats_json())


def _shape(model: Model, config: ServeConfig) -> tuple[object, ...]:
    """What two exports of one model have in common."""
    tables = tuple(table.loaded(config) for table in model.tables(config))
    row_types = tuple(model.row_type(table) for table in range(len(tables)))
    return (model.exported.model, model.dense.dense_inputs, tables, row_types)
