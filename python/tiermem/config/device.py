"""The numbers of one device, each with its source. The twin of `device/spec.rs`, for the control plane."""

import json
import os
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tiermem.config.base import Config, check_sources, leaves, load_toml
from tiermem.config.names import resolve
from tiermem.errors import ConfigError

__all__ = [
    "BackgroundSpec",
    "CostSpec",
    "CurveSpec",
    "DeviceSpec",
    "DeviceState",
    "HostSpec",
    "Operation",
    "PowerSpec",
    "PublishedPoint",
    "Quantity",
    "ReadSpec",
    "Source",
    "SourceKind",
    "WearSpec",
    "WriteSpec",
]

DeviceState = Literal["fresh", "steady"]
Operation = Literal["randread", "randwrite", "randrw", "seqread", "seqwrite"]
Quantity = Literal["iops", "bytes_per_s", "mean_ns", "p50_ns", "p99_ns", "p999_ns", "p9999_ns", "p99999_ns"]
SourceKind = Literal["datasheet", "measured", "derived", "assumed"]


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
    small_bytes: int = Field(default=0, ge=0)
    """Commands of at most this many bytes take `small_command_ns` instead; 0: none do."""
    small_command_ns: int = Field(default=0, ge=0)
    """Controller time per small command."""
    bandwidth_bytes_per_s: int = Field(gt=0)
    """Link bandwidth of this direction."""
    latency_quantiles_ns: tuple[tuple[float, int], ...] = ()
    """Quantiles at queue depth 1 as (probability, ns), ascending; empty: constant."""
    latency_max_ns: int = Field(default=0, ge=0)
    """No read takes longer at queue depth 1."""
    latency_by_bytes_ns: tuple[tuple[int, int], ...] = ()
    """End-to-end latency at queue depth 1 by request size as (bytes, ns), ascending; interpolated."""


class WriteSpec(Config):
    """Writes: acknowledged from a buffer while it has room, drained at the medium's rate."""

    acknowledge_ns: int = Field(ge=0)
    """From data in the buffer to the acknowledgement; the mean if there are quantiles."""
    acknowledge_quantiles_ns: tuple[tuple[float, int], ...] = ()
    """Quantiles of that time as (probability, ns), ascending; empty: constant."""
    acknowledge_max_ns: int = Field(default=0, ge=0)
    """No acknowledgement out of a buffer with room takes longer."""
    command_ns: int = Field(ge=0)
    """Controller time per command."""
    small_bytes: int = Field(default=0, ge=0)
    """Commands of at most this many bytes take `small_command_ns` instead; 0: none do."""
    small_command_ns: int = Field(default=0, ge=0)
    """Controller time per small command."""
    bandwidth_bytes_per_s: int = Field(gt=0)
    """Link bandwidth of this direction."""
    buffer_bytes: int = Field(ge=0)
    """Capacity of the write buffer."""
    drain_bytes_per_s: int = Field(gt=0)
    """Rate at which random writes drain to the medium in steady state."""
    sequential_drain_bytes_per_s: int = Field(default=0, ge=0)
    """The same for sequential writes and for a fresh device; 0: the same rate."""


class BackgroundSpec(Config):
    """What draining the write buffer does to the media units; reads wait behind it."""

    program_bytes: int = Field(gt=0)
    """Bytes that one program operation of one unit writes."""
    program_ns: int = Field(gt=0)
    """Time that it takes."""
    program_suspend_ns: int = Field(ge=0)
    """A read waits at most this long for a program to be suspended."""
    erase_bytes: int = Field(default=0, ge=0)
    """Bytes programmed per erase; 0: no erases."""
    erase_ns: int = Field(default=0, ge=0)
    """Time of an erase."""
    erase_suspend_ns: int = Field(default=0, ge=0)
    """A read waits at most this long for an erase to be suspended."""
    stall_every_bytes: int = Field(default=0, ge=0)
    """Bytes of random writes, on average, per stall by garbage collection in steady state; 0: none."""
    stall_ns: int = Field(default=0, ge=0)
    """Time for which a stall holds up one unit."""


class WearSpec(Config):
    """Endurance."""

    endurance_bytes: int = Field(ge=0)
    """Bytes of random writes in steady state over the device's life; 0: no limit."""
    write_amplification_percent: int = Field(ge=100)
    """Bytes on the medium per byte of random writes in steady state, in percent."""


class PowerSpec(Config):
    """Power."""

    idle_milliwatts: int = Field(ge=0)
    """Idle."""
    read_milliwatts: int = Field(ge=0)
    """Reading as fast as the device can."""
    write_milliwatts: int = Field(ge=0)
    """Writing as fast as the device can."""


