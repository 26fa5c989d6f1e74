"""Accesses of a model while it trains, taken from its embedding modules by hooks.

B = bags of one module in one batch, L = ids of those bags together.
"""

import functools
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch

from tiermem.data.accesses import Bags, Batch, TraceTable, flat_bags
from tiermem.data.importers.cutting import cut_as_torch, empty_bags, first_outside
from tiermem.errors import ClosedError, ConfigError, InputError

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

__all__ = ["Capture", "capture_embedding_bags"]

Ids = npt.NDArray[np.int64]
Embedding = torch.nn.EmbeddingBag | torch.nn.Embedding


class Capture:
    """A context within which calls of embedding modules are recorded; see `capture_embedding_bags`."""

    def __init__(self, model: torch.nn.Module, write_batch: Callable[[Batch], object]) -> None:
        self._modules: list[tuple[str, Embedding]] = [
            (name or type(module).__name__, module)
            for name, module in model.named_modules()
            if isinstance(module, Embedding)
        ]
        if not self._modules:
            raise ConfigError(
                f"{type(model).__name__} has no EmbeddingBag and no Embedding of torch.nn; give one that has"
            )
        self._write_batch = write_batch
        self._batch: dict[int, Bags] = {}
        self._hooks: list[RemovableHandle] = []
        self._used = False

    def tables(self) -> tuple[TraceTable, ...]:
        """One table per module, in the order of the modules and of every batch."""
        return tuple(
            TraceTable(name, module.num_embeddings, module.embedding_dim * module.weight.element_size())
            for name, module in self._modules
        )

    def end_batch(self) -> None:
        """Hand the batch so far to `write_batch`; nothing happens if no module was called."""
        if not self._batch:
            return
        batch, self._batch = self._batch, {}
        self._write_batch(tuple(batch.get(n, empty_bags()) for n in range(len(self._modules))))

    def __enter__(self) -> Self:
        if self._used:
            raise ClosedError("a capture records once; make another one")
        self._used = True
        for position, (_, module) in enumerate(self._modules):
            hook = functools.partial(self._record, position)
            self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._hooks:
            handle.remove()
        self._hooks = []
        if kind is None:
            self.end_batch()
        self._batch = {}

    def _record(
        self, position: int, _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        name, module = self._modules[position]
        given = dict(zip(("input", "offsets"), args, strict=False)) | kwargs
        if not isinstance(given.get("input"), torch.Tensor):
            return  # The forward itself says what it misses.
        ids = _copied(given["input"])
        try:
            if isinstance(module, torch.nn.EmbeddingBag):
                bags = _bags(ids, given.get("offsets"), include_last_offset=module.include_last_offset)
            else:
                bags = flat_bags(ids.reshape(-1))
        except InputError as problem:
            raise InputError(f"{name}: {problem}") from None
        bad = first_outside(bags.ids, module.num_embeddings)
        if bad is not None:
            raise InputError(
                f"{name}: id {bags.ids[bad]} at position {bad} is not in [0, {module.num_embeddings}), "
                "the rows of the table; correct the id"
            )
        if position in self._batch:
            self.end_batch()
        self._batch[position] = bags


def capture_embedding_bags(model: torch.nn.Module, write_batch: Callable[[Batch], object]) -> Capture:
    """A context manager that records what the EmbeddingBag and Embedding modules of a model look up.

    A new batch begins when a module is called again, or after `end_batch()`. A table is a module: two that
    share a weight are two tables, and a module that a batch does not call has no bags in it. Each id of an
    Embedding is a bag of its own, and ids equal to `padding_idx` are accesses like others. At the end the
    hooks are removed and the last batch is handed over; after an exception it is dropped.

    Args:
        model: an eager model; its modules are found when this is called.
        write_batch: gets each batch, one `Bags` per table in the order of `Capture.tables()`; the arrays are
            copies and may be kept.

    Raises:
        ConfigError: if the model has no such module.
        InputError: (from the model's forward) if an id is beyond its table, or offsets fall.

    Example:
        >>> bag = torch.nn.EmbeddingBag(100, 8)
        >>> batches = []
        >>> with capture_embedding_bags(bag, batches.append) as capture:
        ...     _ = bag(torch.tensor([[1, 2], [3, 4]]))
        >>> capture.tables()[0].rows, batches[0][0].ids.tolist()
        (100, [1, 2, 3, 4])
    """
    return Capture(model, write_batch)


def _copied(tensor: torch.Tensor) -> Ids:
    """Values as int64 in memory of our own: the caller may overwrite the tensor in the next step."""
    values: Ids = tensor.detach().to("cpu", torch.int64, copy=True).numpy()
    return values


def _bags(ids: Ids, offsets: torch.Tensor | None, *, include_last_offset: bool) -> Bags:
    """Bags of ids int64 [B, N], or [L] with offsets [B] or, with `include_last_offset`, [B + 1]."""
    if ids.ndim == 2:
        return Bags(np.full(len(ids), ids.shape[1], dtype=np.int64), ids.reshape(-1))
    if offsets is None or ids.ndim != 1:
        raise InputError(f"the input has {ids.ndim} dimensions; give 2, or 1 and offsets")
    return cut_as_torch(ids, _copied(offsets), include_last_offset=include_last_offset)
