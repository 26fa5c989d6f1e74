"""Recommendation models over tiered embedding bags."""

from tiermem.models.dlrm import DLRM

__all__ = ["DLRM"]
