"""Recorded streams of ids as training data: the order of a real service, with planted labels."""

import lzma
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tiermem.config.experiment import TraceData
from tiermem.data.dataset import Dataset, SparseColumn
from tiermem.data.hashing import hash_rows
from tiermem.data.synthetic import planted_labels
from tiermem.errors import ConfigError

__all__ = ["read_trace", "read_trace_dataset"]

_KEY_BYTES = 8


def read_trace(path: Path | None) -> npt.NDArray[np.int64]:
    """Keys of an xz file of big-endian int64; `None`: the Scarab trace of the package.

    Raises:
        ConfigError: if the file cannot be read, is not xz, or is not a whole number of keys.
    """
    if path is None:
        path = Path(str(resources.files("tiermem"))) / "data" / "traces" / "scarab-recs.trace.xz"
    try:
        contents = lzma.decompress(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except lzma.LZMAError as error:
        raise ConfigError(f"{path} is not an xz file: {error}") from None
    if len(contents) % _KEY_BYTES:
        raise ConfigError(f"{path} holds {len(contents)} bytes, which is not a whole number of 8-byte keys")
    return np.frombuffer(contents, dtype=">i8").astype(np.int64)


def read_trace_dataset(config: TraceData, seed: int) -> Dataset:
    """Consecutive accesses make one bag; each table sees all of them under its own hash.

    Samples stay in recorded order and all belong to the training part: what is studied is how the
    stream moves through the tiers.
    """
    keys = read_trace(None if config.path is None else Path(config.path))
    samples = len(keys) // config.ids_per_bag
    if config.samples_max is not None:
        samples = min(samples, config.samples_max)
    if samples == 0:
        raise ConfigError(f"the trace has {len(keys)} keys, too few for a bag of {config.ids_per_bag}")
    keys = keys[: samples * config.ids_per_bag]
    offsets = np.arange(samples + 1, dtype=np.int64) * config.ids_per_bag
    sparse = tuple(
        SparseColumn(
            f"table_{table}",
            config.rows_per_table,
            hash_rows(keys, table, config.rows_per_table),
            offsets,
        )
        for table in range(config.tables)
    )
    labels = planted_labels(sparse, samples, seed)
    dense = np.random.default_rng(seed).standard_normal((samples, 1), dtype=np.float32)
    return Dataset("trace", dense, sparse, labels, np.zeros(samples, dtype=np.uint8))
