"""Forward passes in `compare_peers.py`: by the lowest call without autograd, and by the module with it."""

from collections.abc import Callable

import torch
from compare_peers_fbgemm import Fbgemm
from compare_peers_measure import (
    OURS,
    Pages,
    Settings,
    add_memory,
    add_target,
    check_outputs,
    compare,
    new_section,
    times_as_fast,
)
from compare_peers_ours import How, Ours
from compare_peers_torch import Torch, new_tables
from compare_peers_workloads import Side, Work
from tiering_report import Section

TORCH, FBGEMM = "torch", "FBGEMM"
EXTENSION_LEAST, UNIFORM_LEAST, MODULE_LEAST = 1.1, 1.2, 1.0
Calls = dict[str, Callable[[int], object]]


def peers(work: Work, settings: Settings, *, small_pages: bool = False) -> dict[str, Side]:
    """Both peers, who read the same memory."""
    if not settings.with_fbgemm:
        return {TORCH: Torch(work, new_tables(work, small_pages=small_pages))}
    fbgemm = Fbgemm(work, small_pages=small_pages)
    return {TORCH: Torch(work, fbgemm.tables()), FBGEMM: fbgemm}


def tolerance(work: Work) -> float:
    """Sums are made in different orders, and torch pools fp16 rows into fp16."""
    return 2e-3 if work.shape.row_type == "fp16" else 1e-5


def _by_lowest_call(section: Section, ours: Ours, others: dict[str, Side], settings: Settings) -> None:
    work = ours.work
    sides: dict[str, Side] = {OURS: ours, **others}
    check_outputs({name: (side, side.pooled(0)) for name, side in sides.items()}, tolerance(work))
    calls: Calls = {name: side.pooled for name, side in sides.items()}
    calls["tiermem, store.pool"] = ours.pooled_by_store
    kind = "A: pooled forward, lowest call"
    runs = compare(section, kind, calls, work, work.forward_bytes(), settings)
    least = UNIFORM_LEAST if work.shape.uniform_ids else EXTENSION_LEAST
    add_target(section, f"{kind}: the faster of the peers over tiermem", runs, tuple(others), least)


def _by_module(section: Section, ours: Ours, others: dict[str, Side], settings: Settings) -> None:
    work = ours.work
    sides: dict[str, Side] = {OURS: ours, **others}
    check_outputs({name: (side, side.forward(0)) for name, side in sides.items()}, tolerance(work))
    calls: Calls = {name: side.forward for name, side in sides.items()}
    fbgemm = others.get(FBGEMM)
    if isinstance(fbgemm, Fbgemm):
        calls["FBGEMM, ids unchecked"] = fbgemm.forward_unchecked
    kind = "B: pooled forward, module with autograd"
    runs = compare(section, kind, calls, work, work.forward_bytes(), settings)
    for name in others:
        add_target(section, f"{kind}: {name} over tiermem", runs, (name,), MODULE_LEAST)


def forward(work: Work, settings: Settings, *, small_pages: bool = False) -> Section:
    """A and B; with `small_pages`, A alone, and the peers' tables are on pages of 4 KiB.

    Peers share one table, since nobody changes it.
    """
    shape = work.shape
    name = f"{shape.name} forward" + (", peers on 4 KiB pages" if small_pages else "")
    section = new_section(name, f"{shape.title}: pooled forward", work, settings)
    how = How(threads=settings.threads)
    pages = Pages(section)
    ours = Ours(work, how)
    pages.note("with tiermem open")
    others = peers(work, settings, small_pages=small_pages)
    pages.note("with the peers, too")
    _by_lowest_call(section, ours, others, settings)
    if not small_pages and not shape.uniform_ids:
        _by_module(section, ours, others, settings)
    add_memory(section, work, {OURS: ours, **others})
    section.notes.append(pages.text())
    if shape.row_type == "fp16":
        section.notes.append("torch pools rows of fp16 into fp16, the others into fp32.")
    for side in (ours, *others.values()):
        side.close()
    return section


def _same_bits(one: Ours, two: Ours) -> None:
    for batch in range(one.work.shape.batches):
        for mine, other in zip(one.pooled(batch), two.pooled(batch), strict=True):
            assert torch.equal(mine, other), "two threads pool the same bits"
    for batch in range(one.work.shape.batches):
        one.train(batch)
        two.train(batch)
    for position in one.work.positions():
        assert torch.equal(one.rows(position), two.rows(position)), "two threads train the same bits"
        assert torch.equal(one.state(position), two.state(position)), "two threads keep the same state"


def threads(work: Work, settings: Settings) -> Section:
    """tiermem with two threads beside one: the same bits, checked first, and what it gains."""
    section = new_section(
        f"{work.shape.name} threads", f"{work.shape.title}: tiermem on 2 threads and on 1", work, settings
    )
    section.parameters["threads"] = "1 and 2"
    one, two = Ours(work, How(threads=1)), Ours(work, How(threads=2))
    _same_bits(one, two)
    other = "tiermem, 1 thread"
    rows = []
    for kind, calls, least in (
        ("pooled forward, lowest call", (one.pooled, two.pooled), work.forward_bytes()),
        ("step by the module", (one.train, two.train), work.training_bytes(1)),
    ):
        runs = compare(section, kind, {other: calls[0], OURS: calls[1]}, work, least, settings)
        ratio = times_as_fast(runs, OURS, [other])
        rows.append((kind, ratio.text(2)))
    section.add_table(("2 threads over 1", "times as fast"), rows)
    section.notes.append("In these tables tiermem is the side with 2 threads. All bits agree, checked first.")
    one.close()
    two.close()
    return section
