"""What the store's machine is checked against: hierarchies to draw, and tables written down plainly."""

import dataclasses
import functools
import itertools
from typing import Any

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import tiermem as tm
from tiermem.config import DeviceSpec, LogConfig, Placement
from tiermem.config.hierarchy import Policy
from tiermem.embedding import EmbeddingStore, Lookup

Floats = npt.NDArray[np.float32]
Key = tuple[int, int]
"""Table and row."""

# Two tables share a width. Ten rows of it fill a home block, and no cache below holds a whole table of it.
ROWS, DIMS = (60, 60, 20), (100, 100, 3)
TABLES = [
    tm.TableConfig(name=f"t{n}", rows=rows, dim=dim)
    for n, (rows, dim) in enumerate(zip(ROWS, DIMS, strict=True))
]
WIDE, NARROW = 404, 16
LR = 0.1
SPECS = {
    name: DeviceSpec.load(name)
    for name in ("dram-ddr4-2933", "pmem-100", "cxl-asic", "optane-p4800x", "nand-p3700")
}
POLICIES: list[Policy] = ["lru", "lfu", "clock", "s3fifo", "sieve", "lookahead", "auto", "random"]
LOG = LogConfig(segment_bytes=8192, spare=0.25, compaction_share=0.5)


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows of a table, the tier where they live, and who caches them."""

    table: int
    rows: tuple[int, int]
    home: int
    cached_by: tuple[int, ...]
    exclusive: bool


@dataclasses.dataclass(frozen=True)
class Shape:
    """A hierarchy and a placement, short enough to read in a failing example."""

    middle: tuple[tuple[str, int], ...]
    """Device, and the rows or blocks that it caches."""
    home: str
    is_log: bool
    cache: int | float
    """Rows of the fastest tier, or a share of all rows."""
    staging_rows: int
    policies: tuple[Policy, ...]
    parts: tuple[Part, ...] | None

    def hierarchy(self) -> tm.Hierarchy:
        tiers: list[dict[str, Any]] = [{"device": SPECS["dram-ddr4-2933"], "cache": self.cache}]
        if not isinstance(self.cache, float):
            tiers[0]["cache"] = self.cache * WIDE + NARROW
        for device, count in self.middle:
            nbytes = count * 8192 if SPECS[device].kind == "block" else count * WIDE + NARROW
            tiers.append({"device": SPECS[device], "cache": nbytes})
        layout = None if SPECS[self.home].kind == "byte" else "log" if self.is_log else "in_place"
        tiers.append({"device": SPECS[self.home], "layout": layout, "log": LOG})
        named = [
            tm.TierConfig(name=f"tier{n}", policy=policy, **tier)
            for n, (tier, policy) in enumerate(zip(tiers, self.policies, strict=False))
        ]
        # The narrow rows get their share first, up to all of them.
        return tm.Hierarchy(tiers=tuple(named), staging_bytes=self.staging_rows * WIDE + ROWS[2] * NARROW)

    def placement(self) -> Placement | None:
        if self.parts is None:
            return None
        parts = [
            {
                "table": f"t{part.table}",
                "rows": part.rows,
                "home": f"tier{part.home}",
                "cached_by": tuple(f"tier{tier}" for tier in part.cached_by),
                "caching": "exclusive" if part.exclusive else "inclusive",
            }
            for part in self.parts
        ]
        return Placement.from_mapping({"tables": parts})

    def is_resident(self, table: int, row: int) -> bool:
        parts = self.parts or ()
        return any(p.home == 0 and p.table == table and p.rows[0] <= row < p.rows[1] for p in parts)

    def has_exclusive_rows(self) -> bool:
        return any(part.exclusive for part in self.parts or ())


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Two to four tiers; table 1 lives in the slowest and is cached by all others, the others anywhere."""
    home = draw(st.sampled_from(["nand-p3700", "nand-p3700", "cxl-asic"]))
    devices = ["pmem-100"] if home == "cxl-asic" else ["pmem-100", "optane-p4800x"]
    middle = draw(st.lists(st.sampled_from(devices), max_size=2))
    middle.sort(key=lambda device: device != "pmem-100")
    counts = [draw(st.integers(1, 2 if device == "optane-p4800x" else 10)) for device in middle]
    last = len(middle) + 1
    parts = None
    if draw(st.booleans()):
        cuts = sorted(draw(st.sets(st.integers(1, ROWS[0] - 1), max_size=2)))
        ranges = [*zip([0, *cuts], [*cuts, ROWS[0]], strict=True), (0, ROWS[2])]
        parts = [Part(1, (0, ROWS[1]), last, tuple(range(last)), exclusive=False)]
        for number, rows in enumerate(ranges):
            at = draw(st.integers(0, last))
            cached_by = tuple(sorted(draw(st.sets(st.integers(0, at - 1))))) if at else ()
            exclusive = draw(st.booleans())
            parts.append(Part(2 if number == len(ranges) - 1 else 0, rows, at, cached_by, exclusive))
    return Shape(
        middle=tuple(zip(middle, counts, strict=True)),
        home=home,
        is_log=home == "nand-p3700" and draw(st.booleans()),
        cache=draw(st.sampled_from([1, 3, 12, 0.0, 0.1])),
        staging_rows=draw(st.integers(4, 16)),
        policies=tuple(draw(st.lists(st.sampled_from(POLICIES), min_size=4, max_size=4))),
        parts=None if parts is None else tuple(parts),
    )


