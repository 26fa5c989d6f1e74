"""From a configuration to a data set."""

import zipfile
from pathlib import Path

import numpy as np

from tiermem.config.experiment import (
    CriteoData,
    Ml100kData,
    RecboleData,
    SplitConfig,
    SyntheticData,
    TraceData,
)
from tiermem.data.criteo import read_criteo
from tiermem.data.dataset import Dataset, Split, random_split
from tiermem.data.ml_100k import read_ml_100k
from tiermem.data.recbole import read_recbole
from tiermem.data.synthetic import make_synthetic
from tiermem.data.trace import read_trace_dataset
from tiermem.errors import ConfigError

__all__ = ["load_dataset", "load_split"]


def load_dataset(
    config: Ml100kData | RecboleData | CriteoData | TraceData | SyntheticData, seed: int
) -> Dataset:
    """Reads or makes a data set.

    Raises:
        ConfigError: if a file is missing or malformed; the message names the file and the line.
    """

    def split_of(count: int) -> Split:
        if isinstance(config, TraceData):
            return np.zeros(count, dtype=np.uint8)
        return load_split(config.split, count, seed)

    match config:
        case Ml100kData():
            return read_ml_100k(config, split_of)
        case RecboleData():
            return read_recbole(config, split_of)
        case CriteoData():
            return read_criteo(config, split_of)
        case TraceData():
            return read_trace_dataset(config, seed)
        case SyntheticData():
            return make_synthetic(config, split_of, seed)


def load_split(config: SplitConfig, count: int, seed: int) -> Split:
    """The split of `count` samples: from a file, or random by seed.

    Raises:
        ConfigError: if the file has no array `split` of uint8 [count] with values 0, 1 and 2.
    """
    if config.file is None:
        return random_split(count, config.fractions, seed)
    path = Path(config.file)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            split: Split = arrays["split"]
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except KeyError:
        raise ConfigError(f'{path} has no array "split"') from None
    except (ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is not an .npz file: {error}") from None
    if split.dtype != np.uint8 or split.shape != (count,) or not np.isin(split, (0, 1, 2)).all():
        raise ConfigError(
            f'"split" in {path} must be uint8 [{count}] of 0 train, 1 validation, 2 test;'
            f" got {split.dtype} {list(split.shape)}"
        )
    return split
