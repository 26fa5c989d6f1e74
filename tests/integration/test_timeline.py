"""`tiermem train --timeline`, read back the way Perfetto reads it and held against the record of the run."""

import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tiermem.cli.main import main
from tiermem.config import SGD, Hierarchy
from tiermem.embedding import EmbeddingStore, Lookup, TableConfig
from tiermem.report import chrome_trace, chrome_trace_text

TINY = """
[data]
name = "synthetic"
samples = 900
tables = 2
rows_per_table = 600

[model]
dim = 8
dense_layers = [4]
over_layers = [4]

[train]
batch_size = 48
dense_lr = 1e-2
prefetch_distance = 2
snapshot_every_steps = 4

[train.optimizer]
name = "rowwise_adagrad"
lr = 0.05
eps = 1e-10

[hierarchy]

[[hierarchy.tiers]]
name = "dram"
device = "dram-ddr4-2933"
cache = 0.1

[[hierarchy.tiers]]
name = "optane"
device = "optane-p4800x"
cache = 0.3

[[hierarchy.tiers]]
name = "nand"
device = "nand-p3700"

[compute]
flops_per_s = 1e12
bytes_per_s = "100GB/s"
source = "assumed: for a test"
"""
STEPS = 15
STAGES = {
    "wait for prefetch": "wait",
    "gather": "gather",
    "dense forward/backward": "dense",
    "update": "update",
    "write-back": "write_back",
}


class Reader:
    """What Perfetto makes of a file: whole nanoseconds, nested slices, tracks, counters."""

    def __init__(self, text: str) -> None:
        self.slices: list[dict[str, Any]] = []
        self.transfers: list[dict[str, Any]] = []
        self.counters: dict[tuple[str, str], list[int]] = defaultdict(list)
        self.processes: dict[int, str] = {}
        self.threads: dict[tuple[int, int], str] = {}
        self.last_ns = 0
        stacks: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
        open_transfers: dict[tuple[int, str, str, str], dict[str, Any]] = {}
        before_us = 0.0
        for event in json.loads(text)["traceEvents"]:
            assert {"name", "ph", "ts", "pid", "tid", "args"} <= set(event), event
            assert event["ts"] >= before_us, "events are in order"
            before_us = event["ts"]
            now_ns = int(event["ts"] * 1000)
            place = (event["pid"], event["tid"])
            key = (event["pid"], event.get("cat", ""), event.get("id", ""), event["name"])
            match event["ph"]:
                case "M":
                    self._name(event)
                case "X":
                    end_ns = now_ns + int(event["dur"] * 1000)
                    self._slice(stacks[place], event, now_ns, end_ns)
                case "b":
                    assert key not in open_transfers
                    open_transfers[key] = {"begin_ns": now_ns, "pid": event["pid"], **event["args"]}
                case "e":
                    self.transfers.append({"end_ns": now_ns, **open_transfers.pop(key)})
                case "C":
                    ((series, value),) = event["args"].items()
                    assert value >= 0
                    self.counters[self.processes[event["pid"]], f"{event['name']} {series}"].append(value)
                case other:
                    pytest.fail(f"unknown phase {other}")
            self.last_ns = max(self.last_ns, now_ns, *(each["end_ns"] for each in self.slices[-1:]))
        assert not open_transfers
        assert {event["pid"] for event in self.transfers} <= set(self.processes)

    def _name(self, event: dict[str, Any]) -> None:
        if event["name"] == "process_name":
            self.processes[event["pid"]] = event["args"]["name"]
        elif event["name"] == "thread_name":
            self.threads[event["pid"], event["tid"]] = event["args"]["name"]

    def _slice(self, stack: list[dict[str, Any]], event: dict[str, Any], now_ns: int, end_ns: int) -> None:
        while stack and stack[-1]["end_ns"] <= now_ns:
            stack.pop()
        assert not stack or end_ns <= stack[-1]["end_ns"], "a slice ends within the one around it"
        found = {"name": event["name"], "begin_ns": now_ns, "end_ns": end_ns, "args": event["args"]}
        found["within"] = stack[-1]["args"]["step"] if stack else None
        stack.append(found)
        self.slices.append(found)

    def requests(self, tier: int, operation: str, *, finished: bool = False) -> int:
        """Of all transfers of a tier, or of those that are known to have ended."""
        return sum(
            transfer["requests"]
            for transfer in self.transfers
            if transfer["pid"] == 1 + tier
            and transfer["operation"] == operation
            and not (finished and transfer.get("unfinished"))
        )


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def _train(*arguments: str | Path) -> None:
    assert main(["train", *map(str, arguments), "--quiet"]) == 0


