"""The compiled extension. Users call `tiermem`; this layer takes byte buffers and JSON.

Buffers are contiguous numpy arrays of uint8 that view float32 or int64 values, or stored rows. A caller must
not change an input nor touch an output while a call runs. Every call that can wait, lock or move bytes
releases the interpreter. Errors are the classes of `tiermem.errors`.
"""

from collections.abc import Sequence
from os import PathLike
from typing import Final, final

import numpy as np
import numpy.typing as npt

__all__ = [
    "BUILD_PROFILE",
    "AccessStream",
    "Device",
    "Gate",
    "NbdServer",
    "NewVersion",
    "QueryLookup",
    "ServeEngine",
    "ServeSimulation",
    "Store",
    "Ticket",
    "TraceReader",
    "TraceWriter",
    "__version__",
    "check_device",
    "error_classes",
    "free_bytes",
    "huge_pages_allowed",
    "io_uring_refusal",
    "probe_directory",
    "run_workload",
    "synthesize_trace",
]

_Bytes = npt.NDArray[np.uint8]

BUILD_PROFILE: Final[str]
__version__: Final[str]

def error_classes() -> list[tuple[str, str]]:
    """Every kind of error of the core with the name of its class in `tiermem.errors`."""

def io_uring_refusal() -> str | None:
    """Why this host has no usable io_uring; `None` if it has."""

def probe_directory(directory: str | PathLike[str]) -> tuple[str | None, int, bool, str | None]:
    """(why a directory refuses O_DIRECT, alignment of transfers, are buffers registered, why not polled)."""

def huge_pages_allowed() -> bool:
    """Whether the kernel gives huge pages to memory that asks for them."""

def free_bytes(directory: str | PathLike[str]) -> int:
    """Free bytes of the filesystem of a directory."""

def check_device(spec_json: str) -> None:
    """Raises `ConfigError` if the core does not accept a device specification."""

def run_workload(spec_json: str, workload_json: str, *, wall: bool) -> str:
    """Runs a load on the model of a device, in virtual time or in real time; one point as JSON."""

def synthesize_trace(config_json: str, origin: str, path: str | PathLike[str]) -> str:
    """Writes a generated trace; its counts as JSON."""

@final
class NbdServer:
    """A device on a unix socket. `config_json` says backend, size, seed and timing."""

    def __new__(cls, spec_json: str, *, config_json: str, socket: str | PathLike[str]) -> NbdServer: ...
    def run(self) -> None:
        """Serves until `stop`, or until a signal handler raises."""

    def stop(self) -> None:
        """Makes `run` return, from any thread."""

    def stats_json(self) -> str:
        """What server and device did; waits until `run` has returned."""

@final
class Gate:
    """A closed gate in front of the backends of a store, for tests of blocking calls."""

    def __new__(cls) -> Gate: ...
    def open(self) -> None:
        """Lets everybody pass, now and later."""

    def wait_until_blocked(self, count: int) -> None:
        """Returns once `count` operations have come to the closed gate."""

@final
class Device:
    """One emulated device: bytes in a backend, time from the model."""

    def __new__(
        cls,
        spec_json: str,
        *,
        config_json: str,
        wall: bool,
    ) -> Device: ...
    @property
    def capacity_bytes(self) -> int:
        """Capacity in bytes."""

    @property
    def queue_depth(self) -> int:
        """Requests outstanding at most."""

    def now_ns(self) -> int:
        """Time on the device's clock."""

    def read_batch(self, offsets: _Bytes, nbytes: int, out: _Bytes) -> int:
        """Reads `nbytes` at each offset (int64); gives the nanoseconds until the last was due."""

    def write_batch(self, offsets: _Bytes, nbytes: int, data: _Bytes) -> int:
        """Writes `nbytes` at each offset (int64); gives the nanoseconds until the last was acknowledged."""

    def stats_json(self) -> str:
        """Counters, latencies, utilisation, wear, energy, cost, lateness and debt."""

    def read_latency_cdf(self) -> list[tuple[int, float]]:
        """Points (latency in ns, share of reads at or below)."""

