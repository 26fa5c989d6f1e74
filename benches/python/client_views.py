"""One load in four views: the model, our own API in real time, and stock fio by its engine and over NBD.

`fidelity.py` puts these tables into docs/fidelity.md. Closed loops of 4 KiB random reads; every figure is
the median of several runs, as its distance from the model in virtual time.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import witness
from markdown import markdown_table
from tiermem.config import DeviceSpec
from tiermem.emulator import BenchPoint, Load, bench_device

ENGINE_IOPS_MAX = 600_000
"""Above, fio itself is the limit on a host like ours, and the table says so."""
NBD_LATENCY_NS_MIN = 77_000
"""Of about 80 us, the P3700 included; devices that are faster disappear behind the transport."""
NBD_SHARE_MAX = 0.8
"""A load of more than this share of what the transport carries measures the transport."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewSizes:
    """How much is run."""

    devices: tuple[str, ...] = (
        "nand-p3700", "nand-pm983", "znand-sz985", "optane-p4800x", "optane-p5800x",
    )  # fmt: skip
    depths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    seconds: float = 0.5
    repetitions: int = 3
    operations: int = 100_000


SMALL = ViewSizes(
    devices=("nand-pm983", "optane-p4800x"), depths=(1, 8), seconds=0.1, repetitions=1, operations=10_000
)


@dataclasses.dataclass(frozen=True)
class View:
    """Distances of one view from the model."""

    iops: float
    mean: float
    spread: tuple[float, float]
    """Least and largest distance of the IOPS of a run."""

    def text(self) -> str:
        """As a cell of a table."""
        return f"{self.iops:+.1%} / {self.mean:+.1%}"


def _view(model: BenchPoint, runs: list[tuple[float, float]]) -> View:
    iops = [found / model.iops - 1 for found, _ in runs]
    mean = statistics.median(found / model.latency.mean_ns - 1 for _, found in runs)
    return View(statistics.median(iops), mean, (min(iops), max(iops)))


def _fio(model: BenchPoint, sizes: ViewSizes, run: Callable[[int], witness.Seen]) -> View:
    found = [run(seed) for seed in range(1, sizes.repetitions + 1)]
    return _view(model, [(each.iops, each.mean_ns) for each in found])


def _api(model: BenchPoint, spec: DeviceSpec, sizes: ViewSizes) -> View:
    operations = max(200, int(sizes.seconds * model.iops))
    load = Load(queue_depth=model.load.queue_depth, operations=operations, span="256MiB")
    runs = [bench_device(spec, load, clock="wall") for _ in range(sizes.repetitions)]
    return _view(model, [(run.iops, run.latency.mean_ns) for run in runs])


def _engine_floor_ns(engine: Path, sizes: ViewSizes) -> int:
    """What fio and engine take by themselves: no latency, hardly any bytes to copy."""
    arguments = witness.through_engine(engine, "optane-p4800x", zero_latency=1)
    load = {**witness.load(queue_depth=1, seconds=sizes.seconds), "bs": 512}
    return round(
        statistics.median(
            [witness.seen(witness.run_fio({**arguments, **load})[0]).p50_ns for _ in range(sizes.repetitions)]
        )
    )


def _nbd_alone(depth: int, sizes: ViewSizes) -> witness.Seen:
    """fio, socket and server by themselves."""
    with witness.through_nbd("nand-p3700", zero_latency=True) as (arguments, _):
        load = witness.load(queue_depth=depth, seconds=sizes.seconds)
        return witness.seen(witness.run_fio({**arguments, **load})[0])


def _quiet(views: Sequence[View]) -> str:
    errors = [abs(error) for view in views for error in (view.iops, view.mean)]
    return f"{statistics.mean(errors):.1%} on average, {max(errors):.1%} at worst" if errors else "no point"


