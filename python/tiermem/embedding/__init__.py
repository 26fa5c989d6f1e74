"""Embedding tables on a hierarchy, as PyTorch modules."""

from tiermem.embedding.bag import TieredEmbeddingBag
from tiermem.embedding.collection import TieredEmbeddingBagCollection
from tiermem.embedding.optim import RowOptimizer
from tiermem.embedding.store import EmbeddingStore
from tiermem.embedding.table import Lookup, TableConfig, Ticket

__all__ = [
    "EmbeddingStore",
    "Lookup",
    "RowOptimizer",
    "TableConfig",
    "Ticket",
    "TieredEmbeddingBag",
    "TieredEmbeddingBagCollection",
]
