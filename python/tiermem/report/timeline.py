"""What a run did when, as a document in the Trace Event Format that Perfetto and chrome://tracing open.

The trainer is one process with a track of its steps, each over its stages. Every tier below the fastest is
a process with its transfers, which overlap, and the number of requests outstanding. Both readers take `ts`
and `dur` in microseconds; Perfetto keeps whole nanoseconds of them.
"""

import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["TimedStep", "chrome_trace", "chrome_trace_text"]

_TRAINER = 1
"""Number of the trainer's process; tier `t` has the number `_TRAINER + t`."""
# At one instant metadata comes first, and the begin of a transfer before its end.
_METADATA, _SLICE, _BEGIN, _END, _COUNTER = range(5)
_PS_PER_NS = 1000

Event = dict[str, Any]
_Placed = tuple[int, int, Event]
"""An event with its time in picoseconds and its rank among those of the same time."""


@dataclasses.dataclass(frozen=True, slots=True)
class TimedStep:
    """One training step on the store's clock."""

    number: int
    """Counted from 1."""
    begin_ns: int
    """When it began."""
    stages: tuple[tuple[str, int], ...]
    """Name and nanoseconds of each stage, in the order in which they are drawn."""

    @property
    def end_ns(self) -> int:
        """When its last stage ended."""
        return self.begin_ns + sum(duration_ns for _, duration_ns in self.stages)


def chrome_trace(
    steps: Sequence[TimedStep], tiers: Sequence[str], timeline: Mapping[str, Any], *, name: str, clock: str
) -> dict[str, Any]:
    """The document of one run.

    Args:
        steps: the steps, in order.
        tiers: names of the tiers, the fastest first.
        timeline: `EmbeddingStore.timeline()` of the store that they ran on.
        name: of the run.
        clock: "virtual" or "wall".

    Returns:
        A JSON object. `displayTimeUnit` is left out: some versions of Perfetto take it for the unit of `ts`.
    """
    transfers, dirty_rows = timeline["transfers"], timeline["dirty_rows"]
    last_ps = _last_ps(steps, transfers, dirty_rows)
    placed = [
        *_names(tiers, name),
        *itertools.chain.from_iterable(_step(step) for step in steps),
        *_transfers(transfers, tiers, last_ps),
        *_queue_depths(transfers, last_ps),
        *_dirty_rows(dirty_rows),
    ]
    placed.sort(key=lambda each: each[:2])
    return {
        "traceEvents": [event for _, _, event in placed],
        "otherData": {"name": name, "clock": clock, "tiers": list(tiers)},
    }


def chrome_trace_text(document: Mapping[str, Any]) -> str:
    """The document as JSON text, one event a line."""
    # Perfetto's scanner of keys knows no \u escapes, so names stay as they are.
    events = ",\n".join(
        json.dumps(event, ensure_ascii=False, separators=(",", ":")) for event in document["traceEvents"]
    )
    other = json.dumps(document["otherData"], ensure_ascii=False)
    return f'{{"traceEvents":[\n{events}\n],\n"otherData":{other}}}\n'


def _us(time_ps: int) -> float:
    """Microseconds of which a reader that multiplies by 1000 and cuts off gets the whole nanoseconds back."""
    time_us = time_ps / (1000 * _PS_PER_NS)
    while int(time_us * 1000) < time_ps // _PS_PER_NS:
        time_us = math.nextafter(time_us, math.inf)
    return time_us


def _last_ps(
    steps: Sequence[TimedStep], transfers: Sequence[Mapping[str, Any]], dirty_rows: Sequence[Sequence[int]]
) -> int:
    return max(
        0,
        max((step.end_ns * _PS_PER_NS for step in steps), default=0),
        max((transfer["end_ps"] or transfer["begin_ps"] for transfer in transfers), default=0),
        max((time_ns * _PS_PER_NS for time_ns, _ in dirty_rows), default=0),
    )