@dataclasses.dataclass
class _Views:
    """All views of all loads."""

    sizes: ViewSizes
    engine: Path
    engine_floor_ns: int
    nbd_iops: dict[int, float]
    """What the transport carries by itself, by queue depth."""
    raw: list[View] = dataclasses.field(default_factory=list)
    less_floor: list[View] = dataclasses.field(default_factory=list)
    nbd: list[View] = dataclasses.field(default_factory=list)
    nbd_floors_ns: list[int] = dataclasses.field(default_factory=list)

    def row(self, name: str, depth: int) -> tuple[str, ...]:
        """One load in all views."""
        spec = DeviceSpec.load(name)
        operations = self.sizes.operations
        model = bench_device(spec, Load(queue_depth=depth, operations=operations, span="256MiB"))
        raw, less = (self._by_engine(model, name, floor_ns) for floor_ns in (0, self.engine_floor_ns))
        is_bound = model.iops > ENGINE_IOPS_MAX
        if not is_bound:
            self.raw.append(raw)
            self.less_floor.append(less)
        nbd_text = "too fast"
        if spec.read.latency_ns >= NBD_LATENCY_NS_MIN:
            nbd = self._by_nbd(model, name)
            nbd_text = nbd.text()
            if model.iops > NBD_SHARE_MAX * self.nbd_iops[depth]:
                nbd_text += " (transport-bound)"
            else:
                self.nbd.append(nbd)
        note = " (host-bound)" if is_bound else ""
        return (
            name, str(depth), f"{model.iops:,.0f}", f"{model.latency.mean_ns / 1000:.2f} us",
            _api(model, spec, self.sizes).text(), raw.text() + note, "{:+.1%} to {:+.1%}".format(*raw.spread),
            less.text() + note, nbd_text,
        )  # fmt: skip

    def _by_engine(self, model: BenchPoint, name: str, floor_ns: int) -> View:
        def run(seed: int) -> witness.Seen:
            arguments = witness.through_engine(self.engine, name, seed=seed, transport_ns=floor_ns)
            return _seen(arguments, model, self.sizes, seed)

        return _fio(model, self.sizes, run)

    def _by_nbd(self, model: BenchPoint, name: str) -> View:
        def run(seed: int) -> witness.Seen:
            # The floor is mostly the time in which this host wakes a process up, and drifts within minutes.
            floor_ns = round(_nbd_alone(1, self.sizes).mean_ns)
            self.nbd_floors_ns.append(floor_ns)
            with witness.through_nbd(name, transport_ns=floor_ns) as (arguments, _):
                return _seen(arguments, model, self.sizes, seed)

        return _fio(model, self.sizes, run)


def _seen(arguments: dict[str, object], model: BenchPoint, sizes: ViewSizes, seed: int) -> witness.Seen:
    load = witness.load(queue_depth=model.load.queue_depth or 1, seconds=sizes.seconds, seed=seed)
    return witness.seen(witness.run_fio({**arguments, **load})[0])


def _percentiles(sizes: ViewSizes, engine: Path) -> list[str]:
    rows = []
    for name in sizes.devices:
        for depth in (1, 32):
            spec = DeviceSpec.load(name)
            model = bench_device(spec, Load(queue_depth=depth, operations=sizes.operations, span="256MiB"))
            arguments = witness.through_engine(engine, name)
            load = witness.load(queue_depth=depth, seconds=2 * sizes.seconds)
            found = witness.seen(witness.run_fio({**arguments, **load})[0])
            cells = [
                f"{getattr(model.latency, each) / 1000:.1f} / {getattr(found, each) / 1000:.1f}"
                for each in ("p50_ns", "p99_ns", "p999_ns")
            ]
            rows.append((name, str(depth), *cells))
    return markdown_table(("device", "QD", "p50 us", "p99 us", "p99.9 us"), rows)


