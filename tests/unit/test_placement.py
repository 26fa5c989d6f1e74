"""Where rows live: plan files, ranges, budgets; what is refused and how; what each choice costs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiermem as tm
import tomli_w
import torch
from tiermem import _core
from tiermem.config import DeviceSpec, LogConfig, Placement
from tiermem.embedding import EmbeddingStore, Lookup
from tiermem.errors import CapacityError, ConfigError, TiermemError

ROWS, DIM = 1000, 16
ROW_BYTES = 4 * DIM
ITEM = tm.TableConfig(name="item", rows=ROWS, dim=DIM)


def _hierarchy(
    *middle: tuple[str, str, int | float | None],
    dram: int | float = 64 * ROW_BYTES,
    home: str | DeviceSpec = "nand-p3700",
    at_home: dict[str, Any] | None = None,
    **options: Any,
) -> tm.Hierarchy:
    """Memory, tiers in between as (name, device, budget), and a home, in place; all of them lru."""
    tiers = [tm.TierConfig(name="dram", device="dram-ddr4-2933", cache=dram, policy="lru")]  # type: ignore[arg-type]
    for name, device, cache in middle:
        tiers.append(tm.TierConfig(name=name, device=device, cache=cache, policy="lru"))  # type: ignore[arg-type]
    in_place = {"layout": "in_place"} if home != "cxl-asic" else {}
    tiers.append(tm.TierConfig(name="home", device=home, **{**in_place, **(at_home or {})}))  # type: ignore[arg-type]
    return tm.Hierarchy(tiers=tuple(tiers), **options)


def _part(**changes: Any) -> dict[str, Any]:
    return {"table": "item", "home": "home", **changes}


def _open(
    hierarchy: tm.Hierarchy,
    *parts: dict[str, Any],
    tables: Sequence[tm.TableConfig] = (ITEM,),
) -> EmbeddingStore:
    placement = Placement.from_mapping({"tables": list(parts)}) if parts else None
    return EmbeddingStore(tables, hierarchy=hierarchy, optimizer=tm.SGD(lr=1.0), placement=placement)


def _ask(store: EmbeddingStore, rows: Sequence[int], *, table: int = 0, is_trained: bool = False) -> None:
    """One batch of one bag."""
    ticket = store.prefetch([Lookup(table, torch.tensor(rows), torch.tensor([0]))])
    store.wait(ticket)
    pooled = store.gather(ticket, 0)
    if is_trained:
        store.backward(ticket, 0, torch.ones_like(pooled), lr=1.0)
    store.release(ticket)


def _exist(store: EmbeddingStore) -> None:
    """Rows that nobody wrote cost no read; these do."""
    for number, table in enumerate(store.tables):
        store.write_rows(number, 0, torch.arange(table.rows * table.dim).reshape(table.rows, -1) / 64)


def _is_one_sentence(error: TiermemError) -> bool:
    text = str(error)
    return "\n" not in text and ". " not in text and 20 < len(text) < 300


def test_a_plan_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = Placement.from_mapping(
        {
            "description": "hot rows in memory",
            "tables": [
                _part(rows=[0, 100], home="dram", table_rows=ROWS),
                _part(rows=[100, ROWS], cached_by=["dram", "pmem"], caching="exclusive"),
            ],
        }
    )
    path = tmp_path / "plan.toml"
    path.write_text(tomli_w.dumps(plan.model_dump(mode="json", exclude_none=True)))
    assert Placement.load(path) == plan
    hierarchy = _hierarchy(("pmem", "pmem-100", 8 * ROW_BYTES))
    for source in (plan, path, str(path)):
        store = EmbeddingStore([ITEM], hierarchy=hierarchy, optimizer=tm.SGD(lr=1.0), placement=source)
        assert store.stats().memory.resident_bytes == 100 * ROW_BYTES
        store.close()


def test_a_plan_file_with_a_wrong_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('[[tables]]\ntable = "item"\nhome = "home"\ncachedby = ["dram"]\n')
    with pytest.raises(ConfigError, match=r'plan\.toml: unknown key "tables\.0\.cachedby".*"cached_by"'):
        Placement.load(path)
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        _ = EmbeddingStore(
            [ITEM], hierarchy=_hierarchy(), optimizer=tm.SGD(lr=1.0), placement=tmp_path / "none.toml"
        )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            [_part(rows=[0, 10]), _part(rows=[20, ROWS])],
            "without gaps; row 10 is where the next one begins, not 20",
        ),
        ([_part(rows=[20, ROWS])], "without gaps; row 0 is where the next one begins, not 20"),
        ([_part(rows=[0, 30]), _part(rows=[20, ROWS])], "row 30 is where the next one begins, not 20"),
        ([_part(), _part()], f"row {ROWS} is where the next one begins, not 0 (table=item)"),
        ([_part(rows=[0, 30])], f"gives a home to 30 rows of a table of {ROWS} rows (table=item)"),
        ([_part(rows=[0, ROWS + 1])], f'table "item" has {ROWS} rows; the placement goes to row {ROWS + 1}'),
        ([_part(rows=[5, 5])], "tables.0: a range of rows is [first, behind the last], got [5, 5]"),
        ([_part(rows=[-1, 5])], "a range of rows is [first, behind the last], got [-1, 5]"),
        ([_part(table="itme")], 'for a table "itme", which is not here; tables: item'),
        ([_part(home="ssd")], 'of table "item" names a tier "ssd"; tiers: dram, pmem, spare, home'),
        ([_part(cached_by=["ssd"])], 'names a tier "ssd"; tiers: dram, pmem, spare, home'),
        ([_part(table_rows=7)], f'for a table "item" of 7 rows; this one has {ROWS}'),
        ([_part(home="pmem", cached_by=["home"])], 'tier "home" cannot cache table "item": it is not above'),
        ([_part(home="pmem", cached_by=["pmem"])], 'tier "pmem" cannot cache table "item": it is not above'),
        ([_part(cached_by=["spare"])], 'tier "spare" cannot cache table "item":'),
    ],
)
def test_a_placement_that_does_not_fit_is_one_sentence(parts: list[dict[str, Any]], message: str) -> None:
    hierarchy = _hierarchy(("pmem", "pmem-100", 8 * ROW_BYTES), ("spare", "pmem-100", None))
    with pytest.raises(ConfigError) as caught:
        _open(hierarchy, *parts)
    assert message in str(caught.value)
    assert _is_one_sentence(caught.value)


def test_a_placement_goes_by_names_so_these_must_differ() -> None:
    with pytest.raises(ConfigError, match="by the names of tables, and two tables have the same name"):
        _open(_hierarchy(), _part(), tables=[ITEM, ITEM])
    # Without a placement a table goes by its number.
    _open(_hierarchy(), tables=[ITEM, ITEM]).close()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: _hierarchy(home="cxl-asic", at_home={"layout": "log"}),
            'tier "home" is byte-addressable and has no log',
        ),
        (
            lambda: _open(_hierarchy(("optane", "optane-p4800x", 2**16), home="cxl-asic")),
            "byte-addressable tiers come before block devices; change the order of the tiers",
        ),
        (
            lambda: tm.TierConfig.from_mapping({"name": "dram", "device": "dram-ddr4-2933", "policy": "min"}),
            "'sieve', 'lookahead', 'auto' or 'random' (got 'min')",
        ),
        (lambda: LogConfig(spare=0.1), "spare: input should be greater than or equal to 0.2 (got 0.1)"),
    ],
)
def test_tiers_that_cannot_be_are_one_sentence(build: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build()
    assert message in str(caught.value)
    assert _is_one_sentence(caught.value)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"dram": ROW_BYTES - 1}, ["raise its budget", "tier=dram", "budget_bytes=63", "needed_bytes=64"]),
        ({"middle": "pmem-100"}, ["raise its budget", "tier=middle", "budget_bytes=63", "needed_bytes=64"]),
        ({"middle": "optane-p4800x"}, ["single block", "tier=middle", "budget_bytes=63", "block_bytes=4096"]),
        ({"staging_bytes": 63}, ["raise staging_bytes", "staging_bytes=63", "needed_bytes=64"]),
        ({"memory_limit_bytes": 100}, ["lower the cache or the staging budget", "available_bytes=100"]),
    ],
)
def test_a_budget_that_is_too_small_says_how_much_is_needed(
    options: dict[str, Any], names: list[str]
) -> None:
    middle = [("middle", options.pop("middle"), ROW_BYTES - 1)] if "middle" in options else []
    with pytest.raises(CapacityError) as caught:
        _open(_hierarchy(*middle, **options))
    for name in names:
        assert name in str(caught.value)
    assert _is_one_sentence(caught.value)


def test_a_memory_limit_holds_to_the_byte() -> None:
    with pytest.raises(CapacityError) as caught:
        _open(_hierarchy(memory_limit_bytes=1))
    needed = int(str(caught.value).split("needed_bytes=")[1].split(",")[0])
    with pytest.raises(CapacityError, match=f"needed_bytes={needed}, available_bytes={needed - 1}"):
        _open(_hierarchy(memory_limit_bytes=needed - 1))
    store = _open(_hierarchy(memory_limit_bytes=needed))
    memory = store.stats().memory
    parts = (memory.resident_bytes, memory.cached_bytes, memory.staging_bytes, memory.metadata_bytes)
    assert 0 < sum(parts) <= needed
    store.close()


def test_a_table_that_fits_nowhere_names_tier_and_need() -> None:
    # Sixteen blocks of 63 rows.
    small = DeviceSpec.load("nand-p3700").replace(capacity_bytes=15 * 4096)
    with pytest.raises(
        CapacityError, match=r"larger device.*needed_bytes=65536, capacity_bytes=61440, tier=home"
    ):
        _open(_hierarchy(home=small))
    # With a part of it in memory it fits.
    _open(_hierarchy(home=small), _part(rows=[0, 63], home="dram"), _part(rows=[63, ROWS])).close()


def test_a_batch_larger_than_staging_says_how_much_it_needs() -> None:
    store = _open(
        _hierarchy(staging_bytes=10 * ROW_BYTES), _part(rows=[0, 100], home="dram"), _part(rows=[100, ROWS])
    )
    with pytest.raises(CapacityError) as caught:
        _ask(store, range(100, 111))
    assert "raise staging_bytes or use smaller batches (needed_bytes=704, staging_bytes=640)" in str(
        caught.value
    )
    assert store.stats().open_tickets == 0
    # Neither rows that are resident nor duplicates need staging.
    _ask(store, [*range(100), *range(100, 110), *range(100, 110)])
    store.close()


@pytest.mark.parametrize("direct", ["auto", "require"])
def test_a_byte_addressable_tier_in_a_file_needs_the_page_cache(direct: Any, tmp_path: Path) -> None:
    def hierarchy(direct: Any) -> tm.Hierarchy:
        backend = tm.BackendConfig(engine="file", directory=str(tmp_path), direct=direct)
        return _hierarchy(home="cxl-asic", at_home={"backend": backend})

    refusal, _, _, _ = _core.probe_directory(tmp_path)
    if refusal is None:
        with pytest.raises(ConfigError, match=r'use engine = "ram", or direct = "off".*tier=home'):
            _open(hierarchy(direct))
    elif direct == "auto":
        _open(hierarchy(direct)).close()
    store = _open(hierarchy("off"))
    _exist(store)
    assert store.read_rows(0, 3, 1)[0][0, 0] == 3 * DIM / 64
    store.close()


@pytest.mark.parametrize("budget", [4 * (1 + 16 + 40), 1000, 12_345, 0.0, 0.05, 0.4])
def test_one_budget_is_shared_by_widths_and_never_exceeded(budget: float) -> None:
    tables = [
        tm.TableConfig(name=f"t{n}", rows=rows, dim=dim)
        for n, (rows, dim) in enumerate([(30, 1), (300, 16), (90, 40)])
    ]
    store = _open(_hierarchy(("pmem", "pmem-100", budget), dram=budget, staging_bytes=2**15), tables=tables)
    for _ in range(2):
        for number, table in enumerate(tables):
            for start in range(0, table.rows, 10):
                _ask(store, range(start, start + 10), table=number, is_trained=True)
    stats = store.stats()
    if isinstance(budget, float):
        # A share is one of each width, and one row at the least.
        expected = [max(1, -int(-table.rows * budget // 1)) for table in tables]
        assert stats.memory.cached_bytes == sum(4 * t.dim * n for t, n in zip(tables, expected, strict=True))
        assert [tier.held for tier in stats.tiers[:2]] == [sum(expected)] * 2
    else:
        assert budget - 4 * (1 + 16 + 40) < stats.memory.cached_bytes <= budget
        assert stats.tier("pmem").held == stats.tier("dram").held >= 3
    store.close()


def test_counts_of_tables_add_up_to_those_of_the_store() -> None:
    tables = [tm.TableConfig(name=f"t{n}", rows=200, dim=dim) for n, dim in enumerate([16, 16, 5])]
    middle = [("pmem", "pmem-100", 20 * ROW_BYTES), ("optane", "optane-p4800x", 2 * 4096)]
    store = _open(_hierarchy(*middle, dram=10 * ROW_BYTES), tables=tables)
    for step in range(60):
        _ask(
            store,
            [(step * 7 + n * n % 11) % 200 for n in range(12)],
            table=step % 3,
            is_trained=step % 2 == 0,
        )
    stats, of_tables = store.stats(), store.table_stats()
    names = [
        "asked_rows",
        "unique_rows",
        "in_flight_hits",
        "initialised_rows",
        "rows_written_back",
        "read_modify_writes",
    ]
    for name in names:
        assert sum(getattr(table, name) for table in of_tables) == getattr(stats, name), name
    for position, tier in enumerate(stats.tiers):
        for name in ("probed_rows", "hit_rows", "asked_bytes"):
            assert sum(getattr(table.tiers[position], name) for table in of_tables) == getattr(tier, name), (
                name
            )
    for table in of_tables:
        assert table.deduplicated_rows == table.asked_rows - table.unique_rows > 0
        assert sum(tier.hit_rows for tier in table.tiers) == table.unique_rows - table.initialised_rows > 0
    store.close()


def test_hit_rates_of_a_stream_that_was_worked_out_by_hand() -> None:
    """Memory keeps two rows, the middle tier three, both the least recently used."""
    store = _open(_hierarchy(("pmem", "pmem-100", 3 * ROW_BYTES), dram=2 * ROW_BYTES))
    _exist(store)
    # Memory hits the second 0 and the last; of the other five the middle tier has the second 1 and third 0.
    for row in [0, 1, 0, 2, 1, 0, 0]:
        _ask(store, [row])
    (table,) = store.table_stats()
    assert (table.unique_rows, table.initialised_rows) == (7, 0)
    assert [(tier.probed_rows, tier.hit_rows) for tier in table.tiers] == [(7, 2), (5, 2), (3, 3)]
    assert [table.conditional_hit_rate(tier) for tier in range(3)] == [2 / 7, 2 / 5, 1.0]
    assert [table.unconditional_hit_rate(tier) for tier in range(3)] == [2 / 7, 2 / 7, 3 / 7]
    assert [tier.hit_rate for tier in store.stats().tiers] == [2 / 7, 2 / 5, 1.0]
    store.close()


@pytest.mark.parametrize(
    ("caching", "hits"),
    # Three rows in turn. One in memory and two below it are all three: only the first is ever read from home,
    # since the middle tier kept the last two of those that were written. Inclusively one of the two below is
    # that in memory, and each is asked for just after it left.
    [("exclusive", (0, 29, 1)), ("inclusive", (0, 0, 30))],
)
def test_exclusive_tiers_hold_a_row_once(caching: str, hits: tuple[int, int, int]) -> None:
    table = tm.TableConfig(name="item", rows=3, dim=DIM)
    hierarchy = _hierarchy(("pmem", "pmem-100", 2 * ROW_BYTES), dram=ROW_BYTES)
    store = _open(hierarchy, _part(caching=caching), tables=[table])
    _exist(store)
    for _ in range(10):
        for row in range(3):
            _ask(store, [row])
    stats = store.stats()
    assert tuple(tier.hit_rows for tier in stats.tiers) == hits
    # Row 2 is in memory; while row 1 is in flight it is not below, unless it is kept in both.
    ticket = store.prefetch([Lookup(0, torch.tensor([1]), torch.tensor([0]))])
    assert store.stats().tier("pmem").held == (1 if caching == "exclusive" else 2)
    store.release(ticket)
    store.close()


def test_resident_rows_are_never_read_from_a_device_nor_written_to_one() -> None:
    store = _open(_hierarchy(dram=ROW_BYTES), _part(rows=[0, 100], home="dram"), _part(rows=[100, ROWS]))
    for step in range(20):
        _ask(store, [(step * 13 + n) % 100 for n in range(40)], is_trained=True)
    store.flush()
    store.advance(10**12)
    stats, (table,) = store.stats(), store.table_stats()
    assert (stats.tier("home").device_reads, stats.tier("home").device_writes) == (0, 0)
    assert (stats.rows_written_back, stats.dirty_rows) == (0, 0)
    assert (table.tiers[0].hit_rows, table.initialised_rows) == (700, 100)
    # A batch of both kinds reads the others only.
    _exist(store)
    _ask(store, [5, 300])
    (table,) = store.table_stats()
    assert (table.tiers[1].reads, table.tiers[1].hit_rows) == (1, 1)
    store.close()


def test_a_log_reads_nothing_to_write_and_writes_less_for_a_row() -> None:
    bytes_per_row = {}
    for layout in ("in_place", "log"):
        at_home = {"layout": layout, "log": LogConfig(segment_bytes=16384)}
        store = _open(_hierarchy(dram=8 * ROW_BYTES, at_home=at_home))
        _exist(store)
        before = store.stats()
        for step in range(30):
            _ask(store, [(step * 5 + n * 31) % ROWS for n in range(32)], is_trained=True)
        store.flush()
        store.advance(10**12)
        stats, (table,) = store.stats(), store.table_stats()
        written = stats.rows_written_back - before.rows_written_back
        assert written > 900
        assert table.tiers[1].written_bytes >= written * ROW_BYTES
        assert (stats.read_modify_writes == 0) == (layout == "log")
        bytes_per_row[layout] = stats.tier("home").device.write_bytes / written
        weights = store.read_rows(0, 0, ROWS)[0]
        counts = torch.bincount(
            torch.tensor([(s * 5 + n * 31) % ROWS for s in range(30) for n in range(32)]), minlength=ROWS
        )
        expected = torch.arange(ROWS * DIM).reshape(ROWS, DIM) / 64 - counts[:, None]
        assert torch.equal(weights, expected)
        store.close()
    assert bytes_per_row["log"] < bytes_per_row["in_place"] / 4, bytes_per_row


def test_blocks_of_a_log_fit_into_the_slots_of_a_tier_that_caches_them() -> None:
    """A block of a log names its rows: with 100 columns it has 8 KiB, one of rows in place 4 KiB."""
    table = tm.TableConfig(name="item", rows=60, dim=100)
    hierarchy = _hierarchy(("optane", "optane-p4800x", 2 * 4096 * 2), dram=400, at_home={"layout": "log"})
    store = _open(hierarchy, tables=[table])
    for start in range(0, 60, 10):
        _ask(store, range(start, start + 10), is_trained=True)
    store.flush()
    initial = _open(tm.Hierarchy.load("dram"), tables=[table]).read_rows(0, 0, 60)[0]
    assert torch.equal(store.read_rows(0, 0, 60)[0], initial - 1)
