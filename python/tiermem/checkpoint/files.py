"""Files that are whole or not there: temporary names, fsync, checksums by chunk, leftovers of kills."""

import contextlib
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

from tiermem.errors import CorruptionError, DeviceError

__all__ = [
    "CHUNK_BYTES_MIN",
    "check_chunks",
    "check_length",
    "chunk_bytes_for",
    "chunk_checksums",
    "naming_failures",
    "remove_leftovers",
    "remove_whole",
    "sync_directory",
    "temporary_path",
    "write_synced",
]

CHUNK_BYTES_MIN = 2**20
_CHUNKS_MAX = 4096
_TEMPORARY = re.compile(r"(.+)\.(?:tmp|gone)-(\d{1,10})")


def temporary_path(path: Path) -> Path:
    """The name under which this process writes what will be `path`."""
    return path.with_name(f"{path.name}.tmp-{os.getpid()}")


def remove_leftovers(folder: Path, names: re.Pattern[str]) -> None:
    """Removes what killed processes left half-written, and what this one did; others still write theirs.

    Args:
        folder: where to look.
        names: the names that files have in the end; other files are not ours.
    """
    for path in folder.iterdir():
        found = _TEMPORARY.fullmatch(path.name)
        if found and names.fullmatch(found[1]) and not _is_another_alive(int(found[2])):
            _remove(path)


def remove_whole(folder: Path) -> None:
    """Removes a folder so that a kill in the middle leaves no part of it under its name."""
    leaving = folder.with_name(f"{folder.name}.gone-{os.getpid()}")
    _remove(leaving)
    folder.replace(leaving)
    _remove(leaving)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_another_alive(process: int) -> bool:
    if process in (0, os.getpid()):
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


@contextlib.contextmanager
def naming_failures(path: Path) -> Iterator[None]:
    """Turns what the operating system refuses into an error that names what was to be written.

    Raises:
        DeviceError: names the path and the reason.
    """
    try:
        yield
    except DeviceError:
        raise
    except OSError as error:
        raise DeviceError(error.errno, f"cannot write {path}: {error.strerror}") from None


def write_synced(path: Path, contents: bytes | memoryview) -> None:
    """Writes a file and waits until it is on the medium."""
    with path.open("wb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Waits until the names in a directory are on the medium."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def chunk_bytes_for(nbytes: int) -> int:
    """Bytes under one checksum: whole MiB, and so many that a file has at most 4096 checksums."""
    return max(1, -(-nbytes // (_CHUNKS_MAX * CHUNK_BYTES_MIN))) * CHUNK_BYTES_MIN


def chunk_checksums(path: Path, chunk_bytes: int, *, start: int = 0, end: int | None = None) -> Iterator[int]:
    """CRC-32 of each chunk of a file between `start` and `end`; the last may be shorter."""
    with path.open("rb") as file:
        file.seek(start)
        left = (path.stat().st_size if end is None else end) - start
        while left > 0:
            checksum, in_chunk = 0, min(chunk_bytes, left)
            left -= in_chunk
            while in_chunk > 0:
                # A file that became shorter since gives a checksum that does not fit.
                part = file.read(min(in_chunk, CHUNK_BYTES_MIN))
                checksum = zlib.crc32(part, checksum)
                in_chunk -= len(part) or in_chunk
            yield checksum


def check_length(path: Path, nbytes: int) -> None:
    """Refuses a file that is not as long as it was written.

    Raises:
        CorruptionError: names the file and the offset at which it ends too early or goes on.
    """
    try:
        found = path.stat().st_size
    except OSError as error:
        raise CorruptionError(f"cannot read {path}: {error.strerror}") from None
    if found < nbytes:
        raise CorruptionError(f"{path} was cut short at offset {found}; it had {nbytes} bytes")
    if found > nbytes:
        raise CorruptionError(f"{path} has {found - nbytes} bytes too many from offset {nbytes} on")


def check_chunks(path: Path, chunk_bytes: int, expected: list[int], *, start: int = 0, end: int) -> None:
    """Reads a part of a file through and refuses a byte that changed.

    Raises:
        CorruptionError: names the file and the offsets between which a byte changed.
    """
    try:
        for number, checksum in enumerate(chunk_checksums(path, chunk_bytes, start=start, end=end)):
            if checksum != expected[number]:
                first = start + number * chunk_bytes
                last = min(first + chunk_bytes, end) - 1
                raise CorruptionError(f"{path} has changed between offset {first} and offset {last}")
    except OSError as error:
        raise CorruptionError(f"cannot read {path}: {error.strerror}") from None
