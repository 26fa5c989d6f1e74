"""Stores of rows that `tiering.py` compares: each fills itself, reads pooled batches, and trains on batches.

A batch is int64 [ids]; bags have equal lengths. All sides look up the same ids and make the same row-wise
AdaGrad step, so the sums that they return agree. Sides other than tiermem deduplicate with numpy; pooling,
coalescing and the step are PyTorch's and numpy's vectorised operations on the unique rows.
"""

import dataclasses
import importlib
import importlib.util
import itertools
import mmap
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tiermem as tm
import torch
from tiering_ids import Floats, Ids, RowSource, Workload, gradients
from tiermem.config import BackendConfig, DeviceSpec, TierConfig
from tiermem.embedding import EmbeddingStore, Ticket
from torch.nn import functional

LEARNING_RATE, EPSILON = 0.05, 1e-10
PREFETCH_DISTANCE = 2


class Side(ABC):
    """One store."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.gradient = gradients(workload)

    @abstractmethod
    def read(self, batches: Ids) -> float:
        """Looks every batch up; gives the sum of all pooled values."""

    @abstractmethod
    def train(self, batches: Ids) -> float:
        """Looks every batch up and updates its rows; gives the sum of all pooled values."""

    @abstractmethod
    def settle(self) -> None:
        """Returns when everything that was changed is in the file."""

    @abstractmethod
    def close(self) -> None: ...

    def figures(self) -> dict[str, Any]:
        """What it counted."""
        return {}


class Peer(Side):
    """A store that gets and puts images of rows."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        offsets = np.arange(workload.bags, dtype=np.int64) * workload.ids_per_bag
        self._offsets = torch.from_numpy(offsets)
        spread = np.repeat(self.gradient, workload.ids_per_bag, axis=0)
        self._position_gradients = torch.from_numpy(spread)

    @abstractmethod
    def get(self, unique: Ids) -> Floats:
        """float32 [n, dim + 1] of ascending rows; may be changed by the caller."""

    @abstractmethod
    def put(self, unique: Ids, images: Floats) -> None:
        """Replaces rows."""

    def read(self, batches: Ids) -> float:
        return sum(self._look_up(batch)[0] for batch in batches)

    def train(self, batches: Ids) -> float:
        total = 0.0
        dim = self.workload.dim
        for batch in batches:
            pooled, unique, inverse, images = self._look_up(batch)
            total += pooled
            summed = torch.zeros(len(unique), dim).index_add_(0, inverse, self._position_gradients).numpy()
            images[:, dim] += np.square(summed).mean(axis=1)
            scale = np.float32(LEARNING_RATE) / (np.sqrt(images[:, dim]) + np.float32(EPSILON))
            images[:, :dim] -= scale[:, None] * summed
            self.put(unique, images)
        return total

    def _look_up(self, batch: Ids) -> tuple[float, Ids, torch.Tensor, Floats]:
        unique, inverse = np.unique(batch, return_inverse=True)
        images = self.get(unique)
        positions = torch.from_numpy(inverse)
        weights = torch.from_numpy(np.ascontiguousarray(images[:, : self.workload.dim]))
        pooled = functional.embedding_bag(positions, weights, self._offsets, mode="sum")
        return float(pooled.sum(dtype=torch.float64)), unique, positions, images


def _chunks(workload: Workload) -> Iterator[tuple[int, Floats]]:
    """(first row, float32 [n, dim + 1])."""
    source = RowSource(workload)
    for start in source.starts():
        weights = source.chunk(start)
        yield start, np.concatenate([weights, np.zeros((len(weights), 1), np.float32)], axis=1)


def _split(images: Floats) -> list[bytes]:
    contiguous = np.ascontiguousarray(images)
    split: list[bytes] = contiguous.view(f"V{images.shape[1] * 4}").ravel().tolist()
    return split


