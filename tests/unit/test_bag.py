"""The drop-in against `torch.nn.EmbeddingBag`."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import tiermem as tm
import torch
from tiermem.errors import ClosedError, ConfigError, DeviceError, InputError
from torch import nn

ROWS, DIM = 200, 12


def _pair(mode: str = "sum", **options: Any) -> tuple[nn.EmbeddingBag, tm.TieredEmbeddingBag]:
    ours = {key: options.pop(key) for key in ("fused_in_backward", "optimizer") if key in options}
    torch_bag = nn.EmbeddingBag(ROWS, DIM, mode=mode, **options)
    hierarchy = tm.Hierarchy.load("dram-nand", budgets={"dram": 0.05})
    optimizer = ours.pop("optimizer", tm.SGD(lr=0.1))
    return torch_bag, tm.TieredEmbeddingBag.from_torch(
        torch_bag, hierarchy=hierarchy, optimizer=optimizer, **ours
    )


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_forward_and_training_follow_torch(mode: str) -> None:
    theirs, ours = _pair(mode)
    steps = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for _ in range(10):
        ids = torch.randint(0, ROWS, (40,))
        offsets = torch.tensor([0, 0, 10, 11, 40])
        expected, found = theirs(ids, offsets), ours(ids, offsets)
        torch.testing.assert_close(found, expected)
        assert bool((found[0] == 0).all()), "an empty bag gives zeros"
        for pooled, optimizer in ((expected, steps), (found, ours.optimizer())):
            optimizer.zero_grad()
            pooled.square().sum().backward()
            optimizer.step()
    ((_, weights, _),) = ours.bags.store.rows(0)
    torch.testing.assert_close(weights, theirs.weight.detach())


def test_two_dimensional_input_int32_and_last_offset() -> None:
    theirs, ours = _pair()
    square = torch.randint(0, ROWS, (5, 4))
    torch.testing.assert_close(ours(square), theirs(square))
    torch.testing.assert_close(ours(square.to(torch.int32)), theirs(square))
    assert ours(torch.zeros(3, 0, dtype=torch.int64)).shape == (3, DIM)
    theirs, ours = _pair(include_last_offset=True)
    ids, offsets = torch.randint(0, ROWS, (6,)), torch.tensor([0, 2, 6])
    torch.testing.assert_close(ours(ids, offsets), theirs(ids, offsets))
    with pytest.raises(InputError, match="the last offset is 6"):
        ours(ids, torch.tensor([0, 2]))


def test_sample_weights_and_their_gradient_follow_torch() -> None:
    theirs, ours = _pair()
    ids, offsets = torch.randint(0, ROWS, (20,)), torch.tensor([0, 7, 7])
    weights = [torch.rand(20).requires_grad_() for _ in range(1)] * 2
    mine = weights[0].detach().clone().requires_grad_()
    expected, found = theirs(ids, offsets, weights[0]), ours(ids, offsets, mine)
    torch.testing.assert_close(found, expected)
    gradient = torch.rand_like(expected)
    expected.backward(gradient)
    found.backward(gradient)
    torch.testing.assert_close(mine.grad, weights[0].grad)


@pytest.mark.parametrize(
    "options",
    [
        {"max_norm": 1.0},
        {"norm_type": 1.0},
        {"scale_grad_by_freq": True},
        {"sparse": True},
        {"padding_idx": 0},
        {"mode": "max"},
        {"dtype": torch.float64},
        {"device": "meta"},
    ],
)
def test_what_is_not_supported_raises_and_is_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=f"{name}.*not supported"):
        tm.TieredEmbeddingBag(10, 4, hierarchy=tm.Hierarchy.load("dram"), optimizer=tm.SGD(lr=0.1), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda bag: bag(torch.tensor([ROWS]), torch.tensor([0])), f"id {ROWS} is out of range"),
        (lambda bag: bag(torch.tensor([-1]), torch.tensor([0])), "id -1 is out of range"),
        (lambda bag: bag(torch.tensor([1, 2]), torch.tensor([0, 2, 1])), "offsets must start at 0, ascend"),
        (lambda bag: bag(torch.tensor([1]), torch.tensor([1])), "offsets must start at 0"),
        (lambda bag: bag(torch.tensor([1.5]), torch.tensor([0])), "ids has dtype torch.float32"),
        (lambda bag: bag(torch.tensor([1]), torch.tensor([0.0])), "offsets has dtype torch.float32"),
        (lambda bag: bag(torch.tensor([1]).to("meta"), torch.tensor([0])), "ids is on meta"),
        (lambda bag: bag(torch.tensor([1])), "1-D input needs offsets"),
        (lambda bag: bag(torch.tensor([[1]]), torch.tensor([0])), "offsets go with 1-D input"),
        (lambda bag: bag(torch.tensor([1]), torch.tensor([0]), torch.rand(2)), "per_sample_weights are"),
        (
            lambda bag: bag(torch.tensor([1]), torch.tensor([0]), torch.rand(1).double()),
            "sample_weights has dtype torch.float64",
        ),
    ],
)
def test_wrong_input_is_one_sentence(call: Callable[[Any], Any], message: str) -> None:
    bag = _pair()[1]
    with pytest.raises(InputError) as caught:
        call(bag)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    # A refused call leaves nothing behind.
    assert bag.stats().open_tickets == 0


def test_fused_and_separate_steps_give_the_same_bits() -> None:
    _, separate = _pair(optimizer=tm.RowWiseAdagrad(lr=0.1))
    hierarchy = tm.Hierarchy.load("dram-nand", budgets={"dram": 0.05})
    fused = tm.TieredEmbeddingBag(
        ROWS,
        DIM,
        mode="sum",
        hierarchy=hierarchy,
        optimizer=tm.RowWiseAdagrad(lr=0.1),
        fused_in_backward=True,
    )
    fused.load_state_dict(separate.state_dict())
    for _ in range(5):
        ids, offsets = torch.randint(0, ROWS, (30,)), torch.arange(0, 30, 3)
        for bag in (separate, fused):
            bag(ids, offsets).sum().backward()
        separate.optimizer().step()
    ((_, a, a_state),) = separate.bags.store.rows(0)
    ((_, b, b_state),) = fused.bags.store.rows(0)
    assert torch.equal(a, b)
    assert torch.equal(a_state, b_state)


def test_accumulation_is_one_update_and_zero_grad_forgets() -> None:
    theirs, ours = _pair()
    ids, offsets = torch.randint(0, ROWS, (30,)), torch.arange(0, 30, 3)
    before = theirs.weight.detach().clone()
    ours(ids, offsets).sum().backward()
    ours.optimizer().zero_grad()
    for bag in (theirs, ours):
        for part in (slice(0, 15), slice(15, 30)):
            bag(ids[part], offsets[:5]).sum().backward()
    torch.optim.SGD(theirs.parameters(), lr=0.1).step()
    ours.optimizer().step()
    ((_, weights, _),) = ours.bags.store.rows(0)
    torch.testing.assert_close(weights, theirs.weight.detach())
    assert not torch.equal(weights, before)


def test_schedulers_set_the_learning_rate_of_the_rows() -> None:
    _, ours = _pair(optimizer=tm.SGD(lr=1.0))
    schedule = torch.optim.lr_scheduler.StepLR(ours.optimizer(), step_size=1, gamma=0.5)
    ((_, start, _),) = ours.bags.store.rows(0)
    for _ in range(2):
        ours(torch.tensor([3]), torch.tensor([0])).sum().backward()
        ours.optimizer().step()
        schedule.step()
    ((_, end, _),) = ours.bags.store.rows(0)
    torch.testing.assert_close(end[3], start[3] - 1.5)


def test_forward_only_works_at_any_staging_size() -> None:
    table = [tm.TableConfig(name="t", rows=5000, dim=4)]
    small = tm.Hierarchy.load("dram-nand", budgets={"dram": 0.01}, staging_bytes="512B")
    ids = torch.arange(5000)
    offsets = torch.arange(0, 5000, 10)
    pooled = []
    for hierarchy in (small, tm.Hierarchy.load("dram")):
        bags = tm.TieredEmbeddingBagCollection(table, hierarchy=hierarchy, optimizer=tm.SGD(lr=0.1))
        with torch.no_grad():
            pooled.append(bags([tm.Lookup(0, ids, offsets)])[0])
    assert torch.equal(*pooled)
    bags = tm.TieredEmbeddingBagCollection(table, hierarchy=small, optimizer=tm.SGD(lr=0.1))
    with torch.no_grad(), pytest.raises(tm.CapacityError, match="needed_bytes=16000, staging_bytes=512"):
        bags([tm.Lookup(0, torch.arange(1000), torch.tensor([0]))])


def test_state_dict_round_trip_and_wrong_tables() -> None:
    table = [tm.TableConfig(name="t", rows=100, dim=4)]
    hierarchy = tm.Hierarchy.load("dram-nand", budgets={"dram": 0.1})

    def build(seed: int) -> tm.TieredEmbeddingBagCollection:
        return tm.TieredEmbeddingBagCollection(
            table, hierarchy=hierarchy, optimizer=tm.RowWiseAdagrad(lr=0.1), seed=seed
        )

    first, second = build(1), build(2)
    first([tm.Lookup(0, torch.arange(50), torch.arange(0, 50, 5))])[0].sum().backward()
    first.optimizer().step()
    second.load_state_dict(first.state_dict())
    ((_, a, a_state),) = first.store.rows(0)
    ((_, b, b_state),) = second.store.rows(0)
    assert torch.equal(a, b)
    assert torch.equal(a_state, b_state)
    with pytest.raises(ConfigError, match="has tables"):
        second.set_extra_state({"steps": 1, "tables": {"u": (a, a_state)}})
    with pytest.raises(ConfigError, match="expected"):
        second.set_extra_state({"steps": 1, "tables": {"t": (a[:50], a_state[:50])}})


def test_a_closed_store_says_so_and_cannot_be_pickled() -> None:
    _, ours = _pair()
    ours.close()
    ours.close()
    with pytest.raises(ClosedError, match="open a new one"):
        ours(torch.tensor([1]), torch.tensor([0]))
    with pytest.raises(ClosedError, match="cannot be pickled"):
        pickle.dumps(ours.bags.store)


def test_a_directory_that_cannot_be_used_is_a_device_error() -> None:
    hierarchy = tm.Hierarchy.load("dram-nand", directory="/proc/nothing")
    with pytest.raises(DeviceError, match="/proc/nothing") as caught:
        tm.TieredEmbeddingBag(100, 4, hierarchy=hierarchy, optimizer=tm.SGD(lr=0.1))
    assert caught.value.errno is not None
    assert isinstance(caught.value, OSError)


def test_files_leave_nothing_behind(tmp_path: Any) -> None:
    hierarchy = tm.Hierarchy.load("dram-nand", budgets={"dram": 0.01}, directory=tmp_path)
    bag = tm.TieredEmbeddingBag(2000, 16, mode="sum", hierarchy=hierarchy, optimizer=tm.SGD(lr=0.1))
    for step in range(4):
        bag(torch.arange(step % 2 * 1000, step % 2 * 1000 + 1000), torch.arange(0, 1000, 2)).sum().backward()
        bag.optimizer().step()
    stats = bag.stats().tier("nand")
    assert stats.device_reads > 0
    assert stats.device.engine in ("io_uring", "file")
    assert list(tmp_path.iterdir()) == []
    bag.close()
