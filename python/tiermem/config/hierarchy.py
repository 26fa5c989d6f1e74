"""Tiers ordered from fastest to slowest, with their budgets and backends."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tiermem.config.base import ByteCount, Config, load_toml
from tiermem.config.device import DeviceSpec, DeviceState
from tiermem.config.fault import FaultConfig
from tiermem.config.names import resolve
from tiermem.errors import ConfigError
from tiermem.units import parse_bytes

__all__ = ["BackendConfig", "Budget", "ClockMode", "Hierarchy", "HierarchySource", "LogConfig", "TierConfig"]

ClockMode = Literal["virtual", "wall"]
Policy = Literal["lru", "lfu", "clock", "s3fifo", "sieve", "lookahead", "auto", "random"]
Layout = Literal["in_place", "log"]
STAGING_BYTES_DEFAULT = 64 * 2**20
SEGMENT_BYTES_DEFAULT = 2**20


def _budget(value: object) -> int | float:
    if isinstance(value, float):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"a share of all row bytes lies between 0 and 1, got {value}")
        return value
    return parse_bytes(value)


Budget = Annotated[int | float, BeforeValidator(_budget)]
"""A float is a share of the bytes of all rows; an integer or a string such as "1GiB" is bytes."""


def _device(value: object) -> object:
    return DeviceSpec.load(value) if isinstance(value, str | os.PathLike) else value


class BackendConfig(Config):
    """Where the bytes of an emulated tier really are."""

    engine: Literal["ram", "file", "io_uring", "auto", "phantom"] = "ram"
    """`auto` is io_uring where the host has it and pread elsewhere; the record says which and why."""
    directory: str | None = None
    """Directory of the scratch file; needed by the file engines."""
    direct: Literal["auto", "require", "off"] = "auto"
    """Whether to bypass the page cache (O_DIRECT)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.engine in ("file", "io_uring", "auto") and self.directory is None:
            raise ValueError(f'engine "{self.engine}" needs a directory for its scratch file')
        return self


class LogConfig(Config):
    """A log-structured home: rows that are written are appended, and compaction makes room."""

    segment_bytes: ByteCount = Field(default=SEGMENT_BYTES_DEFAULT, gt=0, le=16 * 2**20)
    """Bytes that are written one after the other and become free at once."""
    spare: float = Field(default=0.25, ge=0.2, le=8.0)
    """Room beyond that of the rows, as a share of it. Less room means more compaction."""
    compaction_share: float = Field(default=0.5, ge=0.0, le=1.0)
    """Of all rows written, the share that compaction in the background may cause."""
    paged_index: bool = False
    """Whether the locations of the rows (4 bytes each) are in a file beside the tier's own: the kernel may
    page them out, and they do not count in the memory budget. Needs a file engine."""


class TierConfig(Config):
    """One tier."""

    name: str
    """Name, for budgets and statistics."""
    device: Annotated[DeviceSpec, BeforeValidator(_device)]
    """The device that it imitates: a shipped name, a path, or a `DeviceSpec`."""
    cache: Budget | None = None
    """Budget of cached rows; the slowest tier has none, and a tier without one is only a home."""
    policy: Policy = "s3fifo"
    """Who leaves the cache: `lru`, `lfu`, `clock`, `s3fifo`, `sieve`, `lookahead`, `auto` or `random`."""
    layout: Layout | None = None
    """How rows lie that are at home here: `in_place` or `log`; `None`: a log on NAND, else in place."""
    log: LogConfig = LogConfig()
    """The log, if the layout is one."""
    backend: BackendConfig = BackendConfig()
    """Where its bytes are; the fastest tier is always in memory."""
    queue_depth: int | None = Field(default=None, gt=0)
    """Requests outstanding at most; `None`: as the device file says."""
    state: DeviceState | None = None
    """Whether the device was written before the run; `None`: as the device file says."""
    faults: FaultConfig = FaultConfig()
    """Injected faults; not for the fastest tier."""

    def effective_device(self) -> DeviceSpec:
        """The device with the tier's own queue depth and state."""
        changes = {"queue_depth": self.queue_depth, "state": self.state}
        return self.device.replace(**{key: value for key, value in changes.items() if value is not None})

    def effective_layout(self) -> Layout:
        """How rows lie that are at home here; if nobody said, in a log where the medium is erased (NAND).

        `docs/performance.md` has the figures: bytes written per trained sample for both layouts.
        """
        background = self.device.background
        has_erases = background is not None and background.erase_bytes > 0
        return self.layout or ("log" if has_erases else "in_place")

    def core(self) -> dict[str, Any]:
        """The form that the extension reads."""
        log = {"log": self.log.model_dump(mode="json")}
        return {
            "name": self.name,
            "device": self.effective_device().model_dump(mode="json", exclude={"published"}),
            "backend": self.backend.model_dump(mode="json"),
            "cache": _core_budget(self.cache),
            "policy": self.policy,
            "layout": log if self.effective_layout() == "log" else "in_place",
            "faults": self.faults.model_dump(mode="json"),
        }


