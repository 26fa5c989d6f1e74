"""One emulated device: bytes in a backend, time from the model."""

import json
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tiermem import _core
from tiermem.config import BackendConfig, ClockMode, DeviceSpec, DeviceState, FaultConfig
from tiermem.errors import ConfigError, InputError
from tiermem.stats import DebtStats, DeviceStats, LatenessStats
from tiermem.units import parse_bytes

__all__ = ["Device", "open_device"]


class Device:
    """An open device. Use `open_device`.

    n = requests of one batch, all submitted at one instant with at most `queue_depth` outstanding.
    """

    def __init__(self, spec: DeviceSpec, core: _core.Device) -> None:
        self.spec = spec
        self._core = core

    @property
    def capacity_bytes(self) -> int:
        """Capacity in bytes."""
        return self._core.capacity_bytes

    @property
    def queue_depth(self) -> int:
        """Requests outstanding at most."""
        return self._core.queue_depth

    def now_ns(self) -> int:
        """Time on the device's clock, in nanoseconds since it was opened."""
        return self._core.now_ns()

    def read_batch(
        self, offsets: Sequence[int] | npt.NDArray[np.int64], *, nbytes: int
    ) -> npt.NDArray[np.uint8]:
        """Reads `nbytes` at each of n offsets.

        Returns:
            uint8 [n, nbytes]. On a wall clock the call returns when the last read is due.

        Raises:
            InputError: if a request does not lie on the device.
            DeviceError: if the backend fails.
        """
        places = _offsets(offsets)
        out = np.empty((len(places), _positive(nbytes)), dtype=np.uint8)
        self._core.read_batch(places.view(np.uint8), nbytes, out)
        return out

    def write_batch(
        self, offsets: Sequence[int] | npt.NDArray[np.int64], data: npt.NDArray[np.uint8]
    ) -> None:
        """Writes row k of `data`, uint8 [n, nbytes], at offset k; returns when all are acknowledged.

        Raises:
            InputError: if a request does not lie on the device, or shapes do not agree.
            DeviceError: if the backend fails or is full.
        """
        places = _offsets(offsets)
        if data.dtype != np.uint8 or data.ndim != 2 or len(data) != len(places):
            raise InputError(
                f"data must be uint8 [{len(places)}, nbytes], got {data.dtype} {list(data.shape)}"
            )
        self._core.write_batch(places.view(np.uint8), data.shape[1], np.ascontiguousarray(data).reshape(-1))

    def stats(self) -> DeviceStats:
        """Counters, latencies by the model, utilisation, wear, energy, cost."""
        values = json.loads(self._core.stats_json())
        return DeviceStats.from_dict({k: v for k, v in values.items() if k not in ("lateness", "debt")})

    def lateness(self) -> LatenessStats:
        """How punctual the device was on a wall clock."""
        return LatenessStats.from_dict(json.loads(self._core.stats_json())["lateness"])

    def debt(self) -> DebtStats:
        """By how much this host was slower than a byte-addressable device on a wall clock."""
        return DebtStats(**json.loads(self._core.stats_json())["debt"])

    def read_latency_cdf(self) -> list[tuple[int, float]]:
        """Points (latency in ns, share of reads at or below)."""
        return self._core.read_latency_cdf()


def _offsets(offsets: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    array = np.ascontiguousarray(offsets)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(f"offsets must be a vector of integers, got {array.dtype} {list(array.shape)}")
    return array.astype(np.int64)


def _positive(nbytes: int) -> int:
    if nbytes < 1:
        raise InputError(f"nbytes must be at least 1, got {nbytes}")
    return nbytes


def open_device(
    device: str | os.PathLike[str] | DeviceSpec,
    *,
    capacity: int | str = "1GiB",
    clock: ClockMode = "virtual",
    backend: BackendConfig | None = None,
    queue_depth: int | None = None,
    state: DeviceState | None = None,
    faults: FaultConfig | None = None,
    seed: int = 1,
) -> Device:
    """Opens an emulated device.

    Args:
        device: a shipped name, a path, or a specification.
        capacity: bytes to emulate, at most the capacity of the real device.
        clock: `virtual` computes time, `wall` waits.
        backend: where the bytes are; default: memory.
        queue_depth: requests outstanding at most; default: as the specification says.
        state: `fresh` or `steady`: what was written before; default: as the specification says.
        faults: faults to inject; default: none.
        seed: seed of the latency draws.

    Raises:
        ConfigError: for an unknown name or a value that is not allowed, or on a wall clock for a
            byte-addressable device that is faster than this host.
        CapacityError: if the real device is smaller.
        DeviceError: if the backend cannot be opened.

    Example:
        >>> device = open_device("optane-p4800x", capacity="1MiB")
        >>> device.read_batch([0, 4096], nbytes=512).shape
        (2, 512)
        >>> device.stats().reads
        2
    """
    capacity_bytes = parse_bytes(capacity)
    for name, value, most in (("capacity", capacity_bytes, 2**63), ("seed", seed, 2**64)):
        if not 0 <= value < most:
            raise ConfigError(f"{name} must be at least 0 and below {most}, got {value}")
    if clock not in ("virtual", "wall"):
        raise ConfigError(f'clock must be "virtual" or "wall", got {clock!r}')
    if capacity_bytes == 0:
        raise ConfigError("capacity must be at least one byte, got 0")
    if queue_depth is not None and not 1 <= queue_depth < 2**32:
        raise ConfigError(f"queue_depth must be at least 1 and below 2^32, got {queue_depth}")
    spec = device if isinstance(device, DeviceSpec) else DeviceSpec.load(device)
    if state is not None:
        spec = spec.replace(state=state)
    config = {
        "backend": (backend or BackendConfig()).model_dump(mode="json"),
        "capacity_bytes": capacity_bytes,
        "queue_depth": queue_depth,
        "seed": seed,
        "faults": (faults or FaultConfig()).model_dump(mode="json"),
    }
    core = _core.Device(spec.to_json(), config_json=json.dumps(config), wall=clock == "wall")
    return Device(spec, core)
