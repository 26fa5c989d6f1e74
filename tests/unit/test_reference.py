"""The plain twin against the optimizers of torch, rules worked out by hand, and its own promises."""

from typing import Any

import numpy as np
import pytest
import tiermem as tm
import torch
from tiermem.config import RowType
from tiermem.embedding.reference import ReferenceTable, mix, random_bits, round_rows, row_keys, stream

ROWS, DIM = 12, 9
EVERY_ROW = torch.arange(ROWS)
REDUCED: list[RowType] = ["fp16", "bf16", "int8"]


def _backward(loss: torch.Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def _dense_step(table: ReferenceTable, gradient: torch.Tensor) -> None:
    table.forward(EVERY_ROW, EVERY_ROW).backward(gradient)  # type: ignore[no-untyped-call]
    table.step()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (tm.SGD(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
        (
            tm.SGD(lr=0.1, momentum=0.9, weight_decay=0.05),
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05),
        ),
        (
            tm.Adagrad(lr=0.1, weight_decay=0.05),
            lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-10, weight_decay=0.05),
        ),
        (
            tm.Adam(lr=0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.05),
            lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.05),
        ),
        (tm.Adam(lr=0.01), lambda p: torch.optim.Adam(p, lr=0.01)),
    ],
)
def test_with_every_row_in_every_step_it_is_the_optimizer_of_torch(ours: Any, theirs: Any) -> None:
    table = ReferenceTable(torch.randn(ROWS, DIM), ours, "sum")
    parameter = table.weights.detach().clone().requires_grad_()
    optimizer = theirs([parameter])
    for _ in range(20):
        gradient = torch.randn(ROWS, DIM)
        _dense_step(table, gradient)
        parameter.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(table.weights.detach(), parameter.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["rowwise_adagrad", "partial_rowwise_adam", "lamb"])
def test_row_wise_rules_are_those_worked_out_by_hand(name: str) -> None:
    """Three steps of each row in doubles, one number after the other."""
    rules: dict[str, Any] = {
        "rowwise_adagrad": tm.RowWiseAdagrad(lr=0.1, eps=1e-3, weight_decay=0.05),
        "partial_rowwise_adam": tm.PartialRowWiseAdam(lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.05),
        "lamb": tm.LAMB(lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.05),
    }
    table = ReferenceTable(torch.randn(ROWS, DIM), rules[name], "sum")
    w = table.weights.detach().double().numpy().copy()
    m, v = np.zeros((ROWS, DIM)), np.zeros((ROWS, DIM))
    s = np.zeros(ROWS)
    for t in (1, 2, 3):
        gradient = torch.randn(ROWS, DIM)
        _dense_step(table, gradient)
        for row in range(ROWS):
            g = gradient[row].double().numpy() + (0 if name == "lamb" else 0.05 * w[row])
            mean_square = sum(float(x) ** 2 for x in g) / DIM
            if name == "rowwise_adagrad":
                s[row] += mean_square
                w[row] -= 0.1 / (s[row] ** 0.5 + 1e-3) * g
                continue
            m[row] = 0.8 * m[row] + 0.2 * g
            v[row] = 0.9 * v[row] + 0.1 * (g**2 if name == "lamb" else mean_square)
            r = m[row] / (1 - 0.8**t) / (np.sqrt(v[row] / (1 - 0.9**t)) + 1e-3)
            if name == "lamb":
                r += 0.05 * w[row]
                r *= sum(x**2 for x in w[row]) ** 0.5 / sum(x**2 for x in r) ** 0.5
            w[row] -= 0.1 * r
    np.testing.assert_allclose(table.weights.detach().numpy(), w, rtol=1e-5, atol=1e-6)
    expected = {
        "rowwise_adagrad": s[:, None],
        "partial_rowwise_adam": np.hstack([m, v[:, :1]]),
        "lamb": np.hstack([m, v]),
    }
    np.testing.assert_allclose(table.state.numpy(), expected[name], rtol=1e-5, atol=1e-6)


def test_lamb_with_a_norm_of_zero_makes_the_plain_step() -> None:
    table = ReferenceTable(torch.zeros(ROWS, DIM), tm.LAMB(lr=0.5), "sum")
    _dense_step(table, torch.ones(ROWS, DIM))
    # Bias-corrected, the first m / sqrt(v) is 1.
    torch.testing.assert_close(table.weights.detach(), torch.full((ROWS, DIM), -0.5))
    still = ReferenceTable(torch.ones(ROWS, DIM), tm.LAMB(lr=0.5), "sum")
    _dense_step(still, torch.zeros(ROWS, DIM))
    assert bool((still.weights == 1).all())


