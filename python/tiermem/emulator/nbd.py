"""An emulated device on a unix socket, as a network block device: for fio, nbdcopy, qemu and their like."""

import dataclasses
import json
import os
import urllib.parse
from types import TracebackType
from typing import Self

from tiermem import _core
from tiermem.config import BackendConfig, DeviceSpec
from tiermem.errors import ConfigError
from tiermem.stats import DeviceStats, LatenessStats
from tiermem.units import parse_bytes

__all__ = ["NbdServer", "ServerStats"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ServerStats:
    """What a server and its device did."""

    connections: int
    """Clients accepted; fio makes two connections for a job."""
    refused: int
    """Connections ended because the client sent what cannot be understood, or because there were too many."""
    last_refusal: str
    """Why the last of them was; empty if none was."""
    device: DeviceStats
    lateness: LatenessStats
    """How late requests were handed to the socket."""


class NbdServer:
    """Serves a block device to processes of the same user, in real time, on one thread that spins under load.

    The protocol is NBD's fixed newstyle with simple replies, and one export without a name:
    `nbd+unix:///?socket=PATH`. Flush and trim take no time of the model.

    Args:
        spec: a block device.
        size: bytes to serve, such as "1GiB"; at most the device's capacity.
        socket: where to listen; made with mode 0600, and removed by `close`.
        seed: of the latency draws.
        backend: where the bytes are; a file is used through the page cache. Default: memory.
        transport_ns: what client and transport take by themselves, as measured with `zero_latency`; a
            request counts as submitted so long before it came here, so that the client sees the latency
            of the device and not the sum of both.
        zero_latency: requests are answered at once, to measure the transport.

    Raises:
        ConfigError: for a byte-addressable device, a size that it does not have, or a socket that is taken.

    Example:
        >>> with NbdServer(DeviceSpec.load("nand-p3700"), size="64MiB", socket="/tmp/p3700.sock") as server:
        ...     server.run()  # until stop() in another thread, or Ctrl-C
    """

    def __init__(
        self,
        spec: DeviceSpec,
        *,
        size: int | str,
        socket: str | os.PathLike[str],
        seed: int = 1,
        backend: BackendConfig | None = None,
        transport_ns: int = 0,
        zero_latency: bool = False,
    ) -> None:
        for name, value in (("the seed", seed), ("transport_ns", transport_ns)):
            if not 0 <= value < 2**64:
                raise ConfigError(f"{name} lies between 0 and 2^64 - 1, got {value:,}")
        where = backend or BackendConfig()
        config = {
            "backend": {**where.model_dump(mode="json"), "direct": "off"},
            "capacity_bytes": parse_bytes(size),
            "seed": seed,
            "transport_ns": transport_ns,
            "zero_latency": zero_latency,
        }
        self.spec = spec
        self.uri = f"nbd+unix:///?socket={urllib.parse.quote(os.fspath(socket))}"
        self._core: _core.NbdServer | None = _core.NbdServer(
            spec.to_json(), config_json=json.dumps(config), socket=os.fspath(socket)
        )

    def _open(self) -> _core.NbdServer:
        if self._core is None:
            raise ConfigError("the server was closed; open a new one")
        return self._core

    def run(self) -> None:
        """Serves until `stop` is called or a signal interrupts."""
        self._open().run()

    def stop(self) -> None:
        """Makes `run` return, from any thread."""
        self._open().stop()

    def stats(self) -> ServerStats:
        """What happened so far; waits until `run` has returned."""
        found = json.loads(self._open().stats_json())
        return ServerStats(
            connections=found["connections"],
            refused=found["refused"],
            last_refusal=found["last_refusal"],
            device=DeviceStats.from_dict(found["device"]),
            lateness=LatenessStats.from_dict(found["lateness"]),
        )

    def close(self) -> None:
        """Stops serving; once `run` has returned, connections end, and memory and socket are given back."""
        if self._core is not None:
            self._core.stop()
        self._core = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
