"""Data sets that have to be fetched: where they are kept, and how they are checked."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from tiermem.errors import ConfigError, CorruptionError, DeviceError

__all__ = ["DATA_SETS", "data_directory", "fetch_ml_100k"]

DATA_SETS: Mapping[str, str] = {
    "ml-100k": "MovieLens-100K, 100,000 ratings; fetched, since GroupLens allows no redistribution",
    "scarab-recs": "1,245,184 accesses of a recommender service; ships with the package (Apache-2.0)",
}

_WHEEL = "recbole==1.2.1"
_IN_WHEEL = "recbole/dataset_example/ml-100k/"
_SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}


def data_directory() -> Path:
    """Where data sets are kept: `$TIERMEM_DATA`, or `tiermem` in the user's cache directory."""
    chosen = os.environ.get("TIERMEM_DATA")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tiermem"


def fetch_ml_100k(source: Path | None = None, *, force: bool = False) -> Path:
    """Puts MovieLens-100K into the data directory, checked by SHA-256.

    Args:
        source: a folder with the three atomic files, or the RecBole 1.2.1 wheel; `None`: download
            the wheel with pip.
        force: replace a copy that is there.

    Returns:
        The folder of the files.

    Raises:
        ConfigError: if `source` has no such files.
        CorruptionError: if a file is not the published one; nothing is kept.
        DeviceError: if the download or a write fails.
    """
    target = data_directory() / "ml-100k"
    if target.is_dir() and not force and source is None and _is_intact(target):
        return target
    was_there = target.parent.exists()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
            folder = Path(scratch)
            wheel_or_folder = _download(folder) if source is None else source
            files = (
                _read_wheel(wheel_or_folder) if wheel_or_folder.is_file() else _read_folder(wheel_or_folder)
            )
            complete = folder / "ml-100k"
            complete.mkdir()
            for name, contents in files.items():
                _check(name, contents, wheel_or_folder)
                (complete / name).write_bytes(contents)
            if target.exists():
                shutil.rmtree(target)
            complete.rename(target)
    except OSError as error:
        if isinstance(error, DeviceError):
            raise
        raise DeviceError(error.errno, f"cannot write {target}: {error.strerror}") from None
    finally:
        if not was_there and target.parent.is_dir() and not any(target.parent.iterdir()):
            target.parent.rmdir()
    return target


def _is_intact(folder: Path) -> bool:
    return all(
        (folder / name).is_file() and hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected
        for name, expected in _SHA256.items()
    )


def _download(folder: Path) -> Path:
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
        "--disable-pip-version-check", "--dest", str(folder), _WHEEL,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (fixed arguments)
    wheels = list(folder.glob("recbole-*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line for line in done.stderr.strip().splitlines() if line]
        reason = lines[-1] if lines else "pip gave no reason"
        raise DeviceError(
            f"cannot download {_WHEEL} ({reason}); without network, get the wheel elsewhere and run"
            ' "tiermem data fetch ml-100k --from recbole-1.2.1-py3-none-any.whl"'
        )
    return wheels[0]


def _read_wheel(path: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(_IN_WHEEL + name) for name in _SHA256}
    except zipfile.BadZipFile:
        raise CorruptionError(f"{path} is not a wheel; fetch it again") from None
    except KeyError as error:
        raise ConfigError(f"{path} is not the wheel of {_WHEEL}: {error.args[0]}") from None


def _read_folder(path: Path) -> dict[str, bytes]:
    missing = [name for name in _SHA256 if not (path / name).is_file()]
    if missing:
        raise ConfigError(
            f"{path} has no {', '.join(missing)}; give the folder of the atomic files, or the wheel"
        )
    return {name: (path / name).read_bytes() for name in _SHA256}


def _check(name: str, contents: bytes, source: Path) -> None:
    found = hashlib.sha256(contents).hexdigest()
    if found != _SHA256[name]:
        raise CorruptionError(
            f"{name} from {source} has SHA-256 {found[:16]}..., expected {_SHA256[name][:16]}...;"
            " nothing was kept"
        )