@pytest.mark.parametrize(
    "optimizer", [tm.SGD(lr=0.1, momentum=0.9), tm.Adam(lr=0.1), tm.SGD(lr=0.1, weight_decay=0.5)]
)
def test_rows_that_were_looked_up_change_and_no_others(optimizer: Any) -> None:
    """Looked up is what counts: a gradient of zero lets momentum and decay go on."""
    table = ReferenceTable(torch.ones(ROWS, DIM), optimizer, "sum")
    _dense_step(table, torch.ones(ROWS, DIM))
    before, state = table.weights.detach().clone(), table.state.clone()
    _backward((table.forward(torch.tensor([3, 5, 3]), torch.tensor([0])) * 0).sum())
    table.step()
    changed = (table.weights != before).all(dim=1)
    assert changed.nonzero().flatten().tolist() == [3, 5]
    untouched = ~changed
    assert torch.equal(table.weights[untouched], before[untouched])
    assert torch.equal(table.state[untouched], state[untouched])
    assert table.steps == 2


def test_what_nobody_differentiates_or_what_was_forgotten_is_not_looked_up() -> None:
    table = ReferenceTable(torch.ones(ROWS, DIM), tm.SGD(lr=0.1, weight_decay=0.5), "mean")
    offsets = torch.tensor([0])
    table.forward(torch.tensor([1]), offsets)
    with torch.no_grad():
        table.forward(torch.tensor([2]), offsets)
    _backward(table.forward(torch.tensor([3]), offsets).sum())
    table.zero_grad()
    table.step()
    assert bool((table.weights == 1).all())
    assert table.steps == 1


def test_bias_correction_counts_all_steps() -> None:
    table = ReferenceTable(torch.zeros(ROWS, DIM), tm.Adam(lr=1.0, betas=(0.5, 0.75), eps=1e-12), "sum")
    table.step()
    _dense_step(table, torch.ones(ROWS, DIM))
    # t = 2: m = 0.5 / (1 - 0.25), v = 0.25 / (1 - 0.5625).
    expected = -(0.5 / 0.75) / (0.25 / 0.4375) ** 0.5
    torch.testing.assert_close(table.weights.detach(), torch.full((ROWS, DIM), expected))


def test_pooling_is_that_of_torch_and_unpooled_rows_are_the_rows() -> None:
    weights = torch.randn(ROWS, DIM)
    ids, offsets = torch.tensor([1, 4, 4, 0]), torch.tensor([0, 0, 3])
    for mode in ("sum", "mean"):
        found = ReferenceTable(weights, tm.SGD(lr=0.1), mode).forward(ids, offsets)
        torch.testing.assert_close(found, torch.nn.functional.embedding_bag(ids, weights, offsets, mode=mode))
    found = ReferenceTable(weights, tm.SGD(lr=0.1), "none").forward(ids, offsets)
    assert torch.equal(found, weights[ids])


@pytest.mark.parametrize("row_type", REDUCED)
def test_reduced_rows_are_decoded_updated_and_encoded(row_type: RowType) -> None:
    weights = round_rows(torch.randn(ROWS, DIM), row_type)
    table = ReferenceTable(weights, tm.Adagrad(lr=0.1), "sum", row_type)
    plain = ReferenceTable(weights, tm.Adagrad(lr=0.1), "sum")
    gradient = torch.randn(ROWS, DIM)
    _dense_step(table, gradient)
    _dense_step(plain, gradient)
    assert torch.equal(table.unrounded, plain.weights)
    assert torch.equal(table.state, plain.state)
    assert torch.equal(table.weights, round_rows(plain.weights.detach(), row_type))
    assert not torch.equal(table.weights, plain.weights)


def test_int8_is_the_arithmetic_of_numpy() -> None:
    x = torch.randn(50, 33)
    low, high = x.numpy().min(1, keepdims=True), x.numpy().max(1, keepdims=True)
    scale = (high - low) / np.float32(255)
    codes = np.rint((x.numpy() - low) * (np.float32(1) / scale))
    assert codes.min() == 0
    assert codes.max() == 255
    assert np.array_equal(round_rows(x, "int8").numpy(), codes * scale + low)


