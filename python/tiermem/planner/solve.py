"""The best assignment that is known for a problem, beside the baselines and the bound."""

import dataclasses

import numpy as np
import numpy.typing as npt

from tiermem.errors import CapacityError
from tiermem.planner.arrays import Arrays
from tiermem.planner.baselines import BASELINES, baseline
from tiermem.planner.bound import Bound, lower_bound
from tiermem.planner.choose import Chooser, Chosen
from tiermem.planner.costs import STAGES, RowCosts
from tiermem.planner.evaluate import Prediction, evaluate, stage_busy, used_bytes
from tiermem.planner.greedy import greedy
from tiermem.planner.master import Prices
from tiermem.planner.milp import integer_choice
from tiermem.planner.problem import Assignment, Problem
from tiermem.planner.rounding import filled, first_fit, improved

__all__ = ["Candidate", "Solution", "fits", "solve"]

_WINDOWS = 7
_MIDDLE_WINDOWS = 4
_ITERATIONS = 25
_IMPROVED = 3
_TRIALS = 300
_NEAR = 1e-3
"""A plan so near the bound is not improved further."""
# With many tables what one of them does is lost in the gap to the bound.
_TABLES_IMPROVED = 64


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Candidate:
    """An assignment that was considered."""

    name: str
    assignment: Assignment
    prediction: Prediction


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Solution:
    """What the planner found."""

    arrays: Arrays
    chosen: Candidate
    """The shortest predicted step of all; of equals, the first."""
    candidates: tuple[Candidate, ...]
    """The planner's own, the greedy fill first."""
    baselines: tuple[Candidate, ...]
    bound: Bound
    """Of the linear program in `RowCosts`, the most favourable costs that a row can have."""
    milp_gap: float | None
    """What the integer program left open, relative; `None` if it was not asked for."""

    @property
    def gap(self) -> float:
        """The chosen step over the bound, less one."""
        return self.chosen.prediction.step_ns / self.bound.step_ns - 1


def solve(
    problem: Problem, *, milp_time_limit_s: float = 0.0, seed: int = 0, enough_ns: float = 0.0
) -> Solution:
    """Plans.

    Twice: what a row costs depends on how many share its blocks, so the second time the search goes by what
    rows cost in the best plan of the first. The bound is that of the first.

    Args:
        problem: what for.
        milp_time_limit_s: how long HiGHS may look for better whole-table choices; 0: not at all.
        seed: of the random baseline.
        enough_ns: the last part of the search, the longest, is left out where a step is no longer than this
            or the bound says that none can be; 0: never.

    Raises:
        CapacityError: if the tables do not fit; names what is short and by how much.
    """
    arrays = Arrays(problem)
    costs = RowCosts(arrays)
    found = [_candidate("greedy", arrays, greedy(arrays, costs))]
    compared = tuple(_candidate(name, arrays, baseline(arrays, name, seed)) for name in BASELINES)
    search = _Search(arrays, costs, "")
    bound = search.bound
    starts = search.starts(0.0)
    milp_gap: float | None = None
    best = _best(arrays, [start.candidate for start in starts])
    if best is not None:
        chosen_before = next(start for start in starts if start.candidate is best).chosen
        search = _Search(arrays, costs.at(*_factors(arrays, chosen_before)), ", second time")
        starts += search.starts(milp_time_limit_s)
        milp_gap = search.milp_gap
    found += [start.candidate for start in starts]
    chosen = _best(arrays, [*found, *compared])
    if chosen is None or not _is_done(chosen.prediction.step_ns, bound.step_ns, enough_ns):
        found += _improved(arrays, starts, compared)
        chosen = _best(arrays, [*found, *compared])
    if chosen is None:
        raise CapacityError("no plan was found that fits the budgets; raise that of the fastest tier")
    return Solution(
        arrays=arrays,
        chosen=chosen,
        candidates=tuple(found),
        baselines=compared,
        bound=bound,
        milp_gap=milp_gap,
    )


def _is_done(step_ns: float, bound_ns: float, enough_ns: float) -> bool:
    near = step_ns <= bound_ns * (1 + _NEAR)
    return near or step_ns <= enough_ns or 0 < enough_ns < bound_ns


def fits(arrays: Arrays, assignment: Assignment) -> bool:
    """Whether an assignment keeps within every budget."""
    budgets = np.array([tier.budget_bytes for tier in arrays.tiers])
    return bool((used_bytes(arrays, assignment) <= budgets + 1).all())


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Start:
    """Where a local search may begin."""

    candidate: Candidate
    chooser: Chooser
    prices: Prices
    chosen: Chosen


