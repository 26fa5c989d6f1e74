"""Data sets as arrays, and batches of them. Needs neither torch nor the extension."""

from tiermem.data.dataset import Batch, Dataset, SparseColumn, batches
from tiermem.data.fetch import DATA_SETS, data_directory, fetch_ml_100k
from tiermem.data.load import load_dataset

__all__ = [
    "DATA_SETS",
    "Batch",
    "Dataset",
    "SparseColumn",
    "batches",
    "data_directory",
    "fetch_ml_100k",
    "load_dataset",
]