def test_generator_gives_published_and_remembered_numbers() -> None:
    one = np.array([0x9E3779B97F4A7C15], np.uint64)
    # SplitMix64 seeded with 0 gives this first (reference C code by S. Vigna).
    assert int(mix(one)[0]) == 0xE220A8397B1DCDAF
    assert int(stream(one - one, one - one)[0]) == int(mix(mix(one))[0])
    keys = row_keys(2**64 - 1, 7, 3, [0, 1, 2**32])
    assert len(set(keys.tolist())) == 3
    # One element by hand, in integers without a size.
    key, element = int(keys[1]), 5
    x = (key % 2**32 + 0x9E3779B9 * element) % 2**32
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    assert int(random_bits(keys, 6)[1, 5]) == x ^ x >> 16 ^ key >> 32


def test_random_bits_are_uniform_and_differ_by_everything_that_keys_them() -> None:
    bits = random_bits(row_keys(1, 1, 0, list(range(1024))), 64)
    share = ((bits[..., None] >> np.arange(32, dtype=np.uint32)) & 1).mean(axis=(0, 1))
    # A share of 65,536 coins has a standard error of 1/512.
    assert np.abs(share - 0.5).max() < 5 / 512
    counts = np.bincount((bits >> np.uint32(24)).ravel(), minlength=256)
    chi_square = ((counts - 256) ** 2 / 256).sum()
    # 255 degrees of freedom: mean 255, deviation 22.6.
    assert abs(chi_square - 255) < 5 * 22.6
    for other in [(2, 1, 0), (1, 2, 0), (1, 1, 1)]:
        assert (random_bits(row_keys(*other, list(range(1024))), 64) == bits).mean() < 1e-4


@pytest.mark.parametrize("row_type", REDUCED)
def test_stochastic_rounding_goes_to_a_neighbour_and_is_right_on_average(row_type: RowType) -> None:
    x = torch.randn(1, 64).repeat(4096, 1)
    bits = random_bits(row_keys(1, 1, 0, list(range(4096))), 64)
    found = round_rows(x, row_type, bits)
    choices = [len(set(found[:, column].tolist())) for column in range(64)]
    assert max(choices) == 2
    unit = (found.amax(dim=0) - found.amin(dim=0)).clamp(min=1e-12)
    error = (found.double().mean(dim=0) - x[0].double()).abs()
    # Between two values one unit apart the deviation is at most half a unit.
    assert bool((error <= 5 * 0.5 * unit / 64 + 1e-7).all())


@pytest.mark.parametrize("row_type", REDUCED)
@pytest.mark.parametrize("is_stochastic", [False, True])
def test_what_is_not_finite_stays_so(row_type: RowType, *, is_stochastic: bool) -> None:
    x = torch.ones(3, 4)
    x[1, 2], x[2, 0] = float("inf"), float("nan")
    found = round_rows(x, row_type, random_bits(row_keys(1, 1, 0, [0, 1, 2]), 4) if is_stochastic else None)
    if row_type == "int8":
        # The scale of the whole row is lost.
        x[1:] = float("nan")
    torch.testing.assert_close(found, x, rtol=0, atol=0, equal_nan=True)


def test_large_halves_saturate_stochastically_and_overflow_to_nearest() -> None:
    x = torch.tensor([[65504.0, 65519.0, 65520.0, -7e4, 1e38]])
    bits = random_bits(row_keys(1, 1, 0, [0]), 5)
    assert round_rows(x, "fp16", bits).tolist() == [[65504.0, 65504.0, 65504.0, -65504.0, 65504.0]]
    inf = float("inf")
    assert round_rows(x, "fp16").tolist() == [[65504.0, 65504.0, inf, -inf, inf]]


def test_values_that_a_type_holds_are_kept_by_chance_too() -> None:
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    halves = halves[halves.isfinite()].reshape(1, -1)
    found = round_rows(halves, "fp16", random_bits(row_keys(1, 1, 0, [0]), halves.shape[1]))
    assert torch.equal(found.view(torch.int32), halves.view(torch.int32))
    shorts = halves.bfloat16().float()
    found = round_rows(shorts, "bf16", random_bits(row_keys(1, 1, 0, [0]), shorts.shape[1]))
    assert torch.equal(found.view(torch.int32), shorts.view(torch.int32))
    constant = torch.full((4, 5), 0.3)
    assert torch.equal(
        round_rows(constant, "int8", random_bits(row_keys(1, 1, 0, [0, 1, 2, 3]), 5)), constant
    )


def test_ranges_that_have_no_scale_in_fp32() -> None:
    """Too narrow for 1 / scale, a row is its least value; too wide for max - min, it is lost."""
    narrow = torch.tensor([[0.0, 1e-37, 3e-37]])
    assert round_rows(narrow, "int8").tolist() == [[0.0, 0.0, 0.0]]
    wide = torch.tensor([[-3e38, 0.0, 3e38]])
    assert bool(round_rows(wide, "int8").isnan().all())
