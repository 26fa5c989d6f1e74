"""Batches that are announced to the policy `lookahead`: the same bits, and more hits."""

from collections.abc import Iterator

import pytest
import tiermem as tm
import torch
from tiermem.errors import CapacityError, ConfigError

ROWS = 400


def _batches() -> Iterator[torch.Tensor]:
    """Rows of two cycles, one short and one longer than the cache."""
    for step in range(60):
        yield torch.cat([torch.arange(20) + 20 * (step % 6), 200 + torch.arange(10) + 10 * (step % 19)])


def _train(announce_batches: int, policy: str) -> tuple[torch.Tensor, float]:
    hierarchy = tm.Hierarchy.load("dram-nand", budgets={"dram": 80 * 4 * 16}, staging_bytes="1MiB")
    tiers = tuple(tier.replace(policy=policy).model_dump() for tier in hierarchy.tiers)
    bags = tm.TieredEmbeddingBagCollection(
        [tm.TableConfig(name="t", rows=ROWS, dim=16)],
        hierarchy=hierarchy.replace(tiers=tiers),
        optimizer=tm.SGD(lr=0.1),
        fused_in_backward=True,
        prefetch_distance=1,
        announce_batches=announce_batches,
    )

    def lookups(ids: torch.Tensor) -> list[tm.Lookup]:
        return [tm.Lookup(0, ids, torch.arange(0, len(ids), 5))]

    seen = []
    for ids, ticket in bags.pipeline(_batches(), lookups):
        seen.append(ids)
        bags(ticket)[0].square().sum().backward()
    assert len(seen) == 60
    assert all(map(torch.equal, seen, _batches())), "each batch once, in order"
    rows, _ = bags.store.read_rows(0, 0, ROWS)
    rate = bags.stats().tier("dram").hit_rate
    bags.close()
    return rows, rate


def test_announced_batches_give_the_same_bits_and_more_hits() -> None:
    blind, blind_rate = _train(0, "lookahead")
    rows, rate = _train(8, "lookahead")
    assert torch.equal(rows, blind)
    assert torch.equal(rows, _train(8, "s3fifo")[0]), "other policies take no notice"
    assert rate > blind_rate + 0.1, (rate, blind_rate)


def test_how_many_batches_are_announced_is_bounded() -> None:
    with pytest.raises(ConfigError, match="announce_batches must be between 0 and 253, got 254"):
        _train(254, "lookahead")
    hierarchy = tm.Hierarchy.load("dram-nand")
    tiers = tuple(tier.replace(policy="lookahead").model_dump() for tier in hierarchy.tiers)
    store = tm.EmbeddingStore(
        [tm.TableConfig(name="t", rows=ROWS, dim=16)],
        hierarchy=hierarchy.replace(tiers=tiers),
        optimizer=tm.SGD(lr=0.1),
    )
    lookup = tm.Lookup(0, torch.tensor([1]), torch.tensor([0]))
    for _ in range(254):
        store.announce([lookup])
    with pytest.raises(CapacityError, match="254 batches are announced"):
        store.announce([lookup])
    store.close()


def test_a_pipeline_that_ends_early_takes_its_announcements_back() -> None:
    hierarchy = tm.Hierarchy.load("dram-nand")
    tiers = tuple(tier.replace(policy="lookahead").model_dump() for tier in hierarchy.tiers)
    bags = tm.TieredEmbeddingBagCollection(
        [tm.TableConfig(name="t", rows=ROWS, dim=16)],
        hierarchy=hierarchy.replace(tiers=tiers),
        optimizer=tm.SGD(lr=0.1),
        announce_batches=200,
    )
    for _ in range(3):
        source = (torch.tensor([step % ROWS]) for step in range(300))
        for _ids, _ticket in bags.pipeline(source, lambda ids: [tm.Lookup(0, ids, torch.tensor([0]))]):
            break
    assert bags.stats().open_tickets == 0
    bags.close()
