"""One training experiment: data, model, training, hierarchy, and the machine that it imagines."""

import os
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tiermem.config.base import BytesPerSecond, Config, DurationNs
from tiermem.config.hierarchy import Budget, Hierarchy, HierarchySource
from tiermem.config.names import load_named
from tiermem.config.optimizer import OptimizerConfig, Rounding, RowType
from tiermem.config.placement import PlacementSource

__all__ = [
    "ComputeConfig",
    "CriteoData",
    "DataConfig",
    "Experiment",
    "Ml100kData",
    "ModelConfig",
    "RecboleData",
    "SplitConfig",
    "SyntheticData",
    "TraceData",
    "TrainConfig",
]


class SplitConfig(Config):
    """Who trains, who validates, who tests."""

    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of training, validation and test, drawn at random by the experiment's seed."""
    file: str | None = None
    """An .npz with an array `split`, uint8: 0 train, 1 validation, 2 test; replaces the fractions."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-9:
            raise ValueError(f"fractions must be shares that add up to 1, got {self.fractions}")
        return self


class Ml100kData(Config):
    """MovieLens-100K with its nine categorical columns, genres as bags, and the timestamp as dense."""

    name: Literal["ml-100k"]
    """Selects this data set."""
    path: str | None = None
    """Folder of the atomic files; `None`: the cache that `tiermem data fetch ml-100k` fills."""
    label_threshold: float = 4.0
    """A rating of at least this is a positive."""
    split: SplitConfig = SplitConfig()
    """Split."""


class RecboleData(Config):
    """Any interaction file in RecBole's atomic format, joined with its user and item files."""

    name: Literal["recbole"]
    """Selects this data set."""
    path: str
    """Folder with `DATASET.inter` and, if there are any, `.user` and `.item`."""
    dataset: str
    """Name of the files."""
    label: str
    """Numeric column that becomes the label."""
    label_threshold: float
    """A value of at least this is a positive."""
    split: SplitConfig = SplitConfig()
    """Split."""


class CriteoData(Config):
    """Criteo's tab-separated click logs: label, 13 integers, 26 hexadecimal tokens."""

    name: Literal["criteo"]
    """Selects this data set."""
    path: str
    """The file, plain or gzip."""
    rows_per_table: int = Field(default=100_000, gt=1)
    """Tokens are hashed into so many rows of each table."""
    samples_max: int | None = Field(default=None, gt=0)
    """Read at most so many lines."""
    split: SplitConfig = SplitConfig()
    """Split."""


class TraceData(Config):
    """A recorded stream of ids, hashed into several tables; labels come from planted weights."""

    name: Literal["trace"]
    """Selects this data set."""
    path: str | None = None
    """xz file of big-endian int64 keys; `None`: the Scarab trace that ships with the package."""
    tables: int = Field(default=4, gt=0)
    """Number of tables; each hashes the keys with its own salt."""
    rows_per_table: int = Field(default=262_144, gt=1)
    """Rows of each table."""
    ids_per_bag: int = Field(default=4, gt=0)
    """Consecutive accesses that make up one bag, in each table."""
    samples_max: int | None = Field(default=None, gt=0)
    """Use at most so many samples from the beginning."""


class SyntheticData(Config):
    """Zipf-distributed ids with labels from planted weights."""

    name: Literal["synthetic"]
    """Selects this data set."""
    samples: int = Field(default=10_000, gt=0)
    """Number of samples."""
    tables: int = Field(default=4, gt=0)
    """Number of tables."""
    rows_per_table: int = Field(default=10_000, gt=1)
    """Rows of each table."""
    ids_per_bag: int = Field(default=2, gt=0)
    """Ids in each bag."""
    zipf_exponent: float = Field(default=1.05, ge=0)
    """Popularity of rank r is proportional to r^-exponent."""
    split: SplitConfig = SplitConfig()
    """Split."""


