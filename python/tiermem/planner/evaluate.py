"""The predicted step of an assignment: what each tier is asked for, and how long that takes."""

import dataclasses

import numpy as np
import numpy.typing as npt

from tiermem.perf.service import Demand
from tiermem.planner.arrays import Arrays
from tiermem.planner.flows import Flows, at_window, flows
from tiermem.planner.geometry import LOG_PLAN_ROWS, distinct_units, log_shape, renumbering_bytes
from tiermem.planner.problem import Assignment

__all__ = [
    "REQUEST_BYTES_MAX",
    "Prediction",
    "TierLoad",
    "evaluate",
    "home_bytes",
    "stage_busy",
    "used_bytes",
]

Floats = npt.NDArray[np.float64]

# The longest request that neighbours are merged into, as in `rust_core/src/tier/build.rs`.
REQUEST_BYTES_MAX = 128 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TierLoad:
    """One tier in the mean step."""

    name: str
    home_bytes: float
    """Of rows that live here, headers and spare room included."""
    cache_bytes: int
    probed_rows: float
    """Distinct rows looked for here."""
    hit_rows: float
    """Of these, found here."""
    reads: float
    """Requests, or accesses of one page to a memory."""
    writes: float
    read_bytes: float
    write_bytes: float
    time_ns: float
    """That the device needs for them, with requests always waiting."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The mean step."""

    step_ns: float
    parts: dict[str, float]
    """ "wait", "gather", "dense", "update" in nanoseconds; they add up to `step_ns`."""
    tiers: tuple[TierLoad, ...]
    """The fastest first. Its time is that of gather and update."""
    binding: str
    """What the step would be shortened by: "memory and dense work", or a tier and its busiest stage."""


def home_bytes(arrays: Arrays, assignment: Assignment) -> Floats:
    """Bytes of homes on each tier, float64 [K]."""
    rows = np.stack([assignment.split_rows, arrays.rows - assignment.split_rows], axis=1)
    found = np.zeros(len(arrays.tiers))
    for part in (0, 1):
        home = assignment.home[:, part]
        per_row = np.take_along_axis(arrays.home_bytes_per_row, home[:, None], axis=1)[:, 0]
        np.add.at(found, home, rows[:, part] * per_row)
    return found


def used_bytes(arrays: Arrays, assignment: Assignment) -> Floats:
    """Bytes of homes, caches and new numbers of rows on each tier, float64 [K]."""
    used = home_bytes(arrays, assignment) + assignment.cache_bytes
    used[0] += renumbering_bytes(arrays.rows[assignment.renumbered]).sum()
    return used


class _Demands:
    """What a step asks of each tier, collected."""

    def __init__(self, arrays: Arrays, assignment: Assignment) -> None:
        self.arrays = arrays
        self.assignment = assignment
        self.found = flows(arrays, assignment)
        self.waited = [Demand() for _ in arrays.tiers]
        """What is read before the step can go on."""
        self.later = [Demand() for _ in arrays.tiers]
        """What is written, and read to be written."""

    def rows(self, position: int, count: Floats, of_rows: Floats, *, read: bool, waited: bool) -> None:
        """Rows [T, 2] of a byte-addressable tier, out of so many side by side (0: scattered slots)."""
        tier, arrays = self.arrays.tiers[position], self.arrays
        page = tier.service.spec.page_bytes
        row_bytes = arrays.row_bytes[:, None].astype(np.float64)
        density = np.where(of_rows > 0, np.minimum(count / np.maximum(of_rows, 1.0), 1.0), 0.0)
        runs = count * (1 - density)
        step = np.gcd(arrays.row_bytes, page)[:, None]
        accesses = runs * (1 - step / page) + count * row_bytes / page
        self._add(position, accesses, count * row_bytes, accesses, read=read, waited=waited)

    def blocks(
        self, position: int, count: Floats, of_blocks: Floats, nbytes: Floats, *, read: bool, waited: bool
    ) -> None:
        """Blocks [T, 2] of `nbytes` on a block device, out of so many that lie side by side (0: anywhere)."""
        page = self.arrays.tiers[position].service.spec.page_bytes
        density = np.where(of_blocks > 0, np.minimum(count / np.maximum(of_blocks, 1e-9), 1.0), 0.0)
        longest = REQUEST_BYTES_MAX / nbytes
        runs = np.maximum(count * (1 - density), count / longest)
        accesses = runs * (1 - min(4096, page) / page) + count * nbytes / page
        self._add(position, runs, count * nbytes, accesses, read=read, waited=waited)

    def _add(
        self, position: int, requests: Floats, nbytes: Floats, accesses: Floats, *, read: bool, waited: bool
    ) -> None:
        values = (float(requests.sum()), float(nbytes.sum()), float(accesses.sum()))
        keys = (
            ("reads", "read_bytes", "read_accesses") if read else ("writes", "write_bytes", "write_accesses")
        )
        self.add(position, Demand(**dict(zip(keys, values, strict=True))), waited=waited)

    def add(self, position: int, demand: Demand, *, waited: bool) -> None:
        side = self.waited if waited else self.later
        side[position] = side[position] + demand


