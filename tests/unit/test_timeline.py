"""The document of a timeline, from steps and transfers made by hand."""

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiermem.report import TimedStep, chrome_trace, chrome_trace_text

TIERS = ["dram", "cxl, far", "nand"]
STAGES = ("wait for prefetch", "gather", "dense forward/backward", "update", "write-back")


def _transfer(
    tier: int, begin: int, end: int | None, requests: int, operation: str = "read"
) -> dict[str, Any]:
    return {
        "tier": tier,
        "operation": operation,
        "begin_ps": begin,
        "end_ps": end,
        "requests": requests,
        "nbytes": requests * 4096,
    }


def _step(number: int, begin_ns: int, *durations: int) -> TimedStep:
    return TimedStep(number, begin_ns, tuple(zip(STAGES, durations, strict=True)))


def _events(steps: list[TimedStep], transfers: list[Any], dirty_rows: list[Any]) -> list[dict[str, Any]]:
    timeline = {"transfers": transfers, "dirty_rows": dirty_rows}
    text = chrome_trace_text(chrome_trace(steps, TIERS, timeline, name="a run", clock="virtual"))
    document = json.loads(text)
    assert document["otherData"] == {"name": "a run", "clock": "virtual", "tiers": TIERS}
    assert "displayTimeUnit" not in document, "some versions of Perfetto scale ts by it"
    found: list[dict[str, Any]] = document["traceEvents"]
    assert [event["ts"] for event in found] == sorted(event["ts"] for event in found)
    return found


def _of(events: list[dict[str, Any]], *phases: str) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] in phases]


def test_a_small_run_event_by_event() -> None:
    events = _events(
        [_step(7, 1_000, 500, 20, 30, 40, 0), _step(8, 1_590, 0, 1, 2, 3, 4)],
        [_transfer(2, 100_000, 1_500_250, 3), _transfer(1, 1_200_000, None, 2, "write")],
        [[1_590, 12], [1_600, 9]],
    )
    names = {(e["pid"], e["name"]): e["args"]["name"] for e in _of(events, "M") if "name" in e["args"]}
    assert names == {
        (1, "process_name"): "tiermem: a run",
        (1, "thread_name"): "trainer",
        (2, "process_name"): "tier 1: cxl, far",
        (2, "thread_name"): "transfers of cxl, far",
        (3, "process_name"): "tier 2: nand",
        (3, "thread_name"): "transfers of nand",
    }
    drawn = [(e["name"], e["ts"], e["dur"], e["args"]["step"]) for e in _of(events, "X")]
    assert drawn == [
        ("step", 1.0, 0.59, 7),
        ("wait for prefetch", 1.0, 0.5, 7),
        ("gather", 1.5, 0.02, 7),
        ("dense forward/backward", 1.52, 0.03, 7),
        ("update", pytest.approx(1.55), 0.04, 7),
        ("step", 1.59, 0.01, 8),
        ("gather", 1.59, 0.001, 8),
        ("dense forward/backward", 1.591, 0.002, 8),
        ("update", 1.593, 0.003, 8),
        ("write-back", 1.596, 0.004, 8),
    ]
    assert _of(events, "X")[0]["args"] == {
        "step": 7, **{f"{s}, ns": n for s, n in zip(STAGES, (500, 20, 30, 40, 0), strict=True)},
    }  # fmt: skip
    begins = {e["id"]: e for e in _of(events, "b")}
    ends = {e["id"]: e for e in _of(events, "e")}
    assert [(e["name"], e["cat"], e["ts"], e["pid"], e["args"]) for e in begins.values()] == [
        ("read", "tier.nand", 0.1, 3, {"operation": "read", "requests": 3, "bytes": 12_288}),
        (
            "write", "tier.cxl; far", 1.2, 2,
            {"operation": "write", "requests": 2, "bytes": 8_192, "unfinished": True},
        ),
    ]  # fmt: skip
    assert {number: event["ts"] for number, event in ends.items()} == {"0x1": 1.50025, "0x2": 1.6}
    counters = [(e["name"], e["pid"], e["ts"], e["args"]) for e in _of(events, "C")]
    assert counters == [
        ("queue depth", 3, 0.1, {"requests": 3}),
        ("queue depth", 2, 1.2, {"requests": 2}),
        ("queue depth", 3, 1.50025, {"requests": 0}),
        ("dirty rows", 1, 1.59, {"rows": 12}),
        ("queue depth", 2, 1.6, {"requests": 0}),
        ("dirty rows", 1, 1.6, {"rows": 9}),
    ]


def test_a_run_without_lower_tiers_or_steps_is_a_document_too() -> None:
    assert {event["ph"] for event in _events([], [], [])} == {"M"}


def test_one_instant_gives_one_value_of_a_counter() -> None:
    events = _events([], [_transfer(1, 0, 5_000, 4), _transfer(1, 5_000, 9_000, 6)], [])
    depths = [(e["ts"], e["args"]["requests"]) for e in _of(events, "C")]
    assert depths == [(0, 4), (0.005, 6), (0.009, 0)]


@example([1001, 1003, 1005])
@given(st.lists(st.integers(0, 2**50), min_size=1, max_size=30))
def test_a_reader_that_cuts_off_gets_every_nanosecond(times_ns: list[int]) -> None:
    """Perfetto reads ts as a double, multiplies by 1000 and cuts off; 1.001 would become 1000 ns.

    A stage would then end a nanosecond after its step, and not be drawn.
    """
    ordered = sorted(times_ns)
    steps = [_step(n, begin, 0, 0, 7, 0, 0) for n, begin in enumerate(ordered)]
    drawn = [event for event in _of(_events(steps, [], []), "X") if event["name"] == "step"]
    assert [int(event["ts"] * 1000) for event in drawn] == ordered
    assert {int(event["dur"] * 1000) for event in drawn} == {7}
    for event, time_ns in zip(drawn, ordered, strict=True):
        assert abs(event["ts"] * 1000 - time_ns) <= max(1e-3, time_ns * 1e-15)


TRANSFERS = st.lists(
    st.tuples(
        st.integers(1, 2), st.integers(0, 10**7), st.integers(0, 10**7) | st.none(), st.integers(1, 99)
    ),
    max_size=30,
)


@given(TRANSFERS)
def test_any_transfers_end_and_their_depth_is_theirs(drawn: list[tuple[int, int, int | None, int]]) -> None:
    transfers = [
        _transfer(tier, begin, None if length is None else begin + length, requests)
        for tier, begin, length, requests in drawn
    ]
    events = _events([], transfers, [])
    opened: set[str] = set()
    for event in _of(events, "b", "e"):
        (opened.add if event["ph"] == "b" else opened.remove)(event["id"])
    assert not opened
    assert len(_of(events, "b")) == len(transfers)
    for tier in (1, 2):
        counted = [e for e in _of(events, "C") if e["pid"] == 1 + tier]
        for event in counted:
            # All requests of transfers under way at that time, by the slow way.
            ends = {e["id"]: e["ts"] for e in _of(events, "e")}
            under_way = sum(
                e["args"]["requests"]
                for e in _of(events, "b")
                if e["pid"] == 1 + tier and e["ts"] <= event["ts"] < ends[e["id"]]
            )
            assert event["args"]["requests"] == under_way
        if counted:
            assert counted[-1]["args"]["requests"] == 0


def test_the_control_plane_writes_timelines_without_torch() -> None:
    code = (
        "import sys, tiermem.report; assert tiermem.report.chrome_trace;"
        " sys.exit('torch' in sys.modules or 'tiermem._core' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
