"""The model against figures that others published, and the profiles that `fit` makes of them."""

import json
import statistics
from pathlib import Path

import pytest
from tiermem.config import DeviceSpec, available
from tiermem.emulator import (
    FitTargets,
    Load,
    bench_device,
    compare_published,
    fit_device,
    targets_from_fio,
)
from tiermem.errors import ConfigError

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", available("devices"))
def test_published_throughputs_and_means_are_met(name: str) -> None:
    """Within 3 % on average and 6 % at worst, apart from points that contradict others and say so."""
    found = [each for each in compare_published(DeviceSpec.load(name), operations=60_000) if each.is_target]
    errors = {f"{each.published.operation} QD {each.published.queue_depth}": each.error for each in found}
    assert found, f"{name} has a published point"
    assert statistics.mean(abs(error) for error in errors.values()) <= 0.03, errors
    assert max(abs(error) for error in errors.values()) <= 0.06, errors


def test_most_published_points_of_the_drives_that_were_measured_are_checks() -> None:
    roles = [
        point.role
        for name in ("nand-p3700", "optane-p4800x")
        for point in DeviceSpec.load(name).published
        if point.kind == "measured"
    ]
    assert roles.count("check") >= 6


def test_a_profile_from_three_numbers_reproduces_the_rest_of_a_published_sweep(root: Path) -> None:
    data = json.loads((root / "benches/python/published_sweep.json").read_text())
    by_depth = {point["queue_depth"]: point for point in data["points"]}
    fit = fit_device(
        FitTargets(
            name="published-sweep",
            read_latency_us=by_depth[1]["mean_us"],
            max_read_iops=by_depth[256]["iops"],
            read_bandwidth=3e9,
            loaded=((16, by_depth[16]["mean_us"]),),
        )
    )
    assert max(abs(point.error) for point in fit.points) < 0.01
    errors = []
    for depth, point in by_depth.items():
        found = bench_device(fit.spec, Load(queue_depth=depth, operations=60_000, span="500GiB"))
        errors += [found.latency.mean_ns / 1000 / point["mean_us"] - 1, found.iops / point["iops"] - 1]
    assert statistics.mean(abs(error) for error in errors) <= 0.03, errors
    assert max(abs(error) for error in errors) <= 0.06, errors


def test_fit_recovers_the_device_that_made_the_numbers() -> None:
    """Numbers of a device of 96 units that was made up; fit is told what a benchmark of it shows."""
    made_up = DeviceSpec.load("nand-pm9a3").replace(units=96, background=None)

    def measure(depth: int) -> tuple[float, float]:
        point = bench_device(made_up, Load(queue_depth=depth, operations=100_000, span="500GiB"))
        return point.iops, point.latency.mean_ns / 1000

    fit = fit_device(
        FitTargets(
            name="made-up",
            read_latency_us=measure(1)[1],
            max_read_iops=measure(256)[0],
            read_bandwidth=6.5e9,
            loaded=((8, measure(8)[1]), (32, measure(32)[1]), (64, measure(64)[1])),
        )
    )
    assert fit.spec.units == pytest.approx(96, rel=0.1)


def test_a_number_that_the_model_cannot_reproduce_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot reproduce --loaded 64:80.*check it"):
        fit_device(
            FitTargets(
                name="x",
                read_latency_us=80,
                max_read_iops=500_000,
                read_bandwidth=3e9,
                loaded=((16, 160.0), (64, 80.0)),
            )
        )
    with pytest.raises(ConfigError, match="--max-read-iops must be a number above zero"):
        FitTargets(name="x", read_latency_us=80, max_read_iops=0, read_bandwidth=3e9)


def test_fit_from_a_fio_run(tmp_path: Path) -> None:
    """A run in fio's format with the figures of the published sweep; the queue depths come from the jobs."""
    sweep = {1: (59_720, 16_745), 16: (74_530, 214_600), 256: (473_740, 540_300)}

    def side(depth: int) -> dict[str, object]:
        mean_ns, iops = sweep[depth]
        return {
            "total_ios": iops * 10,
            "iops": float(iops),
            "bw_bytes": iops * 4096,
            "lat_ns": {"mean": float(mean_ns), "max": 900_000},
            "clat_ns": {"percentile": {"50.000000": 58_000, "99.000000": 90_000, "99.900000": 200_000}},
        }

    idle = {"total_ios": 0}
    document = {
        "fio version": "fio-3.33",
        "global options": {"rw": "randread", "bs": "4k", "direct": "1", "ioengine": "io_uring"},
        "jobs": [
            {
                "jobname": f"qd{depth}",
                "job options": {"iodepth": str(depth)},
                "read": side(depth),
                "write": idle,
            }
            for depth in sweep
        ],
    }
    path = tmp_path / "run.json"
    path.write_text("fio: a note before the document\n" + json.dumps(document))
    targets, notes = targets_from_fio(path, name="mine")
    assert notes == ["no job reads 65,536 bytes at a time: the link is assumed not to bind"]
    assert targets.loaded == ((16, 74.53),)
    assert targets.max_iops_queue_depth == 256
    assert targets.latency_quantiles_ns == ((0.5, 58_000), (0.99, 90_000), (0.999, 200_000))
    fit = fit_device(targets)
    assert max(abs(point.error) for point in fit.points) < 0.03, fit.points
    found = bench_device(fit.spec, Load(queue_depth=1, operations=100_000)).latency
    assert found.p50_ns == pytest.approx(58_000, rel=0.02)
    assert found.p99_ns == pytest.approx(90_000, rel=0.02)


