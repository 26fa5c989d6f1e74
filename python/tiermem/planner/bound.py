"""How much better any plan could be: a lower bound of the step time, and the prices that prove it.

The relaxation: every table chooses for itself, and pays for the bytes that its rows then take in each cache,
whatever other tables do there; tables may be mixtures of choices. Time is linear (`RowCosts`), budgets and
stages are the only constraints. That is a linear program. Its dual separates by table, so it is solved by
columns (Dantzig and Wolfe, 1960): a small master program gives prices, and each table answers with its
cheapest choice. Any prices prove a bound, so stopping early costs tightness, never truth.
"""

import dataclasses

from tiermem.planner.choose import Chooser
from tiermem.planner.master import Master, Prices

__all__ = ["Bound", "lower_bound"]

_GAP = 2e-3
_SMOOTHING = 0.5


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """A lower bound."""

    step_ns: float
    """No plan has a shorter predicted step; with rows in a log it is an estimate."""
    prices: Prices
    """At which it holds."""


def lower_bound(chooser: Chooser, *, iterations_max: int = 100, start: Prices | None = None) -> Bound:
    """The bound; deterministic."""
    master = Master(chooser.arrays)
    starts = master.start() + ([] if start is None else [start])
    for prices in starts:
        master.add(chooser.choose(prices).column)
    best = Bound(0.0, starts[-1])
    for _ in range(iterations_max):
        objective, prices = master.solve()
        if best.step_ns > 0:
            prices = best.prices.mixed(prices, _SMOOTHING)
        answer = chooser.choose(prices)
        proven = master.value(prices, answer.price)
        if proven > best.step_ns:
            best = Bound(proven, prices)
        if objective - best.step_ns <= _GAP * objective:
            break
        master.add(answer.column)
    return best
