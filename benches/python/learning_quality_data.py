"""A click task with planted structure, for `learning_quality.py`: the best possible AUC is known.

N = samples, F = features, R = rows of a feature, K = columns of the hidden vectors.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
from tiermem.data import Dataset, SparseColumn
from tiermem.train import score

Doubles = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PlantedTask:
    """What is generated.

    Each id of a feature has a hidden vector: one mean for all, and a deviation of its own. The logit of a
    sample is the sum of the dot products of all pairs of its ids' vectors, brought to a mean and a spread
    that are the same for every seed. The label is drawn with the probability of that logit.
    """

    rows: tuple[int, ...] = (1_000, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
    """Ids of each feature."""
    zipf_exponent: float = 1.2
    """The id of rank r has a probability proportional to r^-exponent; which id has which rank is drawn."""
    hidden: int = 4
    """K."""
    mean_length: float = 1.0
    """Of the mean; the longer, the more an id says by itself. Deviations are standard normal."""
    logit_mean: float = -1.0
    logit_spread: float = 2.0
    """Standard deviation of the logits."""
    train_samples: int = 200_000
    test_samples: int = 50_000


def _ids(task: PlantedTask, rows: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    weights = np.arange(1, rows + 1, dtype=np.float64) ** -task.zipf_exponent
    cumulative = np.cumsum(weights) / weights.sum()
    ranks = np.searchsorted(cumulative, generator.random(task.train_samples + task.test_samples))
    shuffled = generator.permutation(rows).astype(np.int64)
    return shuffled[np.minimum(ranks, rows - 1)]


def _pairwise_dot_products(vectors: Doubles) -> Doubles:
    """Vectors [F, N, K] to sums [N] over all pairs of features."""
    of_sum = np.square(vectors.sum(axis=0)).sum(axis=1)
    sums: Doubles = (of_sum - np.square(vectors).sum(axis=(0, 2))) / 2
    return sums


def planted(task: PlantedTask, seed: int) -> tuple[Dataset, float]:
    """The data set, training part first, and the AUC of the true probabilities on its test part.

    No model can expect a higher one; the vectors of ids that training never sees, none can know.
    """
    generator = np.random.default_rng([seed, 0x1EA2])
    mean = generator.standard_normal(task.hidden)
    mean *= task.mean_length / np.linalg.norm(mean)
    columns, vectors = [], []
    for feature, rows in enumerate(task.rows):
        ids = _ids(task, rows, generator)
        hidden = mean + generator.standard_normal((rows, task.hidden))
        columns.append(SparseColumn.one_hot(f"feature_{feature}", rows, ids))
        vectors.append(hidden[ids])
    raw = _pairwise_dot_products(np.stack(vectors))
    logits = (raw - raw.mean()) * (task.logit_spread / raw.std()) + task.logit_mean
    probabilities = 1 / (1 + np.exp(-logits))
    samples = len(logits)
    labels = (generator.random(samples) < probabilities).astype(np.float32)
    split = np.where(np.arange(samples) < task.train_samples, 0, 2).astype(np.uint8)
    dense = np.zeros((samples, 0), dtype=np.float32)
    dataset = Dataset("planted", dense, tuple(columns), labels, split)
    test = split == 2
    return dataset, score(labels[test], probabilities[test]).auc
