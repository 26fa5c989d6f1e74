"""What a study of node counts covers: models, systems, scales, and what is varied."""

import os
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from tiermem.config.base import Config
from tiermem.config.names import load_named

__all__ = ["HeadlineConfig", "LocalityConfig", "NodeStudyConfig", "StudyModelConfig", "SweepConfig"]


class LocalityConfig(Config):
    """How often rows are used again: a published batch of `meta-locality-stats-*.txt`."""

    stats: str
    """The file, beside the shipped traces."""
    entry: str
    """Its batch."""
    tables: int = Field(ge=1)
    """Tables of the batch."""
    exponent_max: float = Field(gt=0, le=2)
    """No table follows a steeper law."""


class HeadlineConfig(Config):
    """The stated points."""

    models: tuple[str, ...] = Field(min_length=1)
    """In the order in which they are shown."""
    scale: int = Field(ge=1)
    """At which the systems are compared."""
    ablation_model: str
    """What is left out one at a time is left out of this one."""


class SweepConfig(Config):
    """What is varied."""

    scales: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field(min_length=1)
    """Rows of every table, times this."""
    turnovers: tuple[Annotated[float, Field(gt=0, lt=1)], ...]
    """Share of the rows whose popularity passes to other rows in each batch."""
    turnover_batches: int = Field(ge=1)
    """Batches between profile and use."""
    cache_shares: tuple[Annotated[float, Field(gt=0, le=1)], ...]
    """Of the memory that there is."""
    message_ns: tuple[Annotated[int, Field(ge=0)], ...]
    """In the place of the node's."""
    overhead_ns_per_step: tuple[Annotated[int, Field(ge=0)], ...]
    """In the place of the node's."""
    local_batch: int = Field(ge=1)
    """Samples of an accelerator, in the place of a batch that is the same on any number of nodes."""


class StudyModelConfig(Config):
    """One model."""

    name: str
    """Its table set."""
    batch: int = Field(ge=1)
    """Samples of a step, over all nodes; the same for all systems, since it is part of how a model learns."""
    flops_per_sample: int = Field(ge=1)
    """Of a forward pass; a multiply-add is two."""
    dense_parameters: int = Field(ge=1)
    """Parameters that are reduced over all accelerators, 4 bytes each."""
    source: str
    """Where these numbers come from."""
    published_samples_per_s: int = Field(default=0, ge=0)
    """Throughput that somebody stated; 0: none known."""
    published_nodes: int = Field(default=0, ge=0)
    """On so many nodes."""
    published_source: str = ""
    """Who stated it."""


class NodeStudyConfig(Config):
    """A study, `emulator_configs/studies/NAME.toml`."""

    name: str
    """Name, as in its file name."""
    description: str
    """The question, for people."""
    node: str
    """A shipped node or a path."""
    target_share: float = Field(gt=0, le=1)
    """Of the throughput of the smallest first system that fits."""
    prefetch_distance: int = Field(ge=0, le=64)
    """Batches fetched ahead."""
    segments: int = Field(ge=8, le=64)
    """Into how many ranges of rank the rows of a table are cut."""
    tables_merged_max: int = Field(ge=1)
    """Like tables are planned as one, down to so many."""
    seed: int = Field(ge=0)
    """Of random placement."""
    locality: LocalityConfig
    """How often rows are used again."""
    systems: dict[str, tuple[str, ...]]
    """Tiers of each system, from fastest to slowest; the first system is what others are compared with."""
    headline: HeadlineConfig
    """The stated points."""
    sweep: SweepConfig
    """What is varied."""
    models: tuple[StudyModelConfig, ...] = Field(min_length=1)
    """The models."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [model.name for model in self.models]
        for name in (*self.headline.models, self.headline.ablation_model):
            if name not in names:
                raise ValueError(f'headline has a model "{name}", and models has {", ".join(names)}')
        if len(self.systems) < 2:
            raise ValueError("systems needs two at least: one to compare with, and one to compare")
        if self.headline.scale not in self.sweep.scales:
            raise ValueError(f"headline.scale {self.headline.scale} is none of sweep.scales")
        return self

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Self:
        """A shipped study by name, or a file, with `path.to.key=value` overrides.

        Raises:
            ConfigError: names the file, the key, and what is wrong.
        """
        values, path = load_named("studies", name_or_path, overrides)
        return cls.from_mapping(values, where=path.name)

    def model(self, name: str) -> StudyModelConfig:
        """The model of this name."""
        return next(model for model in self.models if model.name == name)
