"""Rows narrower than fp32: what rounding does to them, by chance and to nearest."""

from typing import Any

import pytest
import tiermem as tm
import torch
from tiermem.config import Rounding, RowType
from tiermem.embedding.reference import ReferenceTable, round_rows
from tiermem.errors import ConfigError

REDUCED: list[RowType] = ["fp16", "bf16", "int8"]
ROWS, DIM = 1024, 64
ELEMENTS = ROWS * DIM
INF, NAN = float("inf"), float("nan")


def _open(
    row_type: RowType,
    rounding: Rounding = "stochastic",
    *,
    optimizer: Any = None,
    rows: int = ROWS,
    dim: int = DIM,
    tables: int = 1,
    seed: int = 1,
) -> tm.TieredEmbeddingBagCollection:
    return tm.TieredEmbeddingBagCollection(
        [
            tm.TableConfig(
                name=f"t{n}", rows=rows, dim=dim, init_bound=0.5, row_type=row_type, rounding=rounding
            )
            for n in range(tables)
        ],
        hierarchy=tm.Hierarchy.load("dram"),
        optimizer=optimizer or tm.SGD(lr=1.0),
        seed=seed,
    )


def _weights(bags: tm.TieredEmbeddingBagCollection, table: int = 0) -> torch.Tensor:
    return bags.store.read_rows(table, 0, bags.store.tables[table].rows)[0]


def _step(bags: tm.TieredEmbeddingBagCollection, gradient: torch.Tensor, table: int = 0) -> None:
    """One step in which every row is looked up once."""
    every = torch.arange(bags.store.tables[table].rows)
    bags([tm.Lookup(table, every, every)])[0].backward(gradient)
    bags.optimizer().step()


def _trained(
    row_type: RowType,
    rounding: Rounding,
    *,
    start: torch.Tensor,
    gradient: torch.Tensor,
    steps: int,
    lr: float,
) -> torch.Tensor:
    """Weights after some steps of SGD, each with the same gradient."""
    bags = _open(row_type, rounding, optimizer=tm.SGD(lr=lr))
    bags.store.write_rows(0, 0, start)
    for _ in range(steps):
        _step(bags, gradient)
    weights = _weights(bags)
    bags.close()
    return weights


def _standard_error(unit: float, change: float, steps: int, elements: int) -> float:
    """Of a mean over elements that each step moves one unit with chance change / unit, or leaves."""
    chance = change / unit
    return float(unit * (steps * chance * (1 - chance) / elements) ** 0.5)


@pytest.mark.parametrize(("row_type", "unit"), [("fp16", 2.0**-11), ("bf16", 2.0**-8)])
def test_steps_smaller_than_a_unit_are_made_on_average(row_type: RowType, unit: float) -> None:
    """Below 1 the spacing of fp32 is even, and divides that of the stored type.

    So every step takes 1 - fl(1 - 1e-5) in fp32, and what rounding adds has mean zero exactly.
    """
    lr, steps = 1e-5, 200
    start, gradient = torch.ones(ROWS, DIM), torch.ones(ROWS, DIM)
    change = 1 - float(torch.tensor(1.0) - torch.tensor(lr))
    weights = _trained(row_type, "stochastic", start=start, gradient=gradient, steps=steps, lr=lr).double()
    error = _standard_error(unit, change, steps, ELEMENTS)
    assert abs(float(weights.mean()) - (1 - steps * change)) < 4 * error
    # Elements are drawn apart from each other: their spread is that of a binomial, to 5 %.
    assert float(weights.std()) == pytest.approx(error * ELEMENTS**0.5, rel=0.05)
    assert bool(
        (_trained(row_type, "nearest", start=start, gradient=gradient, steps=steps, lr=lr) == 1).all()
    )


def test_half_subnormals_are_not_biased() -> None:
    """Sixteen units of 2^-24 above zero; many elements come to zero or below it."""
    unit, steps, change = 2.0**-24, 50, 1376 * 2.0**-37
    start, gradient = torch.full((ROWS, DIM), 16 * unit), torch.ones(ROWS, DIM)
    weights = _trained("fp16", "stochastic", start=start, gradient=gradient, steps=steps, lr=change).double()
    expected = 16 * unit - steps * change
    assert abs(float(weights.mean()) - expected) < 4 * _standard_error(unit, change, steps, ELEMENTS)
    assert bool((weights / unit == (weights / unit).round()).all())
    assert bool(
        (
            _trained("fp16", "nearest", start=start, gradient=gradient, steps=steps, lr=change) == 16 * unit
        ).all()
    )