@final
class Store:
    """Tables on a hierarchy."""

    def __new__(cls, config_json: str, *, gate: Gate | None = None) -> Store: ...
    def prefetch(self, lookups: Sequence[tuple[int, _Bytes, _Bytes]]) -> Ticket:
        """Queues the rows of (table, ids int64, offsets int64) lookups; never blocks."""

    def announce(self, lookups: Sequence[tuple[int, _Bytes, _Bytes]]) -> None:
        """Tells the policies which rows a later prefetch will ask for."""

    def withdraw_announced(self) -> None:
        """What was announced and not yet prefetched will not come."""

    def pool(
        self,
        lookups: Sequence[tuple[int, _Bytes, _Bytes]],
        outs: Sequence[tuple[int, _Bytes, _Bytes | None]],
        *,
        mode: str,
    ) -> None:
        """Fetches a batch, pools (lookup, out float32 [B, D], sample weights), and gives the rows back."""

    def step(self, lr: float) -> None:
        """Applies all kept gradients: one update a row."""

    def gradient_norm(self) -> float:
        """The Euclidean norm of all kept gradients."""

    def scale_gradients(self, factor: float) -> None:
        """Multiplies all kept gradients."""

    def discard(self) -> None:
        """Forgets all kept gradients."""

    def read_rows(
        self, table: int, start: int, weights: _Bytes, state: _Bytes, *, stored: bool = False
    ) -> None:
        """Copies rows out: weights float32 [n, D] or as stored, state float32 [n, S]."""

    def write_rows(
        self, table: int, start: int, weights: _Bytes, state: _Bytes | None = None, *, stored: bool = False
    ) -> None:
        """Replaces rows: weights float32 [n, D] or as stored, state float32 [n, S] or zero."""

    def save_rows(self, path: str | PathLike[str]) -> int:
        """Writes all rows that exist to a new file; gives their number."""

    def load_rows(self, path: str | PathLike[str]) -> int:
        """Replaces all rows by those of a file; gives their number."""

    def chunk_rows(self, table: int) -> int:
        """The most ids of one forward-only lookup that surely fit in staging memory."""

    def state_floats(self, table: int) -> int:
        """Floats of optimizer state in a row of a table."""

    def steps(self) -> int:
        """Optimizer steps so far."""

    def set_steps(self, steps: int) -> None:
        """Continues the count of optimizer steps."""

    def is_resident(self, table: int) -> bool:
        """Whether all rows of a table live in the fastest tier."""

    @property
    def simd(self) -> str:
        """The instructions that the kernels use."""

    @property
    def is_virtual(self) -> bool:
        """Whether nobody waits."""

    def now_ns(self) -> int:
        """Time on the store's clock."""

    def advance(self, duration_ns: int) -> None:
        """Accounts for dense work on a virtual clock; no-op on a wall clock."""

    def flush(self) -> None:
        """Writes every changed row down to the tier below and waits for it."""

    def close(self) -> None:
        """Finishes what is queued; later calls raise `ClosedError`. Idempotent."""

    def stats_json(self) -> str:
        """Everything counted so far."""

    def table_stats_json(self) -> str:
        """Everything counted so far, by table."""

    def timeline_json(self) -> str:
        """Transfers and dirty rows over time, of a store that was opened with a timeline."""

    def read_latency_cdf(self, tier: int) -> list[tuple[int, float]]:
        """Points (latency in ns, share of reads at or below) of one tier's device."""

@final
class Ticket:
    """The rows of one prefetched batch, in memory from `wait` to `release`."""

    def wait(self) -> None:
        """Returns when the rows are in memory, and on a wall clock when they are due."""

    def release(self) -> None:
        """Gives the rows back, at the next step if gradients wait for one. Idempotent."""

    def gather(self, outs: Sequence[tuple[int, _Bytes, _Bytes | None]], *, mode: str) -> None:
        """Pools (lookup, out float32 [B, D], sample weights float32 [L])."""

    def accumulate(self, gradients: Sequence[tuple[int, _Bytes, _Bytes | None]], *, mode: str) -> None:
        """Keeps (lookup, gradient float32 [B, D], sample weights) for the next step."""

    def update(self, gradients: Sequence[tuple[int, _Bytes, _Bytes | None]], lr: float, *, mode: str) -> None:
        """Applies (lookup, gradient float32 [B, D], sample weights) at once, as one step."""

    def sample_weight_gradient(self, lookup: int, gradients: _Bytes, out: _Bytes) -> None:
        """Gradient float32 [L] of the sample weights from float32 [B, D]."""

