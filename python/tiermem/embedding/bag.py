"""One table, with the interface of `torch.nn.EmbeddingBag`."""

from typing import Any, Literal, Self

import torch
from torch import nn

from tiermem import _core
from tiermem.config import Hierarchy, OptimizerConfig, Rounding, RowType
from tiermem.embedding.collection import TieredEmbeddingBagCollection, load_rows
from tiermem.embedding.optim import RowOptimizer
from tiermem.embedding.table import Lookup, TableConfig
from tiermem.errors import ConfigError, InputError
from tiermem.stats import StoreStats

__all__ = ["TieredEmbeddingBag"]


class TieredEmbeddingBag(nn.Module):
    """Drop-in for `torch.nn.EmbeddingBag` whose rows live on a hierarchy.

    B = bags, L = ids in all bags together, D = `embedding_dim`. docs/embedding-bag.md lists which
    arguments of `torch.nn.EmbeddingBag` are supported; the others raise `ConfigError`.

    Args:
        num_embeddings: rows.
        embedding_dim: columns.
        mode: "sum" or "mean" (torch's default).
        hierarchy: tiers, budgets, clock.
        optimizer: of the rows.
        include_last_offset: offsets have B + 1 entries, the last of which is L.
        fused_in_backward: apply the gradients inside backward instead of in `optimizer().step()`.
        init_bound: rows start uniform in [-bound, bound); `None`: sqrt(1 / rows). Torch draws from a normal
            distribution instead; use `from_torch` for given values.
        row_type: how weights are stored; outputs and gradients are float32 whatever it is.
        rounding: how an updated row is stored in a type of fewer bits.
        threads: that share the work of a lookup or an update; see `EmbeddingStore`.
        seed: seed of initial values, latency draws and rounding.

    Example:
        >>> import tiermem as tm
        >>> bag = TieredEmbeddingBag(
        ...     1000, 8, mode="sum", hierarchy=tm.Hierarchy.load("dram-nand"), optimizer=tm.SGD(lr=0.1)
        ... )
        >>> bag(torch.tensor([1, 2, 4]), torch.tensor([0, 2])).shape
        torch.Size([2, 8])
    """

    def __init__(  # noqa: PLR0917 (torch's signature)
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,  # noqa: FBT001, FBT002 (torch's signature)
        mode: Literal["sum", "mean"] = "mean",
        sparse: bool = False,  # noqa: FBT001, FBT002
        include_last_offset: bool = False,  # noqa: FBT001, FBT002
        padding_idx: int | None = None,
        *,
        hierarchy: Hierarchy,
        optimizer: OptimizerConfig,
        fused_in_backward: bool = False,
        init_bound: float | None = None,
        row_type: RowType = "fp32",
        rounding: Rounding = "stochastic",
        threads: int | None = None,
        seed: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        gate: _core.Gate | None = None,
    ) -> None:
        super().__init__()
        refused = {
            "max_norm": max_norm is not None,
            "norm_type": norm_type != 2.0,
            "scale_grad_by_freq": scale_grad_by_freq,
            "sparse": sparse,
            "padding_idx": padding_idx is not None,
            "dtype": dtype not in (None, torch.float32),
            "device": device is not None and torch.device(device).type != "cpu",
        }
        if mode not in ("sum", "mean"):
            raise ConfigError(f'mode "{mode}" is not supported by a bag; use "sum" or "mean"')
        for name, is_refused in refused.items():
            if is_refused:
                raise ConfigError(f"{name} is not supported by a tiered bag; leave it at its default")
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.mode = mode
        self.include_last_offset = include_last_offset
        table = TableConfig(
            name="weight",
            rows=num_embeddings,
            dim=embedding_dim,
            init_bound=init_bound,
            row_type=row_type,
            rounding=rounding,
        )
        self.bags = TieredEmbeddingBagCollection(
            [table],
            hierarchy=hierarchy,
            optimizer=optimizer,
            mode=mode,
            fused_in_backward=fused_in_backward,
            threads=threads,
            seed=seed,
            gate=gate,
        )

    @classmethod
    def from_torch(
        cls,
        module: nn.EmbeddingBag,
        *,
        hierarchy: Hierarchy,
        optimizer: OptimizerConfig,
        **options: Any,  # noqa: ANN401
    ) -> Self:
        """A tiered bag with the weights and the settings of a torch module; streams them in chunks.

        Raises:
            ConfigError: if the module uses what a tiered bag does not support.
        """
        bag = cls(
            module.num_embeddings,
            module.embedding_dim,
            max_norm=module.max_norm,
            norm_type=module.norm_type,
            scale_grad_by_freq=module.scale_grad_by_freq,
            mode=module.mode,  # type: ignore[arg-type]
            sparse=module.sparse,
            include_last_offset=module.include_last_offset,
            padding_idx=module.padding_idx,
            hierarchy=hierarchy,
            optimizer=optimizer,
            dtype=module.weight.dtype,
            device=module.weight.device,
            **options,
        )
        load_rows(bag.bags.store, 0, module.weight.detach(), None)
        return bag

    def optimizer(self) -> RowOptimizer:
        """The torch optimizer of the rows."""
        return self.bags.optimizer()

    def forward(
        self,
        input: torch.Tensor,  # noqa: A002 (torch's name)
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Pools bags of rows.

        Args:
            input: ids, [L] with offsets, or [B, N] for bags of equal length N.
            offsets: [B], or [B + 1] with `include_last_offset`; only with 1-D input.
            per_sample_weights: float32, shape of `input`; only with `mode="sum"`.

        Returns:
            float32 [B, D]; an empty bag gives zeros.

        Raises:
            InputError: for ids out of range, offsets that do not ascend, or shapes, dtypes and
                devices that are not supported.
        """
        if per_sample_weights is not None and per_sample_weights.shape != input.shape:
            raise InputError(
                f"per_sample_weights are {list(per_sample_weights.shape)}; input is {list(input.shape)}"
            )
        if input.dim() == 2:
            if offsets is not None:
                raise InputError("offsets go with 1-D input; 2-D input has one bag per row")
            offsets = torch.arange(0, input.numel(), max(1, input.shape[1]))[: input.shape[0]]
            if input.shape[1] == 0:
                offsets = torch.zeros(input.shape[0], dtype=torch.int64)
            input = input.reshape(-1)  # noqa: A001
            if per_sample_weights is not None:
                per_sample_weights = per_sample_weights.reshape(-1)
        elif offsets is None:
            raise InputError("1-D input needs offsets")
        elif self.include_last_offset:
            if len(offsets) == 0 or int(offsets[-1]) != len(input):
                raise InputError(f"with include_last_offset the last offset is {len(input)}")
            offsets = offsets[:-1]
        (pooled,) = self.bags([Lookup(0, input, offsets, per_sample_weights)])
        return pooled  # type: ignore[no-any-return]

    def stats(self) -> StoreStats:
        """Everything counted so far."""
        return self.bags.stats()

    def close(self) -> None:
        """Ends the store; later calls raise `ClosedError`."""
        self.bags.close()