def evaluate(arrays: Arrays, assignment: Assignment) -> Prediction:
    """Predicts the mean step of an assignment, whether or not it keeps within the budgets."""
    return _timed(_demands(arrays, assignment))


def _demands(arrays: Arrays, assignment: Assignment) -> _Demands:
    demands = _Demands(arrays, assignment)
    found = demands.found
    training = arrays.problem.training
    scattered = np.zeros_like(found.rows)
    # Rows go down to the first tier that caches them, what leaves there to the next one, and home.
    clean_too = np.where(assignment.home > 0, found.memory_leaves, 0.0)
    descending = clean_too if training else scattered
    for position, level in found.levels.items():
        cached = assignment.cached[..., position] & (assignment.home > position)
        exclusive = assignment.exclusive & cached
        hits = level.arrive - level.leave
        if arrays.tiers[position].is_byte:
            filled = np.where(exclusive, 0.0, level.leave)
            arriving = np.where(exclusive, clean_too, np.where(cached, descending, 0.0))
            demands.rows(position, hits, scattered, read=True, waited=True)
            demands.rows(position, filled + arriving, scattered, read=False, waited=False)
            leaving = level.pushed
            demands.rows(position, leaving if training else scattered, scattered, read=True, waited=False)
            descending = np.where(cached, leaving if training else 0.0, descending)
        else:
            _block_level(demands, position, hits, descending)
    for position in range(1, len(arrays.tiers)):
        at_home = assignment.home == position
        reads = np.where(at_home, found.home_reads, 0.0)
        writes = np.where(at_home, descending, 0.0)
        if arrays.tiers[position].is_byte:
            demands.rows(position, reads, found.rows, read=True, waited=True)
            demands.rows(position, writes, found.rows, read=False, waited=False)
        elif arrays.tiers[position].is_log:
            _log(demands, position, writes)
        else:
            _in_place(demands, position, reads, writes)
    return demands


def _in_place(demands: _Demands, position: int, reads: Floats, writes: Floats) -> None:
    """Homes in blocks: rows of like rank share one where a table was renumbered, any rows elsewhere."""
    arrays, assignment, found = demands.arrays, demands.assignment, demands.found
    at_home = (assignment.home == position)[:, None]
    nbytes = arrays.block_bytes[:, position, None]
    per_block = arrays.rows_per_block[:, position, None, None]
    shares = found.segment_shares * at_home
    by_rank = assignment.renumbered[:, None, None]
    # [T, S, 2]: the rows of each segment, or all of a part in the place of its first segment.
    first = (np.arange(shares.shape[1]) == 0)[None, :, None]

    def spread(of_part: Floats) -> Floats:
        spread_out = np.where(by_rank, found.segment_misses * at_home, of_part[:, None] * first)
        total = (found.segment_misses * at_home).sum(axis=1)
        # A cache above home takes its share of every segment alike.
        scale = np.where(total > 0, of_part / np.maximum(total, 1e-300), 0.0)
        spread_rows: Floats = np.where(by_rank, spread_out * scale[:, None], spread_out)
        return spread_rows

    rows = np.where(by_rank, shares * arrays.segment_rows[..., None], found.rows[:, None] * at_home * first)
    blocks = rows / per_block
    flat = blocks.reshape(len(blocks), -1)
    read = distinct_units(spread(reads), blocks).reshape(flat.shape)
    changed = distinct_units(spread(writes), blocks).reshape(flat.shape)
    demands.blocks(position, read, flat, nbytes, read=True, waited=True)
    demands.blocks(position, changed, flat, nbytes, read=True, waited=False)
    demands.blocks(position, changed, flat, nbytes, read=False, waited=False)


