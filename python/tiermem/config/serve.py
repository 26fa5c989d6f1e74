"""An inference engine: tables, device, memory, host, and the load that it is driven with."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from tiermem.config.base import ByteCount, Config, DurationNs
from tiermem.config.device import DeviceSpec, DeviceState
from tiermem.config.experiment import ComputeConfig, ModelConfig
from tiermem.config.fault import FaultConfig
from tiermem.config.hierarchy import BackendConfig, Budget
from tiermem.config.names import load_named

__all__ = [
    "DEVICE_PLACEMENTS",
    "RATE_MAX",
    "CacheMemoryConfig",
    "LoadConfig",
    "LoadTimeConfig",
    "QueryLoadConfig",
    "ServeConfig",
    "ServeDeviceConfig",
    "ServeHostConfig",
    "ServeModelConfig",
    "ServePlacement",
    "ServeRowType",
    "ServeTableConfig",
    "TuneConfig",
    "UpdateLoadConfig",
]

_COUNT_MAX = 2**48
"""Bytes, nanoseconds and so on."""
_QUERIES_MAX = 10**9
RATE_MAX = 10**9
"""Queries or updates a second: time is counted in nanoseconds."""
_COST_NS_MAX = 10**9
"""A second."""

ServePlacement = Literal["fixed", "cached", "uncached"]
"""In memory; on the device with a cache of rows; on the device, read each time."""
DEVICE_PLACEMENTS: tuple[ServePlacement, ...] = ("cached", "uncached")
ServeRowType = Literal["fp32", "fp16", "bf16", "int8", "int8_fp16", "int4"]
"""How rows are stored for serving. int8 has scale and bias as float32, int8_fp16 and int4 as float16."""


def _device(value: object) -> object:
    return DeviceSpec.load(value) if isinstance(value, str | os.PathLike) else value


class ServeTableConfig(Config):
    """A table of a model that is only imagined, for virtual time."""

    name: str
    """Its name."""
    count: int = Field(default=1, ge=1, le=4000)
    """So many tables of this kind."""
    rows: int = Field(ge=1, le=2**36)
    """Rows before any were pruned."""
    columns: int = Field(ge=1, le=2**20)
    """Floats of a row."""
    row_type: ServeRowType = "int8_fp16"
    """How rows are stored."""
    side: Literal["user", "item"]
    """Whether a query has one list of it, its user's, or one for each candidate."""
    ids_per_list: int = Field(ge=1, le=2**20)
    """Mean length of a list."""
    exponent: float = Field(ge=0, le=10)
    """A row of rank r is looked up in proportion to r to minus this."""
    pruned_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the rows that were pruned."""

    @property
    def names(self) -> list[str]:
        """Of its tables: its own, or numbered if there are several."""
        return [self.name] if self.count == 1 else [f"{self.name}-{number}" for number in range(self.count)]


class ServeModelConfig(Config):
    """A model that `tiermem export` wrote."""

    path: str
    """The folder of the export."""
    user_tables: tuple[str, ...]
    """Tables that are looked up once for a query; the others once for each candidate."""
    row_type: ServeRowType | None = None
    """How rows are stored for serving; `None`: as they were exported."""


class ServeDeviceConfig(Config):
    """The device under the tables that are not in memory."""

    spec: Annotated[DeviceSpec, BeforeValidator(_device)]
    """The device: a shipped name, a path, or a `DeviceSpec`."""
    state: DeviceState | None = None
    """Whether it was written before; `None`: as the device file says."""
    replicas: int = Field(default=1, ge=1, le=2)
    """Devices with a copy of all rows each."""
    block_bytes: ByteCount = Field(default=512, le=2**30)
    """Blocks in which a block device is read and written; of a byte-addressable one they have a byte."""
    sub_block: bool = True
    """Whether only the bytes of a row cross the bus, as with the bit buckets of NVMe."""
    reads_per_table_max: int = Field(default=64, ge=1, le=2**20)
    """Reads of one table outstanding at most."""
    reads_max: int = Field(default=256, ge=1, le=2**20)
    """Reads outstanding at most."""
    hedge_after: DurationNs | None = Field(default=None, le=_COUNT_MAX)
    """After this long a read is asked of the second device, too; `None`: never."""
    completion: Literal["interrupt", "polling"] = "polling"
    """How the host learns that a read is done: what that costs in virtual time. A real device is polled if
    kernel, filesystem and driver can; the statistics say why not."""
    backend: BackendConfig = BackendConfig()
    """Where its bytes really are, for an engine that moves them."""
    replica_directory: str | None = None
    """Directory of the second copy; real devices need one on another device. `None`: that of the first."""
    faults: FaultConfig = FaultConfig()
    """Injected faults."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hedge_after is not None and self.replicas < 2:
            raise ValueError(
                "a read can only be hedged where a second device has a copy of its row;"
                " set device.replicas = 2, or leave hedge_after out"
            )
        return self

    def effective_spec(self) -> DeviceSpec:
        """The device in its state."""
        return self.spec if self.state is None else self.spec.replace(state=self.state)

    @property
    def effective_block_bytes(self) -> int:
        """Blocks of the device as it is addressed."""
        return 1 if self.spec.kind == "byte" else self.block_bytes


