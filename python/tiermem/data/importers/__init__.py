"""Access streams of embedding rows in the formats of others, as a `Source` of batches.

`open_source` reads every file once and says what is wrong with it; `Source.batches` then reads the files
again, batch by batch, as often as it is called.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tiermem.data.accesses import Batch, Source
from tiermem.data.importers.caffeine import open_caffeine
from tiermem.data.importers.cutting import first_outside
from tiermem.data.importers.execution_trace import open_execution_trace
from tiermem.data.importers.fbgemm import open_fbgemm
from tiermem.data.importers.int64 import open_int64
from tiermem.data.importers.npz import open_npz
from tiermem.data.importers.options import ImportOptions
from tiermem.data.importers.text import open_text
from tiermem.errors import ConfigError, CorruptionError

__all__ = ["FORMATS", "Format", "ImportOptions", "open_source"]


@dataclasses.dataclass(frozen=True, slots=True)
class Format:
    """An importer and what it is for."""

    open: Callable[[Sequence[Path], ImportOptions], Source]
    description: str
    """One line."""


FORMATS: dict[str, Format] = {
    "caffeine": Format(open_caffeine, "big-endian int64 keys, plain, .xz or .gz; renumbered"),
    "int64": Format(open_int64, "little-endian int64 keys, plain, .xz or .gz; renumbered"),
    "text": Format(open_text, "one decimal id per line, plain, .xz or .gz; # starts a comment"),
    "npz": Format(open_npz, "numpy archive of offsets and indices, of one table or of several"),
    "fbgemm": Format(
        open_fbgemm, "dlrm_datasets: .pt or .pt.gz of (indices, offsets, lengths), a batch per file"
    ),
    "execution-trace": Format(
        open_execution_trace, "JSON of PyTorch's ExecutionTraceObserver, with dumped ids"
    ),
}


def open_source(format_name: str, paths: Sequence[Path], options: ImportOptions) -> Source:
    """The batches of files of one format.

    Args:
        format_name: a key of `FORMATS`.
        paths: files of one trace, in order.
        options: what the files do not say.

    Returns:
        A source whose batches have ids below the rows of their tables, and lengths that add up.

    Raises:
        ConfigError: if the format is not known, no file is given, or one cannot be read.
        InputError: if a file is readable and its contents are not allowed.
        CorruptionError: if a file is cut short or damaged, or (from `batches`) changed since it was opened.
    """
    if format_name not in FORMATS:
        raise ConfigError(f'"{format_name}" is no format; the formats are {", ".join(FORMATS)}')
    for path in paths:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ConfigError(f"{path} is not a file; it is read twice, so save what comes from a pipe first")
    if not paths:
        raise ConfigError(f'no file is given to import as "{format_name}"; name at least one')
    source = FORMATS[format_name].open(paths, options)
    return Source(source.tables, lambda: _checked(source, paths))


def _checked(source: Source, paths: Sequence[Path]) -> Iterator[Batch]:
    """Batches of files that were found good once; what differs now has changed in between."""
    for number, batch in enumerate(source.batches()):
        for table, bags in zip(source.tables, batch, strict=True):
            good = (bags.lengths >= 0).all() and bags.lengths.sum() == len(bags.ids)
            if not good or first_outside(bags.ids, table.rows) is not None:
                raise CorruptionError(
                    f"{', '.join(map(str, paths))}: batch {number} of {table.name} has changed since it was "
                    "opened; import again"
                )
        yield batch