DataConfig = Annotated[
    Ml100kData | RecboleData | CriteoData | TraceData | SyntheticData, Field(discriminator="name")
]


class ModelConfig(Config):
    """A DLRM in four parts: dense, sparse, interaction, over."""

    dim: int = Field(default=16, gt=0)
    """Columns of every embedding table, and width of the dense arch's output."""
    dense_layers: tuple[int, ...] = (32,)
    """Hidden widths of the dense arch."""
    over_layers: tuple[int, ...] = (64,)
    """Hidden widths of the over arch."""
    row_type: RowType = "fp32"
    """How the rows of every embedding table are stored."""
    rounding: Rounding = "stochastic"
    """How updated rows are rounded to a row type narrower than fp32."""


class TrainConfig(Config):
    """The training loop."""

    epochs: int = Field(default=1, gt=0)
    """Passes over the training split."""
    batch_size: int = Field(default=512, gt=0)
    """Samples per step; the last batch of an epoch may be smaller."""
    shuffle: bool = True
    """Whether each epoch visits the training split in a new random order."""
    optimizer: OptimizerConfig
    """Optimizer of the embedding rows."""
    dense_lr: float = Field(default=1e-3, gt=0)
    """Learning rate of the dense parameters (AdamW), decayed linearly to zero."""
    dense_weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of the dense parameters (AdamW)."""
    prefetch_distance: int = Field(default=1, ge=0, le=64)
    """How many batches ahead rows are fetched; 0: only when they are needed."""
    announce_batches: int = Field(default=0, ge=0, le=253)
    """How many batches beyond those the policy `lookahead` is told about."""
    non_finite_gradients: Literal["pass", "refuse"] = "pass"
    """What becomes of gradients of rows that are NaN or infinite: applied, as torch does, or an error."""
    evaluate: bool = True
    """Whether to score the validation split after each epoch and the test split at the end."""
    snapshot_every_steps: int = Field(default=0, ge=0)
    """Steps from one snapshot to the next; one more is taken after the last step. 0: none."""
    keep_latest: int = Field(default=2, ge=1)
    """How many snapshots to keep; older ones are removed when a new one is in place."""


class ComputeConfig(Config):
    """The machine that does the dense work in virtual time; wall time never enters it."""

    flops_per_s: float = Field(gt=0)
    """Floating-point operations per second of the dense layers."""
    bytes_per_s: BytesPerSecond = Field(gt=0)
    """Memory bandwidth of the dense layers; an integer, or a string such as "100GB/s"."""
    overhead_ns_per_step: DurationNs = 0
    """What a step costs besides; an integer, or a string such as "100us"."""
    source: str
    """Where these numbers come from, or the word assumed."""


class Experiment(Config):
    """An experiment file, `emulator_configs/experiments/NAME.toml`."""

    description: str = ""
    """What it shows, for people."""
    seed: int = Field(default=1, ge=0)
    """Seed of splits, initial values, shuffles and latency draws."""
    data: DataConfig
    """Data."""
    model: ModelConfig = ModelConfig()
    """Model."""
    train: TrainConfig
    """Training."""
    hierarchy: HierarchySource
    """A name, a path, or a table with the contents of a hierarchy file."""
    budgets: dict[str, Budget] = Field(default_factory=dict)
    """Cache budgets by tier name; replace the hierarchy's."""
    placement: PlacementSource | None = None
    """Where tables live: a plan file or its contents; `None`: in the slowest tier, cached by all others."""
    compute: ComputeConfig
    """Dense work in virtual time."""

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Self:
        """A shipped experiment by name, or a file, with `path.to.key=value` overrides.

        Raises:
            ConfigError: names the file, the key, and what is wrong.
        """
        values, path = load_named("experiments", name_or_path, overrides)
        return cls.from_mapping(values, where=path.name)

    def effective_hierarchy(self) -> Hierarchy:
        """The hierarchy with the experiment's budgets."""
        return self.hierarchy.with_budgets(self.budgets)
