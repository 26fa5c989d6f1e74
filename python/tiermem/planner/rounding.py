"""From prices to an assignment that fits: tables take the cheapest option that there is room for."""

import dataclasses

import numpy as np
import numpy.typing as npt

from tiermem.planner.arrays import Arrays
from tiermem.planner.choose import Chooser, Chosen, Menu
from tiermem.planner.evaluate import evaluate, used_bytes
from tiermem.planner.master import Prices
from tiermem.planner.problem import Assignment

__all__ = ["MENU", "filled", "first_fit", "improved", "picked", "usable"]

Floats = npt.NDArray[np.float64]

MENU = 16
"""Options of each table that are considered."""


def first_fit(chooser: Chooser, prices: Prices) -> Chosen | None:
    """Each table takes its cheapest option that fits in what is left, those that lose most by waiting first.

    Returns:
        `None` if a table finds no room.
    """
    arrays = chooser.arrays
    menu = chooser.menu(prices, len(chooser.options))
    left = np.array([float(tier.budget_bytes) for tier in arrays.tiers])
    # Every store keeps a cached row of each width.
    left[0] -= float(arrays.class_row_bytes.sum())
    time = menu.prices - menu.bytes @ prices.bytes
    scarce = menu.bytes[:, 0, :-1].sum(axis=1)
    worst = np.where(np.isfinite(time), time, -np.inf).max(axis=1)
    order = np.argsort(-(worst - time[:, 0]) / np.maximum(scarce, 1.0), kind="stable")
    take = np.zeros(arrays.tables, dtype=np.int64)
    for table in order:
        fits = (menu.bytes[table] <= left).all(axis=1) & np.isfinite(menu.prices[table])
        if not fits.any():
            return None
        take[table] = int(np.argmax(fits))
        left -= menu.bytes[table, take[table]]
    # What is left goes to the tables that gain most of it.
    for table in order:
        own = menu.bytes[table, take[table]]
        fits = (menu.bytes[table] <= left + own).all(axis=1) & np.isfinite(menu.prices[table])
        better = int(np.argmin(np.where(fits, time[table], np.inf)))
        if time[table, better] < time[table, take[table]]:
            left += own - menu.bytes[table, better]
            take[table] = better
    return picked(chooser, menu, take)


def improved(chooser: Chooser, prices: Prices, chosen: Chosen, trials: int) -> Assignment:
    """Tries other options for one table after the other, as long as the predicted step gets shorter.

    Args:
        chooser: offers the options.
        prices: at which the cheapest are tried.
        chosen: where to begin.
        trials: predictions at most.
    """
    arrays = chooser.arrays
    menu = chooser.menu(prices, MENU)
    budgets = np.array([float(tier.budget_bytes) for tier in arrays.tiers])
    options, splits = chosen.options.copy(), chosen.splits.copy()
    best = filled(arrays, chosen.assignment)
    is_within = (used_bytes(arrays, best) <= budgets + 1).all()
    step_ns = evaluate(arrays, best).step_ns if is_within else np.inf
    needs = np.argsort(-arrays.distinct.sum(axis=1) * arrays.row_bytes, kind="stable")
    changed = True
    while changed and trials > 0:
        changed = False
        for table in needs:
            for place in np.flatnonzero(np.isfinite(menu.prices[table])):
                other = (int(menu.options[table, place]), int(menu.splits[table, place]))
                before = (int(options[table]), int(splits[table]))
                if other == before or trials == 0:
                    continue
                trials -= 1
                options[table], splits[table] = other
                tried = filled(arrays, chooser.chosen(0.0, options, splits).assignment)
                predicted_ns = evaluate(arrays, tried).step_ns
                if predicted_ns < step_ns and (used_bytes(arrays, tried) <= budgets + 1).all():
                    best, step_ns, changed = tried, predicted_ns, True
                else:
                    options[table], splits[table] = before
    return best


def picked(chooser: Chooser, menu: Menu, take: npt.NDArray[np.int64]) -> Chosen:
    """One place of the menu for each table."""
    table = np.arange(chooser.arrays.tables)
    return chooser.chosen(0.0, menu.options[table, take], menu.splits[table, take])


def filled(arrays: Arrays, assignment: Assignment) -> Assignment:
    """Spends what is left of each budget: on the next rows of split tables, or on the cache.

    Memory's goes to its cache if anything is cached there. A cache that has too much gives it up.
    """
    capacity = np.array([float(tier.budget_bytes) for tier in arrays.tiers])
    rows = arrays.edges
    missed = arrays.misses_at(float(arrays.problem.prefetch_distance))
    split = assignment.split_rows.copy()
    for position in range(len(arrays.tiers) - 1):
        current = dataclasses.replace(assignment, split_rows=split)
        left = float((capacity - used_bytes(arrays, current))[position])
        here = np.flatnonzero((assignment.home[:, 0] == position) & (assignment.home[:, 1] > position))
        if left <= 0 or len(here) == 0 or (position == 0 and assignment.cached[..., 0].any()):
            continue
        segment = (rows[here, 1:] <= split[here, None]).sum(axis=1)
        room = np.minimum(segment, rows.shape[1] - 2)
        gain = missed[here, room] / np.maximum(arrays.segment_rows[here, room], 1.0)
        nbytes = arrays.home_bytes_per_row[here, position]
        for place in np.argsort(-gain / nbytes, kind="stable"):
            table = here[place]
            end = int(rows[table, room[place] + 1])
            more = min(
                end - int(split[table]),
                int(left / nbytes[place]),
                int(arrays.rows[table]) - int(split[table]) - 1,
            )
            if more > 0:
                split[table] += more
                left -= more * nbytes[place]
    assignment = dataclasses.replace(assignment, split_rows=split)
    caches = assignment.cache_bytes.copy()
    spare = np.floor(capacity - used_bytes(arrays, assignment)).astype(np.int64)
    least = int(arrays.class_row_bytes.sum())
    for position in range(len(arrays.tiers) - 1):
        if assignment.cached[..., position].any():
            caches[position] = max(caches[position] + spare[position], 0 if position else least)
    return usable(arrays, dataclasses.replace(assignment, cache_bytes=caches))


def usable(arrays: Arrays, assignment: Assignment) -> Assignment:
    """Without the caches below memory that have no room for a row of each width, or for a block."""
    cached, caches = assignment.cached.copy(), assignment.cache_bytes.copy()
    for position in range(1, len(arrays.tiers)):
        tables = cached[..., position].any(axis=1)
        if arrays.tiers[position].is_byte:
            least = arrays.class_row_bytes[np.unique(arrays.class_of[tables])].sum()
        else:
            least = arrays.block_bytes[tables].max(initial=0.0)
        if caches[position] < least or not tables.any():
            cached[..., position] = False
            caches[position] = 0
    exclusive = assignment.exclusive & cached[..., 1:].any(axis=2)
    return dataclasses.replace(assignment, cached=cached, exclusive=exclusive, cache_bytes=caches)
