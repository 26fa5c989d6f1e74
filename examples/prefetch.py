"""Many tables on one hierarchy, fetched ahead of use: run it with `python examples/prefetch.py`."""

import tiermem as tm
import torch

TABLES, ROWS, DIM, BATCH, IDS_PER_BAG = 4, 20_000, 32, 256, 4


def lookups(step: int) -> list[tm.Lookup]:
    """The lookups of one batch: bags of ids, one table after the other."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, ROWS, (TABLES, BATCH * IDS_PER_BAG), generator=generator)
    offsets = torch.arange(0, BATCH * IDS_PER_BAG, IDS_PER_BAG)
    return [tm.Lookup(table, ids[table], offsets) for table in range(TABLES)]


bags = tm.TieredEmbeddingBagCollection(
    [tm.TableConfig(name=f"table_{n}", rows=ROWS, dim=DIM) for n in range(TABLES)],
    hierarchy=tm.Hierarchy.load("dram-nand", budgets={"dram": 0.1}),
    optimizer=tm.RowWiseAdagrad(lr=0.05),
    fused_in_backward=True,
    prefetch_distance=2,
)
for step, ticket in bags.pipeline(range(50), lookups):
    pooled = torch.cat(bags(ticket), dim=1)
    loss = pooled.square().mean()
    loss.backward()
    if step % 10 == 0:
        print(f"step {step}: loss {loss.item():.3e}, {bags.store.now_ns() / 1e6:.1f} ms of virtual time")

stats = bags.stats()
for tier in stats.tiers:
    print(
        f"{tier.name}: hit rate {tier.hit_rate:.1%}, {tier.device_reads} reads, {tier.device_writes} writes"
    )
bags.close()
