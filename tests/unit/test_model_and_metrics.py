"""DLRM's parts, dense cost, scores and the baseline, against plain formulas."""

import numpy as np
import pytest
import tiermem as tm
import torch
from tiermem.config import ComputeConfig, ModelConfig, SyntheticData
from tiermem.data import load_dataset
from tiermem.models import DLRM
from tiermem.models.interaction import DotInteraction
from tiermem.perf import dense_cost
from tiermem.train import logistic_regression, score
from tiermem.train.run import percentiles


def test_interaction_is_all_pairwise_products() -> None:
    dense, sparse = torch.rand(3, 4), torch.rand(3, 2, 4)
    found = DotInteraction(2, 4)(dense, sparse)
    vectors = [dense, sparse[:, 0], sparse[:, 1]]
    pairs = [(vectors[1] * vectors[0]), (vectors[2] * vectors[0]), (vectors[2] * vectors[1])]
    expected = torch.cat([dense, *(pair.sum(dim=1, keepdim=True) for pair in pairs)], dim=1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dense_features", [0, 3])
def test_a_model_scores_a_batch(dense_features: int) -> None:
    tables = [tm.TableConfig(name=f"t{n}", rows=50, dim=8) for n in range(3)]
    bags = tm.TieredEmbeddingBagCollection(
        tables, hierarchy=tm.Hierarchy.load("dram"), optimizer=tm.SGD(lr=0.1)
    )
    model = DLRM(ModelConfig(dim=8), dense_features=dense_features, bags=bags)
    ids, offsets = torch.arange(6), torch.tensor([0, 2])
    ticket = bags.prefetch([tm.Lookup(n, ids, offsets) for n in range(3)])
    logits = model(torch.rand(2, dense_features), ticket)
    assert logits.shape == (2,)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any("anchor" in name for name, _ in model.named_parameters()), "rows are no parameters"


def test_dense_cost_counts_what_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = ModelConfig(dim=8, dense_layers=(16,), over_layers=(32, 16))
    tables = [tm.TableConfig(name=f"t{n}", rows=50, dim=8) for n in range(3)]
    bags = tm.TieredEmbeddingBagCollection(
        tables, hierarchy=tm.Hierarchy.load("dram"), optimizer=tm.SGD(lr=0.1)
    )
    model = DLRM(config, dense_features=5, bags=bags)
    ids = torch.arange(40)
    ticket = bags.prefetch([tm.Lookup(n, ids, ids) for n in range(3)])
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(40, 5), ticket)
    cost = dense_cost(config, dense_features=5, sparse_features=3, batch=40, training=False)
    assert cost.flops == counter.get_total_flops()
    training = dense_cost(config, dense_features=5, sparse_features=3, batch=40, training=True)
    assert training.flops == 3 * cost.flops


def test_dense_time_is_the_roofline() -> None:
    config = ModelConfig()
    cost = dense_cost(config, dense_features=1, sparse_features=10, batch=512, training=True)
    fast = ComputeConfig(flops_per_s=1e30, bytes_per_s=10**9, overhead_ns_per_step=7, source="assumed")
    assert cost.time_ns(fast) == pytest.approx(cost.nbytes + 7, abs=1)
    slow = ComputeConfig(flops_per_s=1e9, bytes_per_s=10**30, source="assumed")
    assert cost.time_ns(slow) == pytest.approx(cost.flops, abs=1)


def test_scores_follow_their_formulas() -> None:
    labels = np.array([0, 0, 1, 1, 1], dtype=np.float32)
    probabilities = np.array([0.1, 0.6, 0.4, 0.7, 0.9])
    found = score(labels, probabilities)
    pairs = [(p > n) + 0.5 * (p == n) for p in probabilities[2:] for n in probabilities[:2]]
    assert found.auc == pytest.approx(np.mean(pairs))
    loss = -np.mean(np.log(np.where(labels == 1, probabilities, 1 - probabilities)))
    assert found.logloss == pytest.approx(loss)
    entropy = -(0.6 * np.log(0.6) + 0.4 * np.log(0.4))
    assert found.normalized_entropy == pytest.approx(loss / entropy)
    assert score(np.ones(3, dtype=np.float32), np.array([0.5, 0.5, 0.5])).auc == 0.5


def test_percentiles_are_values_that_occurred() -> None:
    assert percentiles(list(range(1, 101))) == {"p50": 50, "p95": 95, "p99": 99}
    assert percentiles([]) == {"p50": 0, "p95": 0, "p99": 0}


def test_the_baseline_finds_planted_structure() -> None:
    data = load_dataset(SyntheticData(name="synthetic", samples=6000, rows_per_table=50), seed=1)
    assert logistic_regression(data).test.auc > 0.7