class CacheMemoryConfig(Config):
    """All memory that an engine keeps, and what becomes of it.

    Rows that a query under way gathers, and rows being loaded, are not in it.
    """

    budget: Budget
    """Bytes, or a share of the bytes of all rows that were not pruned, as `load_time` finds them."""
    pooled_share: float = Field(default=0.1, ge=0, le=1)
    """Of what tables, maps and buffers leave, the share of pooled results; cached rows have the rest."""
    pooled_ids_min: int = Field(default=8, ge=1, le=_COUNT_MAX)
    """Lists shorter than this are not kept as pooled results."""
    pooled_match: Literal["in_order", "in_any_order"] = "in_order"
    """Which lists are the same. In another order a sum may differ in its last bits."""
    dense_row_bytes_max: int = Field(default=255, ge=0, le=506)
    """Rows up to this long go to the cache's layout for small rows."""
    policy: Literal["lru", "lfu", "clock", "s3fifo", "sieve", "random"] = "lru"
    """Who leaves among large rows; among small ones the least recently used of a bucket does."""
    updates: ByteCount = Field(default=2**20, le=_COUNT_MAX)
    """Room for rows that were updated and not yet written."""


class ServeHostConfig(Config):
    """What a host spends, for virtual time. Defaults are assumed: orders of magnitude of a server core."""

    threads: int = Field(default=8, ge=1, le=4096)
    """Serving threads."""
    query_ns: int = Field(default=5_000, ge=0, le=_COST_NS_MAX)
    """A query, apart from what follows."""
    probe_ns: float = Field(default=60.0, ge=0, le=_COST_NS_MAX)
    """Looking for one row or one list in a cache."""
    row_ns: float = Field(default=10.0, ge=0, le=_COST_NS_MAX)
    """Adding one row to its sum,"""
    byte_ns: float = Field(default=0.1, ge=0, le=_COST_NS_MAX)
    """each byte of it,"""
    dequantise_ns: float = Field(default=0.03, ge=0, le=_COST_NS_MAX)
    """and each column that is a code."""
    submit_ns: float = Field(default=200.0, ge=0, le=_COST_NS_MAX)
    """Handing one read to the device. With `polling_ns`: in 2021 a core did 3.8 M reads a second at most
    (J. Axboe, phoronix.com/news/Linux-IO-3.8M-IOPS-Per-Core)."""
    interrupt_ns: float = Field(default=800.0, ge=0, le=_COST_NS_MAX)
    """Taking one read from the device by interrupt."""
    polling_ns: float = Field(default=200.0, ge=0, le=_COST_NS_MAX)
    """Taking one read from the device by polling."""
    fault_ns: float = Field(default=1_000.0, ge=0, le=_COST_NS_MAX)
    """A page fault, apart from the read."""
    compute: ComputeConfig = ComputeConfig(
        flops_per_s=50e9, bytes_per_s=20_000_000_000, source="assumed: one core with wide instructions"
    )
    """Dense layers, of one thread."""
    source: str = "assumed"
    """Where these numbers come from, or the word assumed."""


class QueryLoadConfig(Config):
    """Who asks for what."""

    trace: str | None = None
    """A trace whose consecutive samples make the queries; `None`: they are generated as below."""
    users: int = Field(default=100_000, ge=1, le=2**36)
    """Users."""
    user_exponent: float = Field(default=0.8, ge=0, le=10)
    """Skew of who asks."""
    items: int = Field(default=100_000, ge=1, le=2**36)
    """Items among which candidates are drawn."""
    item_exponent: float = Field(default=0.8, ge=0, le=10)
    """Skew of what is asked for."""
    candidates: int = Field(default=50, ge=1, le=65_536)
    """Candidates of a query."""
    list_life_queries: int = Field(default=0, ge=0, le=_COUNT_MAX)
    """After so many queries each list of a user is another one; 0: never."""
    ids_per_list: int = Field(default=1, ge=1, le=2**20)
    """Mean length of the lists of an exported model's tables."""
    exponent: float = Field(default=1.0, ge=0, le=10)
    """Skew of their rows."""


class UpdateLoadConfig(Config):
    """Rows that are updated while queries are served, in virtual time.

    They wait in `memory.updates` as in an engine; what the device does for them is spread evenly over time.
    """

    updates_per_s: int = Field(default=0, ge=0, le=RATE_MAX)
    """Updates a second; 0: none."""
    nbytes: ByteCount = Field(default=4096, le=2**30)
    """What one reads from a device and writes to every one: the block around its row."""