@functools.cache
def _initial_rows() -> dict[Key, Floats]:
    """What rows are before anybody changes them, from a store that is memory and nothing else."""
    store = EmbeddingStore(TABLES, hierarchy=tm.Hierarchy.load("dram"), optimizer=tm.SGD(lr=LR))
    read = {table: store.read_rows(table, 0, rows)[0].numpy() for table, rows in enumerate(ROWS)}
    store.close()
    return {(table, row): weights for table in read for row, weights in enumerate(read[table])}


def bag_ids(lookup: Lookup) -> list[list[tuple[int, np.float32]]]:
    """Rows of each bag with their factors."""
    ids = lookup.ids.tolist()
    factors = (
        np.ones(len(ids), np.float32) if lookup.sample_weights is None else lookup.sample_weights.numpy()
    )
    bounds = [*lookup.offsets.tolist(), len(ids)]
    pairs = list(zip(ids, factors, strict=True))
    return [pairs[begin:end] for begin, end in itertools.pairwise(bounds)]


class Twin:
    """The rows as a dictionary, and the documented arithmetic written down plainly, one float32 at a time."""

    def __init__(self, eps: float | None, mode: str) -> None:
        self.eps = eps
        self.mode = mode
        self.weights = {key: row.copy() for key, row in _initial_rows().items()}
        self.state = {key: np.zeros(0 if eps is None else 1, np.float32) for key in self.weights}

    def pool(self, lookup: Lookup) -> Floats:
        bags = bag_ids(lookup)
        pooled = np.zeros((len(bags), DIMS[lookup.table]), np.float32)
        for number, bag in enumerate(bags):
            for row, factor in bag:
                pooled[number] += factor * self.weights[lookup.table, row]
            if self.mode == "mean" and bag:
                pooled[number] /= np.float32(len(bag))
        return pooled

    def update(self, table: int, contributions: list[tuple[Lookup, Floats]]) -> None:
        """One update a row; its contributions are added in order, starting from zero."""
        sums: dict[int, Floats] = {}
        for lookup, gradients in contributions:
            for bag, gradient in zip(bag_ids(lookup), gradients, strict=True):
                for row, factor in bag:
                    mean = self.mode == "mean"
                    total = sums.setdefault(row, np.zeros(DIMS[table], np.float32))
                    total += gradient / np.float32(len(bag)) if mean else factor * gradient
        for row, total in sums.items():
            step = np.float32(LR)
            if self.eps is not None:
                state = self.state[table, row]
                state += _sum_of_squares(total) / np.float32(DIMS[table])
                step /= np.sqrt(state[0]) + np.float32(self.eps)
            self.weights[table, row] -= step * total


def _sum_of_squares(values: Floats) -> np.float32:
    lanes = np.zeros(16, np.float32)
    for start in range(0, len(values), 16):
        part = values[start : start + 16]
        lanes[: len(part)] += part * part
    for half in (8, 4, 2, 1):
        lanes[:half] += lanes[half : 2 * half]
    return np.float32(lanes[0])
