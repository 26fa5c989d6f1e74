"""From the batches of a trace to its access profile."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tiermem.data.accesses import Bags, Batch, TraceTable
from tiermem.errors import InputError
from tiermem.planner.profile import AccessProfile, TableProfile

__all__ = ["BATCHES_MIN", "profile_batches"]

BATCHES_MIN = 4
"""Fewer batches say nothing of reuse."""
SEGMENTS_MIN, SEGMENTS_MAX = 10, 40
SEGMENTS_TOTAL = 400
"""Few tables are cut finer than many."""
_FIRST_RANK_SHARE = 1e-4

Integers = npt.NDArray[np.int64]


def profile_batches(
    tables: Sequence[TraceTable],
    batches: Iterable[Batch],
    *,
    origin: str,
    weight_bytes: Mapping[str, int] | None = None,
) -> AccessProfile:
    """Profiles batches: ranks rows in the first half, counts in the second, as docs/design/planner.md says.

    Args:
        tables: the tables; the bytes of their rows are those of whole images, optimizer state included.
        batches: entry n of each has the bags of table n.
        origin: what they are, for people.
        weight_bytes: bytes of a row's weights by table; others have no state.

    Raises:
        InputError: if there are fewer than `BATCHES_MIN` batches, or none has an id.
    """
    collected: list[list[Bags]] = [[] for _ in tables]
    for batch in batches:
        for of_table, bags in zip(collected, batch, strict=True):
            of_table.append(bags)
    count = len(collected[0]) if collected else 0
    if count < BATCHES_MIN:
        raise InputError(
            f"{origin} has {count} batches to profile; half of them rank rows and half count:"
            f" give at least {BATCHES_MIN}"
        )
    if not any(len(bags.ids) for of_table in collected for bags in of_table):
        raise InputError(f"{origin} has no accesses in its first {count} batches: there is nothing to plan")
    windows = _windows(count)
    segments = max(SEGMENTS_MIN, min(SEGMENTS_MAX, SEGMENTS_TOTAL // len(tables)))
    known = weight_bytes or {}
    return AccessProfile(
        origin=origin,
        bags=max(len(bags.lengths) for of_table in collected for bags in of_table),
        batches=count,
        windows=windows,
        tables=tuple(
            _table(table, known.get(table.name, table.row_bytes), of_table, windows, segments)
            for table, of_table in zip(tables, collected, strict=True)
        ),
    )


def _windows(batches: int) -> Integers:
    """0, and about two an octave up to the number of batches."""
    found = {0}
    octave = 1
    while octave <= batches:
        found |= {octave, min(batches, octave + octave // 2)}
        octave *= 2
    return np.array(sorted(found), dtype=np.int64)


def _table(
    table: TraceTable, weight_bytes: int, batches: list[Bags], windows: Integers, segments: int
) -> TableProfile:
    half = len(batches) // 2
    counts = np.zeros(table.rows, dtype=np.int64)
    for bags in batches[:half]:
        np.add.at(counts, bags.ids, 1)
    order = np.argsort(-counts, kind="stable")
    seen = int(np.count_nonzero(counts))
    ranks = np.round(table.rows * np.geomspace(_FIRST_RANK_SHARE, 1.0, segments)).astype(np.int64)
    edges = np.unique(np.concatenate([[0], ranks, [seen, table.rows]]))
    segment_rows = np.diff(edges)
    segment_of = np.empty(table.rows, dtype=np.int64)
    segment_of[order] = np.repeat(np.arange(len(segment_rows)), segment_rows)
    shape = len(segment_rows)
    ids, distinct = np.zeros(shape), np.zeros(shape)
    # How often a row came back after so many batches, and how often it had not come before.
    reused, unseen = np.zeros((shape, len(batches) + 1)), np.zeros((shape, len(batches) + 1))
    last = np.full(table.rows, -1, dtype=np.int64)
    for number, bags in enumerate(batches):
        rows = np.unique(bags.ids)
        if number >= half:
            ids += np.bincount(segment_of[bags.ids], minlength=shape)
            of_rows = segment_of[rows]
            distinct += np.bincount(of_rows, minlength=shape)
            before = last[rows] >= 0
            np.add.at(reused, (of_rows[before], number - last[rows[before]]), 1)
            unseen[:, number] += np.bincount(of_rows[~before], minlength=shape)
        last[rows] = number
    measured = len(batches) - half
    lengths = np.concatenate([bags.lengths for bags in batches])
    filled = int(np.count_nonzero(lengths))
    return TableProfile(
        name=table.name,
        rows=table.rows,
        row_bytes=table.row_bytes,
        weight_bytes=weight_bytes,
        pooling=float(lengths.sum() / max(1, filled)),
        coverage=float(filled / max(1, len(lengths))),
        segment_rows=segment_rows,
        segment_ids=ids / measured,
        distinct=distinct / measured,
        misses=distinct[:, None] / measured * _survival(reused, unseen)[:, windows],
        hot_rows=order[:seen],
    )


def _survival(reused: npt.NDArray[np.float64], unseen: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Share of accesses whose row none of the w batches before had, by w (Kaplan and Meier, 1958).

    What was not seen in the c batches before it was censored at c: its reuse takes longer than that.
    """
    at_risk = np.cumsum((reused + unseen)[:, ::-1], axis=1)[:, ::-1]
    hazard = np.divide(reused, at_risk, out=np.zeros_like(reused), where=at_risk > 0)
    survival: npt.NDArray[np.float64] = np.cumprod(1 - hazard, axis=1)
    return survival
