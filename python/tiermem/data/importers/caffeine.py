"""Traces of the Caffeine simulator: big-endian int64 keys one after the other, plain or as .xz or .gz.

The keys are hashes of what was accessed and not row numbers, so they are renumbered unless told otherwise.
"""

from collections.abc import Sequence
from pathlib import Path

from tiermem.data.accesses import Source
from tiermem.data.importers.int64 import open_words
from tiermem.data.importers.options import ImportOptions

__all__ = ["open_caffeine"]


def open_caffeine(paths: Sequence[Path], options: ImportOptions) -> Source:
    """Keys as big-endian int64; see `open_words`."""
    return open_words(paths, options, ">")