def _poisson(sizes: ViewSizes, engine: Path) -> list[str]:
    rows = []
    for name, rate in itertools.product(("znand-sz985", "optane-p4800x", "optane-p5800x"), (5_000, 20_000)):
        load = witness.load(
            queue_depth=64, seconds=4 * sizes.seconds, ramp_time=0, rate_iops=rate, rate_process="poisson"
        )
        found = witness.seen(witness.run_fio({**witness.through_engine(engine, name), **load})[0])
        offered = Load(rate_iops=found.iops, operations=sizes.operations, span="256MiB")
        model = bench_device(DeviceSpec.load(name), offered)
        rows.append(
            (
                name, f"{rate:,}", f"{found.iops:,.0f}", f"{model.latency.mean_ns / 1000:.2f} us",
                f"{found.mean_ns / 1000:.2f} us", f"{found.mean_ns / model.latency.mean_ns - 1:+.1%}",
                f"{found.p50_ns / model.latency.p50_ns - 1:+.1%}",
            )
        )  # fmt: skip
    heads = ("device", "rate, 1/s", "fio's IOPS", "mean, device", "mean, client", "difference", "at p50")
    return markdown_table(heads, rows)


def client_views(sizes: ViewSizes) -> tuple[list[str], dict[str, object]]:
    """The section of the page, and a summary. Where fio cannot run, the section says why."""
    try:
        version = witness.find_fio(needs="nbd")
        engine = witness.build_engine()
    except witness.CannotRunError as reason:
        return [f"Not run on this host: {reason}.", ""], {"client_views": str(reason)}
    engine_ns = _engine_floor_ns(engine, sizes)
    nbd_iops = {
        depth: statistics.median([_nbd_alone(depth, sizes).iops for _ in range(sizes.repetitions)])
        for depth in sizes.depths
    }
    every = _Views(sizes, engine, engine_ns, nbd_iops)
    rows = [every.row(name, depth) for name in sizes.devices for depth in sizes.depths]
    heads = (
        "device", "QD", "device: IOPS", "mean", "API", "fio, engine", "(spread of IOPS)", "engine less floor",
        "NBD less floor",
    )  # fmt: skip
    lines = [
        "The device is the model in virtual time; the API is `tiermem device bench --clock wall`; the client"
        f" is stock {version}, through the engine in tests/fio_engine and over NBD on a unix socket. Cells"
        " give the distance from the device, IOPS / mean latency (what fio calls lat).",
        "",
        f"By itself, with a device that takes no time, fio takes {engine_ns} ns for a request through the"
        f" engine and {min(every.nbd_floors_ns) / 1000:.1f} to {max(every.nbd_floors_ns) / 1000:.1f} us over"
        " NBD, where it is measured before every run; *less floor* means that a request counts as"
        " submitted that much earlier. fio also spends time between an answer and the next request, which"
        " the IOPS show and the latency does not. Above 0.6 M IOPS fio on this host is the limit; those"
        " points are marked and do not count. Over NBD only devices whose reads take about 80 us and more can"
        " be told from the transport, and only loads of less than 0.8 of what it carries at that queue depth"
        f" ({', '.join(f'{depth}: {iops:,.0f}' for depth, iops in nbd_iops.items())} IOPS).",
        "",
        f"Engine, as it is: {_quiet(every.raw)}; less its floor: {_quiet(every.less_floor)} (wanted: 3 % and"
        f" 6 %). NBD less its floor: {_quiet(every.nbd)} (wanted: 10 %).",
        "",
        *markdown_table(heads, rows),
        "Percentiles through the engine as it is, device / client:",
        "",
        *_percentiles(sizes, engine),
        "An open loop: fio's Poisson arrivals (`rate_process=poisson`), as many as it made, against the"
        " model's. Before fio sleeps for the next arrival it waits for all that is in flight, so that only"
        " rates at which requests seldom meet are an open loop there.",
        "",
        *_poisson(sizes, engine),
    ]
    return lines, {
        "engine": _quiet(every.raw),
        "engine_less_floor": _quiet(every.less_floor),
        "nbd": _quiet(every.nbd),
    }
