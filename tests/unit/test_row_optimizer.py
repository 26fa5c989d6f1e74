"""The optimizer of the rows in the hands of torch, and what of it a saved store keeps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiermem as tm
import torch
from tiermem.config import Experiment, RowType
from tiermem.errors import ConfigError, InputError
from torch import nn

Bags = tm.TieredEmbeddingBagCollection
ROWS, DIM, BAG = 120, 20, 4
TINY = tm.Hierarchy.load("dram-nand", budgets={"dram": 0.05})
"""Six rows of DRAM over an emulated NAND SSD."""


def _open(
    optimizer: Any = None,
    *,
    tables: int = 1,
    row_type: RowType = "fp32",
    hierarchy: tm.Hierarchy = TINY,
    seed: int = 1,
    **options: Any,
) -> Bags:
    return Bags(
        [
            tm.TableConfig(name=f"t{n}", rows=ROWS, dim=DIM, init_bound=0.5, row_type=row_type)
            for n in range(tables)
        ],
        hierarchy=hierarchy,
        optimizer=optimizer or tm.SGD(lr=0.1),
        seed=seed,
        **options,
    )


def _rows(bags: Bags) -> list[torch.Tensor]:
    """Weights as they are stored, and state, of each table."""
    tables = range(len(bags.store.tables))
    return [part for table in tables for part in bags.store.read_stored_rows(table, 0, ROWS)]


def _weights(bags: Bags, table: int = 0) -> torch.Tensor:
    return bags.store.read_rows(table, 0, ROWS)[0]


def _twins(bags: Bags) -> list[nn.EmbeddingBag]:
    return [
        nn.EmbeddingBag.from_pretrained(_weights(bags, table), freeze=False, mode="sum")
        for table in range(len(bags.store.tables))
    ]


def _same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _batches(steps: int, *, tables: int = 1, bags: int = 12, seed: int = 0) -> list[list[tm.Lookup]]:
    generator = torch.Generator().manual_seed(seed)
    starts = torch.arange(0, bags * BAG, BAG)
    return [
        [
            # Squared, so that some rows are looked up often.
            tm.Lookup(n, (torch.rand(bags * BAG, generator=generator).square() * ROWS).long(), starts)
            for n in range(tables)
        ]
        for _ in range(steps)
    ]


def _loss(pooled: Any) -> Any:
    return sum(((each - 0.3) ** 2).sum() for each in pooled)


def _train(bags: Bags, batches: list[list[tm.Lookup]]) -> None:
    for batch in batches:
        _loss(bags(batch)).backward()
        bags.optimizer().step()


# --- schedules, accumulation, clipping ---


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "lambda": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.7**step),
    "one_cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.2, total_steps=8, cycle_momentum=False
    ),
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_drives_the_rows_as_it_drives_dense_ones(name: str, fused: bool) -> None:
    bags = _open(tm.SGD(lr=0.05), fused_in_backward=fused)
    (twin,) = _twins(bags)
    dense = torch.optim.SGD(twin.parameters(), lr=0.05)
    schedules = [SCHEDULES[name](bags.optimizer()), SCHEDULES[name](dense)]
    rates = set()
    for batch in _batches(8):
        _loss(bags(batch)).backward()
        bags.optimizer().step()
        dense.zero_grad()
        _loss([twin(batch[0].ids, batch[0].offsets)]).backward()
        dense.step()
        rates.add(bags.optimizer().lr)
        assert bags.optimizer().lr == dense.param_groups[0]["lr"]
        torch.testing.assert_close(_weights(bags), twin.weight.detach(), rtol=1e-5, atol=1e-6)
        if len(rates) < 8:
            for schedule in schedules:
                schedule.step()
    assert len(rates) == 8, "each step had a rate of its own"
    bags.close()


@pytest.mark.parametrize("row_type", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("optimizer", [tm.SGD(lr=0.1), tm.Adam(lr=0.02)], ids=["sgd", "adam"])
def test_accumulated_batches_are_one_big_batch_bit_for_bit(row_type: RowType, optimizer: Any) -> None:
    """Contributions are summed in order of batch, bag and position, which is that of the big batch."""
    parts, whole = (_open(optimizer, tables=2, row_type=row_type) for _ in range(2))
    for step in range(4):
        small = _batches(3, tables=2, seed=step)
        for batch in small:
            _loss(parts(batch)).backward()
        parts.optimizer().step()
        ids = [torch.cat([batch[n].ids for batch in small]) for n in range(2)]
        big = [tm.Lookup(n, each, torch.arange(0, len(each), BAG)) for n, each in enumerate(ids)]
        _loss(whole(big)).backward()
        whole.optimizer().step()
        assert _same(_rows(parts), _rows(whole)), f"step {step}"
    assert parts.store.steps == whole.store.steps == 4
    parts.close()
    whole.close()


def test_accumulated_lookups_of_one_table_are_summed_in_another_order_and_are_close() -> None:
    parts, whole = _open(), _open()
    first, second = (batch[0] for batch in _batches(2))
    for batch in ([second], [first]):
        _loss(parts(batch)).backward()
    _loss(whole([first, second])).backward()
    for bags in (parts, whole):
        bags.optimizer().step()
    torch.testing.assert_close(_weights(parts), _weights(whole), rtol=1e-5, atol=1e-6)
    parts.close()
    whole.close()


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_is_that_of_torch_and_the_same_bits_on_every_hierarchy(max_norm: float) -> None:
    small, dram = _open(tables=2), _open(tables=2, hierarchy=tm.Hierarchy.load("dram"))
    twins = _twins(small)
    dense = torch.optim.SGD([twin.weight for twin in twins], lr=0.1)
    for batch in _batches(5, tables=2):
        norms = []
        for bags in (small, dram):
            _loss(bags(batch)).backward()
            norms.append(bags.optimizer().clip_grad_norm_(max_norm))
        dense.zero_grad()
        _loss([twins[lookup.table](lookup.ids, lookup.offsets) for lookup in batch]).backward()
        expected = float(nn.utils.clip_grad_norm_([twin.weight for twin in twins], max_norm))
        assert norms[0] == norms[1]
        assert norms[0] == pytest.approx(expected, rel=1e-5)
        assert (expected > max_norm) == (max_norm == 0.5), "one of the two clips"
        assert small.optimizer().grad_norm() == pytest.approx(min(expected, max_norm), rel=1e-5)
        for optimizer in (small.optimizer(), dram.optimizer(), dense):
            optimizer.step()
        for table, twin in enumerate(twins):
            torch.testing.assert_close(_weights(small, table), twin.weight.detach(), rtol=1e-5, atol=1e-6)
        assert _same(_rows(small), _rows(dram))
    assert small.stats().tier("nand").device_reads > 0
    small.close()
    dram.close()


def test_clipping_what_was_applied_inside_backward_is_refused() -> None:
    bags = _open(fused_in_backward=True)
    _loss(bags(_batches(1)[0])).backward()
    optimizer, message = bags.optimizer(), "fused_in_backward=True applies gradients at once"
    with pytest.raises(ConfigError, match=message):
        optimizer.clip_grad_norm_(1.0)
    with pytest.raises(ConfigError, match=message):
        optimizer.grad_norm()
    with pytest.raises(ConfigError, match=message):
        optimizer.scale_grad_(0.5)
    bags.close()


# --- automatic mixed precision ---


def test_autocast_with_bfloat16_trains_rows_and_dense_layers() -> None:
    bags = _open()
    before = _weights(bags)
    (twin,) = _twins(bags)
    heads = [nn.Linear(DIM, 1), nn.Linear(DIM, 1)]
    heads[1].load_state_dict(heads[0].state_dict())
    dense = torch.optim.SGD([*twin.parameters(), *heads[1].parameters()], lr=0.1)
    ours = torch.optim.SGD(heads[0].parameters(), lr=0.1)
    for batch in _batches(3):
        with torch.amp.autocast("cpu", dtype=torch.bfloat16):
            pooled = bags(batch)[0]
            assert pooled.dtype == torch.float32
            outputs = [heads[0](pooled), heads[1](twin(batch[0].ids, batch[0].offsets))]
        assert outputs[0].dtype == torch.bfloat16
        optimizers: list[torch.optim.Optimizer] = [bags.optimizer(), ours, dense]
        for optimizer in optimizers:
            optimizer.zero_grad()
        for output in outputs:
            output.float().square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(_weights(bags), twin.weight.detach(), rtol=1e-2, atol=1e-3)
    assert not torch.equal(_weights(bags), before)
    bags.close()


def test_a_gradient_scaler_is_refused_with_what_to_do() -> None:
    bags = _open()
    before = _weights(bags)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(_loss(bags(_batches(1)[0]))).backward()
    with pytest.raises(ConfigError, match="use autocast with bfloat16, which needs no scaling") as caught:
        scaler.step(bags.optimizer())
    assert "\n" not in str(caught.value)
    assert torch.equal(_weights(bags), before)
    bags.close()


# --- lookups and gradients ---


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_rows_as_they_are_and_their_gradients_are_those_of_an_embedding(dtype: torch.dtype) -> None:
    bags = _open(mode="none")
    twin = nn.Embedding(ROWS, DIM, _weight=_weights(bags))
    dense = torch.optim.SGD(twin.parameters(), lr=0.1)
    for batch in _batches(3):
        ids = batch[0].ids.to(dtype)
        (found,) = bags([tm.Lookup(0, ids, torch.tensor([0, 5, 5], dtype=dtype))])
        expected = twin(ids)
        assert found.shape == (len(ids), DIM)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        gradient = torch.randn(len(ids), DIM)
        for output in (found, expected):
            output.backward(gradient)
        for optimizer in (bags.optimizer(), dense):
            optimizer.step()
            optimizer.zero_grad()
        torch.testing.assert_close(_weights(bags), twin.weight.detach(), rtol=1e-5, atol=1e-6)
    bags.close()


@pytest.mark.parametrize("lr", [None, 0.1])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(12, DIM, dtype=torch.float64), "gradients has dtype torch.float64"),
        (torch.zeros(12, DIM, dtype=torch.bfloat16), "gradients has dtype torch.bfloat16"),
        (torch.zeros(DIM, 12), r"its output is \[12, 20\]"),
        (torch.zeros(11, DIM), r"its output is \[12, 20\]"),
        (torch.zeros(12, DIM + 1), r"its output is \[12, 20\]"),
        (torch.zeros(12 * BAG, DIM), r"its output is \[12, 20\]"),
    ],
)
def test_wrong_gradients_are_refused_and_nothing_is_kept(
    wrong: torch.Tensor, message: str, lr: float | None
) -> None:
    bags = _open(tables=2)
    before = _rows(bags)
    ticket = bags.prefetch(_batches(1, tables=2)[0])
    ticket.wait()
    with pytest.raises(InputError, match=message) as caught:
        bags.store.backward_all(ticket, [torch.ones(12, DIM), wrong], lr=lr)
    assert "\n" not in str(caught.value)
    ticket.release()
    bags.store.step(0.1)
    assert bags.store.steps == 0
    assert _same(_rows(bags), before)
    bags.close()


def test_gradients_of_any_strides_give_the_same_bits() -> None:
    batch = _batches(1)[0]
    wide = torch.randn(DIM, 24)
    found = []
    for gradient in (wide.T[::2], wide.T[::2].contiguous(), torch.randn(1, DIM).expand(12, DIM)):
        for given in (gradient, gradient.clone(memory_format=torch.contiguous_format)):
            bags = _open()
            ticket = bags.prefetch(batch)
            ticket.wait()
            bags.store.backward_all(ticket, [given], lr=0.1)
            ticket.release()
            found.append(_weights(bags))
            bags.close()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[4], found[5])


def test_sample_weights_of_another_length_are_refused() -> None:
    bags = _open()
    ids, starts = torch.arange(6), torch.tensor([0, 3])
    for length in (0, 5, 7):
        with pytest.raises(InputError, match=rf"\[{length}\] sample weights for \[6\] ids"):
            bags([tm.Lookup(0, ids, starts, torch.ones(length))])
    assert bags.stats().open_tickets == 0
    bags.close()


@pytest.mark.parametrize("row_type", ["fp32", "fp16", "bf16", "int8"])
def test_the_mean_of_an_empty_bag_is_zeros_and_has_no_gradient(row_type: RowType) -> None:
    bags = _open(mode="mean", row_type=row_type)
    before = _rows(bags)
    (pooled,) = bags([tm.Lookup(0, torch.empty(0, dtype=torch.int64), torch.tensor([0, 0]))])
    assert torch.equal(pooled, torch.zeros(2, DIM))
    pooled.sum().backward()
    bags.optimizer().step()
    assert _same(_rows(bags), before)
    bags.close()


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: tm.TableConfig(name="t", rows=3, dim=4, row_type="fp8"), "fp8"),  # type: ignore[arg-type]
        (lambda: tm.TableConfig(name="t", rows=3, dim=4, rounding="up"), "up"),  # type: ignore[arg-type]
        (lambda: tm.TableConfig(name="zero", rows=3, dim=0), "zero"),
        (lambda: Experiment.load("demo-tiering", ["model.row_type=fp8"]), "fp8"),
        (lambda: Experiment.load("demo-tiering", ["model.rounding=up"]), "up"),
        (lambda: Experiment.load("demo-tiering", ["train.optimizer.name=adamw"]), "adamw"),
        (lambda: Experiment.load("demo-tiering", ["model.dim=0"]), "model.dim"),
        (lambda: _open(mode="max"), "max"),
    ],
)
def test_what_does_not_exist_is_named_in_one_sentence(make: Callable[[], object], value: str) -> None:
    with pytest.raises(ConfigError, match=value) as caught:
        make()
    assert "\n" not in str(caught.value)


# --- saved steps ---


def _by_file(source: Bags, target: Bags, folder: Path) -> None:
    source.store.save_rows(folder / "rows.tms")
    target.store.load_rows(folder / "rows.tms")


def _by_state_dict(source: Bags, target: Bags, folder: Path) -> None:
    torch.save(source.state_dict(), folder / "bags.pt")
    target.load_state_dict(torch.load(folder / "bags.pt", weights_only=True))


OPTIMIZERS = {"adam": tm.Adam(lr=0.02), "lamb": tm.LAMB(lr=0.02), "sgd": tm.SGD(lr=0.1)}


@pytest.mark.parametrize("move", [_by_file, _by_state_dict])
@pytest.mark.parametrize("row_type", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_step_count_goes_along_and_training_goes_on_to_the_same_bits(
    name: str, row_type: RowType, move: Callable[..., None], tmp_path: Path
) -> None:
    """Adam's correction and the rounding by chance both depend on it."""
    batches = _batches(9, tables=2)
    through, first, second, unaware = (_open(OPTIMIZERS[name], tables=2, row_type=row_type) for _ in range(4))
    _train(through, batches)
    _train(first, batches[:5])
    for target in (second, unaware):
        folder = tmp_path / str(id(target))
        folder.mkdir()
        move(first, target, folder)
        assert target.store.steps == 5
        assert _same(_rows(target), _rows(first))
    unaware.store.steps = 0
    for bags in (second, unaware):
        _train(bags, batches[5:])
    assert through.store.steps == second.store.steps == 9
    assert _same(_rows(second), _rows(through))
    # Steps that are lost are seen, except where nothing depends on them.
    assert _same(_rows(unaware), _rows(through)) == (name == "sgd" and row_type == "fp32")


def test_rows_of_another_type_are_refused_with_both_named(tmp_path: Path) -> None:
    source, target = _open(row_type="fp16"), _open(row_type="int8")
    source.store.save_rows(tmp_path / "rows.tms")
    with pytest.raises(ConfigError, match=r"columns in fp16 .*the store has .* columns in int8") as caught:
        target.store.load_rows(tmp_path / "rows.tms")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"rows of torch\.float16; here they are int8"):
        target.load_state_dict(source.state_dict())
    source.close()
    target.close()
