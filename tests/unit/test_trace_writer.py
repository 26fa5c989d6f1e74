"""Writing traces: nothing of a wrong batch is written, and nothing is left of a trace not finished."""

from pathlib import Path

import numpy as np
import pytest
from tiermem.data.accesses import Bags, Batch, TraceTable
from tiermem.data.trace_file import TraceReader, TraceWriter
from tiermem.errors import ClosedError, ConfigError, DeviceError, InputError

TABLES = (TraceTable("user", 9, 64), TraceTable("item", 2**33, 4096))


def _bags(bags: list[list[int]]) -> Bags:
    return Bags(
        np.array([len(bag) for bag in bags], dtype=np.int64),
        np.array([row for bag in bags for row in bag], dtype=np.int64),
    )


BATCHES: list[Batch] = [
    (_bags([[0, 8], [], [3]]), _bags([[2**33 - 1], [7], [2**32]])),
    (_bags([]), _bags([[]])),
    (_bags([[1], [2]]), _bags([[], [5, 5, 6]])),
]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((Bags(np.array([1]), np.array([9])), _bags([])), 'id 9 at position 0 is beyond table "user"'),
        ((_bags([[1]]), Bags(np.array([2]), np.array([1, 2**33]))), f"id {2**33} at position 1 is beyond"),
        ((Bags(np.array([1]), np.array([-1])), _bags([])), "the id at position 0 is -1"),
        ((_bags([[1]]), Bags(np.array([2, -1, 2]), np.array([1, 2, 3]))), "the length of bag 1 is -1"),
        ((Bags(np.array([2**32]), np.array([1])), _bags([])), f"the length of bag 0 is {2**32}"),
        ((Bags(np.array([1, 1]), np.array([1])), _bags([])), "add up to 2, but there are 1 ids"),
        ((Bags(np.array([1]), np.array([1, 2])), _bags([])), "add up to 1, but there are 2 ids"),
        ((_bags([]), Bags(np.array([], dtype=np.int64), np.array([1]))), "add up to 0, but there are 1 ids"),
        ((_bags([[1]]),), "bags of 1 tables, the trace has 2 tables"),
        ((_bags([[1]]),) * 3, "bags of 3 tables, the trace has 2 tables"),
        ((), "bags of 0 tables, the trace has 2 tables"),
    ],
)
def test_nothing_of_a_wrong_batch_is_written(tmp_path: Path, batch: Batch, message: str) -> None:
    with TraceWriter(tmp_path / "whole", TABLES, origin="by hand") as writer:
        for right in BATCHES:
            writer.write(right)
    with TraceWriter(tmp_path / "t", TABLES, origin="by hand") as writer:
        for right in BATCHES:
            with pytest.raises(InputError) as caught:
                writer.write(batch)
            assert message in str(caught.value)
            assert "\n" not in str(caught.value)
            writer.write(right)
    assert (tmp_path / "t").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ((), "from 1 to 1048576 tables"),
        ((TraceTable("t", 0),), 'table "t" has 0 rows'),
        ((TraceTable("t", 2**40 + 1),), f'table "t" has {2**40 + 1} rows'),
        ((TraceTable("t", 1, 0),), "have 0 bytes"),
        ((TraceTable("t", 1, 2**30 + 1),), f"have {2**30 + 1} bytes"),
        ((TraceTable("t", 1), TraceTable("t", 2)), 'two tables are called "t"'),
        ((TraceTable("t", -1),), "-1"),
    ],
)
def test_tables_that_are_not_possible_make_no_file(
    tmp_path: Path, tables: tuple[TraceTable, ...], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        TraceWriter(tmp_path / "t", tables, origin="")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before", [None, b"of somebody else"])
def test_an_error_while_writing_leaves_the_folder_as_it_was(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "t.tmtrace"
    if before is not None:
        path.write_bytes(before)
    writer = TraceWriter(path, TABLES, origin="")

    def work() -> None:
        with writer:
            # More than any buffer holds, so that bytes have reached the file.
            writer.write((_bags([[1] * 1_000_000]), _bags([])))
            assert len(list(tmp_path.iterdir())) == 1 + (before is not None)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert [each.read_bytes() for each in tmp_path.iterdir()] == ([] if before is None else [before])
    for use in (lambda: writer.write(BATCHES[0]), writer.finish):
        with pytest.raises(ClosedError):
            use()
    writer.abort()


def test_a_writer_that_is_forgotten_leaves_nothing(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "t", TABLES, origin="")
    writer.write(BATCHES[0])
    del writer
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_path_do_not_meet(tmp_path: Path) -> None:
    writers = [TraceWriter(tmp_path / "t", TABLES, origin=str(n)) for n in range(2)]
    for writer, batch in zip(writers, BATCHES, strict=False):
        writer.write(batch)
    for number, writer in enumerate(writers):
        writer.finish()
        assert TraceReader(tmp_path / "t").origin == str(number)
        (batch,) = TraceReader(tmp_path / "t")
        for found, written in zip(batch, BATCHES[number], strict=True):
            np.testing.assert_array_equal(found.lengths, written.lengths)
            np.testing.assert_array_equal(found.ids, written.ids)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_opened_is_refused_in_one_sentence(tmp_path: Path) -> None:
    for path, kind in ((tmp_path / "nothing", DeviceError), (tmp_path, ConfigError)):
        with pytest.raises(kind) as caught:
            TraceReader(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    for path, error in ((tmp_path / "no" / "t", DeviceError), (tmp_path, ConfigError)):
        with pytest.raises(error) as caught:
            TraceWriter(path, TABLES, origin="")
        assert str(path) in str(caught.value)
        assert list(tmp_path.iterdir()) == []