def _block_level(demands: _Demands, position: int, hits: Floats, descending: Floats) -> None:
    """A cache of blocks: hits and fills move whole blocks, and changing one reads it."""
    arrays, assignment, found = demands.arrays, demands.assignment, demands.found
    cached = assignment.cached[..., position] & (assignment.home > position)
    per_block = np.take_along_axis(arrays.rows_per_block, assignment.home, axis=1)
    nbytes = np.take_along_axis(arrays.block_bytes, assignment.home, axis=1)
    blocks = np.where(cached, found.rows / per_block, 0.0)
    anywhere = np.zeros_like(blocks)
    level = found.levels[position]
    demands.blocks(position, distinct_units(hits, blocks), anywhere, nbytes, read=True, waited=True)
    filled = distinct_units(np.where(cached, level.leave, 0.0), blocks)
    changed = distinct_units(np.where(cached, descending, 0.0), blocks)
    demands.blocks(position, filled + changed, anywhere, nbytes, read=False, waited=False)
    demands.blocks(position, changed, anywhere, nbytes, read=True, waited=False)


def _log(demands: _Demands, position: int, writes: Floats) -> None:
    """Homes in logs: rows of one class and route share one."""
    arrays, assignment, found = demands.arrays, demands.assignment, demands.found
    tier = arrays.tiers[position]
    at_home = assignment.home == position
    routes = np.zeros(found.rows.shape, dtype=np.int64)
    for above in range(1, position):
        routes = routes * 2 + assignment.cached[..., above]
    keys = arrays.class_of[:, None] * 2 ** len(arrays.tiers) + routes
    logs = np.unique(keys[at_home])
    staged = arrays.staging_rows(assignment)
    page = tier.service.spec.page_bytes
    for key in logs:
        members = at_home & (keys == key)
        table = int(np.argmax(members.any(axis=1)))
        per_block, nbytes = (
            float(arrays.rows_per_block[table, position]),
            float(arrays.block_bytes[table, position]),
        )
        live, written = float(found.rows[members].sum()), float(writes[members].sum())
        read, of_blocks = _log_reads(demands, members, written, live, per_block)
        demands.blocks(position, read, of_blocks, np.full(read.shape, nbytes), read=True, waited=True)
        if written == 0:
            continue
        shape = log_shape(
            int(live),
            int(arrays.row_bytes[table]),
            spare=tier.spare,
            segment_bytes=tier.segment_bytes,
            plan_rows=max(LOG_PLAN_ROWS, int(staged)),
            row_tiers=sum(each.is_byte for each in arrays.tiers),
        )
        moved = written * shape.moved_per_row(live)
        # Each plan closes its last block.
        appended = ((written + moved) / per_block + 0.5) * nbytes
        requests = appended / REQUEST_BYTES_MAX + 1
        breaks = appended / tier.segment_bytes + (1.0 if len(logs) > 1 else 0.0)
        demands.add(
            position,
            Demand(
                writes=requests,
                write_bytes=appended,
                write_accesses=appended / page + requests,
                sequential_share=1 - min(1.0, breaks / requests),
            ),
            waited=False,
        )
        # As much is read to be cleaned as is written.
        cleaned = appended / REQUEST_BYTES_MAX if moved > 0 else 0.0
        demands.add(
            position,
            Demand(
                reads=cleaned,
                read_bytes=cleaned * REQUEST_BYTES_MAX,
                read_accesses=cleaned * (1 + REQUEST_BYTES_MAX / page),
            ),
            waited=False,
        )


def _log_reads(
    demands: _Demands, members: npt.NDArray[np.bool_], written: float, live: float, per_block: float
) -> tuple[Floats, Floats]:
    """Blocks of a log that a step reads, by age, and of how many: what left memory together lies together."""
    arrays, found = demands.arrays, demands.found
    ages = arrays.windows
    if written == 0:
        read = np.array([found.home_reads[members].sum()])
        blocks = np.array([live / per_block])
        return distinct_units(read, blocks), blocks
    curves, windows, counts = found.misses[members], found.windows[members], found.home_reads[members]
    reads = np.stack([at_window(arrays, curves[None], (windows + age)[None])[0] for age in ages], axis=1)
    # A cache of blocks takes its share at every age alike.
    reads = reads * np.where(reads[:, 0] > 0, counts / np.maximum(reads[:, 0], 1e-300), 0.0)[:, None]
    by_age = reads.sum(axis=0)
    steps = np.append(np.diff(ages), 1.0)
    each = np.append(by_age[:-1] - by_age[1:], by_age[-1]) / steps
    blocks = np.append(np.full(len(ages) - 1, written / per_block), live / per_block)
    return distinct_units(each, blocks) * steps, blocks * steps


