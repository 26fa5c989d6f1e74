"""Every optimizer, row type and pooling against a plain PyTorch twin, and every path against every other.

A step of the store is compared with a step of the twin from the same bits, so errors do not pile up. With
u = 2^-24, both sum the n contributions to a row in fp32 but in their own order: each is within (n - 1) u of
the exact sum of the magnitudes, and what a few more roundings each add is of that size. Gradients and factors
are positive here, so no sum cancels and errors stay relative; they are random, so that they grow as sqrt(n).
The bound is 4 ulp x sqrt(n) of the larger of the weight and its change, whose difference is rounded last.
"""

import dataclasses
import itertools
from typing import Any

import hypothesis.strategies as st
import pytest
import tiermem as tm
import torch
from hypothesis import HealthCheck, given, settings
from tiermem.config import Rounding, RowType
from tiermem.embedding.reference import ReferenceTable, random_bits, round_rows, row_keys

EPS = torch.finfo(torch.float32).eps
OPTIMIZERS: dict[str, Any] = {
    "sgd": tm.SGD(lr=0.1),
    "momentum": tm.SGD(lr=0.1, momentum=0.9, weight_decay=0.001),
    "adagrad": tm.Adagrad(lr=0.1, weight_decay=0.001),
    "rowwise_adagrad": tm.RowWiseAdagrad(lr=0.1, weight_decay=0.001),
    "adam": tm.Adam(lr=0.02, weight_decay=0.001),
    "partial_rowwise_adam": tm.PartialRowWiseAdam(lr=0.02, betas=(0.8, 0.99), weight_decay=0.001),
    "lamb": tm.LAMB(lr=0.05, weight_decay=0.001),
}
ROW_TYPES: list[RowType] = ["fp32", "fp16", "bf16", "int8"]
MODES = ["sum", "mean", "none"]
Bags = list[list[int]]


@dataclasses.dataclass(frozen=True)
class Case:
    """Two tables of one row type, and steps of lookups: (table, bags) each."""

    rows: tuple[int, int]
    dims: tuple[int, int]
    steps: list[list[tuple[int, Bags]]]
    seed: int
    rounding: Rounding
    is_weighted: bool

    def lookups(self, step: int, mode: str) -> list[tm.Lookup]:
        lookups = []
        for table, bags in self.steps[step]:
            ids = torch.tensor([row for bag in bags for row in bag], dtype=torch.int64)
            starts = torch.tensor([0, *itertools.accumulate(map(len, bags))][:-1], dtype=torch.int64)
            factors = torch.linspace(0.5, 1.5, len(ids)) if self.is_weighted and mode == "sum" else None
            lookups.append(tm.Lookup(table, ids, starts, factors))
        return lookups

    def gradients(self, step: int, mode: str) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1000 + step)
        sizes = [sum(map(len, bags)) if mode == "none" else len(bags) for _, bags in self.steps[step]]
        return [
            torch.rand(size, self.dims[table], generator=generator) + 0.5
            for (table, _), size in zip(self.steps[step], sizes, strict=True)
        ]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rows = (draw(st.integers(1, 40)), draw(st.integers(1, 8)))

    def lookup() -> tuple[int, Bags]:
        table = draw(st.integers(0, 1))
        bag = st.lists(st.integers(0, rows[table] - 1), max_size=6)
        return table, draw(st.lists(bag, min_size=1, max_size=5))

    return Case(
        rows=rows,
        dims=(draw(st.integers(1, 70)), draw(st.integers(1, 70))),
        steps=[[lookup() for _ in range(draw(st.integers(1, 3)))] for _ in range(draw(st.integers(1, 4)))],
        seed=draw(st.integers(0, 1000)),
        rounding=draw(st.sampled_from(["nearest", "stochastic"])),
        is_weighted=draw(st.booleans()),
    )


@dataclasses.dataclass
class Trained:
    """What a training showed: after each step the rows of both tables, before it what was pooled."""

    rows: list[list[tuple[torch.Tensor, torch.Tensor]]] = dataclasses.field(default_factory=list)
    pooled: list[list[torch.Tensor]] = dataclasses.field(default_factory=list)
    of_factors: list[list[torch.Tensor | None]] = dataclasses.field(default_factory=list)
    device_reads: int = 0

    def bits(self) -> list[bytes]:
        tensors = [tensor for step in self.rows for pair in step for tensor in pair]
        tensors += [tensor for step in self.pooled for tensor in step]
        tensors += [tensor for step in self.of_factors for tensor in step if tensor is not None]
        return [tensor.contiguous().numpy().tobytes() for tensor in tensors]