def test_int8_steps_smaller_than_a_code_are_made_on_average() -> None:
    """The least and the greatest element stay, so the scale does; the others go down by a fortieth of it."""
    steps, scale = 100, 2.0**-8
    change = scale / 40
    start = torch.full((ROWS, DIM), 128 * scale)
    start[:, 0], start[:, 1] = 0, 255 * scale
    gradient = torch.ones(ROWS, DIM)
    gradient[:, :2] = 0
    weights = _trained("int8", "stochastic", start=start, gradient=gradient, steps=steps, lr=change)
    assert bool((weights[:, 0] == 0).all())
    assert bool((weights[:, 1] == 255 * scale).all())
    inner = weights[:, 2:].double()
    error = _standard_error(scale, change, steps, inner.numel())
    # What fp32 rounds of a number below 1 is 2^-25 a step at most.
    allowed = 4 * error + steps * 2.0**-25
    assert abs(float(inner.mean()) - (128 * scale - steps * change)) < allowed
    still = _trained("int8", "nearest", start=start, gradient=gradient, steps=steps, lr=change)
    assert torch.equal(still, start)


@pytest.mark.parametrize("row_type", REDUCED)
@pytest.mark.parametrize("seed", [1, 2**63 + 5])
@pytest.mark.parametrize("dim", [1, 7, 16, 70])
def test_chance_is_that_of_the_plain_generator_bit_for_bit(row_type: RowType, seed: int, dim: int) -> None:
    rows = 50
    optimizer = tm.SGD(lr=0.01)
    bags = _open(row_type, optimizer=optimizer, rows=rows, dim=dim, tables=2, seed=seed)
    twin = ReferenceTable(_weights(bags, 1), optimizer, "sum", row_type, "stochastic", seed=seed, table=1)
    for step in range(1, 6):
        # Rows once each and in no order, so that nothing is summed.
        ids = torch.randperm(rows)[: rows - 10]
        starts = torch.arange(len(ids))
        gradient = torch.randn(len(ids), dim)
        bags([tm.Lookup(1, ids, starts)])[0].backward(gradient)
        bags.optimizer().step()
        twin.forward(ids, starts).backward(gradient)  # type: ignore[no-untyped-call]
        twin.step()
        assert torch.equal(_weights(bags, 1), twin.weights), f"step {step}"
    assert bags.store.steps == twin.steps == 5
    bags.close()


@pytest.mark.parametrize("row_type", REDUCED)
def test_written_rows_are_rounded_to_nearest(row_type: RowType) -> None:
    bags = _open(row_type, rows=256)
    values = torch.randn(256, DIM) * torch.logspace(-7, 4, 256)[:, None]
    # Halfway between two halves, and between two bf16 numbers: to even.
    values[0, :2] = torch.tensor([1 + 2.0**-11, 1 + 3 * 2.0**-11])
    values[1, :2] = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8])
    bags.store.write_rows(0, 0, values)
    assert torch.equal(_weights(bags), round_rows(values, row_type))
    bags.close()


