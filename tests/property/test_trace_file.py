"""Trace files: what is written is read, by us and by a reader made from the description of the format alone.

What is damaged is refused, and never read as something else.
"""

import json
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings
from tiermem.data.accesses import Bags, Batch, TraceTable
from tiermem.data.trace_file import TraceReader, TraceTotals, TraceWriter
from tiermem.errors import ConfigError, CorruptionError, DeviceError, TiermemError

Plain = list[list[list[list[int]]]]
"""Batches of tables of bags of ids."""

ROWS = st.one_of(st.sampled_from([1, 2, 2**32 - 1, 2**32, 2**32 + 1, 2**40]), st.integers(1, 2**40))
TABLES = (TraceTable("user", 9, 64), TraceTable("item", 2**33, 4096))
BATCHES: Plain = [
    [[[0, 8], [], [3]], [[2**33 - 1], [7], [2**32]]],
    [[], [[]]],
    [[[1], [2]], [[], [5, 5, 6]]],
]


@st.composite
def traces(draw: st.DrawFn) -> tuple[tuple[TraceTable, ...], str, Plain]:
    """Tables, an origin, and batches, in which the bags of a table may all have one length."""
    names = draw(st.lists(st.text(max_size=8), min_size=1, max_size=3, unique=True))
    tables = tuple(TraceTable(name, draw(ROWS), draw(st.integers(1, 2**30))) for name in names)
    batches = []
    for _ in range(draw(st.integers(0, 4))):
        batch = []
        for table in tables:
            ids = st.one_of(st.integers(0, table.rows - 1), st.just(table.rows - 1))
            length = draw(st.one_of(st.none(), st.integers(0, 3)))
            bag = st.lists(ids, min_size=length or 0, max_size=5 if length is None else length)
            batch.append(draw(st.lists(bag, max_size=5)))
        batches.append(batch)
    return tables, draw(st.text(max_size=20)), batches


def _bags(bags: list[list[int]]) -> Bags:
    return Bags(
        np.array([len(bag) for bag in bags], dtype=np.int64),
        np.array([row for bag in bags for row in bag], dtype=np.int64),
    )


def _batch(tables: list[list[list[int]]]) -> Batch:
    return tuple(_bags(bags) for bags in tables)


def _flat(batches: Plain) -> list[list[tuple[list[int], list[int]]]]:
    """Lengths and ids of every table and batch."""
    return [
        [([len(bag) for bag in bags], [row for bag in bags for row in bag]) for bags in batch]
        for batch in batches
    ]


def _read(path: Path) -> list[list[tuple[list[int], list[int]]]]:
    return [[(bags.lengths.tolist(), bags.ids.tolist()) for bags in batch] for batch in TraceReader(path)]


def _write(
    path: Path, batches: Plain, tables: tuple[TraceTable, ...] = TABLES, origin: str = "by hand"
) -> bytes:
    with TraceWriter(path, tables, origin=origin) as writer:
        for batch in batches:
            writer.write(_batch(batch))
    return path.read_bytes()


def _witness(contents: bytes) -> tuple[dict[str, Any], list[list[tuple[list[int], list[int]]]]]:
    """A reader made from docs/traces.md, section "The format", and from nothing else."""
    at = 0

    def take(form: str) -> tuple[Any, ...]:
        nonlocal at
        at += struct.calcsize(f"<{form}")
        return struct.unpack_from(f"<{form}", contents, at - struct.calcsize(f"<{form}"))

    magic, version, length = take("8sII")
    assert (magic, version) == (b"tmtrace\n", 1)
    description = json.loads(take(f"{length}s")[0])
    assert zlib.crc32(contents[:at]) == take("I")[0]
    batches: list[list[tuple[list[int], list[int]]]] = []
    while True:
        kind, crc = take("4sI")
        (size,) = struct.unpack_from("<Q", contents, at)
        assert zlib.crc32(kind + contents[at : at + 8 + size]) == crc
        end = at + 8 + size
        at += 8
        if kind == b"END.":
            counts = take("QQQ")
            assert at == end == len(contents)
            bags = sum(len(lengths) for batch in batches for lengths, _ in batch)
            assert counts == (len(batches), bags, sum(len(ids) for batch in batches for _, ids in batch))
            return description, batches
        assert kind == b"BATC"
        batches.append([])
        for table in description["tables"]:
            form, bags, ids = take("BII")
            lengths = list(take(f"{bags}I")) if form == 1 else list(take("I")) * bags
            assert form in (0, 1)
            batches[-1].append((lengths, list(take(f"{ids}{'Q' if table['rows'] > 2**32 else 'I'}"))))
        assert at == end


