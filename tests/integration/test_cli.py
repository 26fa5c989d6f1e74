"""The command line from end to end: output, exit codes, and what is left behind."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiermem.cli.main import main

SMALL = [
    "--set", "data.samples_max=3000", "--set", "data.rows_per_table=2000", "--set", "train.batch_size=256",
]  # fmt: skip


FIT = [
    "device", "fit", "--name", "x", "--out", "x.toml", "--read-latency-us", "77.9",
    "--max-read-iops", "460000", "--read-bandwidth", "2.8e9",
]  # fmt: skip


def _run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tiermem", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json", "--quiet"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_help_and_version_name_every_verb() -> None:
    done = _run("--help")
    assert done.returncode == 0
    for verb in ("demo", "data", "device", "train", "export", "report", "doctor"):
        assert verb in done.stdout
    assert _run("--version").stdout.startswith("tiermem 0.")
    assert _run("nonsense").returncode == 2


def test_train_writes_a_run_that_report_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    found = _json(capsys, "train", "--config", "demo-tiering", *SMALL, "--out", str(out))
    names = ["config.json", "experiment.json", "record.json", "report.html"]
    assert sorted(path.name for path in out.iterdir()) == names
    run = found["results"]["runs"]["trace"]
    assert run["steps"] == 12
    nand = run["store"]["tiers"][1]
    assert nand["device"]["reads"] > 0
    assert nand["device"]["writes"] > 0
    assert main(["report", str(out), "--figures", str(tmp_path / "figures")]) == 0
    text = capsys.readouterr().out
    assert "Step time" in text
    assert "nand-p3700" in text
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert "hit-rate-over-time-dark.svg" in figures
    assert "device-read-latency-light.svg" in figures


def test_the_page_is_self_contained_and_says_what_is_emulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    _json(capsys, "train", "--config", "demo-tiering", *SMALL, "--out", str(out))
    page = (out / "report.html").read_text()
    # Names of XML vocabularies are not fetched; anything else that could be would be a link or a source.
    assert re.findall(r"(?:src|href)=\"(?!#)[^\"]*\"", page) == []
    assert not re.search(r"@import|url\((?!#)", page)
    assert "prefers-color-scheme: dark" in page
    assert "not measurements of those devices" in page
    assert page.count("<svg") == 3, "a run without evaluation has no quality plot"
    assert "assumptions" in page


def test_virtual_results_repeat_and_do_not_depend_on_the_backend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["train", "--config", "demo-tiering", *SMALL]
    digests = [_json(capsys, *base, "--out", str(tmp_path / name))["results_digest"] for name in ("a", "b")]
    hierarchy = tmp_path / "files.toml"
    hierarchy.write_text(
        '[[tiers]]\nname = "dram"\ndevice = "dram-ddr4-2933"\ncache = 0.1\n\n'
        '[[tiers]]\nname = "nand"\ndevice = "nand-p3700"\n'
        f'backend = {{ engine = "auto", directory = "{tmp_path}" }}\n'
    )
    files = _json(capsys, *base, "--set", f"hierarchy={hierarchy}", "--out", str(tmp_path / "c"))
    assert digests[0] == digests[1] == files["results_digest"]
    other = _json(capsys, *base, "--seed", "2", "--out", str(tmp_path / "d"))
    assert other["results_digest"] != digests[0]


def test_wall_clock_runs_train_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["train", "--config", "demo-tiering", *SMALL]
    quality = []
    for clock in ("virtual", "wall"):
        hierarchy = tmp_path / f"{clock}.toml"
        hierarchy.write_text(
            f'clock = "{clock}"\n[[tiers]]\nname = "dram"\ndevice = "dram-ddr4-2933"\ncache = 0.1\n\n'
            '[[tiers]]\nname = "nand"\ndevice = "nand-p3700"\n'
        )
        found = _json(capsys, *base, "--set", f"hierarchy={hierarchy}", "--out", str(tmp_path / clock))
        quality.append(found["quality"]["runs"]["trace"])
        assert found["results"]["runs"]["trace"]["clock"] == clock
    assert quality[0] == quality[1]


def test_device_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nand-p3700" in _json(capsys, "device", "list")["devices"]
    found = _json(capsys, "device", "show", "nand-p3700")
    assert found["units"] == 42
    reads = found["predictions"][0]
    # 460,000 IOPS are rated, 683,594 fit through 2.8 GB/s, and 42 units of 73.6 us give 571,000.
    assert reads["binding_stage"] == "controller"
    assert reads["iops_max"] == pytest.approx(460_000, rel=0.01)
    assert reads["ceilings_iops"]["link"] == pytest.approx(2.8e9 / 4096)
    assert reads["saturation_queue_depth"] == 128
    assert main(["device", "show", "pmem-100"]) == 0
    text = capsys.readouterr().out
    assert "assumed" in text
    assert "What the model predicts" in text


POINT_KEYS = (
    "queue_depth", "iops", "bytes_per_s", "mean_us", "p50_us", "p90_us", "p99_us", "p999_us", "p9999_us",
    "max_us", "late_fraction", "utilisation",
)  # fmt: skip


def test_device_bench_in_closed_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = [
        "device",
        "bench",
        "nand-p3700",
        "--clock",
        "virtual",
        "--op",
        "randread",
        "--block-bytes",
        "4096",
    ]
    base += ["--queue-depth", "1,16", "--ops", "50000", "--seed", "3"]
    picture, values = tmp_path / "curve.svg", tmp_path / "points.csv"
    assert main([*base, "--plot", str(picture), "--csv", str(values), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    for point in found["points"]:
        assert set(POINT_KEYS) <= set(point)
        assert point["iops_times_mean_latency"] == pytest.approx(point["queue_depth"], rel=0.01)
        assert point["late_fraction"] == 0
    # The published points: 77.9 us at queue depth 1, 93.9 us at 16.
    assert [point["mean_us"] for point in found["points"]] == pytest.approx([77.9, 93.9], rel=0.02)
    assert picture.read_text().startswith("<svg")
    rows = list(csv.DictReader(values.read_text().splitlines()))
    assert [float(row["iops"]) for row in rows] == [point["iops"] for point in found["points"]]
    file = tmp_path / "points.json"
    assert main([*base, "--json", str(file)]) == 0
    assert json.loads(file.read_text()) == found
    assert found["results_digest"] in capsys.readouterr().out


@pytest.mark.parametrize("operation", ["randread", "randwrite", "randrw", "seqread", "seqwrite"])
def test_device_bench_of_every_operation(operation: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["device", "bench", "znand-sz985", "--op", operation, "--queue-depth", "8", "--ops", "20000"]
    (point,) = _json(capsys, *arguments)["points"]
    share = point["reads"] / (point["reads"] + point["writes"])
    expected = {"randread": 1.0, "seqread": 1.0, "randrw": 0.5}.get(operation, 0.0)
    assert share == pytest.approx(expected, abs=0.02)


def test_device_bench_in_open_loop_and_on_the_wall(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["device", "bench", "nand-p3700", "--ops", "5000"]
    light, heavy = _json(capsys, *base, "--rate-iops", "1000,900000")["points"]
    assert light["iops"] == pytest.approx(1000, rel=0.05)
    assert not light["saturated"]
    assert heavy["saturated"]
    (point,) = _json(
        capsys, *base, "--clock", "wall", "--queue-depth", "2", "--ops", "300", "--span", "16MiB"
    )["points"]
    # Nothing is delivered before it is due, so a wall-clock run is never faster than the model.
    assert point["mean_us"] > 77.9 * 0.99
    assert 0 <= point["late_fraction"] <= 1


def test_device_fit_from_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "drive.toml"
    found = _json(
        capsys, "device", "fit", "--name", "drive", "--read-latency-us", "77.9", "--max-read-iops", "460000",
        "--read-bandwidth", "2.8e9", "--loaded", "16:93.9", "--write-latency-us", "30",
        "--max-write-iops", "90000", "--write-bandwidth", "1.9e9", "--block-bytes", "4096", "--out", str(out),
    )  # fmt: skip
    assert all(abs(point["error"]) < 0.03 for point in found["residuals"]), found
    assert {point["given_as"].split()[0] for point in found["residuals"]} == {
        "--read-latency-us", "--max-read-iops", "--read-bandwidth", "--loaded", "--write-latency-us",
        "--max-write-iops", "--write-bandwidth",
    }  # fmt: skip
    (point,) = _json(capsys, "device", "bench", str(out), "--queue-depth", "16")["points"]
    assert point["mean_us"] == pytest.approx(93.9, rel=0.02)


def test_doctor_and_data_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert _json(capsys, "doctor")["build_profile"] == "release"
    assert "ml-100k" in _json(capsys, "data", "list")["data_sets"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--config", "nothing"], 2, '"nothing" is not one of the experiments'),
        (
            ["train", "--config", "demo-tiering", "--set", "train.epoch=1"],
            2,
            'unknown key "train.epoch"; did you mean "epochs"?',
        ),
        (["train", "--config", "demo-tiering", "--set", "budgets.dram=3x"], 2, "'3x' is not a size in bytes"),
        (
            ["train", "--config", "demo-tiering", "--out", "/proc/nothing"],
            1,
            "cannot write the run directory /proc/nothing",
        ),
        (
            ["train", "--config", "demo-tiering", *SMALL, "--set", "budgets.dram=3"],
            1,
            "cannot hold a single row",
        ),
        (["data", "fetch", "ml-1m"], 2, '"ml-1m" is not a data set'),
        (["data", "fetch", "ml-100k", "--from", "/nothing"], 2, "there is no /nothing"),
        (["device", "show", "nand-p370"], 2, 'did you mean "nand-p3700"?'),
        (["device", "bench", "nand-p3700", "--queue-depth", "x"], 2, "is not a list of numbers"),
        (["device", "bench", "nand-p3700", "--queue-depth", "0"], 2, "takes numbers above zero"),
        (["device", "bench", "nand-p3700", "--queue-depth", "9999999"], 2, "the queue depth lies between"),
        (["device", "bench", "nand-p3700", "--rate-iops", "nan"], 2, "the rate lies between"),
        (["device", "bench", "nand-p3700", "--read-percent", "5"], 2, "goes with randrw, not with randread"),
        (
            ["device", "bench", "nand-p3700", "--op", "randrw", "--read-percent", "101"],
            2,
            "between 0 and 100",
        ),
        (["device", "bench", "nand-p3700", "--block-bytes", "2TB"], 2, "the block size lies between"),
        (["device", "bench", "nand-p3700", "--span", "1024"], 2, "has no room for a request of 4,096"),
        (["device", "bench", "nand-p3700", "--span", "2TB"], 2, "nand-p3700 has 800,000,000,000"),
        (["device", "bench", "nand-p3700", "--queue-depth", ""], 2, "is not a list of numbers"),
        ([*FIT, "--name", "a b"], 2, "--name takes letters, digits"),
        (["device", "bench", "nand-p3700", "--ops", "0"], 2, "the number of operations lies between 1 and"),
        (["device", "bench", "dram-ddr4-2933", "--clock", "wall"], 2, "cannot be imitated access by access"),
        (
            ["device", "bench", "nand-p3700", "--ops", "9", "--csv", "/proc/nothing/x.csv"],
            1,
            "cannot write /proc/nothing/x.csv",
        ),
        (["device", "fit", "--name", "x", "--out", "x.toml"], 2, "give --read-latency-us, --max-read-iops"),
        (["device", "fit", "--name", "x", "--out", "x"], 2, "must end in .toml"),
        ([*FIT, "--loaded", "16"], 2, '--loaded "16" is not QD:US'),
        ([*FIT, "--loaded", "16:40"], 2, "the model cannot reproduce --loaded 16:40"),
        ([*FIT, "--read-latency-us", "1"], 2, "leaves no time for the medium"),
        ([*FIT, "--read-bandwidth", "1e8"], 2, "the model cannot reproduce"),
        ([*FIT, "--fio-json", "x"], 2, "leave the other numbers out"),
        (
            ["device", "fit", "--name", "x", "--out", "x.toml", "--fio-json", "/nothing"],
            2,
            "cannot read /nothing",
        ),
        (["report", "/nothing"], 1, "is it a run directory?"),
        (["demo", "--split", "/nothing.npz", "--out", "OUT"], 2, "cannot read /nothing.npz"),
    ],
)
def test_wrong_use_ends_in_one_sentence(  # noqa: PLR0917 (pytest passes fixtures by name)
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, ml_100k: Path,
) -> None:  # fmt: skip
    assert ml_100k.is_dir(), "the demo case needs the data"
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "--quiet"]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("tiermem: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "nothing half-written is left behind"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_keeps_its_promises(tmp_path: Path, ml_100k: Path) -> None:
    done = _run("demo", "--json", "--out", str(tmp_path / "demo"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["bit_identical"] is True
    assert found["test_auc"] >= 0.77
    assert found["test_auc"] >= found["logistic_regression_test_auc"] + 0.005
    for name, run in found["results"]["runs"].items():
        for tier in run["store"]["tiers"][1:]:
            assert tier["device"]["reads"] > 0, name
            assert tier["device"]["writes"] > 0, name
    assert (tmp_path / "demo" / "report.html").is_file()
