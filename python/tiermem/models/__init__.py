"""Recommendation models over tiered embedding bags."""

from tiermem.models.dlrm import DLRM, DenseParts

__all__ = ["DLRM", "DenseParts"]