class RocksDb(Peer):
    """rocksdict: batches of keys and write batches, no write-ahead log, a bloom filter, direct I/O.

    In memory, it has buffers that hold all that is written, and the page cache.
    """

    def __init__(
        self, workload: Workload, folder: Path, cache_bytes: int, *, in_memory: bool = False
    ) -> None:
        super().__init__(workload)
        self._module: Any = importlib.import_module("rocksdict")
        options = self._options(self._module, cache_bytes, in_memory=in_memory)
        # A database that exists is opened with its stored options unless its column family is named.
        self._store = self._module.Rdict(
            str(folder / "rocksdb"), options, column_families={"default": options}
        )
        how = self._module.WriteOptions()
        how.disable_wal = True
        self._store.set_write_options(how)

    @staticmethod
    def _options(module: Any, cache_bytes: int, *, in_memory: bool = False) -> Any:  # noqa: ANN401
        blocks = module.BlockBasedOptions()
        blocks.set_block_size(4096)
        blocks.set_bloom_filter(10, False)  # noqa: FBT003
        blocks.set_block_cache(module.Cache(cache_bytes))
        options = module.Options(raw_mode=True)
        options.set_block_based_table_factory(blocks)
        options.set_compression_type(module.DBCompressionType.none())
        options.set_use_direct_reads(not in_memory)
        options.set_use_direct_io_for_flush_and_compaction(not in_memory)
        options.set_write_buffer_size((2 << 30) if in_memory else (16 << 20))
        options.set_max_background_jobs(2)
        return options

    @staticmethod
    def _keys(rows: Ids) -> list[bytes]:
        keys: list[bytes] = rows.astype(">u8").view("V8").tolist()
        return keys

    @classmethod
    def fill(cls, workload: Workload, folder: Path) -> None:
        """By sorted files, so that it begins fully compacted."""
        module: Any = importlib.import_module("rocksdict")
        options = cls._options(module, 8 << 20)
        store = module.Rdict(str(folder / "rocksdb"), options)
        files: list[str] = []
        chunks = _chunks(workload)
        while group := list(itertools.islice(chunks, 4)):
            files.append(str(folder / f"{len(files)}.sst"))
            writer = module.SstFileWriter(options=options)
            writer.open(files[-1])
            for start, images in group:
                rows = np.arange(start, start + len(images))
                for key, value in zip(cls._keys(rows), _split(images), strict=True):
                    writer[key] = value
            writer.finish()
        ingest = module.IngestExternalFileOptions()
        ingest.set_move_files(True)
        store.ingest_external_file(files, ingest)
        store.close()
        for file in files:
            Path(file).unlink(missing_ok=True)

    def get(self, unique: Ids) -> Floats:
        found = self._store.get(self._keys(unique))
        return np.frombuffer(bytearray().join(found), np.float32).reshape(len(unique), -1)

    def put(self, unique: Ids, images: Floats) -> None:
        batch = self._module.WriteBatch(raw_mode=True)
        for key, value in zip(self._keys(unique), _split(images), strict=True):
            batch.put(key, value)
        self._store.write(batch)

    def settle(self) -> None:
        self._store.flush()

    def close(self) -> None:
        self._store.close()


class Lmdb(Peer):
    """lmdb: cursors that get and put many, a writable map, no readahead, no sync at a commit."""

    def __init__(self, workload: Workload, folder: Path, *, readahead: bool = False) -> None:
        super().__init__(workload)
        module: Any = importlib.import_module("lmdb")
        needed = 2 * workload.rows * (workload.image_floats * 4 + 32) + (64 << 20)
        self._environment = module.open(
            str(folder / "lmdb"), map_size=needed, max_dbs=1, writemap=True, sync=False, metasync=False,
            readahead=readahead, meminit=False,
        )  # fmt: skip
        self._table = self._environment.open_db(b"rows", integerkey=True)

    @staticmethod
    def _keys(rows: Ids) -> list[bytes]:
        keys: list[bytes] = rows.astype(np.uint64).view("V8").tolist()
        return keys

    @classmethod
    def fill(cls, workload: Workload, folder: Path) -> None:
        """In ascending order, which packs pages full."""
        side = cls(workload, folder)
        for start, images in _chunks(workload):
            keys = cls._keys(np.arange(start, start + len(images)))
            side._put(keys, _split(images), append=True)
        side.settle()
        side.close()

    def get(self, unique: Ids) -> Floats:
        with self._environment.begin(self._table) as transaction, transaction.cursor() as cursor:
            found = cursor.getmulti(self._keys(unique))
        joined = bytearray().join([value for _, value in found])
        return np.frombuffer(joined, np.float32).reshape(len(unique), -1)

    def put(self, unique: Ids, images: Floats) -> None:
        self._put(self._keys(unique), _split(images), append=False)

    def _put(self, keys: list[bytes], values: list[bytes], *, append: bool) -> None:
        with (
            self._environment.begin(self._table, write=True) as transaction,
            transaction.cursor() as cursor,
        ):
            cursor.putmulti(list(zip(keys, values, strict=True)), append=append)

    def settle(self) -> None:
        self._environment.sync(True)  # noqa: FBT003

    def close(self) -> None:
        self._environment.close()


class Memmap(Peer):
    """np.memmap: fancy indexing by sorted unique rows, with advice that access is random."""

    def __init__(self, workload: Workload, folder: Path) -> None:
        super().__init__(workload)
        shape = (workload.rows, workload.image_floats)
        self._rows = np.memmap(folder / "memmap" / "rows.bin", dtype=np.float32, mode="r+", shape=shape)
        mapped: mmap.mmap = self._rows._mmap  # type: ignore[attr-defined]
        mapped.madvise(mmap.MADV_RANDOM)

    @classmethod
    def fill(cls, workload: Workload, folder: Path) -> None:
        (folder / "memmap").mkdir()
        with (folder / "memmap" / "rows.bin").open("wb") as file:
            for _, images in _chunks(workload):
                file.write(images.tobytes())

    def get(self, unique: Ids) -> Floats:
        found: npt.NDArray[np.float32] = self._rows[unique]
        return np.asarray(found)

    def put(self, unique: Ids, images: Floats) -> None:
        self._rows[unique] = images

    def settle(self) -> None:
        self._rows.flush()

    def close(self) -> None:
        del self._rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class TiermemOptions:
    """How the rows are held."""

    cache: float | None
    """A share or bytes; `None`: all rows are resident in the fastest tier."""
    staging: int | str = "24MiB"
    directory: Path | None = None
    """Where the scratch file goes; `None`: the home tier is RAM."""
    clock: str = "wall"
    prefetch_distance: int = PREFETCH_DISTANCE


