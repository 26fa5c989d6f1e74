"""Criteo's click logs: label, 13 integers, 26 hexadecimal tokens, separated by tabs."""

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tiermem.config.experiment import CriteoData
from tiermem.data.dataset import Dataset, SparseColumn, Split
from tiermem.data.hashing import hash_rows
from tiermem.errors import ConfigError

__all__ = ["read_criteo"]

_DENSE = 13
_SPARSE = 26


def _lines(path: Path, count: int | None) -> Iterator[tuple[int, list[str]]]:
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if count is not None and number > count:
                    return
                yield number, line.rstrip("\n").split("\t")
    except gzip.BadGzipFile:
        raise ConfigError(f"{path} is not a gzip file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def read_criteo(config: CriteoData, split_of: Callable[[int], Split]) -> Dataset:
    """Integers become log(1 + max(x, 0)), missing ones 0; tokens are hashed, missing ones row 0.

    Raises:
        ConfigError: names the line that is malformed.
    """
    path = Path(config.path)
    labels, dense, tokens = [], [], []
    for number, values in _lines(path, config.samples_max):
        if len(values) != 1 + _DENSE + _SPARSE:
            raise ConfigError(f"{path}, line {number}: {len(values)} values, expected {1 + _DENSE + _SPARSE}")
        if values[0] not in ("0", "1"):
            raise ConfigError(f'{path}, line {number}: label "{values[0]}" is neither 0 nor 1')
        try:
            dense.append([max(float(text), 0.0) if text else 0.0 for text in values[1 : 1 + _DENSE]])
            tokens.append([int(text, 16) if text else -1 for text in values[1 + _DENSE :]])
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from None
        labels.append(float(values[0]))
    if not labels:
        raise ConfigError(f"{path} has no lines")
    keys = np.array(tokens, dtype=np.int64)
    sparse = []
    for column in range(_SPARSE):
        rows = 1 + hash_rows(keys[:, column], column, config.rows_per_table - 1)
        ids = np.where(keys[:, column] < 0, 0, rows)
        sparse.append(SparseColumn.one_hot(f"C{column + 1}", config.rows_per_table, ids))
    features = np.log1p(np.array(dense)).astype(np.float32)
    return Dataset(
        "criteo", features, tuple(sparse), np.array(labels, dtype=np.float32), split_of(len(labels))
    )
