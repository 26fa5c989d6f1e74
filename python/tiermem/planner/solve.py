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

__all__ = ["Candidate", "Solution", "solve"]

_WINDOWS = 7
_MIDDLE_WINDOWS = 4
_ITERATIONS = 25
_IMPROVED = 2
_TRIALS = 300
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
    """No plan is shorter than `bound.step_ns` if a row costs at least what it costs in the chosen plan."""
    milp_gap: float | None
    """What the integer program left open, relative; `None` if it was not asked for."""

    @property
    def gap(self) -> float:
        """The chosen step over the bound, less one."""
        return self.chosen.prediction.step_ns / self.bound.step_ns - 1


def solve(problem: Problem, *, milp_time_limit_s: float = 0.0, seed: int = 0) -> Solution:
    """Plans.

    Twice: what a row costs depends on how many share its blocks, so the second time costs are those of the
    best plan of the first.

    Args:
        problem: what for.
        milp_time_limit_s: how long HiGHS may look for better whole-table choices; 0: not at all.
        seed: of the random baseline.

    Raises:
        CapacityError: if the tables do not fit; names what is short and by how much.
    """
    arrays = Arrays(problem)
    costs = RowCosts(arrays)
    found = [_candidate("greedy", arrays, greedy(arrays, costs))]
    compared = tuple(_candidate(name, arrays, baseline(arrays, name, seed)) for name in BASELINES)
    search = _Search(arrays, costs)
    first = search.candidates(0.0)
    found += first
    best = _best(arrays, first)
    if best is not None:
        found += search.improved(first, compared)
        search = _Search(arrays, costs.at(*search.factors(best)))
        second = search.candidates(milp_time_limit_s)
        found += [*second, *search.improved(second, compared)]
    chosen = _best(arrays, [*found, *compared])
    if chosen is None:
        raise CapacityError("no plan was found that fits the budgets; raise that of the fastest tier")
    bound = search.bound
    if chosen.prediction.step_ns < bound.step_ns:
        bound = dataclasses.replace(bound, step_ns=chosen.prediction.step_ns)
    return Solution(
        arrays=arrays,
        chosen=chosen,
        candidates=tuple(found),
        baselines=compared,
        bound=bound,
        milp_gap=search.milp_gap,
    )


def fits(arrays: Arrays, assignment: Assignment) -> bool:
    """Whether an assignment keeps within every budget."""
    budgets = np.array([tier.budget_bytes for tier in arrays.tiers])
    return bool((used_bytes(arrays, assignment) <= budgets + 1).all())


class _Search:
    """Candidates near the bound at some costs of a row."""

    def __init__(self, arrays: Arrays, costs: RowCosts) -> None:
        self.arrays = arrays
        self.costs = costs
        ahead = arrays.problem.prefetch_distance
        self.later = arrays.windows[arrays.windows > ahead]
        everywhere = Chooser(arrays, costs, list(self.later), _spaced(self.later, _MIDDLE_WINDOWS))
        self.bound = lower_bound(everywhere)
        self.milp_gap: float | None = None
        self._chosen: dict[str, tuple[Chooser, Prices, Chosen]] = {}

    def candidates(self, milp_time_limit_s: float) -> list[Candidate]:
        """One or two for each of some windows of the cache in memory."""
        found = []
        for window in (None, *_spaced(self.later, _WINDOWS)):
            deeper = _spaced(self.later[self.later > window], _MIDDLE_WINDOWS) if window is not None else []
            chooser = Chooser(self.arrays, self.costs, [] if window is None else [window], deeper)
            prices = lower_bound(chooser, iterations_max=_ITERATIONS, start=self.bound.prices).prices
            name = "resident" if window is None else f"window {window:g}"
            found += self._of(name, chooser, prices, first_fit(chooser, prices))
            if milp_time_limit_s > 0:
                found += self._integer(chooser, prices, name, milp_time_limit_s / (_WINDOWS + 1))
        return found

    def factors(self, best: Candidate) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """How much dearer than `costs` each stage is in one of these candidates, at least 1: [K, G] each."""
        chosen = self._chosen[best.name][2]
        true = [_table(side) for side in stage_busy(self.arrays, chosen.assignment)]
        linear = [chosen.column.reads, chosen.column.writes]
        reads, writes = (
            np.where(few > 0, np.maximum(many / np.maximum(few, 1e-300), 1.0), 1.0)
            for many, few in zip(true, linear, strict=True)
        )
        return reads, writes

    def improved(self, candidates: list[Candidate], baselines: tuple[Candidate, ...]) -> list[Candidate]:
        """The best candidates of this search and the best baseline, table by table."""
        if self.arrays.tables > _TABLES_IMPROVED or not candidates:
            return []
        best = sorted(candidates, key=lambda each: each.prediction.step_ns)[:_IMPROVED]
        starts = {each.name: self._chosen[each.name] for each in best}
        # What a baseline does with whole tables is another place to begin.
        chooser, prices, _ = starts[best[0].name]
        whole = min(baselines, key=lambda each: each.prediction.step_ns)
        starts[whole.name] = (chooser, prices, chooser.whole(whole.assignment.home[:, 1], cached=True))
        return [
            _candidate(f"{name}, improved", self.arrays, improved(*start, trials=_TRIALS))
            for name, start in starts.items()
        ]

    def _of(self, name: str, chooser: Chooser, prices: Prices, chosen: Chosen | None) -> list[Candidate]:
        if chosen is None:
            return []
        self._chosen[name] = (chooser, prices, chosen)
        return [_candidate(name, self.arrays, filled(self.arrays, chosen.assignment))]

    def _integer(self, chooser: Chooser, prices: Prices, name: str, time_limit_s: float) -> list[Candidate]:
        chosen, gap = integer_choice(chooser, prices, time_limit_s=time_limit_s)
        self.milp_gap = max(self.milp_gap or 0.0, gap)
        return self._of(f"{name}, milp", chooser, prices, chosen)


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
