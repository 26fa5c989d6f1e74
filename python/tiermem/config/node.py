"""A machine of many nodes: what a node computes, sends and holds, each number with its source."""

import os
from typing import Self

from pydantic import Field, model_validator

from tiermem.config.base import Config, check_sources, load_toml
from tiermem.config.device import DeviceSpec, Source
from tiermem.config.names import resolve
from tiermem.errors import ConfigError

__all__ = ["NodeComputeConfig", "NodeConfig", "NodeNetworkConfig", "NodeTierConfig"]


class NodeComputeConfig(Config):
    """Dense work."""

    flops_per_s: int = Field(gt=0)
    """Of one accelerator, as reached by large layers."""
    overhead_ns_per_step: int = Field(ge=0)
    """What a step takes on top, whatever its batch: launches, synchronisation."""


class NodeNetworkConfig(Config):
    """Between accelerators. Rates are those of one accelerator, as collectives reach them."""

    within_bytes_per_s: int = Field(gt=0)
    """All-to-all inside a node."""
    between_bytes_per_s: int = Field(gt=0)
    """All-to-all between nodes."""
    all_reduce_bytes_per_s: int = Field(gt=0)
    """Bytes of parameters over the time that an all-reduce between nodes takes."""
    all_reduce_within_bytes_per_s: int = Field(gt=0)
    """The same inside a node."""
    message_ns: int = Field(ge=0)
    """What an all-to-all costs an accelerator for each accelerator of another node, whatever the bytes."""
    pooled_value_bytes: int = Field(gt=0)
    """Bytes of a value of a pooled row, and of its gradient, on the way."""
    id_bytes: int = Field(gt=0)
    """Bytes of an id on the way."""


class NodeTierConfig(Config):
    """Some like devices of a node, rows striped over them."""

    device: str
    """Its file under `emulator_configs/devices`, or a path."""
    count: int = Field(ge=1)
    """Devices in a node."""
    capacity_bytes: int = Field(default=0, ge=0)
    """Of one of them; 0: as the device file says."""
    bandwidth_bytes_per_s: int = Field(default=0, ge=0)
    """Of one of them, reading or writing, at the latency of the device file; 0: all as that says."""
    usable_percent: int = Field(default=100, ge=1, le=100)
    """What is left for rows of tables and their caches."""

    def spec(self) -> DeviceSpec:
        """One of the devices.

        Raises:
            ConfigError: if there is no such device.
        """
        spec = DeviceSpec.load(self.device)
        if self.capacity_bytes:
            spec = spec.replace(capacity_bytes=self.capacity_bytes)
        if self.bandwidth_bytes_per_s:
            rate, latency_ns = self.bandwidth_bytes_per_s, spec.read.latency_ns
            spec = spec.replace(
                read=spec.read.replace(bandwidth_bytes_per_s=rate),
                write=spec.write.replace(bandwidth_bytes_per_s=rate, drain_bytes_per_s=rate),
                curves=({"read_percent": 100, "points": ((0, latency_ns), (rate, latency_ns))},),
                queue_depth=max(1, -(-rate * latency_ns // 10**9 // spec.page_bytes)),
            )
        return spec


class NodeConfig(Config):
    """A node, and how it is connected. Files: `emulator_configs/nodes/NAME.toml`."""

    name: str
    """Name, as in its file name."""
    description: str
    """What it is, for people."""
    accelerators: int = Field(ge=1)
    """Accelerators of a node; they share its batch, rows and links evenly."""
    host_link_bytes_per_s: int = Field(gt=0)
    """Between one accelerator and the memory of the host, each way."""
    compute: NodeComputeConfig
    """Dense work."""
    network: NodeNetworkConfig
    """Between accelerators."""
    tiers: dict[str, NodeTierConfig]
    """From fastest to slowest; a system has some of them."""
    power_watts: int = Field(ge=0)
    """Of a busy node without the tiers."""
    price_dollars: int = Field(ge=0)
    """Of a node without the tiers."""
    life_years: int = Field(ge=1)
    """How long the devices must last at the rate at which they are written."""
    source: dict[str, Source]
    """Source of each number, by its dotted path."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.tiers) < 2:
            raise ValueError("a node needs two tiers at least, such as hbm and dram")
        return self

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> "NodeConfig":
        """The node of a shipped name or of a file.

        Raises:
            ConfigError: if there is none, the file is not a valid node, or a number has no source.
        """
        path = resolve("nodes", name_or_path)
        values = load_toml(path)
        node = cls.from_mapping(values, where=path.name)
        stated = {key: value for key, value in values.items() if key != "source"}
        numbers = check_sources(stated, node.source, path.name)
        for key in node.source:
            if key not in numbers:
                raise ConfigError(f"{path.name}: {key} has a source but no number")
        return node

    def assumed(self) -> list[str]:
        """Numbers without evidence."""
        return [path for path, source in self.source.items() if source.kind == "assumed"]
