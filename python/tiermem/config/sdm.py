"""A study of a fleet's power with tables on storage-class memory: hosts, scenarios, and what is varied."""

import os
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field

from tiermem.config.base import Config, check_sources
from tiermem.config.device import Source
from tiermem.config.names import load_named

__all__ = ["CoLocationConfig", "FleetStudyConfig", "FleetSweepConfig", "HostConfig", "ScaleOutConfig"]


class HostConfig(Config):
    """A host of a fleet."""

    threads: int = Field(ge=1)
    """Serving threads."""
    watts: float = Field(gt=0)
    """Busy, without DRAM and without devices under the tables."""
    dram_bytes: int = Field(gt=0)
    """All of it."""
    flops_per_s: float = Field(default=0.0, ge=0)
    """Of dense layers, of one thread and its share of an accelerator; 0: as the engine has them."""
    queries_per_s_max: float = Field(default=0.0, ge=0)
    """What its accelerators can do; 0: no bound but threads and devices."""


class ScaleOutConfig(Config):
    """Tables on remote hosts."""

    call_ns: int = Field(ge=0)
    """What a query costs a thread for asking remote hosts, and for what comes back."""


class CoLocationConfig(Config):
    """Several models on a host."""

    load_share: float = Field(gt=0, le=1)
    """Share of a host's threads that a model keeps busy with its tables in memory."""


class FleetSweepConfig(Config):
    """What is varied: of scale-out the remote hosts, of the small host the rest."""

    budgets: tuple[Annotated[float, Field(gt=0, le=1)], ...]
    """DRAM for tables, as a share of their bytes."""
    exponents: tuple[Annotated[float, Field(ge=0, le=3)], ...]
    """Skew of the rows of user tables."""
    sla_ms: tuple[Annotated[float, Field(gt=0)], ...]
    """The bound on the latency."""
    dense_work: tuple[Annotated[float, Field(gt=0)], ...]
    """Dense layers, times their work, on the large host, too."""
    remote_hosts: tuple[Annotated[float, Field(ge=0)], ...]
    """Remote hosts for an accelerated one."""


class FleetStudyConfig(Config):
    """A study, `emulator_configs/studies/NAME.toml`."""

    name: str
    """Name, as in its file name."""
    description: str
    """The question, for people."""
    engine: str
    """A shipped engine or a file: tables, load, costs of the host."""
    devices: tuple[str, ...] = Field(min_length=1)
    """Devices under the tables, each in turn."""
    devices_per_host: int = Field(ge=1, le=2)
    """So many of them in a host, with a copy of all rows each; reads go to the one with less to do."""
    model_bytes: int = Field(gt=0)
    """The engine's tables stand for so many bytes of rows."""
    usable_share: float = Field(gt=0, le=1)
    """Of the DRAM of a host, for tables and caches."""
    dram_watts_per_gib: float = Field(ge=0)
    """Power of DRAM."""
    large: HostConfig
    """A host with all tables in DRAM."""
    small: HostConfig
    """A host with less DRAM."""
    accelerated: HostConfig
    """A host with an accelerator."""
    remote: HostConfig
    """A host that does nothing but look up rows for others."""
    shared: HostConfig
    """A host for several models."""
    scale_out: ScaleOutConfig
    """Tables on remote hosts."""
    co_location: CoLocationConfig
    """Several models on a host."""
    sweep: FleetSweepConfig
    """What is varied."""
    source: dict[str, Source]
    """Source of each number of hosts, scenarios and power, by its dotted path."""

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Self:
        """A shipped study by name, or a file, with `path.to.key=value` overrides.

        Raises:
            ConfigError: names the file, the key, and what is wrong, or a number without a source.
        """
        values, path = load_named("studies", name_or_path, overrides)
        study = cls.from_mapping(values, where=path.name)
        choices = ("source", "sweep", "devices")
        stated = {key: value for key, value in values.items() if key not in choices}
        check_sources(stated, study.source, path.name)
        return study

    def assumed(self) -> list[tuple[str, str]]:
        """Numbers without evidence, and what is said about each."""
        return [(path, source.ref) for path, source in self.source.items() if source.kind == "assumed"]
