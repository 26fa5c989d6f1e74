"""Reading files that may be compressed, and what can be wrong with them."""

import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tiermem.errors import ConfigError, CorruptionError

__all__ = ["Readable", "fill", "opened"]

_DAMAGED = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)


class Readable(Protocol):
    """What is read from: a binary file, or a member of an archive."""

    def readinto(self, buffer: Any, /) -> int | None:  # noqa: ANN401 (whatever has the buffer protocol)
        """Fill a part of the buffer; 0 at the end."""
        ...


@contextlib.contextmanager
def opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """A file's bytes, uncompressed where its name ends in .gz or .xz.

    Raises:
        ConfigError: if the operating system refuses.
        CorruptionError: if the compressed stream is cut short or is none.
    """
    try:
        with _open(path) as file:
            yield file
    except _DAMAGED as error:
        raise CorruptionError(
            f"{path} is cut short or is no {path.suffix} file ({error}); fetch it again"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None


def _open(path: Path) -> io.BufferedIOBase:
    if path.suffix == ".xz":
        return lzma.open(path)
    if path.suffix == ".gz":
        return gzip.open(path)
    return path.open("rb")


def fill(file: Readable, buffer: npt.NDArray[np.uint8]) -> int:
    """Read until the buffer, uint8 [N], is full or the file ends; returns the bytes read."""
    done = 0
    while done < len(buffer):
        got = file.readinto(buffer[done:])
        if not got:
            break
        done += got
    return done
