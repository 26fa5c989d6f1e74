"""Execution traces of PyTorch (`torch.profiler.ExecutionTraceObserver`) with the ids that they dumped.

Recording one takes, beside the observer itself,
`ENABLE_PYTORCH_EXECUTION_TRACE_SAVE_INTEGRAL_TENSOR_DATA=aten::embedding_bag` in the environment and
`observer.set_extra_resource_collection(True)`. Then NAME.json has a node for each call, and
NAME_resources/nid_N_tid_I.dat holds the bytes of input I of node N: 1 is `indices`, 2 is `offsets`.
Seen with torch 2.13: a tensor without elements leaves no file; strides are disregarded; and of a view that
starts within its storage the wrong bytes are dumped, since its offset counts elements and is taken for bytes.
"""

import dataclasses
import json
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tiermem.data.accesses import Bags, Batch, Source, TraceTable
from tiermem.data.importers.cutting import cut_as_torch, empty_bags, first_outside
from tiermem.data.importers.files import opened
from tiermem.data.importers.options import ImportOptions, refuse_renumbering
from tiermem.errors import ConfigError, CorruptionError, InputError

__all__ = ["open_execution_trace"]

Ids = npt.NDArray[np.int64]

_CALL = "aten::embedding_bag"
_RECORD_AGAIN = (
    f"record again with ENABLE_PYTORCH_EXECUTION_TRACE_SAVE_INTEGRAL_TENSOR_DATA={_CALL}, "
    "set_extra_resource_collection(True) and a name that does not end in .gz"
)
_INDICES, _OFFSETS, _INCLUDE_LAST_OFFSET = 1, 2, 7
"""Positions of inputs in the schema of `aten::embedding_bag`."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Tensor:
    """A 1-D input as the trace describes it; offset and stride count elements."""

    offset: int
    items: int
    item_bytes: int
    stride: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Dump:
    """Where the values of an input are."""

    path: Path
    items: int
    item_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Call:
    """One call of `aten::embedding_bag`."""

    weight: tuple[int, ...]
    """Storage, offset in it, rows, columns, bytes of an element: what tells tables apart."""
    indices: _Dump
    offsets: _Dump
    include_last_offset: bool


def open_execution_trace(paths: Sequence[Path], options: ImportOptions) -> Source:
    """Calls of `aten::embedding_bag` as batches: a new one begins when a table comes again.

    A table is a weight tensor, by its storage; tables are numbered as they first come, and one that a batch
    does not use has no bags in it. Memory: the JSON while opening, then one batch.

    Raises:
        ConfigError: if a file cannot be read, several are given, or `options.rows` is set.
        CorruptionError: if the JSON or a dump is cut short.
        InputError: if there are no calls, a dump is not what was looked up, offsets fall, or an id is beyond
            its table.
    """
    refuse_renumbering(options, "execution-trace")
    if len(paths) != 1:
        raise ConfigError(
            f"{len(paths)} execution traces are given; ids of tensors hold within one, so import one"
        )
    if options.rows is not None:
        raise ConfigError(
            f"rows is {options.rows}, and an execution trace has the rows of its weights; leave it out"
        )
    path = paths[0]
    calls = [_call(node, path) for node in _nodes(path)]
    order = {weight: position for position, weight in enumerate(dict.fromkeys(call.weight for call in calls))}
    tables = tuple(
        TraceTable(f"table_{position}", rows, columns * item_bytes)
        for (_, _, rows, columns, item_bytes), position in order.items()
    )

    def batches() -> Iterator[Batch]:
        batch: dict[int, Bags] = {}
        for call in calls:
            table = order[call.weight]
            if table in batch:
                yield _in_order(batch, len(order))
                batch = {}
            batch[table] = _bags(call)
        yield _in_order(batch, len(order))

    deque(batches(), maxlen=0)  # What is wrong is said before anything is converted.
    return Source(tables, batches)


def _in_order(batch: dict[int, Bags], tables: int) -> Batch:
    return tuple(batch.get(table, empty_bags()) for table in range(tables))


def _nodes(path: Path) -> list[dict[str, Any]]:
    """Calls in the order in which they began; the file has them in the order in which they ended."""
    with opened(path) as file:
        contents = file.read()
    try:
        trace = json.loads(contents)
    except (ValueError, RecursionError) as error:
        raise CorruptionError(
            f"{path} is no JSON ({error}); it is complete only after unregister_callback() of the observer"
        ) from None
    try:
        nodes = trace["nodes"]
        names = [node["name"] for node in nodes]
        calls = sorted((node for node in nodes if node["name"] == _CALL), key=lambda node: int(node["id"]))
    except (LookupError, TypeError, ValueError, OverflowError):
        raise InputError(f'{path} has no "nodes" with "id" and "name"; it is no execution trace') from None
    if not calls:
        others = sorted({str(name) for name in names if "embedding" in str(name)})
        raise InputError(
            f"{path} has {len(names)} nodes and none of {_CALL} (with embedding in the name: "
            f"{', '.join(others) or 'none'}); record an eager model that uses EmbeddingBag"
        )
    return calls


def _call(node: dict[str, Any], path: Path) -> _Call:
    try:
        inputs = node["inputs"]
        values = inputs["values"]
        rows, columns = inputs["shapes"][0]
        _, storage, offset, _, item_bytes, *_ = values[0]
        weight = tuple(int(part) for part in (storage, offset, rows, columns, item_bytes))
        include_last_offset = bool(values[_INCLUDE_LAST_OFFSET])
        strides = inputs.get("strides") or {}
        tensors = [_tensor(values[position], strides, position) for position in (_INDICES, _OFFSETS)]
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        raise InputError(
            f"{path}: node {node.get('id')} has not the inputs of {_CALL} (values, shapes, types); "
            "record it with a newer torch"
        ) from None
    number = int(node["id"])
    indices = _dump(path, number, _INDICES, tensors[0])
    return _Call(weight, indices, _dump(path, number, _OFFSETS, tensors[1]), include_last_offset)


def _tensor(value: list[Any], strides: Any, position: int) -> _Tensor:  # noqa: ANN401 (JSON)
    _, _, offset, items, item_bytes, *_ = value
    (stride,) = strides[position] if strides else (1,)
    return _Tensor(int(offset), int(items), int(item_bytes), int(stride))


def _dump(path: Path, node: int, position: int, tensor: _Tensor) -> _Dump:
    """Where the values are, if what torch dumped is what was looked up."""
    if tensor.item_bytes not in (4, 8):
        raise InputError(
            f"{path}: input {position} of node {node} has {tensor.item_bytes} bytes per id; int64 has 8"
        )
    if tensor.items and tensor.offset:
        raise InputError(
            f"{path}: input {position} of node {node} is a view that starts at element {tensor.offset} of "
            "its storage, of which torch dumps the wrong bytes; clone() it before the call and record again"
        )
    if tensor.items > 1 and tensor.stride != 1:
        raise InputError(
            f"{path}: input {position} of node {node} has stride {tensor.stride}, of which torch dumps only "
            "a part; make it contiguous() before the call and record again"
        )
    folder = path.with_name(path.name.removesuffix(".gz").removesuffix(".json") + "_resources")
    return _Dump(folder / f"nid_{node}_tid_{position}.dat", tensor.items, tensor.item_bytes)


def _values(dump: _Dump) -> Ids:
    if dump.items == 0:
        return np.empty(0, dtype=np.int64)
    try:
        size = dump.path.stat().st_size
        values = np.fromfile(dump.path, dtype=f"<i{dump.item_bytes}")
    except FileNotFoundError:
        raise InputError(f"{dump.path} with {dump.items} ids is missing; {_RECORD_AGAIN}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {dump.path}: {error.strerror or error}") from None
    if size != dump.items * dump.item_bytes:
        raise CorruptionError(
            f"{dump.path} has {size} bytes, and the trace says {dump.items} ids of {dump.item_bytes} bytes; "
            "record again"
        )
    return values.astype(np.int64)


def _bags(call: _Call) -> Bags:
    ids, offsets = _values(call.indices), _values(call.offsets)
    try:
        bags = cut_as_torch(ids, offsets, include_last_offset=call.include_last_offset)
    except InputError as error:
        raise InputError(f"{call.offsets.path}: {error}; record again") from None
    rows = call.weight[2]
    bad = first_outside(bags.ids, rows)
    if bad is not None:
        raise InputError(
            f"{call.indices.path}: id {bags.ids[bad]} at byte offset {bad * call.indices.item_bytes} is not "
            f"in [0, {rows}), the rows of the weight; record again"
        )
    return bags
