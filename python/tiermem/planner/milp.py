"""Which option each table takes, as an integer program: what prices cannot decide, since tables are whole."""

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from tiermem.planner.choose import Chooser, Chosen
from tiermem.planner.master import Prices, limits
from tiermem.planner.rounding import MENU, picked

__all__ = ["integer_choice"]

Floats = npt.NDArray[np.float64]
_RELATIVE_GAP = 1e-3


def integer_choice(chooser: Chooser, prices: Prices, *, time_limit_s: float) -> tuple[Chosen | None, float]:
    """One of the cheapest options of each table, so that the step is shortest and the budgets hold (HiGHS).

    Args:
        chooser: offers the options.
        prices: at which the cheapest are offered.
        time_limit_s: HiGHS stops then; what it found by then is kept.

    Returns:
        The choice, and the relative gap that HiGHS left: 0.001 at the most unless the time was up. `None` if
        nothing that fits was found.
    """
    arrays, menu = chooser.arrays, chooser.menu(prices, MENU)
    tables, count = menu.prices.shape
    size = tables * count
    capacity = np.array([float(tier.budget_bytes) for tier in arrays.tiers])
    capacity[0] -= float(arrays.class_row_bytes.sum())
    scale = max(arrays.host_ns, 1.0)
    reads, writes = chooser.busy(menu)
    rows, constants = [], []
    for limit in limits(arrays):
        busy = np.zeros((tables, count))
        if limit.read_stage is not None:
            busy += reads[:, :, limit.tier, limit.read_stage]
        if limit.write_stage is not None:
            busy += writes[:, :, limit.tier, limit.write_stage]
        if busy.any():
            rows.append(busy.ravel() / scale)
            constants.append(-limit.constant_ns / scale)
    times, bounds = np.array(rows), np.array(constants)
    # Variables: whether each option is taken, and the step time.
    places = (np.repeat(np.arange(tables), count), np.arange(size))
    once = sparse.csr_array((np.ones(size), places), shape=(tables, size + 1))
    constraints = [
        _at_most(times, -1.0, bounds),
        _at_most(menu.bytes.reshape(size, -1).T / capacity[:, None], 0.0, np.ones(len(capacity))),
        LinearConstraint(once, np.ones(tables), np.ones(tables)),
    ]
    upper = np.concatenate([np.isfinite(menu.prices).ravel().astype(float), [np.inf]])
    lower = np.concatenate([np.zeros(size), [arrays.host_ns / scale]])
    found = milp(
        np.concatenate([np.zeros(size), [1.0]]),
        constraints=constraints,
        integrality=np.concatenate([np.ones(size), [0]]),
        bounds=Bounds(lower, upper),
        options={"time_limit": time_limit_s, "mip_rel_gap": _RELATIVE_GAP},
    )
    if found.x is None:
        return None, float("inf")
    take = found.x[:size].reshape(tables, count).argmax(axis=1)
    return picked(chooser, menu, take), float(found.mip_gap or 0.0)


def _at_most(rows: Floats, of_time: float, high: Floats) -> LinearConstraint:
    """Sums over the options, and so much of the step time, stay below limits."""
    whole = np.hstack([rows, np.full((len(rows), 1), of_time)])
    return LinearConstraint(sparse.csr_array(whole), np.full(len(rows), -np.inf), high)
