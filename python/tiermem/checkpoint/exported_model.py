"""A model as `tiermem export` writes it: tables, dense layers, and a file that says what belongs together.

model.json   what the model is, its tables in order, and the checksum of the dense layers
dense.pt     parameters of the dense layers, as torch saves them
*.ids.npy    of a pruned table the row of each id, int32; -1: it was pruned
*.tmtable    the tables
"""

import dataclasses
import io
import json
import pickle
import zlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from tiermem.checkpoint.manifest import refuse_version
from tiermem.config import ModelConfig
from tiermem.config.base import Config
from tiermem.errors import ConfigError, CorruptionError
from tiermem.results import write_bytes

__all__ = ["EXPORT_VERSION", "ExportedModel", "index_map_path", "write_index_map"]

EXPORT_VERSION = 1
_DOCUMENT, _DENSE = "model.json", "dense.pt"


class _Document(Config):
    """model.json, as `ExportedModel` describes it."""

    format_version: int
    tiermem_version: str
    step: int = Field(ge=0)
    experiment_hash: str
    model: ModelConfig
    batch_size: int = Field(gt=0)
    tables: tuple[str, ...] = Field(min_length=1)
    index_maps: dict[str, int]
    dense_checksum: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ExportedModel:
    """A model in a folder."""

    folder: Path
    step: int
    """Training steps that it has seen."""
    experiment_hash: str
    """SHA-256 of the configuration that it was trained with."""
    model: ModelConfig
    batch_size: int
    """Samples of a training step: a query of as many candidates has the trainer's logits to the bit."""
    tables: tuple[str, ...]
    """Files of the tables, in the order of the model's features."""
    index_maps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """CRC-32 of the index map of each pruned table, by the table's file."""
    dense_checksum: int = 0
    """CRC-32 of the dense layers' file."""

    def write(self, dense: Mapping[str, torch.Tensor]) -> None:
        """Writes the dense layers, and then what belongs together.

        Args:
            dense: parameters by name, as the trainer's model has them.

        Raises:
            DeviceError: if a file cannot be written.
        """
        serialized = io.BytesIO()
        torch.save(dict(dense), serialized)
        contents = serialized.getvalue()
        write_bytes(self.folder / _DENSE, contents)
        document = _Document(
            format_version=EXPORT_VERSION,
            tiermem_version=metadata.version("tiermem"),
            step=self.step,
            experiment_hash=self.experiment_hash,
            model=self.model,
            batch_size=self.batch_size,
            tables=self.tables,
            index_maps=dict(self.index_maps),
            dense_checksum=zlib.crc32(contents),
        )
        write_bytes(self.folder / _DOCUMENT, (document.model_dump_json(indent=2) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads what belongs together.

        Raises:
            ConfigError: if there is no exported model.
            CorruptionError: if its document is none; names the file.
            TiermemError: if another version wrote it; the message says which.
        """
        path = folder / _DOCUMENT
        try:
            values: Any = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"there is no exported model in {folder} ({path.name}: {error.strerror});"
                " write one with tiermem export RUN_DIR --out DIR"
            ) from None
        except ValueError:
            raise CorruptionError(f"{path} is not JSON: it was cut short or changed") from None
        if not isinstance(values, dict):
            raise CorruptionError(f"{path} is no description of a model: it was changed")
        refuse_version(path, values, EXPORT_VERSION, make="export the model")
        try:
            document = _Document.from_mapping(values, where=str(path))
        except ConfigError as error:
            raise CorruptionError(f"{error}: the file was changed") from None
        return cls(
            folder=folder,
            step=document.step,
            experiment_hash=document.experiment_hash,
            model=document.model,
            batch_size=document.batch_size,
            tables=document.tables,
            index_maps=document.index_maps,
            dense_checksum=document.dense_checksum,
        )

    def index_map(self, table: str) -> npt.NDArray[np.int32] | None:
        """The row of each id of a table's file, int32 [ids]; `None` if every id has its row.

        Raises:
            CorruptionError: if its file has changed.
        """
        if table not in self.index_maps:
            return None
        path = index_map_path(self.folder / table)
        contents = _read(path)
        if zlib.crc32(contents) != self.index_maps[table]:
            raise CorruptionError(
                f"{path} has changed between offset 0 and offset {max(0, len(contents) - 1)}"
            )
        rows: npt.NDArray[np.int32] = np.load(io.BytesIO(contents), allow_pickle=False)
        return rows

    def dense(self) -> dict[str, torch.Tensor]:
        """Parameters of the dense layers by name.

        Raises:
            CorruptionError: if their file has changed.
        """
        path = self.folder / _DENSE
        contents = _read(path)
        if zlib.crc32(contents) != self.dense_checksum:
            raise CorruptionError(
                f"{path} has changed between offset 0 and offset {max(0, len(contents) - 1)}"
            )
        try:
            loaded: dict[str, torch.Tensor] = torch.load(io.BytesIO(contents), weights_only=True)
        except (RuntimeError, pickle.UnpicklingError) as error:
            raise CorruptionError(f"torch {torch.__version__} cannot read {path}: {error}") from None
        return loaded


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def index_map_path(table: Path) -> Path:
    """Where the index map of a table's file is."""
    return table.with_suffix(".ids.npy")


def write_index_map(table: Path, rows: npt.NDArray[np.int32]) -> int:
    """Writes the row of each id, int32 [ids], beside a table's file; its CRC-32.

    Raises:
        DeviceError: if it cannot be written.
    """
    serialized = io.BytesIO()
    np.save(serialized, rows)
    write_bytes(index_map_path(table), serialized.getvalue())
    return zlib.crc32(serialized.getvalue())
