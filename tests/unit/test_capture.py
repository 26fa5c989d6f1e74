"""Capturing what a model looks up, against the tensors that were given to it."""

import doctest

import numpy as np
import pytest
import torch
from tiermem.data import capture as capture_module
from tiermem.data.accesses import Batch, TraceTable
from tiermem.data.capture import capture_embedding_bags
from tiermem.errors import ClosedError, ConfigError, InputError


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bags = torch.nn.ModuleList(
            [
                torch.nn.EmbeddingBag(100, 8, mode="sum", padding_idx=0),
                torch.nn.EmbeddingBag(50, 4, include_last_offset=True),
            ]
        )
        self.words = torch.nn.Embedding(20, 16, dtype=torch.float64)
        self.head = torch.nn.Linear(4, 1)


def _listed(batches: list[Batch]) -> list[list[tuple[list[int], list[int]]]]:
    return [[(bags.lengths.tolist(), bags.ids.tolist()) for bags in batch] for batch in batches]


def test_a_training_loop() -> None:
    model = Model()
    batches: list[Batch] = []
    ids = torch.tensor([7, 0, 3, 4])
    with capture_embedding_bags(model, batches.append) as capture:
        for step in range(2):
            # Ids behind the last offset are not looked up, and called in another order than defined.
            model.bags[1](input=torch.arange(5) + step, offsets=torch.tensor([0, 1, 1, 4]))
            model.bags[0](ids, torch.tensor([0, 2, 2]))
            model.words(torch.tensor([[1, 2], [3, 1]]))
            # The same memory is used again, as a loader with pinned memory does.
            ids += 1
        assert len(batches) == 1, "the second step is not over"
    assert capture.tables() == (
        TraceTable("bags.0", 100, 32),
        TraceTable("bags.1", 50, 16),
        TraceTable("words", 20, 128),
    )
    words = ([1, 1, 1, 1], [1, 2, 3, 1])
    assert _listed(batches) == [
        [([2, 0, 2], [7, 0, 3, 4]), ([1, 0, 3], [0, 1, 2, 3]), words],
        [([2, 0, 2], [8, 1, 4, 5]), ([1, 0, 3], [1, 2, 3, 4]), words],
    ]
    assert all(array.dtype == np.int64 for bags in batches[0] for array in (bags.lengths, bags.ids))
    model.words(torch.tensor([1]))
    assert len(batches) == 2, "no hook is left"
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_batches_end_where_they_are_told_to() -> None:
    model = Model()
    batches: list[Batch] = []
    with capture_embedding_bags(model, batches.append) as capture:
        capture.end_batch()
        model.words(torch.tensor(3))
        capture.end_batch()
        capture.end_batch()
        model.bags[0](torch.tensor([[1, 2], [3, 4]], dtype=torch.int32))
        model.bags[1](torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
        capture.end_batch()
    none: tuple[list[int], list[int]] = ([], [])
    assert _listed(batches) == [[none, none, ([1], [3])], [([2, 2], [1, 2, 3, 4]), none, none]]


def test_a_single_module_is_named_after_its_class() -> None:
    capture = capture_embedding_bags(torch.nn.Embedding(5, 2), print)
    assert capture.tables() == (TraceTable("Embedding", 5, 8),)


def test_an_exception_drops_the_batch_and_removes_the_hooks() -> None:
    model = Model()
    batches: list[Batch] = []
    capture = capture_embedding_bags(model, batches.append)

    def fail() -> None:
        with capture:
            model.words(torch.tensor([1]))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert batches == []
    assert not any(module._forward_pre_hooks for module in model.modules())
    capture.end_batch()
    assert batches == []
    with pytest.raises(ClosedError, match="once"):
        capture.__enter__()


def test_a_writer_that_fails_stops_the_model_and_leaves_no_hooks() -> None:
    model = Model()

    def write(batch: Batch) -> None:
        raise OSError("full")

    def call(times: int) -> None:
        with capture_embedding_bags(model, write):
            for _ in range(times):
                model.words(torch.tensor([1]))

    with pytest.raises(OSError, match="full"):
        call(2)
    with pytest.raises(OSError, match="full"):
        call(1)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("ids", "offsets", "message"),
    [
        ([1, 100], [0], r"bags\.0: id 100 at position 1 is not in \[0, 100\)"),
        ([-1, 2], [0], r"bags\.0: id -1 at position 0"),
        # Torch itself does not notice offsets that fall, and adds up rows from elsewhere.
        ([1, 2, 3], [0, 3, 2], r"bags\.0: bag 1 has -1 ids"),
        ([1, 2, 3], [0, 4], r"bags\.0: bag 1 has -1 ids"),
        ([1, 2, 3], [1], r"bags\.0: the first offset is 1"),
        ([1, 2, 3], None, r"bags\.0: the input has 1 dimensions"),
    ],
)
def test_input_that_is_refused(ids: list[int], offsets: list[int] | None, message: str) -> None:
    model = Model()
    batches: list[Batch] = []

    def call() -> None:
        with capture_embedding_bags(model, batches.append):
            model.words(torch.tensor([1]))
            model.bags[0](torch.tensor(ids), None if offsets is None else torch.tensor(offsets))

    with pytest.raises(InputError, match=message):
        call()
    assert batches == []


def test_last_offsets_that_are_refused() -> None:
    model = Model()
    for offsets in ([0, 4], [0, -1]):
        with (
            pytest.raises(InputError, match=r"bags\.1: the last offset"),
            capture_embedding_bags(model, print),
        ):
            model.bags[1](torch.tensor([1, 2, 3]), torch.tensor(offsets))


def test_a_model_without_embeddings() -> None:
    with pytest.raises(ConfigError, match="Linear has no EmbeddingBag"):
        capture_embedding_bags(torch.nn.Linear(2, 2), print)


def test_the_example_runs() -> None:
    found = doctest.testmod(capture_module, extraglobs={"torch": torch})
    assert found.attempted > 0
    assert found.failed == 0
