"""What goes into a store: tables, lookups, and the tickets of its batches."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import torch

from tiermem import _core
from tiermem.config import Rounding, RowType
from tiermem.errors import ConfigError

__all__ = ["STORED_AS", "Lookup", "Mode", "NonFinite", "StageTimes", "TableConfig", "Ticket"]

Mode = Literal["sum", "mean", "none"]
NonFinite = Literal["pass", "refuse"]
STORED_AS = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    # Codes, then scale and bias of the row as float32.
    "int8": torch.uint8,
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TableConfig:
    """One embedding table."""

    name: str
    """Name, for errors and statistics."""
    rows: int
    """Number of rows."""
    dim: int
    """Columns."""
    init_bound: float | None = None
    """Rows start uniform in [-bound, bound); `None`: sqrt(1 / rows), as in the DLRM reference."""
    row_type: RowType = "fp32"
    """How weights are stored; sums, gradients and optimizer state are fp32 whatever it is."""
    rounding: Rounding = "stochastic"
    """How an updated row is stored in a type of fewer bits."""

    def __post_init__(self) -> None:
        if self.rows < 1 or self.dim < 1:
            raise ConfigError(f'table "{self.name}" needs at least one row and one column')
        if self.init_bound is not None and not 0 <= self.init_bound < float("inf"):
            raise ConfigError(f'init_bound of table "{self.name}" must not be negative')
        for setting, choices in (("row_type", get_args(RowType)), ("rounding", get_args(Rounding))):
            if getattr(self, setting) not in choices:
                raise ConfigError(
                    f'{setting} of table "{self.name}" is "{getattr(self, setting)}"; use one of {choices}'
                )

    def core(self) -> dict[str, object]:
        """The form that the extension reads."""
        bound = self.rows**-0.5 if self.init_bound is None else self.init_bound
        return {
            "name": self.name,
            "rows": self.rows,
            "dim": self.dim,
            "init": {"uniform": {"bound": bound}},
            "row_type": self.row_type,
            "rounding": self.rounding,
        }

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of a row."""
        return self.dim + 8 if self.row_type == "int8" else self.dim * STORED_AS[self.row_type].itemsize


@dataclasses.dataclass(frozen=True, slots=True)
class Lookup:
    """Bags of one table. B = bags, L = ids in all bags together."""

    table: int
    """Table number."""
    ids: torch.Tensor
    """int64 or int32 [L]."""
    offsets: torch.Tensor
    """int64 or int32 [B]: first position of each bag; ascending, the first is 0."""
    sample_weights: torch.Tensor | None = None
    """float32 [L]: factor of each id; only with mode "sum"."""


@dataclasses.dataclass(slots=True)
class StageTimes:
    """Nanoseconds that one step spent in the store, on the store's clock."""

    wait_ns: int = 0
    gather_ns: int = 0
    update_ns: int = 0
    release_ns: int = 0


class Ticket:
    """The rows of one prefetched batch: in memory from `wait` to `release`."""

    def __init__(self, core: _core.Ticket, lookups: Sequence[Lookup]) -> None:
        self._core = core
        self.lookups = tuple(lookups)

    def wait(self) -> None:
        """Returns when the rows are in memory, and on a wall clock when they are due.

        Blocks while earlier batches hold the staging memory that this one needs. A failed transfer is tried
        again by the next call.

        Raises:
            CapacityError: if only the calling thread could release those earlier batches.
            DeviceError: if a tier failed; names the tier and the rows.
        """
        self._core.wait()

    def release(self) -> None:
        """Gives the rows back, at the next step if gradients wait for one. Idempotent."""
        self._core.release()
