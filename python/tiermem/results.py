"""The record that every run writes, and the digest of its results."""

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from tiermem.errors import TiermemError

__all__ = [
    "RECORD_VERSION",
    "canonical",
    "digest",
    "host",
    "read_record",
    "record",
    "write_bytes",
    "write_text",
]

RECORD_VERSION = 1
_DECIMALS = 9


def canonical(value: Any) -> Any:  # noqa: ANN401
    """A JSON value with floats rounded to nine digits and keys as strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return canonical(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, float):
        return round(value, _DECIMALS)
    return value


def digest(value: Any) -> str:  # noqa: ANN401
    """SHA-256 of the canonical JSON text, 16 hexadecimal digits.

    Example:
        >>> digest({"a": 1.0}) == digest({"a": 1.0000000000001})
        True
    """
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def host() -> dict[str, Any]:
    """What this host is: processor, cores, memory, versions, thread settings."""
    versions = {"python": platform.python_version()}
    for name in ("tiermem", "torch", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=True),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def record(
    *,
    config: Mapping[str, Any],
    seed: int,
    results: Mapping[str, Any],
    quality: Mapping[str, Any],
    build_profile: str,
) -> dict[str, Any]:
    """A run record.

    Args:
        config: the resolved configuration; its hash goes into the record.
        seed: seed of the run.
        results: integers, counters and rounded decimals; in virtual time the same on every host.
        quality: losses and scores; the same on one host and build.
        build_profile: profile of the extension, "release" or "debug".

    Returns:
        A JSON object; `results_digest` covers `results` alone.
    """
    return {
        "record_version": RECORD_VERSION,
        "config": canonical(config),
        "config_hash": digest(config),
        "seed": seed,
        "results": canonical(results),
        "results_digest": digest(results),
        "quality": canonical(quality),
        "build_profile": build_profile,
        "host": host(),
    }


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of text in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, contents: bytes) -> None:
    """Writes a file whole or not at all: to a temporary name in the same folder, then renamed.

    A link is followed, a file keeps its mode, and what is not a file (a pipe, a device) is written to.

    Raises:
        TiermemError: if it cannot be written; nothing half-written is left behind.
    """
    temporary: str | None = None
    try:
        target = path.resolve()
        if target.exists() and not target.is_file():
            target.write_bytes(contents)
            return
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o644
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(contents)
        Path(temporary).chmod(mode)
        Path(temporary).replace(target)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise TiermemError(f"cannot write {path}: {error.strerror}") from None


def read_record(run_directory: Path) -> dict[str, Any]:
    """The record of a run directory.

    Raises:
        TiermemError: if there is none, or it is of a version that this package does not know.
    """
    path = run_directory / "record.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TiermemError(f"cannot read {path}: {error.strerror}; is it a run directory?") from None
    except json.JSONDecodeError as error:
        raise TiermemError(f"{path} is not a run record: {error}") from None
    if found.get("record_version") != RECORD_VERSION:
        raise TiermemError(
            f"{path} has version {found.get('record_version')}; this package reads {RECORD_VERSION}"
        )
    return found
