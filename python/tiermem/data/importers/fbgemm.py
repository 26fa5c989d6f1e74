"""Batches of Meta's dlrm_datasets: one file of `torch.save` is one batch of T tables.

T = tables, B = bags of one table in the batch, L = ids of all tables together. A file holds the tuple
(indices [L], offsets [T * B + 1], lengths [T, B]), table after table.
"""

import io
import pickle
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tiermem.data.accesses import Bags, Batch, Source, TraceTable
from tiermem.data.importers.cutting import ROWS_MAX, first_outside
from tiermem.data.importers.files import opened
from tiermem.data.importers.options import ImportOptions, refuse_renumbering
from tiermem.errors import ConfigError, CorruptionError, InputError

__all__ = ["open_fbgemm"]

Ids = npt.NDArray[np.int64]

_MAGIC = (b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19")
"""First bytes of the two formats of `torch.save`: a zip file, and a pickled number before torch 1.6."""
_DAMAGED = (
    RuntimeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    struct.error,
)
"""What torch raises at bytes that it did not write."""
_FORBIDDEN = "Unsupported global"
"""What torch says of a class that `weights_only` does not allow."""
_CAUSE_CHARACTERS = 80
_PARTS = ("indices", "offsets", "lengths")


def open_fbgemm(paths: Sequence[Path], options: ImportOptions) -> Source:
    """Files .pt or .pt.gz, one batch each; rows of a table are its largest id of all files plus one.

    Files are loaded with `weights_only`, so they cannot run code. Memory: one file.

    Raises:
        ConfigError: if a file cannot be read, or torch is not installed.
        CorruptionError: if a file is cut short or was not written by `torch.save`.
        InputError: if a file holds something else, its parts disagree, or an id is beyond `rows`.
    """
    refuse_renumbering(options, "fbgemm")
    largest: list[int] = []
    for path in paths:
        batch = _load(path, options.rows)
        found = [int(bags.ids.max(initial=-1)) for bags in batch]
        largest = largest or found
        if len(found) != len(largest):
            raise InputError(
                f"{path} has {len(found)} tables, and {paths[0]} has {len(largest)}; import them apart"
            )
        largest = [max(pair) for pair in zip(largest, found, strict=True)]
    tables = tuple(
        TraceTable(f"table_{position}", options.rows or max(1, most + 1), options.row_bytes)
        for position, most in enumerate(largest)
    )

    def batches() -> Iterator[Batch]:
        for path in paths:
            yield _load(path, options.rows)

    return Source(tables, batches)


def _load(path: Path, rows: int | None) -> Batch:
    with opened(path) as file:
        # A compressed file is held as a whole, because torch reads its end first.
        whole = file if isinstance(file, io.BufferedReader) else io.BytesIO(file.read())
        indices, offsets, lengths = _arrays(path, _torch_load(path, whole))
    if lengths.ndim != 2 or lengths.size == 0 or indices.ndim != 1 or offsets.ndim != 1:
        raise InputError(
            f"{path}: indices, offsets, lengths have shapes {list(indices.shape)}, {list(offsets.shape)}, "
            f"{list(lengths.shape)}; they must be [L], [T * B + 1], [T, B]"
        )
    _check_offsets(path, offsets, lengths, len(indices))
    count, bags = lengths.shape
    ends = offsets[::bags]
    batch = tuple(Bags(lengths[table], indices[ends[table] : ends[table + 1]]) for table in range(count))
    limit = ROWS_MAX if rows is None else rows
    for table, part in enumerate(batch):
        bad = first_outside(part.ids, limit)
        if bad is not None:
            raise InputError(
                f"{path}: indices[{ends[table] + bad}] of table {table} is {part.ids[bad]}, which is not in "
                f"[0, {limit}); give the tables more rows or correct the id"
            )
    return batch


def _torch_load(path: Path, file: Any) -> object:  # noqa: ANN401 (whatever reads and seeks)
    try:
        import torch  # noqa: PLC0415 (the other formats need no torch)
    except ImportError:
        raise ConfigError(f"reading {path} needs PyTorch: pip install 'tiermem[train]'") from None
    start = file.read(max(map(len, _MAGIC)))
    if not start.startswith(_MAGIC):
        found = f"starts with {start[:8]!r}" if start else "is empty"
        raise CorruptionError(f"{path} {found}, which torch.save does not write; fetch it again")
    file.seek(0)
    stream: IO[bytes] = file
    try:
        contents: object = torch.load(stream, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, *_DAMAGED) as error:
        if _FORBIDDEN in str(error):
            raise InputError(
                f"{path} holds other objects than tensors, which are not loaded since they could run code; "
                "save the tuple (indices, offsets, lengths)"
            ) from None
        cause = str(error).partition(".")[0][:_CAUSE_CHARACTERS] or type(error).__name__
        raise CorruptionError(f"{path} is cut short or damaged ({cause}); fetch it again") from None
    return contents


def _arrays(path: Path, contents: object) -> list[Ids]:
    import torch  # noqa: PLC0415 (the other formats need no torch)

    if not isinstance(contents, tuple | list) or len(contents) != len(_PARTS):
        kind = type(contents).__name__
        raise InputError(f"{path} holds a {kind}; it must hold the tuple (indices, offsets, lengths)")
    arrays = []
    for name, part in zip(_PARTS, contents, strict=True):
        if not isinstance(part, torch.Tensor) or part.dtype not in (torch.int64, torch.int32):
            kind = str(part.dtype) if isinstance(part, torch.Tensor) else type(part).__name__
            raise InputError(f"{path}: {name} is {kind}; it must be a tensor of int64 or int32")
        arrays.append(part.numpy().astype(np.int64, copy=False))
    return arrays


def _check_offsets(path: Path, offsets: Ids, lengths: Ids, ids: int) -> None:
    negative = np.argwhere(lengths < 0)
    if len(negative):
        table, bag = negative[0]
        raise InputError(f"{path}: lengths[{table}, {bag}] is {lengths[table, bag]}; a bag has 0 ids or more")
    if len(offsets) != lengths.size + 1:
        raise InputError(
            f"{path}: {len(offsets)} offsets for {lengths.size} bags; there must be one more than bags"
        )
    expected = np.concatenate([[0], np.cumsum(lengths)])
    differ = np.flatnonzero(offsets != expected)
    if len(differ):
        bag = int(differ[0])
        raise InputError(
            f"{path}: offsets[{bag}] is {offsets[bag]}, and the lengths before it add up to {expected[bag]}; "
            "offsets and lengths must agree"
        )
    if expected[-1] != ids:
        raise InputError(
            f"{path}: lengths add up to {expected[-1]}, and there are {ids} indices; they must agree"
        )