@given(traces())
@example(((TraceTable("t", 1, 1),), "", [[[[]] * 3], [[[0]]], [[]]]))
@settings(deadline=None, max_examples=150)
def test_what_is_written_is_read(trace: tuple[tuple[TraceTable, ...], str, Plain]) -> None:
    tables, origin, batches = trace
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.tmtrace"
        writer = TraceWriter(path, tables, origin=origin)
        for batch in batches:
            writer.write(_batch(batch))
        assert not path.exists(), "a trace appears when it is whole"
        totals = writer.finish()
        assert [each.name for each in Path(folder).iterdir()] == ["t.tmtrace"]
        reader = TraceReader(path)
        assert (reader.tables, reader.origin) == (tables, origin)
        assert _read(path) == _flat(batches)
        assert sum(1 for _ in reader) == sum(1 for _ in reader) == len(batches), "each time from the first on"
        bags = [bag for batch in batches for table in batch for bag in table]
        assert totals == TraceTotals(len(batches), len(bags), sum(map(len, bags)))
        description, read = _witness(path.read_bytes())
        assert read == _flat(batches)
        assert description == {
            "tables": [{"name": t.name, "rows": t.rows, "row_bytes": t.row_bytes} for t in tables],
            "origin": origin,
        }


def test_arrays_in_steps_are_written_as_their_values(tmp_path: Path) -> None:
    lengths, ids = np.array([2, 9, 0, 9, 1, 9]), np.array([5, 4, 3, 2, 1, 0])
    with TraceWriter(tmp_path / "t", TABLES[:1], origin="") as writer:
        writer.write((Bags(lengths[::2], ids[::-2]),))
        writer.write((Bags(np.array([1], dtype=np.int32), np.array([8], dtype=np.uint8)),))
    assert _read(tmp_path / "t") == [[([2, 0, 1], [0, 2, 4])], [([1], [8])]]


def _frames(contents: bytes) -> list[int]:
    """Where frames start, and the length of the file."""
    starts = [20 + struct.unpack_from("<I", contents, 12)[0]]
    while starts[-1] < len(contents):
        starts.append(starts[-1] + 16 + struct.unpack_from("<Q", contents, starts[-1] + 8)[0])
    assert starts[-1] == len(contents)
    return starts


def _refused(path: Path, contents: bytes, kind: type[TiermemError] = CorruptionError) -> tuple[int, str]:
    """How many batches a damaged file gives, all of them right, before it is refused; and the sentence."""
    path.write_bytes(contents)
    read: list[list[tuple[list[int], list[int]]]] = []
    with pytest.raises(TiermemError) as caught:
        read.extend(
            [(bags.lengths.tolist(), bags.ids.tolist()) for bags in batch] for batch in TraceReader(path)
        )
    assert caught.type is kind, caught.value
    assert read == _flat(BATCHES)[: len(read)]
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return len(read), message


def _whole(read: int, at: int, frames: list[int], message: str) -> None:
    """Damage at a place of a frame leaves the frames before it, and its frame or a place in it is named."""
    frame = sum(start <= at for start in frames[:-1]) - 1
    assert read == max(0, frame)
    named = int(message.rpartition("offset=")[2].rstrip(")"))
    assert named in range(frames[frame], frames[frame + 1]) if frame >= 0 else named < frames[0]


def test_a_file_that_was_cut_anywhere_is_corrupt(tmp_path: Path) -> None:
    contents = _write(tmp_path / "t", BATCHES)
    frames = _frames(contents)
    assert len(frames) == len(BATCHES) + 2
    for length in range(len(contents)):
        read, message = _refused(tmp_path / "cut", contents[:length])
        _whole(read, length, frames, message)


def test_a_file_in_which_any_byte_changed_is_refused(tmp_path: Path) -> None:
    contents = _write(tmp_path / "t", BATCHES)
    frames = _frames(contents)
    for at in range(len(contents)):
        for flip in (1, 128, 255):
            changed = bytearray(contents)
            changed[at] ^= flip
            version = 8 <= at < 12
            read, message = _refused(
                tmp_path / "bad", bytes(changed), DeviceError if version else CorruptionError
            )
            if version:
                found = struct.unpack_from("<I", changed, 8)[0]
                assert f"version {found}; this build reads version 1" in message
            else:
                _whole(read, at, frames, message)


def test_more_behind_the_end_and_frames_that_moved_are_corrupt(tmp_path: Path) -> None:
    contents = _write(tmp_path / "t", BATCHES)
    head, first, second, third, end, size = _frames(contents)[0], *_frames(contents)[1:], len(contents)
    assert size == third + 40 == end, "the last frame holds three counts"
    parts = [contents[:head], contents[head:first], contents[first:second], contents[second:third]]
    last = contents[third:]
    assert _refused(tmp_path / "bad", contents + b"\0")[0] == 3
    assert _refused(tmp_path / "bad", contents + last)[0] == 3
    assert _refused(tmp_path / "bad", b"".join(parts[:3]) + last)[0] == 2, "a frame is gone"
    (tmp_path / "bad").write_bytes(b"".join([*parts, parts[2], last]))
    with pytest.raises(CorruptionError, match=f"offset={third + len(parts[2])}"):
        list(TraceReader(tmp_path / "bad"))


