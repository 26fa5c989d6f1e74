"""Logistic regression on the same columns and the same split, as the bar to clear."""

import dataclasses
import warnings

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from tiermem.data import Dataset
from tiermem.train.metrics import Scores, score

__all__ = ["BaselineResult", "logistic_regression"]

# Around the best values seen on ml-100k, and a decade to either side.
_INVERSE_PENALTIES = (0.1, 0.3, 1.0, 3.0)
_ITERATIONS_MAX = 500


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BaselineResult:
    """The model with the best validation AUC."""

    inverse_penalty: float
    test: Scores


def _design(dataset: Dataset, part: int) -> tuple[sparse.csr_matrix, npt.NDArray[np.float32]]:
    samples = dataset.samples(part)
    batch = dataset.take(samples)
    blocks = [sparse.csr_matrix(batch.dense)]
    for column, (ids, offsets) in zip(dataset.sparse, batch.sparse, strict=True):
        ends = np.append(offsets, len(ids))
        ones = np.ones(len(ids), dtype=np.float32)
        blocks.append(sparse.csr_matrix((ones, ids, ends), shape=(len(samples), column.rows)))
    return sparse.hstack(blocks, format="csr"), batch.labels


def logistic_regression(dataset: Dataset) -> BaselineResult:
    """Fits on the training part, picks the penalty on the validation part, scores the test part."""
    train, train_labels = _design(dataset, 0)
    validation, validation_labels = _design(dataset, 1)
    test, test_labels = _design(dataset, 2)
    best: tuple[float, float, LogisticRegression] | None = None
    for inverse_penalty in _INVERSE_PENALTIES:
        model = LogisticRegression(C=inverse_penalty, max_iter=_ITERATIONS_MAX)
        with warnings.catch_warnings():
            # A fit that did not converge can still be the best on the validation part.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(train, train_labels)
        auc = score(validation_labels, model.predict_proba(validation)[:, 1]).auc
        if best is None or auc > best[0]:
            best = (auc, inverse_penalty, model)
    assert best is not None, "the list of penalties is not empty"  # noqa: S101
    return BaselineResult(inverse_penalty=best[1], test=score(test_labels, best[2].predict_proba(test)[:, 1]))
