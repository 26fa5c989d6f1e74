"""Training: the loop, the metrics, the baseline, the record of a run."""

from tiermem.train.baseline import logistic_regression
from tiermem.train.metrics import Scores, score
from tiermem.train.run import Run, StepTimes
from tiermem.train.tables import table_configs
from tiermem.train.trainer import Trainer

__all__ = ["Run", "Scores", "StepTimes", "Trainer", "logistic_regression", "score", "table_configs"]
