"""The engine answers as torch does, whatever is cached, updated, refreshed or rolled back."""

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiermem.checkpoint import ExportedModel, TableHeader, write_index_map, write_table
from tiermem.config import ServeConfig
from tiermem.errors import (
    CapacityError,
    ConfigError,
    CorruptionError,
    DeviceError,
    InputError,
    TiermemError,
)
from tiermem.serve.engine import Engine, Query
from tiermem.serve.model import Model
from tiermem.serve.plain import PlainModel

from tests.unit.serving import (
    DIM,
    INPUTS,
    NAMES,
    ROWS,
    dense_parts,
    export,
    open_engine,
    plain_logits,
    plain_pooled,
    query,
    serve_config,
    weights,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("model"), 1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"overlap": False},
        {"device__sub_block": False, "device__reads_max": 2, "device__reads_per_table_max": 1},
        {"placement": {"user_id": "uncached", "item_tags": "cached"}},
        {"placement": dict.fromkeys(NAMES, "fixed"), "memory__budget": 200_000},
        {"placement": dict.fromkeys(NAMES, "cached"), "memory__dense_row_bytes_max": 0},
        {"clock": "wall"},
        {"clock": "real", "versions": 2, "memory__budget": 150_000},
        {"device__spec": "cxl-asic", "memory__pooled_share": 0.0},
        {"device__replicas": 2, "device__hedge_after": "0us", "memory__pooled_share": 0.0},
    ],
)
def test_answers_are_those_of_torch(model: Path, changes: dict[str, Any]) -> None:
    engine = open_engine(model, **changes)
    tables, dense = weights(1), dense_parts(1)
    for _ in range(2):
        queries = [query(seed) for seed in range(20)]
        for each, answer in zip(queries, engine.predict(queries), strict=True):
            torch.testing.assert_close(answer.unwrap(), plain_logits(each, tables, dense), rtol=0, atol=1e-5)
            for found, plain in zip(engine.pooled(each), plain_pooled(each, tables), strict=True):
                assert torch.equal(found, plain), "pooled rows have the bits of sums in order"
    stats = engine.stats()
    used = stats.memory
    parts = (
        used.fixed_bytes + used.buffer_bytes + used.update_bytes + used.pooled_bytes + used.row_cache_bytes
    )
    assert parts + used.index_map_bytes <= used.total_bytes
    assert stats.cached_bytes <= used.pooled_bytes + used.row_cache_bytes
    if any(table.placement != "fixed" for table in engine.tables):
        assert stats.reads > 0, "rows were read from the device"
        assert stats.bus_bytes >= stats.asked_bytes > 0
    assert stats.hedged_won <= stats.hedged
    assert (stats.hedged > 0) == (engine.config.device.hedge_after is not None)


def test_a_real_device_is_polled_or_it_is_said_why_not(model: Path, tmp_path: Path) -> None:
    backend = {"engine": "auto", "directory": str(tmp_path)}
    asked = {"clock": "real", "device__backend": backend, "memory__budget": 120_000}
    for completion in ("polling", "interrupt"):
        engine = open_engine(model, device__completion=completion, **asked)
        each = query(3)
        plain = plain_logits(each, weights(1), dense_parts(1))
        torch.testing.assert_close(engine.predict([each])[0].unwrap(), plain, rtol=0, atol=1e-5)
        stats = engine.stats()
        is_io_uring = stats.engine == "io_uring"
        assert not stats.polled or (completion == "polling" and is_io_uring)
        if is_io_uring:
            assert ("not by polling" in stats.fallback_reason) == (
                completion == "polling" and not stats.polled
            )


def test_at_any_batch_size_logits_are_those_of_one_batch(model: Path) -> None:
    engine = open_engine(model)
    many = query(5, candidates=32)
    assert torch.equal(engine.predict([many])[0].unwrap(), plain_logits(many, weights(1), dense_parts(1)))


