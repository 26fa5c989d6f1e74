"""Injected faults of one device. The twin of `device/fault.rs`, whose header states the fault model."""

from typing import Self

from pydantic import Field, model_validator

from tiermem.config.base import Config, DurationNs

__all__ = ["FaultConfig"]


class FaultConfig(Config):
    """Which faults a device has; the default has none. The same seed and requests meet the same faults.

    Example:
        >>> FaultConfig(seed=7, latent_error_share=1e-4, gone_after_requests=10_000).seed
        7
    """

    seed: int = Field(default=0, ge=0, lt=2**64)
    """Seed of all draws."""
    latent_error_share: float = Field(default=0.0, ge=0, le=1)
    """Share of 4 KiB blocks that cannot be read until they have been written over."""
    bit_flip_probability: float = Field(default=0.0, ge=0, le=1)
    """Probability that one bit of a 4 KiB block is stored inverted, in silence."""
    torn_write_probability: float = Field(default=0.0, ge=0, le=1)
    """Probability that only the first sectors of an acknowledged write are stored."""
    dropped_write_probability: float = Field(default=0.0, ge=0, le=1)
    """Probability that nothing of an acknowledged write is stored."""
    storm_every_ns: DurationNs = Field(default=0, ge=0)
    """Length of the intervals with one latency storm each; 0: none."""
    storm_duration_ns: DurationNs = Field(default=0, ge=0)
    """Length of a storm."""
    storm_extra_ns: DurationNs = Field(default=0, ge=0)
    """What a storm adds to the media time of a read."""
    gone_after_requests: int | None = Field(default=None, ge=0)
    """Requests served before the device goes away."""
    read_only_after_bytes: int | None = Field(default=None, ge=0)
    """Bytes written before the device becomes read-only, e.g. its `wear.endurance_bytes`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.storm_duration_ns > self.storm_every_ns:
            raise ValueError(
                f"storm_duration_ns must not exceed storm_every_ns, got {self.storm_duration_ns}"
                f" and {self.storm_every_ns}"
            )
        return self