def _names(tiers: Sequence[str], name: str) -> Iterator[_Placed]:
    processes = [(_TRAINER, f"tiermem: {name}", "trainer")]
    for tier, tier_name in enumerate(tiers[1:], 1):
        processes.append((_TRAINER + tier, f"tier {tier}: {tier_name}", f"transfers of {tier_name}"))
    for number, process, thread in processes:
        place: Event = {"ph": "M", "ts": 0, "pid": number, "tid": number}
        yield 0, _METADATA, {"name": "process_name", **place, "args": {"name": process}}
        yield 0, _METADATA, {"name": "process_sort_index", **place, "args": {"sort_index": number}}
        yield 0, _METADATA, {"name": "thread_name", **place, "args": {"name": thread}}


def _step(step: TimedStep) -> Iterator[_Placed]:
    """The step with all its times, and over it the stages that took any, one after the other.

    A reader would draw an empty stage at the end of a step outside of it.
    """
    place: Event = {"ph": "X", "pid": _TRAINER, "tid": _TRAINER}
    begin_ps, end_ps = step.begin_ns * _PS_PER_NS, step.end_ns * _PS_PER_NS
    times = {"ts": _us(begin_ps), "dur": _us(end_ps - begin_ps)}
    args = {"step": step.number, **{f"{stage}, ns": duration_ns for stage, duration_ns in step.stages}}
    yield begin_ps, _SLICE, {"name": "step", "cat": "step", **place, **times, "args": args}
    for stage, duration_ns in step.stages:
        if duration_ns > 0:
            times = {"ts": _us(begin_ps), "dur": _us(duration_ns * _PS_PER_NS)}
            yield (
                begin_ps,
                _SLICE,
                {"name": stage, "cat": "stage", **place, **times, "args": {"step": step.number}},
            )
        begin_ps += duration_ns * _PS_PER_NS


def _transfers(
    transfers: Sequence[Mapping[str, Any]], tiers: Sequence[str], last_ps: int
) -> Iterator[_Placed]:
    """A pair of asynchronous events each; what never ended does at the last known time, and says so."""
    for number, transfer in enumerate(transfers, 1):
        tier, begin_ps, end_ps = transfer["tier"], transfer["begin_ps"], transfer["end_ps"]
        event = {
            "name": transfer["operation"],
            # A comma would make several categories.
            "cat": f"tier.{tiers[tier]}".replace(",", ";"),
            "id": hex(number),
            "pid": _TRAINER + tier,
            "tid": _TRAINER + tier,
        }
        args = {
            "operation": transfer["operation"],
            "requests": transfer["requests"],
            "bytes": transfer["nbytes"],
        }
        if end_ps is None:
            end_ps, args["unfinished"] = last_ps, True
        yield begin_ps, _BEGIN, {"ph": "b", **event, "ts": _us(begin_ps), "args": args}
        yield end_ps, _END, {"ph": "e", **event, "ts": _us(end_ps), "args": {}}


def _queue_depths(transfers: Sequence[Mapping[str, Any]], last_ps: int) -> Iterator[_Placed]:
    """Requests of each tier that were submitted and whose transfer has not ended."""
    changes: dict[int, Counter[int]] = {}
    for transfer in transfers:
        of_tier = changes.setdefault(transfer["tier"], Counter())
        of_tier[transfer["begin_ps"]] += transfer["requests"]
        of_tier[last_ps if transfer["end_ps"] is None else transfer["end_ps"]] -= transfer["requests"]
    for tier, of_tier in changes.items():
        depth = 0
        for time_ps in sorted(of_tier):
            depth += of_tier[time_ps]
            yield time_ps, _COUNTER, _counter("queue depth", _TRAINER + tier, time_ps, {"requests": depth})


def _dirty_rows(samples: Sequence[Sequence[int]]) -> Iterator[_Placed]:
    for time_ns, rows in samples:
        time_ps = time_ns * _PS_PER_NS
        yield time_ps, _COUNTER, _counter("dirty rows", _TRAINER, time_ps, {"rows": rows})


def _counter(name: str, process: int, time_ps: int, values: Mapping[str, int]) -> Event:
    return {"name": name, "ph": "C", "ts": _us(time_ps), "pid": process, "tid": process, "args": dict(values)}
