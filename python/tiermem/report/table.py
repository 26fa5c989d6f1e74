"""A table of a report."""

import dataclasses

__all__ = ["Table"]


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """A title, column heads, and rows of text; the first column is a name, the others are numbers."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    """A line below it."""
