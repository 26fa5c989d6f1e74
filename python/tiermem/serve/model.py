"""An exported model as an engine needs it: tables, dense layers, and rows to load."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from tiermem.checkpoint import ExportedModel, TableFile
from tiermem.config import ServeConfig, ServeRowType
from tiermem.errors import ConfigError, CorruptionError
from tiermem.models import DenseParts
from tiermem.serve.tables import DenseLayers, ServedModel, ServedTable

__all__ = ["Model"]


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """A model whose files were read through and found whole."""

    exported: ExportedModel
    files: tuple[TableFile, ...]
    index_maps: tuple[npt.NDArray[np.int32] | None, ...]
    """The row of each id of pruned tables, int32 [ids]; -1: it was pruned."""
    dense: DenseParts

    @classmethod
    def load(cls, folder: Path) -> "Model":
        """Reads a folder of `tiermem export`, all of it.

        Raises:
            ConfigError: if it holds no exported model, or the parts are of different models.
            CorruptionError: if a file was cut short or changed; names the file, its table, and the offset.
            TiermemError: if another version wrote it.
        """
        exported = ExportedModel.read(folder)
        files = []
        for name in exported.tables:
            file = TableFile(folder / name)
            header = file.header
            if (header.experiment_hash, header.step) != (exported.experiment_hash, exported.step):
                raise ConfigError(
                    f'table "{header.name}" in {file.path} is of step {header.step} of another export than'
                    f" {folder}, which is of step {exported.step}; export the model again"
                )
            if header.dim != exported.model.dim:
                raise ConfigError(f"{file.path} has {header.dim} columns; the model has {exported.model.dim}")
            try:
                file.verify()
            except CorruptionError as error:
                raise CorruptionError(f'table "{header.name}": {error}') from None
            files.append(file)
        index_maps = tuple(exported.index_map(name) for name in exported.tables)
        return cls(exported, tuple(files), index_maps, _dense(exported))

    def tables(self, config: ServeConfig) -> list[ServedTable]:
        """The tables as the configuration has them served.

        Raises:
            ConfigError: if the configuration names a table that is none of them.
        """
        if config.model is None:
            raise ConfigError("the configuration names no model; set model.path")
        names = [file.header.name for file in self.files]
        for name in (*config.model.user_tables, *config.placement):
            if name not in names:
                raise ConfigError(f'"{name}" is no table of the model (there are {", ".join(names)})')
        load = config.load.queries
        tables = []
        for number, file in enumerate(self.files):
            header = file.header
            is_user = header.name in config.model.user_tables
            tables.append(
                ServedTable(
                    name=header.name,
                    ids=self.ids(number),
                    rows=header.rows,
                    columns=header.dim,
                    row_type=config.model.row_type or _stored_type(file),
                    is_user=is_user,
                    placement=config.placement_of(header.name, is_user=is_user),
                    ids_per_list=load.ids_per_list,
                    exponent=load.exponent,
                )
            )
        return tables

    def served(self, config: ServeConfig) -> ServedModel:
        """What the configuration serves, for an engine in virtual time.

        Raises:
            ConfigError: if the configuration names a table that is none of them.
        """
        tables = self.tables(config)
        layers = DenseLayers(
            model=self.exported.model,
            dense_features=self.dense.dense_inputs,
            sparse_features=len(tables),
        )
        return ServedModel(tables=tuple(tables), dense=layers)

    def ids(self, table: int) -> int:
        """Ids of a table: as many as rows, or more of a pruned one."""
        index_map = self.index_maps[table]
        return len(self.files[table]) if index_map is None else len(index_map)

    def row_type(self, table: int) -> ServeRowType:
        """How the rows of a table are stored in its file."""
        return _stored_type(self.files[table])

    def rows(self, table: int, count: int, *, deprune: bool) -> Iterator[npt.NDArray[np.uint8]]:
        """All rows of a table as they are in its file, uint8 [n * bytes of a row], `count` at a time.

        With `deprune` there is a row for each id, of zeros if it was pruned: as codes, too, zeros are zero.
        """
        file, index_map = self.files[table], self.index_maps[table]
        if index_map is None or not deprune:
            yield from file.stored(count)
            return
        for first in range(0, len(index_map), count):
            yield file.stored_at(index_map[first : first + count])


def _stored_type(file: TableFile) -> ServeRowType:
    """How the rows of a file are stored."""
    header = file.header
    if header.row_type == "int8" and header.scale_type == "fp16":
        return "int8_fp16"
    return cast("ServeRowType", header.row_type)


def _dense(exported: ExportedModel) -> DenseParts:
    parameters = exported.dense()
    first = parameters.get("dense_arch.0.weight")
    if first is None:
        raise CorruptionError(f"the dense layers in {exported.folder} lack dense_arch.0.weight")
    parts = DenseParts(
        exported.model, dense_features=first.shape[1], sparse_features=len(exported.tables)
    ).eval()
    try:
        parts.load_state_dict(parameters)
    except RuntimeError as error:
        raise ConfigError(f"the dense layers in {exported.folder} are not of this model: {error}") from None
    return parts.requires_grad_(requires_grad=False)
