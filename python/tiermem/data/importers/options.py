"""How a file that does not say everything is to be read."""

import dataclasses

from tiermem.data.accesses import ROW_BYTES_ASSUMED
from tiermem.errors import ConfigError

__all__ = ["IDS_PER_BATCH_MAX", "ImportOptions", "refuse_renumbering"]

IDS_PER_BATCH_MAX = 2**27
"""Ids of one table in one batch of a stream: 1 GiB."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ImportOptions:
    """Settings of an import; each states the formats that it matters to.

    Raises:
        ConfigError: if a number is below one, a batch would be too large, or the name is empty.
    """

    rows: int | None = None
    """Rows of each table; `None`: the largest id plus one. Not for "execution-trace", which knows them."""
    row_bytes: int = ROW_BYTES_ASSUMED
    """Bytes of a row, for all formats but "execution-trace", which knows them."""
    bags_per_batch: int = 1024
    """Bags of one table in one batch: the streams ("caffeine", "int64", "text") and "npz"."""
    ids_per_bag: int = 1
    """Consecutive ids that make one bag of a stream; what is left at the end of a file is a shorter bag."""
    table_name: str = "table_0"
    """Name of the table of a stream, and of a table of "npz" that has none."""
    renumber: bool | None = None
    """Whether keys of a stream become row numbers by rank of their hash; `None`: yes for "caffeine" and
    "int64", no for "text"."""

    def __post_init__(self) -> None:
        counts = {
            "row_bytes": self.row_bytes,
            "bags_per_batch": self.bags_per_batch,
            "ids_per_bag": self.ids_per_bag,
        }
        if self.rows is not None:
            counts["rows"] = self.rows
        for name, value in counts.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; use a number of at least 1")
        ids = self.bags_per_batch * self.ids_per_bag
        if ids > IDS_PER_BATCH_MAX:
            raise ConfigError(
                f"bags_per_batch x ids_per_bag is {ids}, above {IDS_PER_BATCH_MAX}; use smaller batches"
            )
        if not self.table_name:
            raise ConfigError("table_name is empty; give the table a name")


def refuse_renumbering(options: ImportOptions, name: str) -> None:
    """For formats whose ids are row numbers.

    Raises:
        ConfigError: if renumbering is asked for.
    """
    if options.renumber:
        raise ConfigError(f'ids of "{name}" are row numbers and are kept; leave renumber out')
