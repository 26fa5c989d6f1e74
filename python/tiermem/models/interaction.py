"""Pairwise dot products of feature vectors."""

import torch
from torch import nn

__all__ = ["DotInteraction"]


class DotInteraction(nn.Module):
    """Strictly lower triangle of all dot products, with the dense vector in front.

    B = batch, F = sparse features, D = columns. Output: [B, D + F (F + 1) / 2].
    Source: Naumov et al., Deep Learning Recommendation Model, arXiv 1906.00091, section 2.
    """

    pairs: torch.Tensor

    def __init__(self, sparse_features: int, dim: int) -> None:
        super().__init__()
        vectors = sparse_features + 1
        self.width = dim + vectors * (vectors - 1) // 2
        rows, columns = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("pairs", rows * vectors + columns, persistent=False)

    def forward(self, dense_BD: torch.Tensor, sparse_BFD: torch.Tensor) -> torch.Tensor:  # noqa: N803
        """Dense [B, D] and sparse [B, F, D] to [B, D + F (F + 1) / 2]."""
        vectors = torch.cat([dense_BD.unsqueeze(1), sparse_BFD], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        return torch.cat([dense_BD, products[:, self.pairs]], dim=1)