def _framed(kind: bytes, payload: bytes) -> bytes:
    body = struct.pack("<Q", len(payload)) + payload
    return kind + struct.pack("<I", zlib.crc32(kind + body)) + body


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        pytest.param(
            b"BATC", struct.pack("<BIIIIIBIII", 0, 2, 2, 1, 1, 9, 0, 0, 0, 0), id="id-beyond-the-table"
        ),
        pytest.param(b"BATC", struct.pack("<BIIIIIBIII", 0, 2, 2, 2, 1, 2, 0, 0, 0, 0), id="too-few-ids"),
        pytest.param(
            b"BATC", struct.pack("<BIIIIIBIII", 1, 2, 1, 1, 1, 2, 0, 0, 0, 0), id="too-many-lengths"
        ),
        pytest.param(b"BATC", struct.pack("<BIIIIIBIII", 2, 2, 2, 1, 1, 2, 0, 0, 0, 0), id="unknown-form"),
        pytest.param(b"BATC", struct.pack("<BIIIII", 0, 2, 2, 1, 1, 2), id="a-table-is-missing"),
        pytest.param(b"BATC", struct.pack("<BIIIBIIIB", 0, 0, 0, 0, 0, 0, 0, 0, 0), id="a-byte-too-many"),
        pytest.param(b"BATC", struct.pack("<BIII", 1, 2**32 - 1, 2**32 - 1, 1), id="lengths-of-another-file"),
        pytest.param(b"BATC", struct.pack("<BIII", 0, 2**26 + 1, 0, 0), id="more-bags-than-possible"),
        pytest.param(b"BATC", b"", id="nothing"),
        pytest.param(b"END.", struct.pack("<QQ", 0, 0), id="counts-are-missing"),
        pytest.param(b"END.", struct.pack("<QQQ", 1, 0, 0), id="counts-are-wrong"),
        pytest.param(b"MORE", b"", id="unknown-kind"),
    ],
)
def test_frames_that_fit_their_checksum_and_not_the_format_are_corrupt(
    tmp_path: Path, kind: bytes, payload: bytes
) -> None:
    contents = _write(tmp_path / "t", [])
    head = contents[: _frames(contents)[0]]
    read, message = _refused(tmp_path / "bad", head + _framed(kind, payload) + contents[len(head) :])
    assert read == 0
    assert f"offset={len(head)}" in message


_READ_IN_2_GIB = """
import resource, sys
from pathlib import Path
from tiermem.data.trace_file import TraceReader
from tiermem.errors import CorruptionError
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**31, taken + 2**31))
try:
    list(TraceReader(sys.argv[1]))
except CorruptionError:
    print("refused")
"""


def test_a_small_frame_that_claims_billions_of_ids_takes_no_memory(tmp_path: Path) -> None:
    # Bags and ids of form 0 fit each other, but the ids are not there.
    contents = _write(tmp_path / "t", [])
    head = contents[: _frames(contents)[0]]
    frame = _framed(b"BATC", struct.pack("<BIII", 0, 2**32 - 1, 2**32 - 1, 1))
    (tmp_path / "bad").write_bytes(head + frame + contents[len(head) :])
    command = [sys.executable, "-c", _READ_IN_2_GIB, str(tmp_path / "bad")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


def test_many_empty_bags_in_a_small_frame_are_read(tmp_path: Path) -> None:
    # Form 0 states 100,000 bags in 13 bytes; that is right, and read.
    contents = _write(tmp_path / "t", [[[[]] * 100_000, []]])
    assert len(contents) < 300
    assert _read(tmp_path / "t") == [[([0] * 100_000, []), ([], [])]]


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "not json",
        '{"tables": [{"name": "t", "rows": -1, "row_bytes": 1}], "origin": ""}',
        '{"tables": [{"name": "t", "rows": 1, "row_bytes": 1}], "origin": 1}',
        '{"tables": [{"name": "t", "rows": 1, "row_bytes": 1, "more": 1}], "origin": ""}',
        '{"tables": [], "origin": ""}',
        '{"tables": [{"name": "t", "rows": 0, "row_bytes": 1}], "origin": ""}',
        '{"tables": [{"name": "t", "rows": 1, "row_bytes": 0}], "origin": ""}',
    ],
)
def test_descriptions_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    head = b"tmtrace\n" + struct.pack("<II", 1, len(text)) + text.encode()
    (tmp_path / "t").write_bytes(
        head + struct.pack("<I", zlib.crc32(head)) + _framed(b"END.", struct.pack("<QQQ", 0, 0, 0))
    )
    with pytest.raises((CorruptionError, ConfigError)) as caught:
        TraceReader(tmp_path / "t")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "contents", [b"", b"tmtrace", b"PAR1" * 100, b"\0" * 1000, b"tmtrace\r\n" + b"x" * 99]
)
def test_other_files_are_refused_in_one_sentence(tmp_path: Path, contents: bytes) -> None:
    read, message = _refused(tmp_path / "other", contents)
    assert read == 0
    assert "trace of tiermem" in message
