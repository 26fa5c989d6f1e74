"""A trace as one stream of rows: stack distances, replays through caches, counts."""

import dataclasses
import json
import math
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tiermem import _core
from tiermem.data.trace_file import TraceReader
from tiermem.errors import ConfigError

__all__ = ["BLOCK_BYTES", "POLICIES", "AccessStream", "CurvePoint"]

POLICIES = ("lru", "lfu", "clock", "s3fifo", "sieve", "lookahead", "auto", "random", "min")
BLOCK_BYTES = 4096
"""What a block device reads at the least."""
SAMPLED_ROWS_MIN = 10
"""The least that a cache may have in a sample: fewer say little of what 1/R times as many do."""
WINDOW_BATCHES_MAX = 253
WINDOW_BATCHES = 100
"""What `lookahead` knows unless told otherwise."""


@dataclasses.dataclass(frozen=True, slots=True)
class CurvePoint:
    """One cache of one size on one stream."""

    policy: str
    rows: int
    """Rows that the cache holds."""
    accesses: int
    hits: int
    hit_rate: float
    hit_rate_second_half: float
    """Over the second half of the accesses: the cache is warm."""
    missed_row_bytes: int
    """Bytes of the rows that missed."""
    missed_block_bytes: int | None
    """Bytes of the blocks that hold them; rows of one block that miss in one batch cost one read. `None` in
    an estimate: a sample sees one row of a block at the most."""
    sample_rate: float
    """Share of the rows that was looked at; 1: exact."""


class AccessStream:
    """Accesses of some tables of a trace, in order, in memory: 12 bytes each, 20 in samples, 4 more for min.

    Args:
        path: a trace file.
        tables: names of tables; `None`: all.
        dedupe: a row counts once per batch, as for a store that deduplicates.
        sample_rate: look at this share of the rows only (spatial sampling by hash); results are estimates.
        sample_seed: another seed, another sample.
        block_bytes: of the device below the cache, for the bytes of blocks.

    Raises:
        ConfigError: if a table or the rate is not possible.
        CapacityError: if more than 2^32 - 2 accesses are selected.
        CorruptionError: if the trace is damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        tables: Sequence[str] | None = None,
        dedupe: bool = False,
        sample_rate: float | None = None,
        sample_seed: int = 0,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        if sample_rate is not None and not 0 < sample_rate <= 1:
            raise ConfigError(
                f"a sampling rate of {sample_rate:g} is not a share; give one above 0, 1 at the most"
            )
        if block_bytes < 1 or block_bytes >= 2**32:
            raise ConfigError(f"block_bytes is {block_bytes}; a block has from 1 to {2**32 - 1} bytes")
        config = {
            "tables": [] if tables is None else _numbers(path, tables),
            "dedupe": dedupe,
            "sample_rate": sample_rate,
            "sample_seed": _seed(sample_seed),
            "block_bytes": block_bytes,
        }
        self.is_exact = sample_rate is None
        self.sample_rate = 1.0 if sample_rate is None else sample_rate
        self._inner = _core.AccessStream(os.fspath(path), json.dumps(config))
        self.sampled_accesses, self.accesses, self.distinct = self._inner.sizes()
        if self.accesses and not self.sampled_accesses:
            raise ConfigError(f"a sample of {self.sample_rate:g} has none of the accesses; sample more")

    def counts(self) -> npt.NDArray[np.uint32]:
        """Accesses of each row, uint32 [distinct], in order of first appearance."""
        return np.frombuffer(self._inner.counts(), dtype=np.uint32)

    def stack_distances(self) -> tuple[npt.NDArray[np.uint64], int]:
        """Stack distances of a whole stream.

        Returns:
            How often each distance occurs, uint64 [distinct], where the distance is the number of other rows
            since the last access to the row (an lru cache of more rows than that holds it); and how many
            accesses are the first of their row.
        """
        counts, first = self._inner.stack_distances()
        return np.frombuffer(counts, dtype=np.uint64), first

    def curve(
        self, policy: str, rows: Sequence[int], *, window_batches: int = WINDOW_BATCHES, seed: int = 0
    ) -> list[CurvePoint]:
        """One point per cache size.

        Args:
            policy: a name of `POLICIES`; `min` is Belady's, the ceiling.
            rows: cache sizes.
            window_batches: batches that `lookahead` knows beyond the running one.
            seed: of `random`.

        Raises:
            ConfigError: if the policy, a size or the window is not possible.
        """
        if policy not in POLICIES:
            raise ConfigError(f'"{policy}" is not a policy; choose of {", ".join(POLICIES)}')
        self._check(rows, window_batches)
        if policy == "lru":
            points = json.loads(self._inner.lru_points(list(rows)))
        else:
            points = [
                json.loads(
                    self._inner.replay_point(policy, size, window_batches=window_batches, seed=_seed(seed))
                )
                for size in rows
            ]
        return [CurvePoint(policy=policy, **point) for point in points]

    def replay_hits(
        self, policy: str, rows: int, *, window_batches: int = WINDOW_BATCHES, seed: int = 0
    ) -> int:
        """Hits of one replay and nothing else: what the cache costs by itself."""
        self._check([rows], window_batches)
        return self._inner.replay_hits(policy, rows, window_batches=window_batches, seed=_seed(seed))

    def _check(self, sizes: Sequence[int], window_batches: int) -> None:
        for size in sizes:
            if not 0 < size < 2**32 - 1:
                raise ConfigError(
                    f"a cache of {size} rows is not possible; give it from 1 to {2**32 - 2} rows"
                )
            if self.sample_rate < 1 and size * self.sample_rate < SAMPLED_ROWS_MIN:
                least = math.ceil(SAMPLED_ROWS_MIN / self.sample_rate)
                raise ConfigError(
                    f"a cache of {size} rows is {size * self.sample_rate:.2g} rows of a sample of"
                    f" {self.sample_rate:g}; give it {least} rows at the least, or sample more"
                )
        if not 0 <= window_batches <= WINDOW_BATCHES_MAX:
            raise ConfigError(
                f"a window of {window_batches} batches is too {'short' if window_batches < 0 else 'long'};"
                f" give it from 0 to {WINDOW_BATCHES_MAX}"
            )


def _seed(seed: int) -> int:
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed is {seed}; it is from 0 to {2**64 - 1}")
    return seed


def _numbers(path: str | os.PathLike[str], names: Sequence[str]) -> list[int]:
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"tables are {list(names)}; name each once, and one at the least")
    known = [table.name for table in TraceReader(path).tables]
    for name in names:
        if name not in known:
            shown = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
            raise ConfigError(f'there is no table "{name}" in {os.fspath(path)}; it has {shown}')
    return [known.index(name) for name in names]
