"""The manifest of a snapshot: what it is of, who wrote it, and the checksums of its files."""

import dataclasses
import json
import re
import zlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from tiermem.checkpoint.files import (
    check_chunks,
    check_length,
    chunk_bytes_for,
    chunk_checksums,
    write_synced,
)
from tiermem.config import RowType
from tiermem.errors import CorruptionError, TiermemError

__all__ = ["SNAPSHOT_VERSION", "FileChecksums", "Manifest", "TableShape", "refuse_version"]

SNAPSHOT_VERSION = 2
_KIND = "tiermem snapshot"
_HEX_DIGITS = 8
# The last line holds the checksum of everything before it, in every version.
_TAIL = re.compile(rb',\n "crc32": "([0-9a-f]{8})"\n}\n')
_TAIL_BYTES = 25


@dataclasses.dataclass(frozen=True, slots=True)
class TableShape:
    """One table of a snapshot."""

    name: str
    rows: int
    dim: int
    """Columns."""
    row_type: RowType
    """How its weights are stored."""


@dataclasses.dataclass(frozen=True, slots=True)
class FileChecksums:
    """Length of a file, and the CRC-32 of each of its chunks."""

    nbytes: int
    chunk_bytes: int
    checksums: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> Self:
        """Reads a file through."""
        nbytes = path.stat().st_size
        chunk_bytes = chunk_bytes_for(nbytes)
        return cls(nbytes, chunk_bytes, tuple(chunk_checksums(path, chunk_bytes)))

    @classmethod
    def from_document(cls, values: Mapping[str, Any]) -> Self:
        """From the form in the manifest."""
        text: str = values["chunk_crc32"]
        digits = [text[start : start + _HEX_DIGITS] for start in range(0, len(text), _HEX_DIGITS)]
        return cls(values["bytes"], values["chunk_bytes"], tuple(int(each, 16) for each in digits))

    def document(self) -> dict[str, Any]:
        """The form in the manifest: checksums as eight hexadecimal digits each, one after the other."""
        text = "".join(f"{checksum:08x}" for checksum in self.checksums)
        return {"bytes": self.nbytes, "chunk_bytes": self.chunk_bytes, "chunk_crc32": text}

    def check(self, path: Path) -> None:
        """Reads a file through and compares.

        Raises:
            CorruptionError: names the file and the offset.
        """
        check_length(path, self.nbytes)
        check_chunks(path, self.chunk_bytes, list(self.checksums), end=self.nbytes)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a snapshot is of."""

    step: int
    """Steps that were done."""
    steps: int
    """Steps of the whole run."""
    experiment_hash: str
    """SHA-256 of the experiment's configuration."""
    tables: tuple[TableShape, ...]
    files: Mapping[str, FileChecksums]
    """By name within the snapshot."""
    tiermem_version: str = dataclasses.field(default_factory=lambda: metadata.version("tiermem"))
    """The package that wrote it."""

    def write(self, path: Path) -> None:
        """Writes it, with a checksum of itself, and waits until it is on the medium."""
        values = {
            "kind": _KIND,
            "format_version": SNAPSHOT_VERSION,
            "tiermem_version": self.tiermem_version,
            "step": self.step,
            "steps": self.steps,
            "experiment_hash": self.experiment_hash,
            "tables": [dataclasses.asdict(table) for table in self.tables],
            "files": {name: checksums.document() for name, checksums in self.files.items()},
        }
        body = json.dumps(values, indent=1).removesuffix("\n}").encode()
        write_synced(path, body + b',\n "crc32": "%08x"\n}\n' % zlib.crc32(body))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads and checks it.

        Raises:
            CorruptionError: names the file and the offset, if it was cut short or a byte changed.
            TiermemError: if another version wrote it; the message says which.
        """
        try:
            contents = path.read_bytes()
        except OSError as error:
            raise CorruptionError(f"cannot read {path}: {error.strerror}") from None
        end = max(0, len(contents) - _TAIL_BYTES)
        tail = _TAIL.fullmatch(contents, end)
        if tail is None:
            raise CorruptionError(
                f"{path} was cut short or has changed at its end: offset {end} should begin its checksum"
            )
        if zlib.crc32(contents[:end]) != int(tail[1], 16):
            raise CorruptionError(f"{path} has changed between offset 0 and offset {len(contents) - 1}")
        values = json.loads(contents)
        if values.get("kind") != _KIND:
            raise TiermemError(f"{path} is not the manifest of a snapshot")
        refuse_version(path, values, SNAPSHOT_VERSION)
        return cls(
            step=values["step"],
            steps=values["steps"],
            experiment_hash=values["experiment_hash"],
            tables=tuple(TableShape(**table) for table in values["tables"]),
            files={name: FileChecksums.from_document(each) for name, each in values["files"].items()},
            tiermem_version=values["tiermem_version"],
        )


def refuse_version(path: Path, values: Mapping[str, Any], known: int, *, make: str = "start the run") -> None:
    """Refuses a document of another version, and says who can read it.

    Args:
        path: the file.
        values: the document.
        known: the version that this package reads.
        make: how its like is made, as in "start the run anew".

    Raises:
        TiermemError: names the file, both versions, and what to do.
    """
    found = values.get("format_version")
    if found != known:
        writer, own = values.get("tiermem_version", "of an unknown version"), metadata.version("tiermem")
        # Between two releases both may call themselves the same.
        other = "" if writer == own else f"go on with tiermem {writer}, or "
        raise TiermemError(
            f"{path} has format version {found}, which tiermem {writer} wrote; this is tiermem {own}, which"
            f" reads version {known}: {other}{make} anew"
        )