class _Search:
    """Candidates near the bound at some costs of a row."""

    def __init__(self, arrays: Arrays, costs: RowCosts, suffix: str) -> None:
        self.arrays = arrays
        self.costs = costs
        self.suffix = suffix
        self.later = arrays.windows[arrays.windows > arrays.problem.prefetch_distance]
        everywhere = Chooser(arrays, costs, list(self.later), _spaced(self.later, _MIDDLE_WINDOWS))
        self.bound = lower_bound(everywhere)
        self.milp_gap: float | None = None

    def starts(self, milp_time_limit_s: float) -> list[_Start]:
        """One or two for each of some windows of the cache in memory."""
        found = []
        for window in (None, *_spaced(self.later, _WINDOWS)):
            deeper = _spaced(self.later[self.later > window], _MIDDLE_WINDOWS) if window is not None else []
            chooser = Chooser(self.arrays, self.costs, [] if window is None else [window], deeper)
            prices = lower_bound(chooser, iterations_max=_ITERATIONS, start=self.bound.prices).prices
            name = ("resident" if window is None else f"window {window:g}") + self.suffix
            found += self._of(name, chooser, prices, first_fit(chooser, prices))
            if milp_time_limit_s > 0:
                seconds = milp_time_limit_s / (_WINDOWS + 1)
                chosen, gap = integer_choice(chooser, prices, time_limit_s=seconds)
                self.milp_gap = max(self.milp_gap or 0.0, gap)
                found += self._of(f"{name}, milp", chooser, prices, chosen)
        return found

    def _of(self, name: str, chooser: Chooser, prices: Prices, chosen: Chosen | None) -> list[_Start]:
        if chosen is None:
            return []
        candidate = _candidate(name, self.arrays, filled(self.arrays, chosen.assignment))
        return [_Start(candidate=candidate, chooser=chooser, prices=prices, chosen=chosen)]


def _factors(arrays: Arrays, chosen: Chosen) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """How much dearer than in the linear costs each stage is in a choice, at least 1: [K, G] each."""
    true = [_table(side) for side in stage_busy(arrays, chosen.assignment)]
    linear = [chosen.column.reads, chosen.column.writes]
    reads, writes = (
        np.where(few > 0, np.maximum(many / np.maximum(few, 1e-300), 1.0), 1.0)
        for many, few in zip(true, linear, strict=True)
    )
    return reads, writes


def _improved(arrays: Arrays, starts: list[_Start], baselines: tuple[Candidate, ...]) -> list[Candidate]:
    """The best starts and the best baseline, table by table."""
    if arrays.tables > _TABLES_IMPROVED or not starts:
        return []
    best = sorted(starts, key=lambda start: start.candidate.prediction.step_ns)[:_IMPROVED]
    found = [
        (start.candidate.name, improved(start.chooser, start.prices, start.chosen, trials=_TRIALS))
        for start in best
    ]
    # What a baseline does with whole tables is another place to begin.
    chooser, prices = best[0].chooser, best[0].prices
    whole = min(baselines, key=lambda each: each.prediction.step_ns)
    chosen = chooser.whole(whole.assignment.home[:, 1], cached=True)
    found.append((whole.name, improved(chooser, prices, chosen, trials=_TRIALS)))
    return [_candidate(f"{name}, improved", arrays, assignment) for name, assignment in found]


def _best(arrays: Arrays, candidates: list[Candidate]) -> Candidate | None:
    within = [each for each in candidates if fits(arrays, each.assignment)]
    return min(within, key=lambda each: each.prediction.step_ns, default=None)


def _candidate(name: str, arrays: Arrays, assignment: Assignment) -> Candidate:
    return Candidate(name=name, assignment=assignment, prediction=evaluate(arrays, assignment))


def _spaced(windows: npt.NDArray[np.float64], count: int) -> list[float]:
    """At most so many of them, from the first to the last."""
    if len(windows) == 0:
        return []
    places = np.unique(np.linspace(0, len(windows) - 1, min(count, len(windows))).round().astype(int))
    return [float(windows[place]) for place in places]


def _table(stages: list[dict[str, float]]) -> npt.NDArray[np.float64]:
    """[K, G]; a memory with curves has one stage, in the place of the first."""
    rows = [[each.get(stage, 0.0) for stage in STAGES] for each in stages]
    for row, each in zip(rows, stages, strict=True):
        row[0] = each.get("curve", row[0])
    return np.array(rows)
