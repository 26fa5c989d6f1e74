"""Open-loop load on an engine in wall time while its tables change, and every answer checked."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from tiermem.serve.engine import Answer, Engine, Query
from tiermem.serve.plain import PlainModel

__all__ = ["Change", "Driven", "drive"]

_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """A change of the tables under load, and what answers are like from then on."""

    name: str
    apply: Callable[[], object]
    """Returns when the change is acknowledged."""
    after: PlainModel


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Driven:
    """What became of a load."""

    queries_per_s: float
    """That arrived."""
    queries: int
    refused: int
    """Queries whose answer was an error."""
    wrong: int
    """Answers of no state that the tables had between the query's begin and its end."""
    states: tuple[int, ...]
    """Answers of each state: before any change, and after each."""
    elapsed_s: float
    latency_ms: npt.NDArray[np.float64]
    """From arrival to answer, float64 [queries]."""
    changes: tuple[tuple[str, float], ...]
    """Each change and the seconds that it took."""

    def quantile_ms(self, share: float) -> float:
        """A quantile of the latency, in milliseconds."""
        return float(np.quantile(self.latency_ms, share))


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """An answer, and the first and the last state that the tables can have had meanwhile."""

    number: int
    answer: Answer
    first: int
    last: int


def drive(
    engine: Engine,
    queries: Sequence[Query],
    before: PlainModel,
    *,
    queries_per_s: float,
    seconds: float,
    threads: int,
    changes: Sequence[Change] = (),
    seed: int = 1,
) -> Driven:
    """Runs a load in real time. Changes come one after the other, evenly over its length.

    Arrivals are Poisson and wait for nobody; answers are checked when all are there.

    Args:
        engine: what answers.
        queries: asked one after the other, from the first again behind the last.
        before: what answers are like before any change.
        queries_per_s: that arrive.
        seconds: length of the load.
        threads: that answer.
        changes: of the tables, meanwhile.
        seed: of the arrivals.
    """
    count = max(1, round(queries_per_s * seconds))
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / queries_per_s, count))
    latency_ms = np.zeros(count)
    numbers = itertools.count()
    # Changes begun, of which an answer may be, and acknowledged, before which none may be.
    begun = acknowledged = 0
    took = []
    began = time.perf_counter()

    def work() -> list[_Asked]:
        asked = []
        while (number := next(numbers)) < count:
            wait_s = arrivals[number] - (time.perf_counter() - began)
            if wait_s > 0:
                time.sleep(wait_s)
            first = acknowledged
            answer = engine.predict([queries[number % len(queries)]])[0]
            latency_ms[number] = (time.perf_counter() - began - arrivals[number]) * 1e3
            asked.append(_Asked(number, answer, first, begun))
        return asked

    with ThreadPoolExecutor(threads, thread_name_prefix="tiermem-query") as pool:
        workers = [pool.submit(work) for _ in range(threads)]
        for number, change in enumerate(changes, start=1):
            due_s = arrivals[-1] * number / (len(changes) + 1)
            time.sleep(max(0.0, due_s - (time.perf_counter() - began)))
            begun = number
            at = time.perf_counter()
            change.apply()
            took.append((change.name, time.perf_counter() - at))
            acknowledged = number
        asked = [each for worker in workers for each in worker.result()]
    elapsed_s = time.perf_counter() - began
    states = [before, *(change.after for change in changes)]
    found = [_state_of(each, queries[each.number % len(queries)], states) for each in asked]
    return Driven(
        queries_per_s=queries_per_s,
        queries=count,
        refused=sum(each.answer.logits is None for each in asked),
        wrong=sum(
            state is None and each.answer.logits is not None for each, state in zip(asked, found, strict=True)
        ),
        states=tuple(found.count(state) for state in range(len(states))),
        elapsed_s=elapsed_s,
        latency_ms=latency_ms,
        changes=tuple(took),
    )


def _state_of(asked: _Asked, query: Query, states: Sequence[PlainModel]) -> int | None:
    """The state that an answer is of, the latest first."""
    if asked.answer.logits is None:
        return None
    for state in range(asked.last, asked.first - 1, -1):
        if bool((states[state].logits(query) - asked.answer.logits).abs().max() <= _TOLERANCE):
            return state
    return None
