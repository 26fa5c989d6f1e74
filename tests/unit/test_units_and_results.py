"""Quantities, digests, and files that are written whole or not at all."""

import doctest
import importlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiermem import results, units
from tiermem.errors import ConfigError, TiermemError
from tiermem.results import write_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64MiB", 64 * 2**20),
        ("1.5KiB", 1536),
        ("2 GB", 2 * 10**9),
        (17, 17),
        ("1e3kB", 10**6),
        ("1_000B", 1000),
    ],
)
def test_sizes(text: object, expected: int) -> None:
    assert units.parse_bytes(text) == expected


@pytest.mark.parametrize(
    "wrong", ["", "1", "MiB", "-1MiB", "1.5B", "1mib", -1, 1.5, True, None, "1GiB/s", "0x10B"]
)
def test_what_is_not_a_size_is_refused_in_one_sentence(wrong: object) -> None:
    with pytest.raises(ConfigError) as caught:
        units.parse_bytes(wrong)
    assert "\n" not in str(caught.value)


def test_durations_and_bandwidths() -> None:
    assert units.parse_duration_ns("1.5us") == 1500
    assert units.parse_bytes_per_s("3GiB/s") == 3 * 2**30
    with pytest.raises(ConfigError, match="not a whole number"):
        units.parse_duration_ns("0.5ns")


@given(st.integers(0, 2**60))
def test_integers_are_their_own_quantity(value: int) -> None:
    assert units.parse_bytes(value) == value
    assert units.parse_bytes(f"{value}B") == value


@pytest.mark.parametrize(
    "name",
    [
        "tiermem.units",
        "tiermem.results",
        "tiermem.config.base",
        "tiermem.config.hierarchy",
        "tiermem.emulator.device",
        "tiermem.embedding.bag",
        "tiermem.embedding.collection",
        "tiermem.models.mlp",
    ],
)
def test_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    names = {**vars(module), "torch": importlib.import_module("torch")}
    found = doctest.testmod(module, extraglobs=names)
    assert found.failed == 0
    assert found.attempted > 0


def test_a_digest_ignores_what_is_beyond_nine_digits_and_the_order_of_keys() -> None:
    assert results.digest({"a": 1, "b": 0.1}) == results.digest({"b": 0.1 + 1e-12, "a": 1})
    assert results.digest({"a": 1}) != results.digest({"a": 2})


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "file.txt"
    results.write_text(target, "whole")
    assert target.read_text() == "whole"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]
    blocker = tmp_path / "blocker"
    blocker.write_text("")
    with pytest.raises(TiermemError, match="cannot write"):
        results.write_text(blocker / "file.txt", "x")


def test_a_record_that_is_not_there_or_not_one(tmp_path: Path) -> None:
    with pytest.raises(TiermemError, match="is it a run directory"):
        results.read_record(tmp_path)
    (tmp_path / "record.json").write_text('{"record_version": 99}')
    with pytest.raises(TiermemError, match="version 99"):
        results.read_record(tmp_path)


def test_what_is_written_follows_links_keeps_modes_and_leaves_pipes_alone(tmp_path: Path) -> None:
    """A device node once became a file, because a file was renamed over it."""
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert real.stat().st_mode & 0o777 == 0o600
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "hello")
    assert os.read(reader, 10) == b"hello"
    os.close(reader)
    assert pipe.is_fifo()
    with pytest.raises(TiermemError, match="cannot write"):
        write_text(tmp_path, "a directory")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "real"]
