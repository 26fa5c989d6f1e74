"""What a trace is like: reuse, skew, bag lengths, stack distances, drift (formulas: docs/metrics.md)."""

import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tiermem.config.locality import REUSE_BINS
from tiermem.data.access_stream import AccessStream
from tiermem.data.trace_file import TraceReader
from tiermem.errors import InputError

__all__ = [
    "StreamStats",
    "TableStats",
    "stats_document",
    "stream_stats",
    "table_stats",
    "torchrec_statistics",
    "zipf_exponent",
]

DRIFT_WINDOWS = 10
_HOT_SHARE = 0.1
_TORCHREC_BINS = 100


@dataclasses.dataclass(frozen=True, slots=True)
class TableStats:
    """Bags of one table."""

    name: str
    rows: int
    row_bytes: int
    bags: int
    empty_bags: int
    ids: int
    pooling_mean: float
    """ids / bags."""
    pooling_p50: int
    pooling_p99: int
    pooling_max: int
    distinct_per_batch_mean: float
    """Different rows in a batch."""
    duplicate_share: float
    """Share of ids that repeat an id of the same batch."""


@dataclasses.dataclass(frozen=True, slots=True)
class StreamStats:
    """Accesses of some tables, as one stream."""

    accesses: int
    distinct: int
    reuse_mean: float
    """accesses / distinct."""
    once_share: float
    """Share of the rows that are accessed once."""
    reuse_rows: tuple[float, ...]
    """Share of the rows in each bin of `REUSE_BINS` by their accesses."""
    reuse_lookups: tuple[float, ...]
    """Share of the accesses that go to these rows."""
    top_1_percent_share: float
    """Share of the accesses that go to the most accessed 1 % of the rows."""
    top_10_percent_share: float
    zipf_exponent: float
    """Maximum likelihood of rank ^ -s over the accessed rows."""
    first_share: float
    """Share of accesses that are the first of their row."""
    distance_shares: tuple[float, ...]
    """Share of accesses with a stack distance of 0, of 1, of 2 to 3, of 4 to 7, and so on."""
    retention: float
    """Of what the hottest tenth of the rows of one tenth of the trace got, how much the same rows get in the
    next tenth: 1 stands still, 0 is all new."""


def table_stats(path: str | os.PathLike[str]) -> list[TableStats]:
    """Bags of every table of a trace."""
    reader = TraceReader(path)
    lengths: list[list[npt.NDArray[np.int64]]] = [[] for _ in reader.tables]
    distinct = np.zeros(len(reader.tables), dtype=np.int64)
    batches = 0
    for batch in reader:
        batches += 1
        for table, bags in enumerate(batch):
            lengths[table].append(bags.lengths)
            distinct[table] += len(np.unique(bags.ids))
    found = []
    for number, described in enumerate(reader.tables):
        of_bags = np.concatenate([*lengths[number], np.zeros(0, dtype=np.int64)])
        ids, count = int(of_bags.sum()), len(of_bags)
        p50, p99 = (int(np.quantile(of_bags, q, method="inverted_cdf")) if count else 0 for q in (0.5, 0.99))
        found.append(
            TableStats(
                name=described.name,
                rows=described.rows,
                row_bytes=described.row_bytes,
                bags=count,
                empty_bags=int((of_bags == 0).sum()),
                ids=ids,
                pooling_mean=ids / max(1, count),
                pooling_p50=p50,
                pooling_p99=p99,
                pooling_max=int(of_bags.max(initial=0)),
                distinct_per_batch_mean=float(distinct[number]) / max(1, batches),
                duplicate_share=1 - float(distinct[number]) / ids if ids else 0.0,
            )
        )
    return found


def stream_stats(path: str | os.PathLike[str], tables: Sequence[str] | None = None) -> StreamStats:
    """Accesses of some tables, all of them by default.

    Raises:
        InputError: if the tables have no accesses.
    """
    stream = AccessStream(path, tables=tables)
    if stream.accesses == 0:
        raise InputError(
            f"{os.fspath(path)} has no accesses" + ("" if tables is None else f" to {', '.join(tables)}")
        )
    counts = np.sort(stream.counts().astype(np.int64))[::-1]
    distances, first = stream.stack_distances()
    edges = np.array([0, *(2**n for n in range(len(REUSE_BINS) - 1))])
    bins = np.searchsorted(edges, counts, side="left") - 1
    rows = np.bincount(bins, minlength=len(REUSE_BINS)) / len(counts)
    lookups = np.bincount(bins, weights=counts, minlength=len(REUSE_BINS)) / counts.sum()
    octaves = np.zeros(1 + max(1, len(distances)).bit_length())
    np.add.at(octaves, _octave(np.arange(len(distances))), distances)
    return StreamStats(
        accesses=stream.accesses,
        distinct=stream.distinct,
        reuse_mean=stream.accesses / stream.distinct,
        once_share=float((counts == 1).mean()),
        reuse_rows=tuple(rows.tolist()),
        reuse_lookups=tuple(lookups.tolist()),
        top_1_percent_share=_top_share(counts, 0.01),
        top_10_percent_share=_top_share(counts, 0.1),
        zipf_exponent=zipf_exponent(counts),
        first_share=first / stream.accesses,
        distance_shares=tuple((np.trim_zeros(octaves, "b") / stream.accesses).tolist()),
        retention=_retention(path, tables),
    )


