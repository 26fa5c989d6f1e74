"""How rows of each type lie in a table file, and what they are as float32.

n = rows, D = columns; numbers are little-endian.

fp32, fp16, bf16  D weights of 4, 2, 2 bytes
int8              D codes of a byte; then scale and bias of the row, as float16 or, as in training, as float32
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

from tiermem.config import RowType
from tiermem.errors import InputError

__all__ = ["NarrowedScales", "ScaleType", "decode_rows", "row_bytes_of"]

ScaleType = Literal["fp16", "fp32"]
"""How scale and bias of an int8 row are written."""

Bytes = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.float32]

_WEIGHT_BYTES: dict[RowType, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
_SCALE_DTYPES: dict[ScaleType | None, str] = {"fp16": "<f2", "fp32": "<f4"}
_HALF_MAX = float(np.finfo(np.float16).max)


def row_bytes_of(row_type: RowType, scale_type: ScaleType | None, dim: int) -> int:
    """Bytes of a row of `dim` columns; `scale_type` is that of int8 rows, others have none."""
    scales = 0 if scale_type is None else 2 * np.dtype(_SCALE_DTYPES[scale_type]).itemsize
    return dim * _WEIGHT_BYTES[row_type] + scales


def decode_rows(rows: Bytes, row_type: RowType, scale_type: ScaleType | None) -> Rows:
    """Weights float32 [n, D] of rows uint8 [n, bytes of a row]; the bits that training computes with."""
    match row_type:
        case "fp32":
            return rows.view("<f4").astype(np.float32)
        case "fp16":
            return rows.view("<f2").astype(np.float32)
        case "bf16":
            return (rows.view("<u2").astype(np.uint32) << 16).view(np.float32)
        case "int8":
            scale_bytes = 2 * np.dtype(_SCALE_DTYPES[scale_type]).itemsize
            codes = rows[:, :-scale_bytes].astype(np.float32)
            scales = rows[:, -scale_bytes:].view(_SCALE_DTYPES[scale_type]).astype(np.float32)
            # Rows that are NaN, or whose range is wider than float32, stay so and are no reason to warn.
            with np.errstate(invalid="ignore", over="ignore"):
                codes *= scales[:, :1]
                codes += scales[:, 1:]
            return codes


class NarrowedScales:
    """Rows of int8 with scale and bias as float16 instead of float32, and what that does to the weights.

    Args:
        table: name of the table, for errors.
    """

    def __init__(self, table: str) -> None:
        self.table = table
        self.max_abs_error = 0.0
        """The largest difference of a weight; rows that are not finite are left out."""
        self._rows = 0
        self._sum = 0.0
        self._weights = 0

    @property
    def mean_abs_error(self) -> float:
        """The mean difference of a weight; rows that are not finite are left out."""
        return self._sum / self._weights if self._weights else 0.0

    def narrow(self, rows: Bytes) -> Bytes:
        """Narrows the next rows of a table.

        Args:
            rows: uint8 [n, D + 8], as training has them.

        Returns:
            uint8 [n, D + 4]: the same codes.

        Raises:
            InputError: if a scale or bias is too large for float16; names the row.
        """
        scales = rows[:, -8:].view("<f4")
        with np.errstate(invalid="ignore", over="ignore"):
            halves = scales.astype("<f2")
        too_large = np.isfinite(scales) & np.isinf(halves)
        if too_large.any():
            row, column = (int(place[0]) for place in np.nonzero(too_large))
            raise InputError(
                f'the {("scale", "bias")[column]} of row {self._rows + row} of table "{self.table}" is'
                f" {scales[row, column]:g}, beyond the {_HALF_MAX:,.0f} of float16; use --scales fp32"
            )
        narrowed = np.hstack([rows[:, :-8], halves.view(np.uint8)])
        self._rows += len(rows)
        self._compare(rows, narrowed, np.isfinite(scales).all(axis=1))
        return narrowed

    def _compare(self, rows: Bytes, narrowed: Bytes, is_finite: npt.NDArray[np.bool_]) -> None:
        errors = decode_rows(narrowed[is_finite], "int8", "fp16")
        errors -= decode_rows(rows[is_finite], "int8", "fp32")
        np.abs(errors, out=errors)
        self.max_abs_error = max(self.max_abs_error, float(errors.max(initial=0.0)))
        self._sum += float(errors.sum(dtype=np.float64))
        self._weights += errors.size