class Hierarchy(Config):
    """Tiers from fastest to slowest, and how time passes.

    Example:
        >>> hierarchy = Hierarchy.load("dram-nand", budgets={"dram": 0.1})
        >>> [tier.name for tier in hierarchy.tiers]
        ['dram', 'nand']
    """

    description: str = ""
    """What it is, for people."""
    tiers: tuple[TierConfig, ...]
    """From fastest to slowest; the last is the home of all rows."""
    clock: ClockMode = "virtual"
    """`virtual`: nobody waits, time is computed. `wall`: waiting really waits."""
    staging_bytes: ByteCount = STAGING_BYTES_DEFAULT
    """Memory for the rows of the batches in flight; apart from the cache."""
    memory_limit_bytes: ByteCount | None = None
    """No more memory than this for rows and metadata; `None`: no limit."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.tiers:
            raise ValueError("a hierarchy needs at least one tier")
        names = [tier.name for tier in self.tiers]
        if len(set(names)) != len(names):
            raise ValueError(f"tier names must differ, got {', '.join(names)}")
        if len(self.tiers) > 1 and self.tiers[0].cache is None:
            raise ValueError(f'tier "{names[0]}" needs a cache budget, since rows live below it')
        if self.tiers[-1].cache is not None:
            raise ValueError(f'tier "{names[-1]}" has nothing below it to cache and has no cache budget')
        for tier in self.tiers:
            if tier.layout == "log" and tier.device.kind == "byte":
                raise ValueError(f'tier "{tier.name}" is byte-addressable and has no log; leave layout out')
        if self.tiers[0].device.kind != "byte":
            raise ValueError(f'the fastest tier "{names[0]}" must be byte-addressable')
        return self

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        budgets: Mapping[str, float | str] | None = None,
        clock: ClockMode | None = None,
        directory: str | os.PathLike[str] | None = None,
        staging_bytes: int | str | None = None,
    ) -> Self:
        """A shipped hierarchy by name, or a file.

        Args:
            name_or_path: a name under `emulator_configs/hierarchies`, or a path.
            budgets: cache budget by tier name: a float is a share of all row bytes, an integer or a
                string is bytes.
            clock: replaces the file's clock.
            directory: puts the block tiers into scratch files there (engine `auto`).
            staging_bytes: replaces the file's staging budget.

        Raises:
            ConfigError: for an unknown name, tier or key, or a budget that is not one.
        """
        path = resolve("hierarchies", name_or_path)
        values = load_toml(path)
        if clock is not None:
            values["clock"] = clock
        if staging_bytes is not None:
            values["staging_bytes"] = staging_bytes
        loaded = cls.from_mapping(values, where=path.name)
        return loaded.with_budgets(budgets or {}).with_directory(directory)

    def with_budgets(self, budgets: Mapping[str, float | str]) -> Self:
        """A copy with some cache budgets replaced, by tier name."""
        names = [tier.name for tier in self.tiers]
        for name in budgets:
            if name not in names:
                raise ConfigError(f'there is no tier "{name}" to give a budget to; tiers: {", ".join(names)}')
        tiers = tuple(
            tier.replace(cache=budgets[tier.name]) if tier.name in budgets else tier for tier in self.tiers
        )
        return self.replace(tiers=tiers)

    def with_directory(self, directory: str | os.PathLike[str] | None) -> Self:
        """A copy whose block tiers are scratch files in `directory`; `None` changes nothing."""
        if directory is None:
            return self
        backend = BackendConfig(engine="auto", directory=str(Path(directory)))
        tiers = tuple(
            tier.replace(backend=backend) if tier.device.kind == "block" else tier for tier in self.tiers
        )
        return self.replace(tiers=tiers)

    def core(self) -> list[dict[str, Any]]:
        """The tiers in the form that the extension reads."""
        return [tier.core() for tier in self.tiers]


def _hierarchy(value: object) -> object:
    return Hierarchy.load(value) if isinstance(value, str | os.PathLike) else value


HierarchySource = Annotated[Hierarchy, BeforeValidator(_hierarchy)]
"""A `Hierarchy`, its contents, or the name or path of a hierarchy file."""


def _core_budget(budget: float | None) -> dict[str, float] | None:
    if budget is None:
        return None
    return {"fraction": budget} if isinstance(budget, float) else {"bytes": budget}
