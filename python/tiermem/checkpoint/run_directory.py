"""The directory of a training run: its experiment, its snapshots, and where it can go on."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from tiermem.checkpoint.files import naming_failures, sync_directory
from tiermem.checkpoint.manifest import Manifest, refuse_version
from tiermem.checkpoint.snapshot import list_snapshots, step_of, verify_snapshot
from tiermem.config import Experiment
from tiermem.errors import ConfigError, TiermemError
from tiermem.results import write_text

__all__ = [
    "ResumePoint",
    "claim",
    "experiment_hash",
    "find_resume_point",
    "forget_experiment",
    "list_snapshots",
    "write_experiment",
]

_FILE = "experiment.json"
_KIND = "tiermem train"
_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ResumePoint:
    """A snapshot that was read through and is good, and the run that it belongs to."""

    run_directory: Path
    experiment: Experiment
    snapshot: Path
    manifest: Manifest


def experiment_hash(experiment: Experiment) -> str:
    """SHA-256 of all values of an experiment, none of them rounded."""
    return _hash(experiment.model_dump(mode="json"))


def _hash(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_experiment(run_directory: Path, experiment: Experiment) -> None:
    """Writes the experiment at the start of a run, so that the run can go on without its file.

    Raises:
        ConfigError: if the directory has snapshots, which are of another run then.
        DeviceError: if it cannot be written.
    """
    if list_snapshots(run_directory):
        raise ConfigError(
            f"{run_directory} has snapshots of an earlier run; go on with it by --resume {run_directory},"
            " or give --out another directory"
        )
    values = {
        "kind": _KIND,
        "format_version": _VERSION,
        "tiermem_version": metadata.version("tiermem"),
        "experiment": experiment.model_dump(mode="json"),
    }
    path = run_directory / _FILE
    write_text(path, json.dumps(values, indent=1) + "\n")
    with naming_failures(path):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sync_directory(run_directory)


def forget_experiment(run_directory: Path) -> None:
    """Removes what `write_experiment` wrote; for a run that failed before its first snapshot."""
    (run_directory / _FILE).unlink(missing_ok=True)


@contextlib.contextmanager
def claim(run_directory: Path) -> Iterator[None]:
    """Keeps other processes from training in the same directory; a kill gives it back.

    Raises:
        ConfigError: if another process trains in it.
    """
    descriptor = os.open(run_directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # A file system without locks is used without one.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"another process trains in {run_directory}; wait until it ends, or end it"
                ) from None
        yield
    finally:
        os.close(descriptor)


def find_resume_point(path: Path, command: str) -> ResumePoint:
    """The newest snapshot of a run directory, or the one that is named, read through.

    A snapshot that is not good is never passed over in silence: the error names an older one that is.

    Args:
        path: a run directory, or one of its snapshots.
        command: what the user can type in front of another snapshot to use it instead.

    Raises:
        ConfigError: if there is no such run or snapshot; the message says what was expected.
        CorruptionError: names the file and the offset, and the newest good snapshot before it.
        TiermemError: if another version wrote the run directory or the snapshot.
    """
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise ConfigError(f"{path} {problem}; give a run directory of tiermem train, or one of its snapshots")
    named = step_of(path) >= 0
    run_directory = path.absolute().parent.parent if named else path
    values = _read_experiment(run_directory)
    snapshots = list_snapshots(run_directory)
    if not snapshots:
        raise ConfigError(
            f"{run_directory} has no snapshots; a run takes them with --set train.snapshot_every_steps=N"
        )
    snapshot = path if named else snapshots[-1]
    older = [each for each in snapshots if step_of(each) < step_of(snapshot)]
    experiment = _experiment(run_directory, values)
    manifest = _verify(snapshot, older, command)
    _refuse_row_type(run_directory, experiment, snapshot, manifest)
    # What the file says, not what it means: a later version has values that this file does not name.
    if manifest.experiment_hash != _hash(values["experiment"]):
        raise ConfigError(
            f"{snapshot} is of another experiment than {run_directory / _FILE} describes;"
            " one of them was changed or put there later"
        )
    return ResumePoint(
        run_directory=run_directory, experiment=experiment, snapshot=snapshot, manifest=manifest
    )


def _refuse_row_type(run_directory: Path, experiment: Experiment, snapshot: Path, manifest: Manifest) -> None:
    expected = experiment.model.row_type
    for table in manifest.tables:
        if table.row_type != expected:
            raise ConfigError(
                f'{snapshot} has table "{table.name}" in {table.row_type}, {run_directory / _FILE} has it in'
                f" {expected}; one of them was changed or put there later"
            )


def _verify(snapshot: Path, older: list[Path], command: str) -> Manifest:
    try:
        return verify_snapshot(snapshot)
    except TiermemError as error:
        good = next((each for each in reversed(older) if _is_good(each)), None)
        if good is not None:
            advice = f"the snapshot of step {step_of(good)} is good: {command} {good}"
        elif older:
            advice = f"none of the {len(older)} before it is good either, so start the run anew"
        else:
            advice = "there is none before it, so start the run anew"
        raise type(error)(f"{error}; {advice}") from None


def _is_good(snapshot: Path) -> bool:
    try:
        verify_snapshot(snapshot)
    except TiermemError:
        return False
    return True


def _read_experiment(run_directory: Path) -> dict[str, Any]:
    path = run_directory / _FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{run_directory} is not a run directory of this version of tiermem train: it has no {_FILE}"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict) or values.get("kind") != _KIND:
        raise ConfigError(f"{path} was not written by {_KIND}")
    refuse_version(path, values, _VERSION)
    return values


def _experiment(run_directory: Path, values: dict[str, Any]) -> Experiment:
    try:
        return Experiment.from_mapping(values["experiment"], where=str(run_directory / _FILE))
    except ConfigError as error:
        writer = values.get("tiermem_version")
        raise ConfigError(
            f"{error}; tiermem {writer} wrote it, this is {metadata.version('tiermem')}"
        ) from None
