"""One snapshot: a folder with the rows, the state of the trainer, and a manifest with their checksums.

It is written under a temporary name, synced to the medium and renamed, so it is whole or not there.
"""

import contextlib
import dataclasses
import io
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tiermem.checkpoint.files import (
    naming_failures,
    remove_leftovers,
    remove_whole,
    sync_directory,
    temporary_path,
    write_synced,
)
from tiermem.checkpoint.manifest import FileChecksums, Manifest, TableShape
from tiermem.errors import CorruptionError, TiermemError

__all__ = ["SnapshotFolder", "list_snapshots", "load_state", "rows_path", "step_of", "verify_snapshot"]

_FOLDER = "snapshots"
_MANIFEST, _ROWS, _STATE = "manifest.json", "rows.tms", "trainer.pt"
_NAME = re.compile(r"step-(\d{9,18})")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotFolder:
    """Where a run keeps its snapshots, and of what they are."""

    run_directory: Path
    experiment_hash: str
    """SHA-256 of the experiment's configuration."""
    tables: tuple[TableShape, ...]
    steps: int
    """Steps of the whole run."""
    keep_latest: int
    """How many of the snapshots up to the newest one to keep."""

    def write(self, step: int, state: Mapping[str, Any], save_rows: Callable[[Path], object]) -> Path:
        """Takes a snapshot; it is whole and on the medium when this returns, or not there at all.

        Args:
            step: steps that were done.
            state: of the trainer: tensors, numbers, strings, and lists and dicts of them.
            save_rows: writes all rows to a new file.

        Raises:
            DeviceError: if it cannot be written; the snapshots before it stay as they are.
        """
        folder = self.run_directory / _FOLDER
        path = folder / f"step-{step:09d}"
        temporary = temporary_path(path)
        with naming_failures(path):
            folder.mkdir(exist_ok=True)
            sync_directory(self.run_directory)
            remove_leftovers(folder, _NAME)
            temporary.mkdir()
            try:
                self._fill(temporary, step, state, save_rows)
                if path.exists():
                    # The run went on from an older snapshot and has come here for the second time.
                    remove_whole(path)
                    sync_directory(folder)
                temporary.replace(path)
                sync_directory(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
                with contextlib.suppress(OSError):
                    # Only if it is empty, since the first snapshot could not be written.
                    folder.rmdir()
            self._remove_older(step)
        return path

    def _fill(
        self, folder: Path, step: int, state: Mapping[str, Any], save_rows: Callable[[Path], object]
    ) -> None:
        save_rows(folder / _ROWS)
        serialized = io.BytesIO()
        torch.save(dict(state), serialized)
        write_synced(folder / _STATE, serialized.getbuffer())
        manifest = Manifest(
            step=step,
            steps=self.steps,
            experiment_hash=self.experiment_hash,
            tables=self.tables,
            files={name: FileChecksums.of(folder / name) for name in (_ROWS, _STATE)},
        )
        manifest.write(folder / _MANIFEST)
        sync_directory(folder)

    def _remove_older(self, step: int) -> None:
        """Newer ones than `step` do not count: they are of a continuation that this run replaces."""
        reached = [path for path in list_snapshots(self.run_directory) if step_of(path) <= step]
        for path in reached[: -self.keep_latest]:
            remove_whole(path)


def list_snapshots(run_directory: Path) -> list[Path]:
    """The snapshots of a run, oldest first, whether they are good or not."""
    folder = run_directory / _FOLDER
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """The step in the name of a snapshot; -1 if it is not such a name."""
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else -1


def rows_path(snapshot: Path) -> Path:
    """The file with the rows, which a store loads."""
    return snapshot / _ROWS


def verify_snapshot(snapshot: Path) -> Manifest:
    """Reads a snapshot through.

    Raises:
        CorruptionError: names the file and the offset, if one was cut short or a byte changed.
        TiermemError: if another version wrote it; the message says which.
    """
    manifest = Manifest.read(snapshot / _MANIFEST)
    if manifest.step != step_of(snapshot):
        raise CorruptionError(f"{snapshot} holds a snapshot of step {manifest.step}; its name was changed")
    for name, checksums in manifest.files.items():
        checksums.check(snapshot / name)
    return manifest


def load_state(snapshot: Path) -> dict[str, Any]:
    """The trainer's state of a snapshot that was verified.

    Raises:
        TiermemError: if this version of torch cannot read it.
    """
    path = snapshot / _STATE
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise TiermemError(f"torch {torch.__version__} cannot read {path}: {reason}") from None
    return state