@pytest.mark.parametrize(
    ("row_type", "worst"), [("fp16", 3e-3), ("bf16", 3e-2), ("int8_fp16", 3e-2), ("int4", 0.5)]
)
def test_narrower_rows_are_near(model: Path, row_type: str, worst: float) -> None:
    engine = open_engine(model, model__row_type=row_type)
    for seed in range(10):
        each = query(seed)
        for found, plain in zip(engine.pooled(each), plain_pooled(each, weights(1)), strict=True):
            # A bag has five rows at most.
            assert (found - plain).abs().max() <= 5 * worst


def test_updates_refreshes_and_rollbacks(model: Path, tmp_path: Path) -> None:
    engine = open_engine(model, versions=2, memory__budget=150_000)
    tables, dense = weights(1), dense_parts(1)
    queries = [query(seed) for seed in range(15)]

    def check(tables: list[torch.Tensor], seed: int) -> None:
        for each, answer in zip(queries, engine.predict(queries), strict=True):
            plain = plain_logits(each, tables, dense_parts(seed))
            torch.testing.assert_close(answer.unwrap(), plain, rtol=0, atol=1e-5)
            for found, sums in zip(engine.pooled(each), plain_pooled(each, tables), strict=True):
                assert torch.equal(found, sums)

    check(tables, 1)
    written = []
    for number, name in enumerate(NAMES):
        ids = torch.arange(0, 60)
        rows = torch.full((60, DIM), float(number + 1))
        engine.update_rows(name, ids, rows)
        tables[number][:60] = rows
        check(tables, 1)
        engine.flush()
        check(tables, 1)
        written.append(engine.stats().written_blocks)
    assert written[0] > 0
    assert written[-1] == written[1], "tables in memory are not written to the device"
    other = export(tmp_path / "other", 2, step=9)
    version = engine.refresh(other)
    assert engine.predict([queries[0]])[0].version == version
    check(weights(2), 2)
    engine.roll_back()
    check(tables, 1)
    assert dense.dense_inputs == INPUTS
    for _ in range(3):
        engine.refresh(other, warm=False)
        check(weights(2), 2)
        engine.roll_back(warm=False)
        check(tables, 1)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda q: Query(q.dense, [(torch.tensor([ROWS[0]]), torch.tensor([0])), *q.sparse[1:]]), "user_id"),
        (lambda q: Query(q.dense, [(torch.tensor([-1]), torch.tensor([0])), *q.sparse[1:]]), "user_id"),
        (lambda q: Query(torch.zeros(INPUTS + 1), q.sparse), "dense"),
        (lambda q: Query(torch.tensor([0.0, float("nan"), 1.0]), q.sparse), "NaN"),
        (lambda q: Query(torch.zeros(3, INPUTS), q.sparse), "5 candidates"),
        (lambda q: Query(q.dense, q.sparse[:-1]), "4 tables"),
        (lambda q: Query(q.dense, [q.sparse[2], *q.sparse[1:]]), "of users"),
        (lambda q: Query(q.dense, [*q.sparse[:3], q.sparse[0]]), "the other tables of items"),
        (lambda q: Query(q.dense, [(q.sparse[0][0].float(), q.sparse[0][1]), *q.sparse[1:]]), "dtype"),
        (lambda _: query(1, candidates=65), "64 candidates"),
        (lambda q: Query(cast("Any", None), q.sparse), "dense is of type NoneType"),
        (lambda q: Query(q.dense, cast("Any", None)), "not a NoneType"),
        (
            lambda q: Query(q.dense, [cast("Any", ([1], [0])), *q.sparse[1:]]),
            'ids of table "user_id" is of type list',
        ),
        (lambda q: Query(q.dense, [(*q.sparse[0], None), *q.sparse[1:]]), 'bags of table "user_id" are (ids'),
        (lambda q: Query(q.dense, [cast("Any", None), *q.sparse[1:]]), 'bags of table "user_id" are (ids'),
    ],
)
def test_a_wrong_query_is_its_own_error(model: Path, change: Any, what: str) -> None:
    engine = open_engine(model, candidates_max=64)
    good = query(3)
    answers = engine.predict([good, change(good), good])
    assert isinstance(answers[1].error, InputError)
    assert what in str(answers[1].error)
    with pytest.raises(InputError):
        answers[1].unwrap()
    plain = plain_logits(good, weights(1), dense_parts(1))
    for index in (0, 2):
        torch.testing.assert_close(answers[index].unwrap(), plain, rtol=0, atol=1e-5)


