"""Every row cached against every row resident, and what a probed and a missed row cost the processor."""

import dataclasses
import functools
import time

import numpy as np
import torch
from tiering_ids import ZIPF_EXPONENT, Ids, Workload, gradients, zipf_ids
from tiering_report import Section, Spread, Target, alternate, wall_ratios
from tiering_sides import LEARNING_RATE, Tiermem, TiermemOptions
from tiering_warm import CACHED, RESIDENT, open_tiermem, timed, touch_all
from tiermem.embedding import Lookup

LEAST = 0.7
MISSING_SHARE = 1 / 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is run."""

    workload: Workload
    batches: int
    repetitions: int


FULL = Sizes(
    workload=Workload(rows=1_000_000, dim=64, ids_per_batch=20_480, ids_per_bag=10), batches=40, repetitions=7
)
SMALL = Sizes(
    workload=Workload(rows=10_240, dim=64, ids_per_batch=1_024, ids_per_bag=8), batches=4, repetitions=2
)


def _step_costs(side: Tiermem, batches: Ids) -> tuple[float, float]:
    """Processor seconds of (all of the steps, the part of them that finds rows: prefetch, wait, release)."""
    workload = side.workload
    offsets = torch.arange(workload.bags) * workload.ids_per_bag
    gradient = torch.from_numpy(gradients(workload))
    finding, clock = 0.0, time.process_time
    began = clock()
    for batch in batches:
        before = clock()
        ticket = side.store.prefetch([Lookup(0, torch.from_numpy(batch), offsets)])
        ticket.wait()
        finding += clock() - before
        side.store.gather(ticket, 0)
        side.store.backward(ticket, 0, gradient, lr=LEARNING_RATE)
        before = clock()
        ticket.release()
        finding += clock() - before
    return clock() - began, finding


def _row_costs(section: Section, sizes: Sizes, batches: Ids) -> None:
    """By two stores in virtual time that differ in their cache alone; both train on the same batches."""
    workload = sizes.workload
    whole = Tiermem(workload, TiermemOptions(cache=1.0, clock="virtual"))
    part = Tiermem(workload, TiermemOptions(cache=MISSING_SHARE, clock="virtual"))
    probed_ns, missed_ns, resident_ns = [], [], []
    resident = Tiermem(workload, TiermemOptions(cache=None, clock="virtual"))
    for side in (resident, whole, part):
        side.materialise()
        touch_all(side)
        side.train(batches)
    unique = sum(len(np.unique(batch)) for batch in batches)
    missed_share = 0.0
    for _ in range(sizes.repetitions):
        resident_s, _ = _step_costs(resident, batches)
        hit_s, finding_s = _step_costs(whole, batches)
        before = part.figures()["missed_rows"]
        miss_s, _ = _step_costs(part, batches)
        missed = part.figures()["missed_rows"] - before
        missed_share = missed / unique
        probed_ns.append(finding_s / unique * 1e9)
        resident_ns.append((hit_s - resident_s) / unique * 1e9)
        missed_ns.append((miss_s - hit_s) / missed * 1e9)
    rows = []
    for name, what, values in (
        ("probed", "a unique row, found in the cache: prefetch, wait and release", probed_ns),
        (
            "probed_over_resident",
            "a unique row: a step all cached less the same step all resident",
            resident_ns,
        ),
        ("missed", "a missed row: a step with misses less the same step all cached", missed_ns),
    ):
        spread = Spread.of(values)
        section.figures[f"cpu_ns_per_{name}_row"] = spread.document()
        rows.append((what, spread.text(0)))
    section.figures["missed_share"] = missed_share
    section.add_table(("processor time of all threads, virtual time, RAM backend", "ns"), rows)
    section.notes.append(
        f"With a cache of 1/16 of the rows {100 * missed_share:.1f} % of the unique rows miss; a missed row"
        " includes the write-back of the row that it displaces, with its read."
    )
    for side in (resident, whole, part):
        side.close()


def all_hit(*, small: bool) -> Section:
    """The whole section."""
    sizes = SMALL if small else FULL
    workload = sizes.workload
    batches = zipf_ids(workload, sizes.batches, seed=5)
    sides = {
        CACHED: open_tiermem(workload, cached=True),
        RESIDENT: open_tiermem(workload, cached=False),
    }
    section = Section(
        name="all-hit",
        title="all rows cached against all rows resident, wall time",
        parameters={
            "rows": workload.rows,
            "columns": workload.dim,
            "ids a batch": workload.ids_per_batch,
            "ids a bag": workload.ids_per_bag,
            "zipf": ZIPF_EXPONENT,
            "batches": sizes.batches,
            "repetitions": sizes.repetitions,
            "threads": 1,
        },
    )
    missed = sides[CACHED].figures()["missed_rows"]
    for what in ("training", "reading"):
        calls = {name: side.train if what == "training" else side.read for name, side in sides.items()}
        runs = alternate(
            {name: functools.partial(timed, call, batches) for name, call in calls.items()}, sizes.repetitions
        )
        section.add_sides(what, runs)
        section.targets.append(
            Target(
                what=f"{what}: cached over resident",
                measured=wall_ratios(runs, CACHED, RESIDENT),
                bound=LEAST,
            )
        )
    assert sides[CACHED].figures()["missed_rows"] == missed, "every row was cached"
    sums = {name: side.read(batches) for name, side in sides.items()}
    assert sums[CACHED] == sums[RESIDENT], "both sides trained the same bits"
    for side in sides.values():
        side.close()
    _row_costs(section, sizes, batches)
    return section
