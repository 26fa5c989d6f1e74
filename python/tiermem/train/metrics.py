"""Quality of predictions. docs/metrics.md has the formulas."""

import dataclasses

import numpy as np
import numpy.typing as npt
from sklearn.metrics import log_loss, roc_auc_score

__all__ = ["Scores", "score"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Quality on one part of the split."""

    auc: float
    """Area under the ROC curve; 0.5 if only one class is present."""
    logloss: float
    """Mean negative log-likelihood, in nats."""
    normalized_entropy: float
    """Logloss over the entropy of the base rate; below 1 is better than predicting the base rate."""


def score(labels: npt.NDArray[np.float32], probabilities: npt.NDArray[np.float64]) -> Scores:
    """Scores probabilities [N] against labels [N] of 0 and 1."""
    loss = float(log_loss(labels, probabilities, labels=[0.0, 1.0]))
    rate = float(labels.mean(dtype=np.float64))
    if rate in (0.0, 1.0):
        return Scores(auc=0.5, logloss=loss, normalized_entropy=float("inf"))
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    auc = float(roc_auc_score(labels, probabilities))
    return Scores(auc=auc, logloss=loss, normalized_entropy=loss / float(entropy))
