"""Names of shipped files: a name works from any folder, since the files travel in the package."""

import difflib
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from tiermem.config.base import load_toml, merge_overrides
from tiermem.errors import ConfigError

__all__ = ["Kind", "available", "load_named", "resolve"]

Kind = Literal[
    "devices", "experiments", "hierarchies", "nodes", "plans", "serving", "studies", "tables", "traces"
]


def _folder(kind: Kind) -> Path:
    return Path(str(resources.files("tiermem"))) / "emulator_configs" / kind


def available(kind: Kind) -> list[str]:
    """Names of the shipped files of one kind, sorted."""
    return sorted(path.stem for path in _folder(kind).glob("*.toml"))


def load_named(
    kind: Kind, name_or_path: str | os.PathLike[str], overrides: Sequence[str] = ()
) -> tuple[dict[str, Any], Path]:
    """The contents of a shipped or other file with `path.to.key=value` overrides, and where they are from.

    Raises:
        ConfigError: names the file or the override, and what is wrong.
    """
    path = resolve(kind, name_or_path)
    return merge_overrides(load_toml(path), overrides), path


def resolve(kind: Kind, name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a shipped name, or the path itself if it names a file.

    Raises:
        ConfigError: if there is neither; the message names the nearest shipped name.
    """
    text = os.fspath(name_or_path)
    if text.endswith(".toml") or os.sep in text:
        path = Path(text)
        if not path.is_file():
            what = "is a directory, not a file" if path.is_dir() else "does not exist"
            raise ConfigError(f"there is no file {text}: it {what}")
        return path
    path = _folder(kind) / f"{text}.toml"
    if path.is_file():
        return path
    names = available(kind)
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.0)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    what = "serving engines" if kind == "serving" else kind
    raise ConfigError(f'"{text}" is not one of the {what} ({", ".join(names)}){hint}')
