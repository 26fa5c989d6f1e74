"""RecBole's atomic files: tab-separated text whose header gives each column a type.

Format: https://recbole.io/docs/user_guide/data/atomic_files.html. `token` is one categorical value,
`token_seq` several separated by spaces, `float` a number.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tiermem.config.experiment import RecboleData
from tiermem.data.dataset import Dataset, Floats, SparseColumn, Split
from tiermem.errors import ConfigError

__all__ = ["AtomicFile", "categorical", "multi_hot", "normalise", "read_atomic", "read_recbole"]

_TYPES = ("token", "token_seq", "float", "float_seq")


class AtomicFile:
    """Columns of one file: name -> values as text, and name -> type."""

    def __init__(self, path: Path, types: Mapping[str, str], columns: Mapping[str, list[str]]) -> None:
        self.path = path
        self.types = types
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def text(self, name: str) -> list[str]:
        """A column as text.

        Raises:
            ConfigError: if there is none of this name.
        """
        if name not in self.columns:
            raise ConfigError(f'{self.path} has no column "{name}"; it has {", ".join(self.columns)}')
        return self.columns[name]

    def numbers(self, name: str) -> npt.NDArray[np.float64]:
        """A column as numbers; missing values are not a number.

        Raises:
            ConfigError: names the line of a value that is not a number.
        """
        values = np.empty(len(self))
        for row, text in enumerate(self.text(name)):
            try:
                values[row] = float(text) if text else np.nan
            except ValueError:
                raise ConfigError(
                    f'{self.path}, line {row + 2}: "{text}" in column "{name}" is not a number'
                ) from None
        return values


def read_atomic(path: Path) -> AtomicFile:
    """Reads one file.

    Raises:
        ConfigError: if it is missing, or a line or the header is malformed; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason}") from None
    types: dict[str, str] = {}
    for field in lines[0].rstrip("\r").split("\t"):
        name, separator, kind = field.rpartition(":")
        if not separator or kind not in _TYPES:
            raise ConfigError(
                f'{path}, line 1: "{field}" is not NAME:TYPE with a type of {", ".join(_TYPES)}'
            )
        types[name] = kind
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip("\r"):
            continue
        values = line.rstrip("\r").split("\t")
        if len(values) != len(types):
            raise ConfigError(
                f"{path}, line {number}: {len(values)} values; the header has {len(types)} columns"
            )
        rows.append(values)
    if not rows:
        raise ConfigError(f"{path} has no rows")
    return AtomicFile(
        path,
        types,
        {name: list(values) for name, values in zip(types, zip(*rows, strict=True), strict=True)},
    )


def join(inter: AtomicFile, side: AtomicFile) -> list[int]:
    """Row of `side` for each row of `inter`, by the first column of `side`.

    Raises:
        ConfigError: if a value has no row.
    """
    key = next(iter(side.columns))
    row_of = {value: row for row, value in enumerate(side.text(key))}
    rows = []
    for number, value in enumerate(inter.text(key), start=2):
        if value not in row_of:
            raise ConfigError(f'{inter.path}, line {number}: {key} "{value}" is not in {side.path.name}')
        rows.append(row_of[value])
    return rows


def categorical(name: str, values: Sequence[str]) -> SparseColumn:
    """One id per sample; ids are ranks of the sorted values, and a missing value is a value."""
    rank = {value: number for number, value in enumerate(sorted(set(values)))}
    return SparseColumn.one_hot(name, len(rank), np.array([rank[value] for value in values], dtype=np.int64))


def multi_hot(name: str, values: Sequence[str]) -> SparseColumn:
    """A bag of ids per sample; a missing value is an empty bag."""
    bags = [text.split() for text in values]
    rank = {token: number for number, token in enumerate(sorted({token for bag in bags for token in bag}))}
    ids = np.array([rank[token] for bag in bags for token in bag], dtype=np.int64)
    offsets = np.zeros(len(bags) + 1, dtype=np.int64)
    np.cumsum([len(bag) for bag in bags], out=offsets[1:])
    return SparseColumn(name, max(1, len(rank)), ids, offsets)


def normalise(columns: Sequence[npt.NDArray[np.float64]], split: Split, count: int) -> Floats:
    """Dense features [N, F] with mean 0 and deviation 1 over training; a missing value is the mean."""
    if not columns:
        return np.zeros((count, 0), dtype=np.float32)
    values = np.stack(columns, axis=1)
    training = values[split == 0]
    mean = np.nanmean(training, axis=0)
    deviation = np.nanstd(training, axis=0)
    scaled = (values - mean) / np.where(deviation > 0, deviation, 1.0)
    dense: Floats = np.nan_to_num(scaled).astype(np.float32)
    return dense


def read_recbole(config: RecboleData, split_of: Callable[[int], Split]) -> Dataset:
    """Interactions joined with users and items: tokens are categorical, sequences bags, numbers dense."""
    folder = Path(config.path)
    inter = read_atomic(folder / f"{config.dataset}.inter")
    ratings = inter.numbers(config.label)
    split = split_of(len(inter))
    sources: list[tuple[AtomicFile, list[int] | None]] = [(inter, None)]
    for suffix in ("user", "item"):
        path = folder / f"{config.dataset}.{suffix}"
        if path.is_file():
            side = read_atomic(path)
            sources.append((side, join(inter, side)))
    sparse: list[SparseColumn] = []
    dense: list[npt.NDArray[np.float64]] = []
    for file, rows in sources:
        for position, (name, kind) in enumerate(file.types.items()):
            if name == config.label or (rows is not None and position == 0):
                continue
            if kind == "float":
                numbers = file.numbers(name)
                dense.append(numbers if rows is None else numbers[rows])
            elif kind in ("token", "token_seq"):
                texts = file.text(name)
                chosen = texts if rows is None else [texts[row] for row in rows]
                sparse.append((categorical if kind == "token" else multi_hot)(name, chosen))
    if not sparse:
        raise ConfigError(f"{inter.path} has no token columns to embed")
    labels = (ratings >= config.label_threshold).astype(np.float32)
    return Dataset(config.dataset, normalise(dense, split, len(inter)), tuple(sparse), labels, split)
