"""Exported tables of each row type: what is read back is what was trained, or as near as is said."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiermem as tm
import torch
from tiermem.checkpoint import (
    NarrowedScales,
    ScaleType,
    TableFile,
    TableHeader,
    find_resume_point,
    rows_path,
    write_table,
)
from tiermem.cli.main import main
from tiermem.cli.runs import open_store
from tiermem.config import RowType
from tiermem.embedding import EmbeddingStore
from tiermem.errors import ConfigError, CorruptionError, InputError, TiermemError

ROWS = 300
STORED: list[tuple[RowType, ScaleType | None]] = [
    ("fp32", None), ("fp16", None), ("bf16", None), ("int8", "fp32"), ("int8", "fp16")
]  # fmt: skip
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.uint8}
EXPERIMENT = """
hierarchy = "dram-nand"
budgets = { dram = 0.1 }

[data]
name = "synthetic"
samples = 250
tables = 2
rows_per_table = 150

[model]
dim = 5
dense_layers = [4]
over_layers = [4]

[train]
batch_size = 32
snapshot_every_steps = 100

[train.optimizer]
name = "adam"
lr = 0.05

[compute]
flops_per_s = 1e12
bytes_per_s = "100GB/s"
source = "assumed: for a test"
"""


def _store(row_type: RowType, dim: int, weights: torch.Tensor | None = None) -> EmbeddingStore:
    """Rows of all magnitudes from 1e-4 to 1e3, each with an offset."""
    store = EmbeddingStore(
        [tm.TableConfig(name="item", rows=ROWS, dim=dim, row_type=row_type)],
        hierarchy=tm.Hierarchy.load("dram"),
        optimizer=tm.SGD(lr=0.1),
    )
    if weights is None:
        weights = torch.randn(ROWS, dim) * torch.logspace(-4, 3, ROWS)[:, None] + torch.randn(ROWS, 1)
    store.write_rows(0, 0, weights)
    return store


def _header(row_type: RowType, scale_type: ScaleType | None, dim: int) -> TableHeader:
    return TableHeader(
        name="item", rows=ROWS, dim=dim, step=3, experiment_hash="x", row_type=row_type, scale_type=scale_type
    )


def _bytes(store: EmbeddingStore) -> "np.typing.NDArray[np.uint8]":
    return store.read_stored_rows(0, 0, ROWS)[0].view(torch.uint8).numpy()


def _export(
    path: Path, store: EmbeddingStore, row_type: RowType, scale_type: ScaleType | None, *, chunk: int = 77
) -> NarrowedScales:
    stored, scales = _bytes(store), NarrowedScales("item")
    chunks = (stored[start : start + chunk] for start in range(0, ROWS, chunk))
    header = _header(row_type, scale_type, store.tables[0].dim)
    write_table(path, header, map(scales.narrow, chunks) if scale_type == "fp16" else chunks)
    return scales


def _narrowed(stored: "np.typing.NDArray[np.uint8]") -> torch.Tensor:
    """Weights with scale and bias through float16, by torch."""
    both = torch.from_numpy(stored)
    scales = both[:, -8:].contiguous().view(torch.float32).half().float()
    return both[:, :-8].float() * scales[:, :1] + scales[:, 1:]


@pytest.mark.parametrize("dim", [1, 7, 16, 33])
@pytest.mark.parametrize(("row_type", "scale_type"), STORED)
def test_a_table_gives_the_rows_of_the_store(
    row_type: RowType, scale_type: ScaleType | None, dim: int, tmp_path: Path
) -> None:
    store, path = _store(row_type, dim), tmp_path / "item.tmtable"
    trained = store.read_rows(0, 0, ROWS)[0]
    scales = _export(path, store, row_type, scale_type)
    table = TableFile(path)
    table.verify()
    row_bytes = {"fp32": 4 * dim, "fp16": 2 * dim, "bf16": 2 * dim, "int8": dim + 8}[row_type]
    row_bytes -= 4 if scale_type == "fp16" else 0
    assert (table.header.row_type, table.header.scale_type) == (row_type, scale_type)
    assert table.header.row_bytes == row_bytes
    assert table.header == _header(row_type, scale_type, dim)
    assert path.stat().st_size == 4096 + ROWS * row_bytes + 8
    found = torch.from_numpy(table.rows(range(ROWS)))
    expected = _narrowed(_bytes(store)) if scale_type == "fp16" else trained
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    errors = (found - trained).abs()
    assert scales.max_abs_error == float(errors.max())
    assert scales.mean_abs_error == pytest.approx(float(errors.double().mean()), rel=1e-12)
    assert (scales.max_abs_error > 0) == (scale_type == "fp16")
    ids = np.array([ROWS - 1, 0, 7, 7])
    assert np.array_equal(table.rows(ids), found.numpy()[ids])
    assert table.rows([]).shape == (0, dim)
    store.close()


def test_narrower_scales_cost_what_rounding_them_costs(tmp_path: Path) -> None:
    store, path = _store("int8", 32), tmp_path / "item.tmtable"
    _export(path, store, "int8", "fp16")
    scale, bias = store.read_stored_rows(0, 0, ROWS)[0][:, -8:].contiguous().view(torch.float32).T.double()
    # Half a unit of a normal half, or of a subnormal one; 255 codes of it, and the bias.
    allowed = 255 * (scale * 2**-11 + 2**-25) + bias.abs() * 2**-11 + 2**-25
    trained = store.read_rows(0, 0, ROWS)[0]
    errors = (torch.from_numpy(TableFile(path).rows(range(ROWS))) - trained).double().abs().amax(dim=1)
    # What float32 rounds in the product and the sum.
    allowed += 2 * torch.finfo(torch.float32).eps * trained.double().abs().amax(dim=1)
    assert bool((errors <= allowed).all())
    store.close()


@pytest.mark.parametrize(
    ("values", "what"),
    [([65519.0, 65519.0], None), ([65520.0, 65520.0], "bias"), ([-7e4, 0.0], "bias"), ([0.0, 2e7], "scale")],
)
def test_a_scale_or_bias_beyond_float16_is_refused(
    values: list[float], what: str | None, tmp_path: Path
) -> None:
    weights = torch.randn(ROWS, 2)
    weights[200] = torch.tensor(values)
    store, path = _store("int8", 2, weights), tmp_path / "item.tmtable"
    if what is None:
        _export(path, store, "int8", "fp16")
        assert TableFile(path).rows([200]).tolist() == [[65504.0, 65504.0]]
    else:
        match = (
            rf'the {what} of row 200 of table "item" is .*, beyond the 65,504 of float16; use --scales fp32'
        )
        with pytest.raises(InputError, match=match) as caught:
            _export(path, store, "int8", "fp16")
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []
        _export(path, store, "int8", "fp32")
        assert np.array_equal(TableFile(path).rows(range(ROWS)), store.read_rows(0, 0, ROWS)[0].numpy())
    store.close()


@pytest.mark.parametrize("scale_type", ["fp16", "fp32"])
def test_rows_that_are_not_finite_stay_so_and_count_for_nothing(
    scale_type: ScaleType, tmp_path: Path
) -> None:
    weights = torch.randn(ROWS, 6)
    weights[9, 2] = float("nan")
    weights[80, 5] = float("inf")
    # Its range is wider than float32.
    weights[81, :2] = torch.tensor([3e38, -3e38])
    store, path = _store("int8", 6, weights), tmp_path / "item.tmtable"
    if scale_type == "fp16":
        # A bias of 3e38 does not fit.
        store.write_rows(0, 81, torch.full((1, 6), float("-inf")))
    scales = _export(path, store, "int8", scale_type)
    found, trained = TableFile(path).rows(range(ROWS)), store.read_rows(0, 0, ROWS)[0].numpy()
    assert np.array_equal(np.isnan(found), np.isnan(trained))
    assert np.isnan(found[[9, 80]]).all()
    assert not np.isnan(found[:9]).any()
    assert np.isfinite([scales.max_abs_error, scales.mean_abs_error]).all()
    store.close()


def test_a_table_without_finite_rows_has_no_error() -> None:
    scales = NarrowedScales("item")
    rows = np.zeros((3, 12), dtype=np.uint8)
    rows[:, 4:].view("<f4")[:] = np.nan
    assert np.isnan(scales.narrow(rows)[:, 4:].view("<f2")).all()
    assert (scales.max_abs_error, scales.mean_abs_error) == (0.0, 0.0)


@pytest.mark.parametrize(("row_type", "scale_type"), STORED)
def test_a_changed_table_is_refused(row_type: RowType, scale_type: ScaleType | None, tmp_path: Path) -> None:
    store, path = _store(row_type, 9), tmp_path / "item.tmtable"
    _export(path, store, row_type, scale_type)
    store.close()
    path.chmod(0o644)
    whole = path.read_bytes()
    places = [0, 8, 20, 300, 4092, 4095, 4096, 4097, 5000, len(whole) - 9, len(whole) - 8, len(whole) - 1]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(CorruptionError, match=r"item\.tmtable.*offset"):
            TableFile(path).verify()
    for length in (0, 9, 4095, 4096, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptionError, match=r"item\.tmtable.*offset"):
            TableFile(path)
    path.write_bytes(whole)
    TableFile(path).verify()


def test_a_table_of_the_version_before_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "item.tmtable"
    for writer, advice in (("0.0.1", "go on with tiermem 0.0.1, or export the table anew"), (None, "export")):
        version = writer or _header("fp32", None, 2).tiermem_version
        values = {"format_version": 1, "name": "item", "dtype": "float32", "tiermem_version": version}
        text = json.dumps(values).encode()
        block = (struct.pack("<8sII", b"TMTABLE\0", 1, len(text)) + text).ljust(4092, b"\0")
        path.write_bytes(block + struct.pack("<I", zlib.crc32(block)) + bytes(16))
        match = rf"format version 1, which tiermem {version} wrote; .* reads version 2: {advice}"
        with pytest.raises(TiermemError, match=match) as caught:
            TableFile(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"row_type": "fp8"}, 'row_type of table "t" is "fp8"'),
        ({"row_type": "int8"}, 'scale_type of table "t" is "None"; use one of'),
        ({"row_type": "int8", "scale_type": "bf16"}, 'scale_type of table "t" is "bf16"'),
        ({"row_type": "fp16", "scale_type": "fp16"}, 'scale_type of table "t" is "fp16"'),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TableHeader(name="t", rows=1, dim=1, step=0, experiment_hash="", **wrong)


# --- tiermem export ---


def _run(tmp_path: Path, row_type: str, **values: str) -> Path:
    path, out = tmp_path / "tiny.toml", tmp_path / "run"
    path.write_text(EXPERIMENT)
    overrides = [f"model.row_type={row_type}", *(f"{key}={value}" for key, value in values.items())]
    arguments = [each for override in overrides for each in ("--set", override)]
    assert main(["train", "--config", str(path), *arguments, "--out", str(out), "--quiet"]) == 0
    return out


@pytest.mark.parametrize(("row_type", "scale_type"), STORED)
def test_export_writes_the_rows_of_the_snapshot(
    row_type: RowType, scale_type: ScaleType | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run(tmp_path, row_type)
    capsys.readouterr()
    chosen = ["--scales", "fp32"] if scale_type == "fp32" else []
    assert main(["export", str(run), "--json", "--quiet", *chosen]) == 0
    document = json.loads(capsys.readouterr().out)
    assert main(["export", str(run), "--out", str(tmp_path / "again"), *chosen]) == 0
    printed = capsys.readouterr().out
    assert row_type in printed
    assert ("max abs error" in printed) == (scale_type == "fp16")
    point = find_resume_point(run, "")
    store = open_store(point.experiment, point.manifest.tables)
    store.load_rows(rows_path(point.snapshot))
    for number, each in enumerate(document["tables"]):
        table = TableFile(each["path"])
        table.verify()
        assert (each["row_type"], each["scale_type"]) == (row_type, scale_type)
        assert (table.header.row_type, table.header.scale_type) == (row_type, scale_type)
        found = torch.from_numpy(table.rows(range(150)))
        stored, _ = store.read_stored_rows(number, 0, 150)
        trained, _ = store.read_rows(number, 0, 150)
        assert stored.dtype == DTYPES[row_type]
        if scale_type == "fp16":
            assert torch.equal(found, _narrowed(stored.numpy()))
            errors = (found - trained).abs()
            assert each["max_abs_error"] == float(errors.max()) > 0
            assert each["mean_abs_error"] == pytest.approx(float(errors.double().mean()), rel=1e-12)
            assert f"{each['max_abs_error']:.3g}" in printed
            assert f"{each['mean_abs_error']:.3g}" in printed
        else:
            assert torch.equal(found, trained)
            assert "max_abs_error" not in each
    store.close()


def test_scales_go_with_int8_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _run(tmp_path, "fp16")
    capsys.readouterr()
    assert main(["export", str(run), "--scales", "fp16", "--quiet"]) == 2
    assert capsys.readouterr().err == (
        "tiermem: error: --scales goes with int8 rows; those of this run are fp16 and have no scales\n"
    )
    assert not (run / "export").exists()


def test_rows_that_grew_too_large_are_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run(tmp_path, "int8", **{"train.optimizer.lr": "1e6"})
    capsys.readouterr()
    assert main(["export", str(run), "--quiet"]) == 2
    message = capsys.readouterr().err
    assert "beyond the 65,504 of float16; use --scales fp32" in message
    assert message.count("\n") == 1
    assert list((run / "export").iterdir()) == []
    assert main(["export", str(run), "--quiet", "--scales", "fp32"]) == 0
    assert len(list((run / "export").glob("*.tmtable"))) == 2
