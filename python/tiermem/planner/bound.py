"""How much better any plan could be: a lower bound of the step time, and the prices that prove it.

The relaxation: every table chooses for itself, and pays for the bytes that its rows then take in each cache,
whatever other tables do there; tables may be mixtures of choices. Time is linear (`RowCosts`), budgets and
stages are the only constraints. That is a linear program. Its dual separates by table, so it is solved by
columns (Dantzig and Wolfe, 1960): a small master program gives prices, and each table answers with its
cheapest choice. Any prices prove a bound, so stopping early costs tightness, never truth.
"""

import dataclasses

from tiermem.planner.choose import Chooser, Chosen
from tiermem.planner.master import Master, Prices

__all__ = ["Bound", "lower_bound"]

_GAP = 2e-3
_SMOOTHING = 0.5


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """A lower bound."""

    step_ns: float
    """No plan has a shorter predicted step."""
    prices: Prices
    """At which it holds."""
    mixture_ns: float
    """The step time of the best mixture that was found; the bound is at most this."""
    iterations: int
    answers: tuple[Chosen, ...]
    """What tables chose on the way, the last answer last."""


def lower_bound(chooser: Chooser, *, iterations_max: int = 100, start: Prices | None = None) -> Bound:
    """The bound; deterministic."""
    master = Master(chooser.arrays)
    starts = master.start() + ([] if start is None else [start])
    answers = [chooser.choose(prices) for prices in starts]
    for answer in answers:
        master.add(answer.column)
    best = Bound(0.0, starts[-1], float("inf"), 0, ())
    for number in range(1, iterations_max + 1):
        objective, prices = master.solve()
        if best.step_ns > 0:
            prices = best.prices.mixed(prices, _SMOOTHING)
        answer = chooser.choose(prices)
        answers.append(answer)
        proven = master.value(prices, answer.price)
        if proven > best.step_ns:
            best = dataclasses.replace(best, step_ns=proven, prices=prices)
        best = dataclasses.replace(best, mixture_ns=objective, iterations=number)
        if objective - best.step_ns <= _GAP * objective:
            break
        master.add(answer.column)
    return dataclasses.replace(best, answers=tuple(answers))