def test_a_run_of_fio_on_a_real_disk_is_read() -> None:
    """A virtual machine's disk, whose latency rises early: few units, and still within what fit accepts."""
    targets, notes = targets_from_fio(HERE / "fio_virtual_disk.json", name="disk")
    assert targets.read_latency_us == pytest.approx(30.37, abs=0.01)
    assert [depth for depth, _ in targets.loaded] == [4, 16]
    assert targets.max_read_iops == pytest.approx(126_399, abs=1)
    assert notes[-1].startswith(
        "the quantiles at queue depth 1 were left out: no distribution with that mean"
    )
    fit = fit_device(targets, notes=notes)
    assert fit.spec.units < 8
    assert max(abs(point.error) for point in fit.points) < 0.1, fit.points


def _run(tmp_path: Path, *jobs: tuple[dict[str, str], str, float, float], **options: str) -> Path:
    """A run of jobs (options, direction, mean in us, IOPS)."""
    idle = {"total_ios": 0}
    entries = []
    for job, direction, mean_us, iops in jobs:
        size = {"4k": 4096, "128k": 131_072}[job.get("bs", "4k")]
        side = {
            "total_ios": 1000,
            "iops": iops,
            "bw_bytes": int(iops * size),
            "lat_ns": {"mean": mean_us * 1000, "max": 10**6},
            "clat_ns": {},
        }
        other = "write" if direction == "read" else "read"
        entries.append({"jobname": "j", "job options": job, direction: side, other: idle})
    path = tmp_path / "run.json"
    common = {"ioengine": "io_uring", "rw": "randread", "bs": "4k", **options}
    path.write_text(json.dumps({"fio version": "fio-3.33", "global options": common, "jobs": entries}))
    return path


def test_a_run_that_saturates_nothing_leaves_controller_and_link_out_of_the_way(tmp_path: Path) -> None:
    """One queue depth is a run, too; what it does not show is assumed, and said."""
    one = {"iodepth": "1"}
    targets, notes = targets_from_fio(_run(tmp_path, (one, "read", 78.0, 12_658.0)), name="x")
    assert (targets.max_read_iops, targets.read_bandwidth) == (None, None)
    fit = fit_device(targets, notes=notes)
    assert len(fit.notes) == 3
    assert bench_device(fit.spec, Load(queue_depth=64)).iops > 300_000
    deeper = (({"iodepth": "4"}), "read", 80.0, 49_000.0)
    targets, notes = targets_from_fio(_run(tmp_path, (one, "read", 78.0, 12_658.0), deeper), name="x")
    assert targets.max_read_iops is None
    assert targets.loaded == ((4, 80.0),)
    fit = fit_device(targets, notes=notes)
    assert bench_device(fit.spec, Load(queue_depth=4)).latency.mean_ns == pytest.approx(80_000, rel=0.01)


def test_streams_and_writes_of_a_run_are_used(tmp_path: Path) -> None:
    jobs = (
        ({"iodepth": "1"}, "read", 78.0, 12_658.0),
        ({"iodepth": "8", "rw": "read", "bs": "128k"}, "read", 400.0, 20_000.0),
        ({"iodepth": "1", "rw": "randwrite"}, "write", 20.0, 47_000.0),
    )
    targets, notes = targets_from_fio(_run(tmp_path, *jobs), name="x")
    assert targets.read_bandwidth == pytest.approx(20_000 * 131_072)
    fit = fit_device(targets, notes=notes)
    assert all(abs(point.error) < 0.05 for point in fit.points), fit.points
    assert {point.given_as.split()[0] for point in fit.points} == {
        "--read-latency-us", "--read-bandwidth", "--write-latency-us",
    }  # fmt: skip


def test_threads_of_a_run_count_towards_its_depth(tmp_path: Path) -> None:
    job = ({"iodepth": "4", "numjobs": "4"}, "read", 80.0, 200_000.0)
    one = ({"iodepth": "1"}, "read", 78.0, 12_658.0)
    with pytest.raises(ConfigError, match="run fio with --group_reporting"):
        targets_from_fio(_run(tmp_path, one, job), name="x")
    targets, _ = targets_from_fio(_run(tmp_path, one, job, group_reporting=""), name="x")
    assert targets.loaded == ((16, 80.0),)
    targets, _ = targets_from_fio(_run(tmp_path, one, job, group_reporting="", ioengine="psync"), name="x")
    assert targets.loaded == ((4, 80.0),), "a synchronous engine has one request a thread"


def test_a_write_rate_above_the_read_rate_can_be_fitted() -> None:
    fit = fit_device(
        FitTargets(
            name="x",
            read_latency_us=80,
            max_read_iops=1e5,
            read_bandwidth=3e9,
            max_write_iops=2e5,
            write_latency_us=20,
        )
    )
    assert max(abs(point.error) for point in fit.points) < 0.05, fit.points


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not the JSON of a fio run"),
        ("[]", "is not the JSON of a fio run"),
        ("{}", "is not the JSON of a fio run"),
        ('{"jobs": [{"jobname": "x"}]}', "is not the JSON of a fio run"),
        ('{"jobs": []}', "has no random reads at queue depth 1"),
    ],
)
def test_a_file_that_is_not_a_fio_run_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        targets_from_fio(path, name="x")
