"""Importing execution traces that torch itself records here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiermem.data.accesses import Batch, Source
from tiermem.data.importers import ImportOptions, open_source
from tiermem.errors import ConfigError, CorruptionError, InputError, TiermemError


def _refused(kind: type[TiermemError], name: str, *paths: Path, **options: Any) -> str:
    """The sentence with which an import is refused, before any batch is made."""
    with pytest.raises(kind) as caught:
        open_source(name, paths, ImportOptions(**options))
    assert caught.type is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _batches(source: Source) -> list[list[tuple[list[int], list[int]]]]:
    def listed(batch: Batch) -> list[tuple[list[int], list[int]]]:
        return [(bags.lengths.tolist(), bags.ids.tolist()) for bags in batch]

    return [listed(batch) for batch in source.batches()]


class TestExecutionTrace:
    @pytest.fixture
    def record(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[Callable[[], object]], Path]:
        """A function that runs another one under the observer."""

        def run(body: Callable[[], object]) -> Path:
            name = "ENABLE_PYTORCH_EXECUTION_TRACE_SAVE_INTEGRAL_TENSOR_DATA"
            monkeypatch.setenv(name, "aten::embedding_bag")
            path = tmp_path / "trace.json"
            observer = torch.profiler.ExecutionTraceObserver().register_callback(str(path))
            observer.set_extra_resource_collection(True)
            observer.start()
            try:
                body()
            finally:
                observer.stop()
                # The dumps are there; collecting kernels as well would import the compiler for seconds.
                observer.set_extra_resource_collection(False)
                observer.unregister_callback()
            return path

        return run

    def test_a_training_loop(self, record: Callable[..., Path]) -> None:
        a = torch.nn.EmbeddingBag(100, 8, mode="sum")
        b = torch.nn.EmbeddingBag(50, 4, include_last_offset=True)
        c = torch.nn.EmbeddingBag(30, 16, mode="sum")

        def train() -> None:
            for step in range(3):
                loss = a(torch.arange(5) + step, torch.tensor([0, 2, 2])).sum()
                loss = loss + b(torch.arange(6) + step, torch.tensor([0, 1, 5])).sum()
                if step != 1:
                    loss = loss + c(torch.tensor([[1, 2], [3, 4], [5, 5]]) + step).sum()
                loss.backward()
                with torch.no_grad():
                    for module in (a, b, c):
                        module.weight -= 0.1

        source = open_source("execution-trace", [record(train)], ImportOptions())
        assert [(table.name, table.rows, table.row_bytes) for table in source.tables] == [
            ("table_0", 100, 32),
            ("table_1", 50, 16),
            ("table_2", 30, 64),
        ]
        expected = []
        for step in range(3):
            third = ([2, 2, 2], [i + step for i in (1, 2, 3, 4, 5, 5)]) if step != 1 else ([], [])
            expected.append(
                [
                    ([2, 0, 3], [i + step for i in range(5)]),
                    # With `include_last_offset` the id after the last offset is not looked up.
                    ([1, 4], [i + step for i in range(5)]),
                    third,
                ]
            )
        assert _batches(source) == expected
        assert _batches(source) == expected

    def test_no_ids_and_32_bit_ids(self, record: Callable[..., Path]) -> None:
        weight = torch.randn(20, 4)

        def look_up() -> None:
            embedding_bag = torch.nn.functional.embedding_bag
            embedding_bag(torch.empty(0, dtype=torch.int64), weight, torch.zeros(2, dtype=torch.int64))
            embedding_bag(torch.arange(3, dtype=torch.int32), weight, torch.tensor([0, 1], dtype=torch.int32))

        source = open_source("execution-trace", [record(look_up)], ImportOptions())
        assert _batches(source) == [[([0, 0], [])], [([1, 2], [0, 1, 2])]]

    def test_tables_that_share_a_storage(self, record: Callable[..., Path]) -> None:
        weight = torch.randn(20, 4)

        def look_up() -> None:
            for part in (weight[:5], weight[5:]):
                torch.nn.functional.embedding_bag(torch.arange(3), part, torch.tensor([0]))

        source = open_source("execution-trace", [record(look_up)], ImportOptions())
        assert [table.rows for table in source.tables] == [5, 15]
        assert _batches(source) == [[([3], [0, 1, 2])] * 2]

    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            # Torch dumps what is in memory, so that these dumps hold other ids than those looked up.
            (torch.arange(10)[::2], "has stride 2"),
            (torch.arange(10)[3:], "starts at element 3 of its storage"),
        ],
    )
    def test_views_whose_dump_is_wrong(
        self, record: Callable[..., Path], ids: torch.Tensor, message: str
    ) -> None:
        weight = torch.randn(20, 4)
        path = record(lambda: torch.nn.functional.embedding_bag(ids, weight, torch.tensor([0])))
        assert message in _refused(InputError, "execution-trace", path)

    def test_traces_that_cannot_be_read(self, tmp_path: Path, record: Callable[..., Path]) -> None:
        bag = torch.nn.EmbeddingBag(10, 4)
        path = record(lambda: bag(torch.tensor([1, 2, 9]), torch.tensor([0, 2])))
        assert _batches(open_source("execution-trace", [path], ImportOptions())) == [[([2, 1], [1, 2, 9])]]
        ids, offsets = sorted((tmp_path / "trace_resources").iterdir())

        def refused(kind: type[TiermemError], **options: Any) -> str:
            return _refused(kind, "execution-trace", path, **options)

        assert "leave it out" in refused(ConfigError, rows=5)
        assert "import one" in _refused(ConfigError, "execution-trace", path, path)
        np.array([1, 10, 2]).tofile(ids)
        assert "id 10 at byte offset 8 is not in [0, 10)" in refused(InputError)
        np.array([1, -1, 2]).tofile(ids)
        assert "id -1 at byte offset 8" in refused(InputError)
        ids.write_bytes(bytes(20))
        assert "20 bytes, and the trace says 3 ids" in refused(CorruptionError)
        np.array([1, 2, 9]).tofile(ids)
        np.array([0, 4]).tofile(offsets)
        assert f"{offsets.name}: bag 1 has -1 ids" in refused(InputError)
        offsets.unlink()
        assert f"{offsets.name} with 2 ids is missing; record again with ENABLE_" in refused(InputError)
        trace = json.loads(path.read_text())
        path.write_text(json.dumps({"nodes": [{"id": 1, "name": "aten::embedding"}]}))
        assert "with embedding in the name: aten::embedding)" in refused(InputError)
        path.write_text(json.dumps({"nodes": [{"id": 1, "name": "aten::embedding_bag", "inputs": []}]}))
        assert "node 1 has not the inputs" in refused(InputError)
        path.write_text("[]")
        assert 'has no "nodes"' in refused(InputError)
        path.write_text(json.dumps(trace)[:-50])
        assert "unregister_callback" in refused(CorruptionError)
        path.write_text("")
        assert "is no JSON" in refused(CorruptionError)
