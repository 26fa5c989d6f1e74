"""Open-loop load on an engine in wall time while its tables change, and every answer checked."""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence

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


class _Load:
    """What the threads of a load share."""

    def __init__(self, engine: Engine, queries: Sequence[Query], states: list[PlainModel]) -> None:
        self.engine = engine
        self.queries = queries
        self.states = states
        self.lock = threading.Lock()
        self.next = 0
        self.begun = 0
        """Changes that were begun: answers may be of any of their states."""
        self.acknowledged = 0
        """Changes that were acknowledged: answers are of no state before."""
        self.counts = [0] * len(states)
        self.refused = self.wrong = 0

    def take(self) -> int:
        with self.lock:
            self.next += 1
            return self.next - 1

    def check(self, query: Query, answer: Answer, first: int, last: int) -> None:
        """Compares an answer with the states between two moments."""
        if answer.logits is None:
            with self.lock:
                self.refused += 1
            return
        for state in range(last, first - 1, -1):
            if bool((self.states[state].logits(query) - answer.logits).abs().max() <= _TOLERANCE):
                with self.lock:
                    self.counts[state] += 1
                return
        with self.lock:
            self.wrong += 1


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

    Arrivals are Poisson and wait for nobody; an answer is checked outside of its latency.

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
    load = _Load(engine, queries, [before, *(change.after for change in changes)])
    began = time.perf_counter()

    def work() -> None:
        while (number := load.take()) < count:
            wait_s = arrivals[number] - (time.perf_counter() - began)
            if wait_s > 0:
                time.sleep(wait_s)
            query = queries[number % len(queries)]
            first = load.acknowledged
            answer = engine.predict([query])[0]
            latency_ms[number] = (time.perf_counter() - began - arrivals[number]) * 1e3
            load.check(query, answer, first, load.begun)

    workers = [threading.Thread(target=work, name=f"tiermem-query-{n}") for n in range(threads)]
    for worker in workers:
        worker.start()
    took = []
    for number, change in enumerate(changes):
        due_s = arrivals[-1] * (number + 1) / (len(changes) + 1)
        time.sleep(max(0.0, due_s - (time.perf_counter() - began)))
        load.begun = number + 1
        at = time.perf_counter()
        change.apply()
        took.append((change.name, time.perf_counter() - at))
        load.acknowledged = number + 1
    for worker in workers:
        worker.join()
    return Driven(
        queries_per_s=queries_per_s,
        queries=count,
        refused=load.refused,
        wrong=load.wrong,
        states=tuple(load.counts),
        elapsed_s=time.perf_counter() - began,
        latency_ms=latency_ms,
        changes=tuple(took),
    )