def torchrec_statistics(
    path: str | os.PathLike[str],
    table: str,
    bins: int = _TORCHREC_BINS,
    *,
    tables: Sequence[TableStats] | None = None,
) -> dict[str, Any]:
    """Statistics of one table in the shape of TorchRec's `EmbeddingOffloadStats`.

    Args:
        path: a trace.
        table: name of the table.
        bins: parts of the table's height.
        tables: what `table_stats` gave for the trace, where it is known.

    Returns:
        `cacheability`: area under the miss-ratio curve over load factors 0 to 1, first accesses left out;
        `expected_lookups`: different rows per batch; `mrc_hist_counts` [bins]: deduplicated accesses by stack
        distance in equal parts of the table's height; `height`: rows of the table.
    """
    stream = AccessStream(path, tables=[table], dedupe=True)
    (stats,) = (each for each in tables or table_stats(path) if each.name == table)
    distances, _ = stream.stack_distances()
    places = np.arange(len(distances)) * bins // stats.rows
    histogram = (
        np.bincount(places, weights=distances, minlength=bins)[:bins] if len(distances) else np.zeros(bins)
    )
    total = histogram.sum()
    misses = 1 - np.cumsum(histogram) / total if total else np.ones(bins)
    # The curve starts with 1 at no cache; its area by the trapezoidal rule.
    curve = np.concatenate([[1.0], misses])
    return {
        "cacheability": float((curve[1:] + curve[:-1]).sum() / 2 / bins),
        "expected_lookups": round(stats.distinct_per_batch_mean),
        "mrc_hist_counts": histogram.astype(np.int64).tolist(),
        "height": stats.rows,
    }


def zipf_exponent(counts: npt.NDArray[np.int64]) -> float:
    """The exponent s for which counts by rank are most likely under p(rank) ~ rank ^ -s; 0 for a single row.

    Args:
        counts: accesses of each row, int64 [rows], in descending order.
    """
    if len(counts) < 2:
        return 0.0
    logs = np.log(np.arange(1, len(counts) + 1))
    wanted = float((logs * counts).sum() / counts.sum())
    low, high = -1.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        weights = np.exp(-middle * logs)
        # The mean logarithm of the rank falls as the exponent grows.
        if float((logs * weights).sum() / weights.sum()) > wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _top_share(counts: npt.NDArray[np.int64], share: float) -> float:
    return float(counts[: max(1, round(share * len(counts)))].sum() / counts.sum())


def _octave(distances: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0 for 0, and 1 + the whole part of the logarithm to base 2 for others."""
    return np.frexp(distances.astype(np.float64))[1].astype(np.int64)


def _retention(path: str | os.PathLike[str], tables: Sequence[str] | None) -> float:
    reader = TraceReader(path)
    chosen = [n for n, table in enumerate(reader.tables) if tables is None or table.name in tables]
    keys = [
        np.concatenate([batch[table].ids | (np.int64(table) << np.int64(44)) for table in chosen])
        for batch in reader
    ]
    everything = np.concatenate(keys)
    windows = np.array_split(everything, DRIFT_WINDOWS)
    kept = []
    for before, after in itertools.pairwise(windows):
        rows, counts = np.unique(before, return_counts=True)
        if len(rows) == 0 or len(after) == 0:
            continue
        hot = np.argsort(-counts, kind="stable")[: max(1, round(_HOT_SHARE * len(rows)))]
        share = counts[hot].sum() / len(before)
        kept.append(float(np.isin(after, rows[hot]).mean() / share))
    return float(np.mean(kept)) if kept else 1.0


def stats_document(path: str | os.PathLike[str], *, per_table: bool) -> dict[str, Any]:
    """All statistics of a trace as one JSON object; `per_table` adds the stream of each table."""
    reader = TraceReader(path)
    tables = [dataclasses.asdict(table) for table in table_stats(path)]
    if per_table:
        for table in tables:
            has_ids = table["ids"] > 0
            table["stream"] = dataclasses.asdict(stream_stats(path, [table["name"]])) if has_ids else None
    document = {
        "trace": os.fspath(path),
        "origin": reader.origin,
        "reuse_bins": REUSE_BINS,
        "all": dataclasses.asdict(stream_stats(path)),
        "tables": tables,
    }
    found: dict[str, Any] = json.loads(json.dumps(document))
    return found