def _train(
    case: Case, optimizer: Any, row_type: RowType, mode: Any, *, is_tiered: bool = False, threads: int = 1
) -> Trained:
    """Through DRAM alone, or through a cache of a row of each table over NAND."""
    tables = [
        tm.TableConfig(
            name=f"t{n}", rows=rows, dim=dim, init_bound=0.5, row_type=row_type, rounding=case.rounding
        )
        for n, (rows, dim) in enumerate(zip(case.rows, case.dims, strict=True))
    ]
    cache_bytes = sum(table.weight_bytes + 4 * optimizer.state_floats(table.dim) for table in tables)
    budgets: dict[str, Any] = {"dram": cache_bytes} if is_tiered else {}
    bags = tm.TieredEmbeddingBagCollection(
        tables,
        hierarchy=tm.Hierarchy.load("dram-nand" if is_tiered else "dram", budgets=budgets),
        optimizer=optimizer,
        mode=mode,
        threads=threads,
        seed=case.seed,
    )
    seen = Trained()

    def look() -> None:
        seen.rows.append([bags.store.read_rows(table, 0, rows) for table, rows in enumerate(case.rows)])

    look()
    for step in range(len(case.steps)):
        lookups = case.lookups(step, mode)
        for lookup in lookups:
            if lookup.sample_weights is not None:
                lookup.sample_weights.requires_grad_()
        pooled = bags(lookups)
        torch.autograd.backward(pooled, case.gradients(step, mode))
        bags.optimizer().step()
        look()
        seen.pooled.append([each.detach().clone() for each in pooled])
        seen.of_factors.append([None if x.sample_weights is None else x.sample_weights.grad for x in lookups])
    assert bags.store.steps == len(case.steps)
    if is_tiered:
        bags.store.flush()
        seen.device_reads = bags.stats().tier("nand").device_reads
    bags.close()
    return seen


