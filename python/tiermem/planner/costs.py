"""What one row costs each stage of each device: the linear part of the prediction, for prices and bounds."""

import copy

import numpy as np
import numpy.typing as npt

from tiermem.perf.service import Demand
from tiermem.planner.arrays import Arrays
from tiermem.planner.evaluate import REQUEST_BYTES_MAX
from tiermem.planner.geometry import distinct_units

__all__ = ["STAGES", "RowCosts"]

Floats = npt.NDArray[np.float64]

STAGES = ("controller", "read link", "write link", "write drain", "media units")
# Enough for the parallelism of any device; a curve's price is that of one row more.
_MANY = 1e9


class RowCosts:
    """Nanoseconds of each stage for a row: float64 [T, K, G] with the G stages of `STAGES`.

    A lower bound of what `evaluate` charges: requests do not wait for one another, and rows share blocks as
    much as they can.
    """

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        shape = (arrays.tables, len(arrays.tiers), len(STAGES))
        self.read = np.zeros(shape)
        """A row read from its home."""
        self.write = np.zeros(shape)
        """A row written home."""
        self.write_reads = np.zeros(shape)
        """What is read for that."""
        self.slot_read = np.zeros(shape)
        """A row read from a cache of rows."""
        self.slot_write = np.zeros(shape)
        """A row written to one."""
        for position in range(1, len(arrays.tiers)):
            for number in range(arrays.classes):
                self._fill(position, number)

    def at(self, reads: Floats, writes: Floats) -> "RowCosts":
        """The same, stages that much dearer: float64 [K, G] factors for reads and for writes."""
        found = copy.copy(self)
        for name in ("read", "write_reads", "slot_read"):
            setattr(found, name, getattr(self, name) * reads)
        for name in ("write", "slot_write"):
            setattr(found, name, getattr(self, name) * writes)
        return found

    def sharing(self, position: int, rows: Floats, of_rows: Floats) -> Floats:
        """What a row costs as a share of a row by itself, float64 [T, n, G].

        Rows of one page or block are read together, and neighbours are one request.

        Args:
            position: tier of the home.
            rows: rows read in a step, [T, n], out of
            of_rows: rows that lie side by side, [T, n].
        """
        arrays = self.arrays
        tier = arrays.tiers[position]
        found = np.ones((*rows.shape, len(STAGES)))
        if position == 0:
            return found
        page = tier.service.spec.page_bytes
        if tier.is_byte:
            # Rows that lie side by side touch a page together; their bytes are their own.
            apart = 1 - np.minimum(rows / np.maximum(of_rows, 1.0), 1.0)
            step = np.gcd(arrays.row_bytes, page)[:, None] / page
            pages = apart * (1 - step) + arrays.row_bytes[:, None] / page
            found[...] = (pages / arrays.pages_per_row[:, position, None])[..., None]
            found[..., [STAGES.index("read link"), STAGES.index("write link")]] = 1.0
            return found
        nbytes = arrays.block_bytes[:, position, None]
        spare = 1 + tier.spare if tier.is_log else 1.0
        of_blocks = of_rows / arrays.rows_per_block[:, position, None] * spare
        touched = distinct_units(rows, of_blocks)
        blocks = np.where(rows > 0, touched / np.maximum(rows, 1e-300), 1.0)
        density = np.where(of_blocks > 0, np.minimum(touched / np.maximum(of_blocks, 1e-300), 1.0), 0.0)
        requests = blocks * np.maximum(1 - density, nbytes / REQUEST_BYTES_MAX)
        accesses = (requests * (1 - min(4096, page) / page) + blocks * nbytes / page) / np.maximum(
            1, nbytes / page
        )
        found[...] = blocks[..., None]
        found[..., STAGES.index("controller")] = requests
        found[..., STAGES.index("media units")] = np.minimum(blocks, accesses)
        return found

    def _fill(self, position: int, number: int) -> None:
        arrays = self.arrays
        tier = arrays.tiers[position]
        members = np.flatnonzero(arrays.class_of == number)
        table, page = int(members[0]), tier.service.spec.page_bytes
        row_bytes = float(arrays.row_bytes[table])
        if tier.is_byte:
            pages = arrays.pages_per_row[table, position]
            read, _ = self._stages(position, Demand(reads=pages, read_bytes=row_bytes, read_accesses=pages))
            _, write = self._stages(
                position, Demand(writes=pages, write_bytes=row_bytes, write_accesses=pages)
            )
            self.read[members, position], self.write[members, position] = read, write
            self.slot_read[members, position], self.slot_write[members, position] = read, write
            return
        per_block, nbytes = arrays.rows_per_block[table, position], arrays.block_bytes[table, position]
        accesses = max(1.0, nbytes / page)
        one_read = Demand(reads=1, read_bytes=nbytes, read_accesses=accesses)
        self.read[members, position] = self._stages(position, one_read)[0]
        if tier.is_log:
            # Appended many to a request; rows that compaction moves come on top. In the long run as much is
            # read to be cleaned as is appended.
            whole = Demand(
                writes=nbytes / REQUEST_BYTES_MAX,
                write_bytes=nbytes,
                write_accesses=nbytes / page,
                sequential_share=1.0,
            )
            self.write[members, position] = self._stages(position, whole)[1] / per_block
            cleaned = Demand(
                reads=nbytes / REQUEST_BYTES_MAX,
                read_bytes=nbytes,
                read_accesses=nbytes / page + nbytes / REQUEST_BYTES_MAX,
            )
            self.write_reads[members, position] = self._stages(position, cleaned)[0] / per_block
        else:
            one_write = Demand(writes=1, write_bytes=nbytes, write_accesses=accesses)
            self.write[members, position] = self._stages(position, one_write)[1]
            self.write_reads[members, position] = self.read[members, position]

    def _stages(self, position: int, demand: Demand) -> tuple[Floats, Floats]:
        """Of reads and of writes, float64 [G] each; a curve's time stands in the place of the first stage."""
        service = self.arrays.tiers[position].service
        if service.spec.curves:
            many, few = service.busy_ns(_times(demand, 2 * _MANY)), service.busy_ns(_times(demand, _MANY))
            slopes = [(more["curve"] - less["curve"]) / _MANY for more, less in zip(many, few, strict=True)]
            return np.array([slopes[0], 0, 0, 0, 0]), np.array([slopes[1], 0, 0, 0, 0])
        reads, writes = service.busy_ns(demand)
        return tuple(  # type: ignore[return-value]
            np.array([side.get(stage, 0.0) for stage in STAGES]) for side in (reads, writes)
        )


def _times(demand: Demand, factor: float) -> Demand:
    return Demand(
        reads=demand.reads * factor,
        read_bytes=demand.read_bytes * factor,
        read_accesses=demand.read_accesses * factor,
        writes=demand.writes * factor,
        write_bytes=demand.write_bytes * factor,
        write_accesses=demand.write_accesses * factor,
        sequential_share=demand.sequential_share,
    )