@final
class TraceWriter:
    """A trace that is being written; see `tiermem.data.trace_file`."""

    def __new__(cls, path: str | PathLike[str], description_json: str) -> TraceWriter: ...
    def write(self, batch: list[tuple[_Bytes, _Bytes]]) -> None:
        """One batch: (lengths int64 [bags], ids int64 [ids]) of each table."""

    def finish(self) -> str:
        """Gives the file its name; counts as JSON."""

    def abort(self) -> None:
        """Leaves nothing behind; does nothing after `finish`."""

@final
class TraceReader:
    """A trace that is being read."""

    def __new__(cls, path: str | PathLike[str]) -> TraceReader: ...
    def description_json(self) -> str:
        """Tables and origin."""

    def read(self) -> list[tuple[bytes, bytes]] | None:
        """The next batch: (lengths int64, ids int64) of each table; `None` after the last."""

@final
class AccessStream:
    """A trace as one stream of rows, in memory; see `tiermem.data.access_stream`."""

    def __new__(cls, path: str | PathLike[str], config_json: str) -> AccessStream: ...
    def sizes(self) -> tuple[int, int, int]:
        """(accesses in memory, accesses of the selection, distinct rows in memory)."""

    def counts(self) -> bytes:
        """Accesses of each row, uint32."""

    def stack_distances(self) -> tuple[bytes, int]:
        """(how often each stack distance occurs, uint64; accesses that are the first of their row)."""

    def lru_points(self, rows: list[int]) -> str:
        """Points of lru, as a JSON list."""

    def replay_point(self, policy: str, rows: int, *, window_batches: int, seed: int) -> str:
        """One point of a policy, as JSON."""

    def replay_hits(self, policy: str, rows: int, *, window_batches: int, seed: int) -> int:
        """Hits of a policy, and nothing else."""

@final
class ServeEngine:
    """Tables in memory and on a device; see `tiermem.serve.engine`."""

    def __new__(cls, config_json: str) -> ServeEngine: ...
    def rows_per_load(self, table: int) -> int:
        """Rows to load at a time; the last may be fewer."""

    def new_version(self) -> NewVersion:
        """A version to load beside the served one; waits for queries that still read the one before it."""

    def roll_back(self, warm: bool) -> int:
        """Serves the version before again; its number."""

    def update(self, table: int, ids: _Bytes, values: _Bytes) -> None:
        """Updates rows: ids int64 [n], values float32 [n, D]."""

    def flush(self) -> None:
        """Puts updated rows into their place; waits for queries that must not see them."""

    def begin(self, bags: Sequence[tuple[_Bytes, _Bytes]]) -> QueryLookup:
        """Begins a query: (ids int64, where each bag begins int64) of every table; starts its reads."""

    def now_ns(self) -> int:
        """Time on the device's clock."""

    def stats_json(self) -> str:
        """Caches, traffic, memory, device."""

@final
class NewVersion:
    """A version that is being loaded."""

    @property
    def number(self) -> int:
        """Its number."""

    def load(self, table: int, row_type: str, rows: _Bytes) -> None:
        """The next rows of a table, as stored in this type."""

    def set_index_map(self, table: int, rows: _Bytes) -> None:
        """The row of each id of a pruned table, int32; -1: none."""

    def commit(self, warm: bool) -> int:
        """Serves it from now on; its number. With `warm`, reads again what was cached."""

@final
class QueryLookup:
    """One query under way."""

    @property
    def version(self) -> int:
        """The number of the version that it sees."""

    def pool_memory(self, out: _Bytes) -> None:
        """Pools the tables in memory into their parts of float32 `out`: table by table, a row a bag."""

    def wait(self) -> None:
        """Waits for the reads."""

    def finish(self, out: _Bytes) -> None:
        """Waits for the reads and pools the other tables into their parts."""

    def abandon(self) -> None:
        """Gives up: waits for its reads and forgets them."""

@final
class ServeSimulation:
    """An engine in virtual time; see `tiermem.serve.simulate`."""

    def __new__(cls, config_json: str) -> ServeSimulation: ...
    def queries(self) -> int | None:
        """How many queries a trace has; `None` if they are generated."""

    def memory_json(self) -> str:
        """Where the memory goes."""

    def warm_up(self, first_query: int, queries: int, parts: int) -> str:
        """Warms the caches; what they did in each part, as a JSON list."""

    def cool_down(self) -> None:
        """Forgets what the caches hold."""

    def run(self, load_json: str) -> str:
        """Runs a load from the warm state, which it does not change; what it found, as JSON."""