@pytest.mark.parametrize(("row_type", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_every_value_of_a_type_survives_a_round_trip(row_type: RowType, dtype: torch.dtype) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype).float().reshape(ROWS, DIM)
    bags = _open(row_type)
    bags.store.write_rows(0, 0, values)
    found = _weights(bags)
    is_nan = values.isnan()
    assert bool(found[is_nan].isnan().all())
    assert torch.equal(found[~is_nan].view(torch.int32), values[~is_nan].view(torch.int32))
    bags.close()


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_constant_rows_of_int8_are_exact(rounding: Rounding) -> None:
    bags = _open("int8", rounding, optimizer=tm.SGD(lr=0.1))
    constants = torch.linspace(-3, 3, ROWS)[:, None].repeat(1, DIM)
    bags.store.write_rows(0, 0, constants)
    assert torch.equal(_weights(bags), constants)
    expected = constants - torch.tensor(0.1) * constants.square()
    _step(bags, constants.square())
    assert torch.equal(_weights(bags), expected)
    bags.close()


def test_int8_codes_are_within_half_a_scale_and_survive_a_second_writing() -> None:
    bags = _open("int8")
    values = torch.randn(ROWS, DIM) * torch.logspace(-6, 6, ROWS)[:, None] + torch.randn(ROWS, 1)
    bags.store.write_rows(0, 0, values)
    once = _weights(bags)
    scale = (values.amax(dim=1, keepdim=True) - values.amin(dim=1, keepdim=True)) / 255
    # Beside the code itself, position and decoded value are rounded to fp32 a few times.
    slack = 4 * torch.finfo(torch.float32).eps * (values.abs().amax(dim=1, keepdim=True) + 255 * scale)
    assert bool(((once - values).abs() <= scale / 2 + slack).all())
    assert torch.equal(once.amin(dim=1), values.amin(dim=1)), "the least value is the bias"
    bags.store.write_rows(0, 0, once)
    assert bool(((_weights(bags) - once).abs() <= slack).all()), "the codes are the same"
    bags.close()


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_one_value_that_is_not_finite_takes_a_row_of_int8_for_good(value: float, rounding: Rounding) -> None:
    bags = _open("int8", rounding, optimizer=tm.SGD(lr=0.1), rows=4, dim=20)
    before = _weights(bags)
    rows = before.clone()
    rows[1, 17] = value
    bags.store.write_rows(0, 0, rows)
    gradient = torch.ones(4, 20)
    gradient[2, 3] = value
    for _ in range(2):
        _step(bags, gradient)
        gradient[:] = 1
        found = _weights(bags)
        assert bool(found[[1, 2]].isnan().all())
        assert bool(found[[0, 3]].isfinite().all())
    bags.close()


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("row_type", ["fp16", "bf16"])
def test_what_is_not_finite_stays_in_its_column(row_type: RowType, rounding: Rounding) -> None:
    bags = _open(row_type, rounding, optimizer=tm.SGD(lr=1.0), rows=2, dim=20)
    bags.store.write_rows(0, 0, torch.ones(2, 20))
    gradient = torch.zeros(2, 20)
    # The last two are NaN whose payload is in the bits that bf16 cuts off.
    gradient[0, [0, 5, 18]] = torch.tensor([INF, -INF, NAN])
    gradient[0, [6, 19]] = torch.tensor([0x7F800001, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    expected = 1 - gradient
    for _ in range(2):
        _step(bags, gradient)
        gradient[:] = 0
        torch.testing.assert_close(_weights(bags), expected, rtol=0, atol=0, equal_nan=True)
    bags.close()


def test_a_half_that_grows_too_large_is_infinite_to_nearest_and_saturates_by_chance() -> None:
    start = torch.full((2, 20), 65504.0)
    start[1] = -65504.0
    gradient = -torch.sign(start) * 100
    for rounding, expected in (("nearest", start * INF), ("stochastic", start)):
        bags = _open("fp16", rounding, optimizer=tm.SGD(lr=1.0), rows=2, dim=20)  # type: ignore[arg-type]
        bags.store.write_rows(0, 0, start)
        _step(bags, gradient)
        assert torch.equal(_weights(bags), expected)
        bags.close()
    # What was written as infinity is infinity, however rows are rounded.
    bags = _open("fp16", rows=2, dim=20)
    bags.store.write_rows(0, 0, start * 2)
    _step(bags, gradient)
    assert torch.equal(_weights(bags), start * INF)
    bags.close()


@pytest.mark.parametrize("row_type", ["fp32", *REDUCED])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "partial_rowwise_adam", "rowwise_adagrad"])
def test_state_is_fp32_and_survives_a_round_trip(row_type: RowType, name: str) -> None:
    optimizer: Any = {
        "sgd": tm.SGD(lr=0.1),
        "momentum": tm.SGD(lr=0.1, momentum=0.9),
        "adam": tm.Adam(lr=0.1),
        "partial_rowwise_adam": tm.PartialRowWiseAdam(lr=0.1),
        "rowwise_adagrad": tm.RowWiseAdagrad(lr=0.1),
    }[name]
    bags = _open(row_type, optimizer=optimizer, rows=9, dim=21)
    _, state = bags.store.read_rows(0, 0, 9)
    assert state.shape == (9, optimizer.state_floats(21))
    assert bool((state == 0).all())
    written = torch.rand(9, state.shape[1])
    weights = round_rows(torch.randn(9, 21), row_type)
    bags.store.write_rows(0, 0, weights, written)
    found, kept = bags.store.read_rows(0, 0, 9)
    assert torch.equal(kept, written)
    assert torch.equal(found, round_rows(weights, row_type))
    bags.close()


@pytest.mark.parametrize("row_type", REDUCED)
def test_new_rows_are_what_the_type_holds_of_the_fp32_ones(row_type: RowType) -> None:
    full, reduced = _open("fp32"), _open(row_type)
    assert torch.equal(_weights(reduced), round_rows(_weights(full), row_type))
    full.close()
    reduced.close()


@pytest.mark.parametrize(
    "wrong", [{"row_type": "fp8"}, {"row_type": "FP16"}, {"rounding": "up"}, {"rounding": ""}]
)
def test_a_row_type_or_rounding_that_does_not_exist_is_named(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=f'{name}.*"{value}"') as caught:
        tm.TableConfig(name="t", rows=10, dim=4, **wrong)
    assert "\n" not in str(caught.value)
