"""DLRM in four parts: dense, sparse, interaction, over.

Source: Naumov et al., Deep Learning Recommendation Model for Personalization and Recommendation
Systems, arXiv 1906.00091.
"""

import torch
from torch import nn

from tiermem.config import ModelConfig
from tiermem.embedding import Ticket, TieredEmbeddingBagCollection
from tiermem.models.interaction import DotInteraction
from tiermem.models.mlp import mlp

__all__ = ["DLRM", "DenseParts"]


class DenseParts(nn.Module):
    """All but the sparse part. B = batch, F = sparse features, D = columns of every table.

    Args:
        config: widths.
        dense_features: columns of the dense input; may be 0.
        sparse_features: tables.
    """

    def __init__(self, config: ModelConfig, *, dense_features: int, sparse_features: int) -> None:
        super().__init__()
        # Without dense features the dense arch sees a constant, so that the shape of the model stays.
        self.dense_inputs = max(1, dense_features)
        self.dense_arch = mlp([self.dense_inputs, *config.dense_layers, config.dim], last_relu=True)
        self.interaction = DotInteraction(sparse_features, config.dim)
        self.over_arch = mlp([self.interaction.width, *config.over_layers, 1], last_relu=False)

    def lower(self, dense: torch.Tensor) -> torch.Tensor:
        """Vectors [B, D] of dense features [B, inputs]."""
        if dense.shape[1] == 0:
            dense = dense.new_ones(len(dense), 1)
        vector: torch.Tensor = self.dense_arch(dense)
        return vector

    def upper(self, vector: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """Logits [B] of vectors [B, D] and pooled rows [B, F, D]."""
        logits: torch.Tensor = self.over_arch(self.interaction(vector, pooled)).squeeze(1)
        return logits


class DLRM(DenseParts):
    """Scores samples. B = batch, F = sparse features, D = columns of every table.

    Args:
        config: widths.
        dense_features: columns of the dense input; may be 0.
        bags: one table per sparse feature, all of `config.dim` columns.
    """

    def __init__(
        self, config: ModelConfig, *, dense_features: int, bags: TieredEmbeddingBagCollection
    ) -> None:
        super().__init__(config, dense_features=dense_features, sparse_features=len(bags.store.tables))
        self.sparse_arch = bags

    def forward(self, dense: torch.Tensor, ticket: Ticket) -> torch.Tensor:
        """Logits [B] of a batch with dense features [B, inputs] and the ticket of its lookups."""
        pooled = self.sparse_arch(ticket)
        return self.upper(self.lower(dense), torch.stack(pooled, dim=1))
