"""The numbers of one device, each with its source. The twin of `device/spec.rs`, for the control plane."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from tiermem.config.base import Config, load_toml
from tiermem.config.names import resolve

__all__ = ["DeviceSpec", "HostSpec", "PowerSpec", "ReadSpec", "Source", "WriteSpec"]


class HostSpec(Config):
    """Cost on the host's side, per request."""

    submit_ns: int = Field(ge=0)
    """From the call to the device."""
    complete_ns: int = Field(ge=0)
    """From the device to the caller."""


class ReadSpec(Config):
    """Reads."""

    latency_ns: int = Field(gt=0)
    """End-to-end mean latency at queue depth 1, of `reference_bytes`."""
    reference_bytes: int = Field(gt=0)
    """Size of the request that the latency and its quantiles speak of."""
    command_ns: int = Field(ge=0)
    """Controller time per command; its inverse is the IOPS ceiling."""
    bandwidth_bytes_per_s: int = Field(gt=0)
    """Link bandwidth of this direction."""
    latency_quantiles_ns: tuple[tuple[float, int], ...] = ()
    """Quantiles at queue depth 1 as (probability, ns), ascending; empty: constant."""
    latency_max_ns: int = Field(default=0, ge=0)
    """No read takes longer at queue depth 1."""


class WriteSpec(Config):
    """Writes: acknowledged from a buffer while it has room, drained at the medium's rate."""

    acknowledge_ns: int = Field(ge=0)
    """From data in the buffer to the acknowledgement."""
    command_ns: int = Field(ge=0)
    """Controller time per command."""
    bandwidth_bytes_per_s: int = Field(gt=0)
    """Link bandwidth of this direction."""
    buffer_bytes: int = Field(ge=0)
    """Capacity of the write buffer."""
    drain_bytes_per_s: int = Field(gt=0)
    """Rate at which the buffer drains to the medium."""


class PowerSpec(Config):
    """Power."""

    idle_milliwatts: int = Field(ge=0)
    """Idle."""
    read_milliwatts: int = Field(ge=0)
    """Reading at full bandwidth."""
    write_milliwatts: int = Field(ge=0)
    """Writing at full bandwidth."""


class Source(Config):
    """Where a number comes from."""

    kind: Literal["datasheet", "measured", "derived", "assumed"]
    """What sort of evidence it is."""
    ref: str
    """Document and place, or how it was derived."""
    date: str
    """When it was entered, ISO 8601."""


class DeviceSpec(Config):
    """One device. Files: `emulator_configs/devices/NAME.toml`."""

    name: str
    """Name, as in its file name."""
    description: str
    """What it is, for people."""
    kind: Literal["block", "byte"]
    """Requests of whole blocks through a queue, or loads and stores."""
    capacity_bytes: int = Field(gt=0)
    """Capacity of the real device."""
    units: int = Field(default=0, ge=0)
    """Independent media units, each a FIFO; 0 for byte-addressable devices."""
    page_bytes: int = Field(default=0, ge=0)
    """What maps to one unit."""
    granule_bytes: int = Field(gt=0)
    """The least that the medium reads or writes."""
    queue_depth: int = Field(gt=0)
    """Requests outstanding at most; for byte-addressable devices the memory-level parallelism."""
    host: HostSpec
    """Host cost."""
    read: ReadSpec
    """Reads."""
    write: WriteSpec
    """Writes."""
    power: PowerSpec
    """Power."""
    source: dict[str, Source]
    """Source of each number, by its dotted path."""

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> "DeviceSpec":
        """The device of a shipped name or of a file.

        Raises:
            ConfigError: if there is none, or the file is not a valid device.
        """
        path = resolve("devices", name_or_path)
        return cls.from_mapping(load_toml(path), where=path.name)

    def to_json(self) -> str:
        """The form that the extension reads."""
        return json.dumps(self.model_dump(mode="json"))

    def numbers(self) -> dict[str, Any]:
        """Every number by its dotted path, without sources."""
        return dict(_leaves(self.model_dump(exclude={"source"}), ""))

    def unsourced(self) -> list[str]:
        """Numbers that differ from their default and have no source."""
        defaults = {"units": 0, "page_bytes": 0, "read.latency_max_ns": 0}
        numbers = {
            path: value
            for path, value in self.numbers().items()
            if not isinstance(value, str) and defaults.get(path) != value and value != ()
        }
        return sorted(numbers.keys() - self.source.keys())


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