class LoadConfig(Config):
    """A load, and what it is to keep."""

    queries: QueryLoadConfig = QueryLoadConfig()
    """Who asks for what."""
    updates: UpdateLoadConfig = UpdateLoadConfig()
    """Rows that are updated meanwhile."""
    quantile: Literal["p50", "p95", "p99", "p999"] = "p99"
    """Which quantile of the latency the bound is for."""
    sla_ms: float = Field(gt=0, le=1e6)
    """The bound."""
    warm_up_queries: int = Field(default=20_000, ge=0, le=_QUERIES_MAX)
    """Queries that warm the caches before any is timed."""
    measured_queries: int = Field(default=20_000, ge=100, le=_QUERIES_MAX)
    """Queries of a run."""
    rate_tolerance: float = Field(default=0.02, gt=0, lt=1)
    """The highest rate is found to within this share."""


class LoadTimeConfig(Config):
    """What becomes of tables on the device as they are loaded."""

    deprune: bool = True
    """Write rows that were pruned as zeros, so that no index map is in memory."""
    dequantise: bool = False
    """Write rows that are codes as float32."""


class TuneConfig(Config):
    """What a tuner tries. It changes one at a time and keeps what raises the rate, until nothing does."""

    pooled_shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.05, 0.1, 0.2, 0.4)
    """Values of memory.pooled_share."""
    pooled_ids_mins: tuple[Annotated[int, Field(ge=1, le=_COUNT_MAX)], ...] = (2, 8, 16, 32)
    """Values of memory.pooled_ids_min."""
    reads_per_table_maxima: tuple[Annotated[int, Field(ge=1, le=2**20)], ...] = (8, 32, 128)
    """Values of device.reads_per_table_max."""
    reads_maxima: tuple[Annotated[int, Field(ge=1, le=2**20)], ...] = (32, 128, 512)
    """Values of device.reads_max."""
    placements: bool = True
    """Whether to put tables into memory, and take the cache from them, table by table."""
    rounds: int = Field(default=2, ge=1, le=100)
    """Passes over all of these at most."""


class ServeConfig(Config):
    """An engine, `emulator_configs/serving/NAME.toml`."""

    description: str = ""
    """What it is, for people."""
    seed: int = Field(default=1, ge=0, le=2**64 - 1)
    """Seed of queries, arrivals and latency draws."""
    model: ServeModelConfig | None = None
    """An exported model; or"""
    tables: tuple[ServeTableConfig, ...] = ()
    """tables that are imagined, for virtual time alone,"""
    dense: ModelConfig | None = None
    """with these dense layers (`None`: the smallest that a trainer makes),"""
    dense_features: int | None = Field(default=None, ge=0, le=2**20)
    """and so many dense features (`None`: 13). A model has its own."""
    placement: dict[str, ServePlacement] = Field(default_factory=dict)
    """Where tables are, by name; others: tables of users cached, tables of items fixed. Of imagined tables it
    may name all of a kind, or one by its number, which comes first."""
    device: ServeDeviceConfig
    """Device."""
    memory: CacheMemoryConfig
    """Memory."""
    load_time: LoadTimeConfig = LoadTimeConfig()
    """What becomes of tables as they are loaded."""
    overlap: bool = True
    """Whether the item side is looked up while reads of the user side are under way."""
    clock: Literal["virtual", "wall", "real"] = "virtual"
    """How the device's time passes: counted; waited for; or, on a real device, as it passes."""
    versions: int = Field(default=1, ge=1, le=2)
    """2: tables can be refreshed and rolled back; those in memory, and room for updates, are there twice."""
    candidates_max: int = Field(default=4096, ge=1, le=2**31)
    """A query with more candidates is refused."""
    host: ServeHostConfig = ServeHostConfig()
    """What the host spends."""
    load: LoadConfig
    """What it is driven with."""
    tune: TuneConfig = TuneConfig()
    """What a tuner tries."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.model is None) == (not self.tables):
            raise ValueError(
                "an engine serves either a model or tables that are imagined; give one of the two"
            )
        if self.model is not None:
            beside = next(
                (key for key in ("dense", "dense_features") if getattr(self, key) is not None), None
            )
            if beside is not None:
                raise ValueError(f"the model has dense layers of its own; leave {beside} out")
            return self
        kinds = [table.name for table in self.tables]
        names = [name for table in self.tables for name in table.names]
        # The name of a kind is that of its table, or of all of them.
        labels = [label for table in self.tables for label in {table.name, *table.names}]
        twice, times = Counter(labels).most_common(1)[0]
        if times > 1:
            raise ValueError(f'two tables are called "{twice}"')
        unknown = [name for name in self.placement if name not in {*kinds, *names}]
        if unknown:
            raise ValueError(
                f'placement names "{unknown[0]}", which is no table (there are {", ".join(kinds)})'
            )
        return self

    @classmethod
    def load_file(cls, name_or_path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Self:
        """A shipped engine by name, or a file, with `path.to.key=value` overrides.

        Raises:
            ConfigError: names the file, the key, and what is wrong.
        """
        values, path = load_named("serving", name_or_path, overrides)
        return cls.from_mapping(values, where=path.name)

    def placement_of(self, table: str, kind: str = "", *, is_user: bool) -> ServePlacement:
        """Where a table is: as it is named, or as its kind is."""
        usual: ServePlacement = "cached" if is_user else "fixed"
        return self.placement.get(table, self.placement.get(kind, usual))