class CostSpec(Config):
    """Price."""

    millidollars_per_gigabyte: int = Field(ge=0)
    """Thousandths of a US dollar per 10^9 bytes."""


class CurveSpec(Config):
    """A measured loaded-latency curve for one mix of reads and writes."""

    read_percent: int = Field(ge=0, le=100)
    """Share of reads in the traffic, in percent."""
    points: tuple[tuple[int, int], ...]
    """(bytes per second, latency in ns), ascending in both; the first is idle, at 0 bytes per second."""


class Source(Config):
    """Where a number comes from."""

    kind: SourceKind
    """What sort of evidence it is."""
    ref: str = Field(min_length=1)
    """Document and place, or how it was derived."""
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    """When it was entered, ISO 8601."""


class PublishedPoint(Config):
    """A published figure that the model can be compared with."""

    operation: Operation
    """What the load was."""
    read_percent: int = Field(default=100, ge=0, le=100)
    """Share of reads of a `randrw`, in percent."""
    block_bytes: int = Field(gt=0)
    """Bytes of a request."""
    queue_depth: int = Field(gt=0)
    """Requests outstanding."""
    offered_bytes_per_s: int = Field(default=0, ge=0)
    """If above zero, the load is an open loop of this bandwidth and the queue depth is not used."""
    quantity: Quantity
    """What was published."""
    value: int = Field(gt=0)
    """Its value."""
    role: Literal["fitted", "check", "context"]
    """`fitted`: a number of this file was set so that the model meets it. `check`: it was not used.
    `context`: shown beside the model, but other published figures of the device contradict it."""
    note: str = ""
    """What contradicts it; needed with `context`."""
    kind: SourceKind
    """What sort of evidence it is."""
    ref: str = Field(min_length=1)
    """Document and place."""
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    """When it was entered, ISO 8601."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.role == "context" and not self.note:
            raise ValueError('a point of role "context" needs a note that says what contradicts it')
        return self


class DeviceSpec(Config):
    """One device. Files: `emulator_configs/devices/NAME.toml`."""

    name: str
    """Name, as in its file name."""
    description: str
    """What it is, for people."""
    kind: Literal["block", "byte"]
    """Requests of whole blocks through a queue, or loads and stores."""
    state: DeviceState = "steady"
    """Whether the device was written several times over before the run, or never."""
    capacity_bytes: int = Field(gt=0)
    """Capacity of the real device."""
    units: int = Field(default=0, ge=0, lt=2**32)
    """Independent media units, each a FIFO; 0 for devices that carry curves."""
    page_bytes: int = Field(gt=0)
    """What maps to one unit."""
    granule_bytes: int = Field(gt=0)
    """The least that the medium reads or writes."""
    queue_depth: int = Field(gt=0, lt=2**32)
    """Requests outstanding at most; for byte-addressable devices accesses of one page."""
    host: HostSpec
    """Host cost."""
    read: ReadSpec
    """Reads."""
    write: WriteSpec
    """Writes."""
    background: BackgroundSpec | None = None
    """What draining does to the media units."""
    wear: WearSpec
    """Endurance."""
    power: PowerSpec
    """Power."""
    cost: CostSpec
    """Price."""
    curves: tuple[CurveSpec, ...] = ()
    """Loaded-latency curves, which replace units, controller and link of a byte-addressable device."""
    published: tuple[PublishedPoint, ...] = ()
    """Published points that docs/fidelity.md compares with the model."""
    source: dict[str, Source] = Field(default_factory=dict)
    """Source of each number, by its dotted path."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for path, value in leaves(self.model_dump(exclude={"source", "published"})):
            if isinstance(value, int) and value >= 2**63:
                raise ValueError(f"{path}: {value} is out of range; it must be below 2^63")
        return self

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> "DeviceSpec":
        """The device of a shipped name or of a file.

        Raises:
            ConfigError: if there is none, the file is not a valid device, or a number has no source.
        """
        path = resolve("devices", name_or_path)
        values = load_toml(path)
        spec = cls.from_mapping(values, where=path.name)
        stated = {key: value for key, value in values.items() if key not in ("source", "published")}
        numbers = check_sources(stated, spec.source, path.name)
        for key in spec.source:
            if key not in numbers:
                raise ConfigError(f"{path.name}: {key} has a source but no number")
        return spec

    def to_json(self) -> str:
        """The form that the extension reads."""
        return json.dumps(self.model_dump(mode="json", exclude={"published"}))

    def numbers(self) -> dict[str, Any]:
        """Every number that the file states, by its dotted path."""
        stated = self.model_dump(exclude={"source", "published"})
        return {path: value for path, value in leaves(stated) if path in self.source}

    def assumed(self) -> list[str]:
        """Numbers without evidence."""
        return [path for path, source in self.source.items() if source.kind == "assumed"]