def test_a_query_that_is_interrupted_is_no_longer_under_way(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(model)
    begun: list[Any] = []

    def interrupt(under_way: Any) -> None:
        begun.append(under_way)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "_item_side", interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.predict([query(1), query(2)])
    # Whoever changes tables would wait for it as long as the traceback is there.
    with pytest.raises(TiermemError, match="over"):
        _ = begun[0].lookup.version


@pytest.mark.parametrize("deprune", [True, False])
@pytest.mark.parametrize("row_type", [None, "int8_fp16", "int4"])
def test_pruned_rows_are_zeros(tmp_path: Path, deprune: bool, row_type: str | None) -> None:
    folder = export(tmp_path / "pruned", 1)
    kept = torch.arange(ROWS[0]) % 3 != 1
    path = folder / f"000-{NAMES[0]}.tmtable"
    rows = weights(1)[0][kept]
    header = TableHeader(name=NAMES[0], rows=len(rows), dim=DIM, step=7, experiment_hash="a" * 64)
    path.unlink()
    write_table(path, header, [rows.numpy()])
    index_map = torch.where(kept, kept.cumsum(0) - 1, -1).to(torch.int32)
    whole = ExportedModel.read(folder)
    checksum = write_index_map(path, index_map.numpy())
    dataclasses.replace(whole, index_maps={path.name: checksum}).write(whole.dense())
    changes: dict[str, Any] = {"load_time__deprune": deprune, "model__row_type": row_type}
    engine = open_engine(folder, **changes)
    assert engine.stats().memory.index_map_bytes == (0 if deprune else 4 * ROWS[0])
    in_memory = open_engine(folder, placement={NAMES[0]: "fixed"}, **changes)
    plain = PlainModel(Model.load(folder))
    tables = [weights(1)[0] * kept.unsqueeze(1), *weights(1)[1:]]
    for seed in range(12):
        each = query(seed)
        found, other = engine.pooled(each), in_memory.pooled(each)
        assert all(torch.equal(one, two) for one, two in zip(found, other, strict=True))
        if row_type is None:
            answer = engine.predict([each])[0].unwrap()
            torch.testing.assert_close(answer, plain.logits(each), rtol=0, atol=1e-5)
            assert torch.equal(found[0], plain_pooled(each, tables)[0])
    if not deprune:
        with pytest.raises(InputError, match="no row"):
            engine.update_rows(NAMES[0], torch.tensor([1]), torch.zeros(1, DIM))
    (folder / f"000-{NAMES[0]}.ids.npy").write_bytes(b"x")
    with pytest.raises(CorruptionError, match=r"ids\.npy"):
        open_engine(folder)


def test_a_failing_device_fails_queries_that_need_it(model: Path) -> None:
    engine = open_engine(model, device__faults={"gone_after_requests": 40})
    errors = [answer.error for seed in range(60) for answer in engine.predict([query(seed)])]
    failed = [error for error in errors if error is not None]
    assert failed, "the device went away"
    assert isinstance(failed[0], DeviceError)
    assert failed[0].errno == errno.ENODEV
    assert "optane-p5800x" in str(failed[0])
    empty = [(torch.tensor([], dtype=torch.int64), torch.zeros(1, dtype=torch.int64))] * 2
    needs_none = Query(torch.zeros(INPUTS), [*empty, *query(1).sparse[2:]])
    assert engine.predict([needs_none])[0].error is None


@pytest.mark.parametrize(
    ("changes", "error", "what"),
    [
        ({"memory__budget": 30_000}, CapacityError, "needed_bytes"),
        ({"model__user_tables": ["user"]}, ConfigError, '"user" is no table'),
        ({"placement": {"nothing": "fixed"}}, ConfigError, '"nothing" is no table'),
        ({"model__path": "/nowhere"}, ConfigError, "tiermem export"),
        ({"device__hedge_after": "1ms"}, ConfigError, "replicas"),
        ({"versions": 2, "memory__budget": 60_000}, CapacityError, "versions = 1"),
        ({"device__block_bytes": 500}, ConfigError, "block_bytes"),
        ({"clock": "real", "device__replicas": 2}, ConfigError, "replica_directory"),
    ],
)
def test_wrong_engines_are_refused(
    model: Path, changes: dict[str, Any], error: type[TiermemError], what: str
) -> None:
    with pytest.raises(error, match=what):
        open_engine(model, **changes)


def test_changed_files_are_refused_by_table_and_offset(tmp_path: Path) -> None:
    folder = export(tmp_path / "model", 1)
    table = folder / "001-user_history.tmtable"
    table.chmod(0o644)
    whole = table.read_bytes()
    flipped = bytearray(whole)
    flipped[5000] ^= 1
    for contents, what in ((bytes(flipped), r'"user_history".*offset 4096'), (whole[:-9], "cut short")):
        table.write_bytes(contents)
        with pytest.raises(CorruptionError, match=what):
            open_engine(folder)
    table.write_bytes(whole)
    dense = folder / "dense.pt"
    dense.write_bytes(dense.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptionError, match=r"dense\.pt"):
        open_engine(folder)


def test_another_model_or_a_mixture_is_refused(model: Path, tmp_path: Path) -> None:
    mixed = export(tmp_path / "mixed", 1)
    other = export(tmp_path / "other", 2, step=8)
    (other / "000-user_id.tmtable").replace(mixed / "000-user_id.tmtable")
    with pytest.raises(ConfigError, match="step 8"):
        open_engine(mixed)
    document = (model / "model.json").read_text()
    old = export(tmp_path / "old", 1)
    (old / "model.json").write_text(document.replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(TiermemError, match="version"):
        open_engine(old)
    values = json.loads(document)
    wrong: tuple[dict[str, Any], ...] = (
        {"step": "7"}, {"tables": "it"}, {"batch_size": 0}, {"more": 1}, {"index_maps": []},
    )  # fmt: skip
    without_step = {key: value for key, value in values.items() if key != "step"}
    for changed in (
        document[:-20],
        "[]",
        json.dumps(without_step),
        *(json.dumps(values | change) for change in wrong),
    ):
        (old / "model.json").write_text(changed)
        with pytest.raises(CorruptionError, match=r"model\.json"):
            open_engine(old)


def test_one_version_cannot_be_refreshed_and_updates_have_their_room(model: Path) -> None:
    engine = open_engine(model)
    with pytest.raises(ConfigError, match="versions = 2"):
        engine.refresh(model)
    with pytest.raises(ConfigError, match="no version to roll back to"):
        engine.roll_back()
    with pytest.raises(InputError, match="no table"):
        engine.update_rows("nothing", torch.tensor([1]), torch.zeros(1, DIM))
    with pytest.raises(InputError, match="user_id"):
        engine.update_rows("user_id", torch.tensor([ROWS[0]]), torch.zeros(1, DIM))
    with pytest.raises(InputError, match=r"\[1, 16\]"):
        engine.update_rows("user_id", torch.tensor([1]), torch.zeros(1, DIM + 1))
    with pytest.raises(CapacityError, match="update_bytes"):
        engine.update_rows("user_id", torch.arange(300), torch.zeros(300, DIM))


def test_an_engine_needs_a_model_or_tables() -> None:
    with pytest.raises(ConfigError, match="give one of the two"):
        ServeConfig.from_mapping(
            {"device": {"spec": "optane-p5800x"}, "memory": {"budget": 1}, "load": {"sla_ms": 1.0}}
        )
    with pytest.raises(ConfigError, match=r"model\.path"):
        Engine(ServeConfig.load_file("users-optane"))
    assert serve_config(Path("x")).placement_of("item_id", is_user=False) == "fixed"