class Tiermem(Side):
    """Rows on a device that takes no time: what is measured is this package and the drive under the file."""

    def __init__(self, workload: Workload, options: TiermemOptions) -> None:
        super().__init__(workload)
        self.distance = options.prefetch_distance
        dram = TierConfig(name="dram", device=DeviceSpec.load("dram-ddr5-4800"), cache=options.cache)
        backend = BackendConfig()
        if options.directory is not None:
            backend = BackendConfig(engine="auto", directory=str(options.directory))
        home = TierConfig(name="file", device=untimed_device(), backend=backend)
        tiers = (dram,) if options.cache is None else (dram, home)
        hierarchy = tm.Hierarchy.from_mapping(
            {"tiers": tiers, "clock": options.clock, "staging_bytes": options.staging}
        )
        self.store = EmbeddingStore(
            [tm.TableConfig(name="rows", rows=workload.rows, dim=workload.dim)],
            hierarchy=hierarchy,
            optimizer=tm.RowWiseAdagrad(lr=LEARNING_RATE, eps=EPSILON),
        )
        offsets = np.arange(workload.bags, dtype=np.int64) * workload.ids_per_bag
        self._offsets = torch.from_numpy(offsets)
        self._gradient = torch.from_numpy(self.gradient)

    def materialise(self) -> None:
        """Writes all rows to their home."""
        source = RowSource(self.workload)
        for start in source.starts():
            self.store.write_rows(0, start, torch.from_numpy(source.chunk(start)))

    def read(self, batches: Ids) -> float:
        return self._run(batches, lambda _: None)

    def train(self, batches: Ids) -> float:
        def update(ticket: Ticket) -> None:
            self.store.backward(ticket, 0, self._gradient, lr=LEARNING_RATE)

        return self._run(batches, update)

    def _run(self, batches: Ids, update: Callable[[Ticket], None]) -> float:
        """Fetches ahead; nothing is left in flight at the end."""
        total = 0.0
        ahead: deque[Ticket] = deque()
        source = iter(batches)
        while True:
            for batch in itertools.islice(source, self.distance + 1 - len(ahead)):
                lookup = tm.Lookup(0, torch.from_numpy(batch), self._offsets)
                ahead.append(self.store.prefetch([lookup]))
            if not ahead:
                return total
            ticket = ahead.popleft()
            ticket.wait()
            total += float(self.store.gather(ticket, 0).sum(dtype=torch.float64))
            update(ticket)
            ticket.release()

    def figures(self) -> dict[str, Any]:
        stats = self.store.stats()
        memory, home = stats.memory, stats.tiers[-1].device
        return {
            "asked_rows": stats.asked_rows,
            "unique_rows": stats.unique_rows,
            "missed_rows": stats.unique_rows - stats.tiers[0].hit_rows - stats.initialised_rows,
            "rows_written_back": stats.rows_written_back,
            "read_modify_writes": stats.read_modify_writes,
            "device_reads": home.reads,
            "device_read_bytes": home.read_bytes,
            "device_writes": home.writes,
            "engine": home.engine,
            "direct": home.direct,
            "declared_bytes": memory.resident_bytes
            + memory.cached_bytes
            + memory.staging_bytes
            + memory.metadata_bytes,
        }

    def settle(self) -> None:
        self.store.flush()

    def close(self) -> None:
        self.store.close()


def untimed_device() -> DeviceSpec:
    """A block device without latency and with as much bandwidth as a device may have."""
    base = DeviceSpec.load("optane-p5800x")
    fast = {"bandwidth_bytes_per_s": 1 << 50, "command_ns": 0, "small_bytes": 0, "small_command_ns": 0}
    return base.replace(
        name="untimed",
        units=1024,
        queue_depth=1024,
        host={"submit_ns": 0, "complete_ns": 0},
        read={**base.read.model_dump(), **fast, "latency_ns": 10, "latency_quantiles_ns": ()},
        write={
            **base.write.model_dump(),
            **fast,
            "acknowledge_ns": 0,
            "buffer_bytes": 1 << 40,
            "drain_bytes_per_s": 1 << 50,
        },
        published=(),
        source={},
    )


PEERS: dict[str, type[RocksDb | Lmdb | Memmap]] = {"rocksdict": RocksDb, "lmdb": Lmdb, "np.memmap": Memmap}


def missing_peers() -> list[str]:
    """Peers that are not installed."""
    return [name for name in ("rocksdict", "lmdb") if importlib.util.find_spec(name) is None]