def _slack(before: torch.Tensor, updated: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    change = (updated - before).abs()
    return 4 * EPS * counts.clamp(min=1).sqrt()[:, None] * torch.maximum(before.abs(), change)


def _assert_rounded_alike(
    found: torch.Tensor, twin: ReferenceTable, rows: torch.Tensor, slack: torch.Tensor, rounding: Rounding
) -> None:
    """What is stored is what some number within `slack` of the twin's rounds to."""
    x = twin.unrounded[rows]
    bits = random_bits(row_keys(twin.seed, twin.steps, twin.table, rows.numpy()), x.shape[1])
    if twin.row_type != "int8":
        noise = None if rounding == "nearest" else bits
        ends = [round_rows(end, twin.row_type, noise) for end in (x - slack, x + slack)]
        assert bool(((found >= ends[0]) & (found <= ends[1])).all())
        return
    # The row's extremes move by its largest slack, so a decoded value moves by three times that at most while
    # its code is the same. The code may be another one where position + shift is near a whole number.
    row_slack = slack.amax(dim=1, keepdim=True) + 4 * EPS * x.abs().amax(dim=1, keepdim=True)
    low = x.amin(dim=1, keepdim=True)
    scale = (x.amax(dim=1, keepdim=True) - low) / 255
    position = torch.where(scale > 0, (x - low) / scale, 0.0)
    shift = torch.from_numpy((bits >> 8).astype("float32")) * 2.0**-24 if rounding == "stochastic" else 0.5
    from_whole = (position + shift - (position + shift).round()).abs()
    is_near = from_whole * scale <= 4 * row_slack + 255 * 4 * EPS * scale
    allowed = 4 * row_slack + torch.where(is_near, 2 * scale, 0.0)
    assert bool(((found - twin.weights.detach()[rows]).abs() <= allowed).all())


def _check_step(case: Case, seen: Trained, twins: list[ReferenceTable], step: int, mode: str) -> None:
    lookups, gradients = case.lookups(step, mode), case.gradients(step, mode)
    counts = [torch.zeros(rows) for rows in case.rows]
    for position, (lookup, gradient) in enumerate(zip(lookups, gradients, strict=True)):
        twin, found = twins[lookup.table], seen.pooled[step][position]
        factors = lookup.sample_weights
        if factors is not None:
            factors.requires_grad_()
        expected = twin.forward(lookup.ids, lookup.offsets, factors)
        with torch.no_grad():
            plain = ReferenceTable(twin.weights.detach().abs(), twin.optimizer, mode)
            magnitude = plain.forward(lookup.ids, lookup.offsets, factors)
        # A bag has at most 6 rows.
        assert bool(((found - expected.detach()).abs() <= 4 * 6**0.5 * EPS * magnitude).all())
        expected.backward(gradient)  # type: ignore[no-untyped-call]
        if factors is not None:
            of_factors = seen.of_factors[step][position]
            assert of_factors is not None
            assert factors.grad is not None
            bags = torch.bucketize(torch.arange(len(lookup.ids)), lookup.offsets, right=True) - 1
            terms = (gradient[bags] * twin.weights.detach()[lookup.ids]).abs().sum(dim=1)
            # A sum over D columns of either sign.
            bound = 4 * case.dims[lookup.table] ** 0.5 * EPS * terms
            assert bool(((of_factors - factors.grad).abs() <= bound).all())
        counts[lookup.table] += torch.bincount(lookup.ids, minlength=len(twin.weights))
    for table, twin in enumerate(twins):
        before, state_before = seen.rows[step][table]
        found, state = seen.rows[step + 1][table]
        is_touched = counts[table] > 0
        twin.step()
        assert torch.equal(found[~is_touched].view(torch.int32), before[~is_touched].view(torch.int32))
        assert torch.equal(state[~is_touched].view(torch.int32), state_before[~is_touched].view(torch.int32))
        rows = is_touched.nonzero().flatten()
        if len(rows):
            # Sums of squares are positive, and means of positive gradients are, so their errors are relative.
            bound = 4 * EPS * counts[table].clamp(min=1).sqrt()[:, None] * twin.state.abs()
            assert bool(((state - twin.state).abs() <= bound).all())
            slack = _slack(before[rows], twin.unrounded[rows], counts[table][rows])
            _assert_rounded_alike(found[rows], twin, rows, slack, case.rounding)
        # The next step starts from the same bits.
        twin.load(found, state)


def _twins(case: Case, seen: Trained, optimizer: Any, row_type: RowType, mode: str) -> list[ReferenceTable]:
    return [
        ReferenceTable(weights, optimizer, mode, row_type, case.rounding, seed=case.seed, table=table)
        for table, (weights, _) in enumerate(seen.rows[0])
    ]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row_type", ROW_TYPES)
@pytest.mark.parametrize("name", OPTIMIZERS)
@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(case=cases())
def test_store_follows_its_twin_on_every_path(name: str, row_type: RowType, mode: str, case: Case) -> None:
    optimizer = OPTIMIZERS[name]
    seen = _train(case, optimizer, row_type, mode)
    twins = _twins(case, seen, optimizer, row_type, mode)
    for step in range(len(case.steps)):
        _check_step(case, seen, twins, step, mode)
    tiered = _train(case, optimizer, row_type, mode, is_tiered=True, threads=2)
    assert seen.bits() == tiered.bits()


def _large(rounding: Rounding, *, rows: int = 600, steps: int = 6) -> Case:
    """Enough for several threads and for evictions: each step has half of the rows, some often."""
    generator = torch.Generator().manual_seed(5)
    batches = []
    for step in range(steps):
        ids = (torch.randint(0, rows // 2, (1500,), generator=generator) + step * rows // 3) % rows
        small = torch.randint(0, 50, (300,), generator=generator)
        lookups: list[tuple[int, Bags]] = [
            (0, ids.reshape(-1, 5).tolist()),
            (1, small.reshape(-1, 3).tolist()),
        ]
        batches.append([*lookups, (0, [[], [3, 3, 4]])])
    return Case((rows, 50), (70, 24), batches, seed=7, rounding=rounding, is_weighted=True)


@pytest.mark.parametrize("row_type", ROW_TYPES)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("mode", MODES)
def test_threads_and_tiers_do_not_change_a_bit(name: str, row_type: RowType, mode: str) -> None:
    case = _large("stochastic")
    one = _train(case, OPTIMIZERS[name], row_type, mode).bits()
    assert one == _train(case, OPTIMIZERS[name], row_type, mode, threads=2).bits()
    tiered = _train(case, OPTIMIZERS[name], row_type, mode, is_tiered=True, threads=2)
    assert tiered.device_reads > 0
    assert one == tiered.bits()


@pytest.mark.parametrize("row_type", ["fp16", "bf16"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_nearly_all_reduced_weights_are_those_of_the_twin(row_type: RowType, rounding: Rounding) -> None:
    """A unit of these types is thousands of ulp of fp32: few sums straddle a boundary."""
    case = _large(rounding, steps=1)
    for optimizer in OPTIMIZERS.values():
        seen = _train(case, optimizer, row_type, "sum")
        twins = _twins(case, seen, optimizer, row_type, "sum")
        for lookup, gradient in zip(case.lookups(0, "sum"), case.gradients(0, "sum"), strict=True):
            pooled = twins[lookup.table].forward(lookup.ids, lookup.offsets, lookup.sample_weights)
            pooled.backward(gradient)  # type: ignore[no-untyped-call]
        for table, twin in enumerate(twins):
            twin.step()
            share = (seen.rows[1][table][0] == twin.weights).double().mean()
            assert float(share) > 0.99


def _permuted(case: Case, order: list[int]) -> Case:
    steps = [[(table, [bags[n] for n in order]) for table, bags in step] for step in case.steps]
    return dataclasses.replace(case, steps=steps)


@pytest.mark.parametrize("row_type", ROW_TYPES)
def test_order_of_samples_that_share_no_row_changes_nothing(row_type: RowType) -> None:
    bags = [[2 * n, 2 * n + 1] for n in range(20)]
    case = Case((40, 1), (33, 1), [[(0, bags)]], seed=3, rounding="stochastic", is_weighted=False)
    order = torch.randperm(20).tolist()
    results = []
    for each, gradients in ((case, list(range(20))), (_permuted(case, order), order)):
        with pytest.MonkeyPatch.context() as patch:
            fixed = torch.randn(20, 33, generator=torch.Generator().manual_seed(1))[gradients]
            patch.setattr(Case, "gradients", lambda *_, fixed=fixed: [fixed])
            results.append(_train(each, tm.Adam(lr=0.1), row_type, "sum").rows[1])
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_order_of_samples_changes_weights_within_the_error_of_two_sums() -> None:
    """Gradients of either sign, whose sums cancel.

    With u = 2^-24 and c = n u / (1 - n u), a sum of n terms in any order is within c x (sum of magnitudes) of
    the exact one, so two orders are within twice that. On the way to the weight, lr * g and w - lr * g are
    rounded on both sides, by u of each.
    """
    lr, rows, dim, u = 0.1, 5, 70, 2.0**-24
    bags = [[n % rows, (n * n) % rows] for n in range(200)]
    gradient = torch.randn(200, dim)
    counts = torch.bincount(torch.tensor(bags).flatten(), minlength=rows)[:, None]
    magnitudes = torch.zeros(rows, dim, dtype=torch.float64)
    for bag, terms in zip(bags, gradient, strict=True):
        for row in bag:
            magnitudes[row] += terms.abs()
    table = tm.TableConfig(name="t", rows=rows, dim=dim, init_bound=0.5)
    found = []
    for order in (torch.arange(200), torch.randperm(200)):
        store = tm.TieredEmbeddingBagCollection(
            [table], hierarchy=tm.Hierarchy.load("dram"), optimizer=tm.SGD(lr=lr)
        )
        ids = torch.tensor(bags)[order].flatten()
        store([tm.Lookup(0, ids, torch.arange(0, 400, 2))])[0].backward(gradient[order])
        before = store.store.read_rows(0, 0, rows)[0].double()
        store.optimizer().step()
        found.append(store.store.read_rows(0, 0, rows)[0].double())
        store.close()
    change = torch.stack([(after - before).abs() for after in found]).amax(dim=0)
    weight = torch.stack([after.abs() for after in found]).amax(dim=0)
    of_sums = 2 * lr * counts * u / (1 - counts * u) * magnitudes * (1 + 4 * u)
    bound = of_sums + 2 * u * (change + 2 * weight)
    assert bool(((found[0] - found[1]).abs() <= bound).all())
    assert not torch.equal(*found), "the orders do differ"