def _record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "record.json").read_text())
    return found


def _check_steps(reader: Reader, record: dict[str, Any], first: int = 1) -> None:
    """One slice a step, in order and apart; the stages in order within it; their sums are the run's."""
    result = record["results"]["runs"]["synthetic"]
    steps = [each for each in reader.slices if each["name"] == "step"]
    assert [step["args"]["step"] for step in steps] == list(range(first, STEPS + 1))
    assert all(a["end_ns"] <= b["begin_ns"] for a, b in itertools.pairwise(steps))
    sums: dict[str, int] = defaultdict(int)
    for step in steps:
        assert step["within"] is None
        inner = [each for each in reader.slices if each["within"] == step["args"]["step"]]
        assert [each["name"] for each in inner] == [
            name for name in STAGES if step["args"][f"{name}, ns"] > 0
        ]
        durations = {each["name"]: each["end_ns"] - each["begin_ns"] for each in inner}
        assert sum(durations.values()) == step["end_ns"] - step["begin_ns"]
        for name, duration_ns in durations.items():
            assert duration_ns == step["args"][f"{name}, ns"]
            sums[name] += duration_ns
    if first == 1:
        assert sum(sums.values()) == result["train_ns"]
        means = {STAGES[name]: sums[name] // STEPS for name in STAGES}
        assert means == result["stage_mean_ns"]


@pytest.mark.parametrize("clock", ["virtual", "wall"])
def test_a_timeline_is_what_the_record_says(tiny: Path, tmp_path: Path, clock: str) -> None:
    chosen: list[str | Path] = ["--config", tiny, "--set", f"hierarchy.clock={clock}"]
    file = tmp_path / "deep" / "timeline.json"
    _train(*chosen, "--out", tmp_path / "run", "--timeline", file)
    reader = Reader(file.read_text())
    record = _record(tmp_path / "run")
    assert reader.processes == {1: "tiermem: synthetic", 2: "tier 1: optane", 3: "tier 2: nand"}
    assert reader.threads[1, 1] == "trainer"
    _check_steps(reader, record)
    tiers = record["results"]["runs"]["synthetic"]["store"]["tiers"]
    for number, tier in enumerate(tiers[1:], 1):
        for operation, done in (("read", tier["device"]["reads"]), ("write", tier["device"]["writes"])):
            # A device counts what it completed; a batch may be under way when the run ends.
            asked = reader.requests(number, operation)
            assert done > 0
            assert done <= asked
            assert asked - done <= 0.1 * asked
        depth = reader.counters[f"tier {number}: {tier['name']}", "queue depth requests"]
        assert max(depth) > 1
        assert depth[-1] == 0
    dirty = reader.counters["tiermem: synthetic", "dirty rows rows"]
    assert dirty[-1] == record["results"]["runs"]["synthetic"]["store"]["dirty_rows"]
    assert max(dirty) > 0
    _train(*chosen, "--out", tmp_path / "without")
    assert _record(tmp_path / "without")["quality"] == record["quality"]
    if clock == "virtual":
        assert _record(tmp_path / "without")["results_digest"] == record["results_digest"]


def test_transfers_overlap_with_the_dense_work_of_other_batches(tiny: Path, tmp_path: Path) -> None:
    """What the picture is for: with prefetch some transfer runs under a dense stage."""
    file = tmp_path / "timeline.json"
    _train("--config", tiny, "--out", tmp_path / "run", "--timeline", file)
    reader = Reader(file.read_text())
    dense = [each for each in reader.slices if each["name"] == "dense forward/backward"]
    assert any(
        transfer["begin_ns"] < stage["end_ns"] and stage["begin_ns"] < transfer["end_ns"]
        for transfer in reader.transfers
        for stage in dense
    )


def test_of_a_drained_store_every_request_is_a_transfer() -> None:
    store = EmbeddingStore(
        [TableConfig(name="item", rows=5000, dim=16)],
        hierarchy=Hierarchy.load("dram-nand", budgets={"dram": 0.05}),
        optimizer=SGD(lr=0.1),
        timeline=True,
    )
    generator = torch.Generator().manual_seed(3)
    for number in range(12):
        # The last batch changes nothing, so nothing follows it; its wait ends after all before it.
        if number == 11:
            store.flush()
            store.advance(10**9)
        ids = torch.randint(0, 5000, (200,), generator=generator)
        ticket = store.prefetch([Lookup(0, ids, torch.arange(200))])
        store.wait(ticket)
        pooled = store.gather(ticket, 0)
        if number < 11:
            store.backward(ticket, 0, pooled, lr=0.1)
        store.release(ticket)
    device = store.stats().tiers[1].device
    timeline = store.timeline()
    store.close()
    text = chrome_trace_text(chrome_trace([], ["dram", "nand"], timeline, name="", clock="virtual"))
    reader = Reader(text)
    assert not any(transfer.get("unfinished") for transfer in reader.transfers)
    assert (reader.requests(1, "read"), reader.requests(1, "write")) == (device.reads, device.writes)
    assert device.reads > 0
    assert device.writes > 0
    moved = {"read": 0, "write": 0}
    for transfer in reader.transfers:
        moved[transfer["operation"]] += transfer["bytes"]
    assert moved == {"read": device.read_bytes, "write": device.write_bytes}


def test_a_run_that_goes_on_has_the_steps_since(tiny: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "run", tmp_path / "timeline.json"
    _train("--config", tiny, "--set", "train.keep_latest=9", "--out", out)
    whole = _record(out)
    (out / "record.json").unlink()
    _train("--resume", out / "snapshots" / "step-000000008", "--timeline", file)
    reader, record = Reader(file.read_text()), _record(out)
    assert record["quality"] == whole["quality"]
    _check_steps(reader, record, first=9)
    _train("--resume", out / "snapshots" / "step-000000012", "--timeline", file)
    _check_steps(Reader(file.read_text()), _record(out), first=13)


def test_a_timeline_overwrites_nothing_of_the_run(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    _train("--config", tiny, "--out", out)
    record = (out / "record.json").read_text()
    capsys.readouterr()
    new = ["--config", tiny, "--out", tmp_path / "new"]
    resume = ["--resume", out / "snapshots" / "step-000000012"]
    shared = tmp_path / "shared.json"
    rows = next(path for path in (out / "snapshots" / "step-000000012").iterdir() if path.is_file())
    for arguments, code, message in (
        ([*new, "--timeline", tiny], 2, "is what is read here"),
        ([*new, "--timeline", tmp_path / "new" / "record.json"], 2, "something else is written"),
        ([*new, "--timeline", shared, "--json", shared], 2, "something else is written"),
        ([*new, "--timeline", shared, "--capture-trace", shared], 2, "something else is written"),
        ([*new, "--timeline", "/proc/nothing/t.json"], 1, "cannot write /proc/nothing/t.json"),
        ([*new, "--timeline", tmp_path], 1, f"cannot write {tmp_path}: Is a directory"),
        ([*resume, "--timeline", rows], 2, "is what is read here"),
        ([*resume, "--timeline", out / "experiment.json"], 2, "something else is written"),
        ([*resume, "--timeline", "/proc/nothing/t.json"], 1, "cannot write /proc/nothing/t.json"),
    ):
        assert main(["train", *map(str, arguments), "--quiet"]) == code, arguments
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "tiny.toml"]
    assert (out / "record.json").read_text() == record
