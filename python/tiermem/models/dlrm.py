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

__all__ = ["DLRM"]


class DLRM(nn.Module):
    """Scores samples. B = batch, F = sparse features, D = columns of every table.

    Args:
        config: widths.
        dense_features: columns of the dense input; may be 0.
        bags: one table per sparse feature, all of `config.dim` columns.
    """

    def __init__(
        self, config: ModelConfig, *, dense_features: int, bags: TieredEmbeddingBagCollection
    ) -> None:
        super().__init__()
        features = len(bags.store.tables)
        # Without dense features the dense arch sees a constant, so that the shape of the model stays.
        self.dense_inputs = max(1, dense_features)
        self.dense_arch = mlp([self.dense_inputs, *config.dense_layers, config.dim], last_relu=True)
        self.sparse_arch = bags
        self.interaction = DotInteraction(features, config.dim)
        self.over_arch = mlp([self.interaction.width, *config.over_layers, 1], last_relu=False)

    def forward(self, dense: torch.Tensor, ticket: Ticket) -> torch.Tensor:
        """Logits [B] of a batch with dense features [B, inputs] and the ticket of its lookups."""
        pooled = self.sparse_arch(ticket)
        if dense.shape[1] == 0:
            dense = dense.new_ones(len(dense), 1)
        vector = self.dense_arch(dense)
        crossed = self.interaction(vector, torch.stack(pooled, dim=1))
        logits: torch.Tensor = self.over_arch(crossed).squeeze(1)
        return logits