def stage_busy(
    arrays: Arrays, assignment: Assignment
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """For how long reads, and writes, keep each stage of each tier busy in a step; empty for memory."""
    demands = _demands(arrays, assignment)
    reads: list[dict[str, float]] = [{}]
    writes: list[dict[str, float]] = [{}]
    for tier, now, later in list(zip(arrays.tiers, demands.waited, demands.later, strict=True))[1:]:
        busy = tier.service.busy_ns(now + later)
        reads.append(busy[0])
        writes.append(busy[1])
    return reads, writes


def _timed(demands: _Demands) -> Prediction:
    arrays, assignment, found = demands.arrays, demands.assignment, demands.found
    host_ns = arrays.host_ns
    dense_ns = float(arrays.problem.dense_ns)
    waits, busy, worn = [0.0], [0.0], [0.0]
    for position, tier in enumerate(arrays.tiers[1:], start=1):
        waited, later = demands.waited[position], demands.later[position]
        everything = waited + later
        busy.append(tier.service.sustained_ns(everything))
        before = everything if tier.is_byte else waited + later.reads_only()
        waits.append(tier.service.burst_ns(before))
        worn.append(tier.service.worn_ns(everything, arrays.problem.life_years))
    ahead = arrays.problem.prefetch_distance
    # A batch that is fetched d steps ahead has d steps to come.
    arrived_ns = host_ns + max(waits) if ahead == 0 else max(waits) / ahead
    step_ns = max(host_ns, *busy, arrived_ns, *worn)
    homes = home_bytes(arrays, assignment)
    everywhere = [waited + later for waited, later in zip(demands.waited, demands.later, strict=True)]
    binding = "memory and dense work"
    if step_ns > host_ns:
        slowest = int(np.argmax(waits if arrived_ns >= max(busy) else busy))
        stages = arrays.tiers[slowest].service.stages_ns(everywhere[slowest])
        binding = f"{arrays.tiers[slowest].name}, {max(stages, key=stages.__getitem__)}"
        if max(worn) == step_ns:
            binding = f"{arrays.tiers[int(np.argmax(worn))].name}, endurance"
    probed, hit = _hits(arrays, assignment, found)
    loads = tuple(
        TierLoad(
            name=tier.name,
            home_bytes=float(homes[position]),
            cache_bytes=int(assignment.cache_bytes[position]),
            probed_rows=probed[position],
            hit_rows=hit[position],
            reads=demand.reads,
            writes=demand.writes,
            read_bytes=demand.read_bytes,
            write_bytes=demand.write_bytes,
            time_ns=busy[position] if position else arrays.gather_ns + arrays.update_ns,
        )
        for position, (tier, demand) in enumerate(zip(arrays.tiers, everywhere, strict=True))
    )
    return Prediction(
        step_ns=step_ns,
        parts={
            "wait": step_ns - host_ns,
            "gather": arrays.gather_ns,
            "dense": dense_ns,
            "update": arrays.update_ns,
        },
        tiers=loads,
        binding=binding,
    )


def _hits(arrays: Arrays, assignment: Assignment, found: Flows) -> tuple[list[float], list[float]]:
    """Rows looked for and found in each tier."""
    below = assignment.home > 0
    probed, hit = [float(found.used.sum())], [float(found.used.sum() - found.memory_misses[below].sum())]
    for position in range(1, len(arrays.tiers)):
        level = found.levels.get(position)
        here = assignment.home == position
        looked, got = float(found.home_reads[here].sum()), float(found.home_reads[here].sum())
        if level is not None:
            looked, got = looked + float(level.arrive.sum()), got + float((level.arrive - level.leave).sum())
        probed.append(looked)
        hit.append(got)
    return probed, hit
