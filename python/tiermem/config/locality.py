"""Meta's locality statistics: how often rows are looked up within a batch, as histograms (text files)."""

import dataclasses
import re
from pathlib import Path

from tiermem.errors import ConfigError

__all__ = ["REUSE_BINS", "LocalityStats", "read_locality_stats"]

REUSE_BINS = ((0, 1), *((2**n, 2 ** (n + 1)) for n in range(15)), (2**15, None))
"""Lookups of a row in a batch: above the first number, up to the second one."""

_BIN = re.compile(r"^\((\d+)(?:, (\d+)\]|\+): (\d+\.\d+)$")


@dataclasses.dataclass(frozen=True, slots=True)
class LocalityStats:
    """One batch of the data set."""

    name: str
    indices: int
    """Lookups of all tables."""
    rows: int
    """Different rows among them."""
    row_shares: tuple[float, ...]
    """Share of the rows in each bin of `REUSE_BINS`, three decimals."""
    lookup_shares: tuple[float, ...]
    """Share of the lookups that go to these rows, three decimals."""


def read_locality_stats(path: Path) -> dict[str, LocalityStats]:
    """All batches of a `locality_stats.txt` of facebookresearch/dlrm_datasets, by name.

    Raises:
        ConfigError: if the file cannot be read or a batch lacks something.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise ConfigError(f"{path} is not a text file") from None
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    starts = [number for number, line in enumerate(lines) if line.endswith(".pt")]
    if not starts:
        raise ConfigError(f"{path} has no line with the name of a batch (NAME.pt)")
    found = {}
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        stats = _one(lines[start:end])
        if stats is None:
            raise ConfigError(
                f"{path}, line {start + 1}: {lines[start]} lacks counts or one of its two histograms"
            )
        found[stats.name] = stats
    return found


def _one(lines: list[str]) -> LocalityStats | None:
    numbers = {}
    shares: list[float] = []
    for line in lines:
        label, _, value = line.partition(": ")
        if label in ("Avg # of indices", "Avg # of unique cols") and value.isdecimal() and value.isascii():
            numbers[label] = int(value)
        if match := _BIN.match(line):
            shares.append(float(match[3]))
    if len(numbers) != 2 or 0 in numbers.values() or len(shares) != 2 * len(REUSE_BINS):
        return None
    return LocalityStats(
        lines[0].removesuffix(".pt"),
        numbers["Avg # of indices"],
        numbers["Avg # of unique cols"],
        tuple(shares[: len(REUSE_BINS)]),
        tuple(shares[len(REUSE_BINS) :]),
    )
