"""What the verbs share: options, output, progress, run directories."""

import argparse
import contextlib
import datetime
import errno
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from tiermem.errors import ConfigError, DeviceError
from tiermem.report import Table
from tiermem.results import write_text

__all__ = [
    "Output",
    "add_output_options",
    "add_override_option",
    "refuse_overwriting",
    "refuse_unwritable",
    "run_directory",
    "save_run",
    "say_how_it_ran",
]

_LINE_EVERY_S = 5.0
# A file or a pipe has no width; nothing is cut there.
_PIPE_WIDTH = 240


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """`--json` and `--quiet`."""
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write one JSON object to FILE; without FILE or with -, to standard output and nothing else",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")


def add_override_option(parser: argparse.ArgumentParser, text: str) -> None:
    """`--set KEY=VALUE`, as often as one likes, into `overrides`."""
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help=text
    )


def refuse_overwriting(outputs: Sequence[str | None], inputs: Sequence[str]) -> None:
    """Refuses an output that is one of the inputs, whatever the two are called.

    Raises:
        ConfigError: names the file.
    """
    for written in outputs:
        for read in inputs:
            both = written is not None and Path(written).exists() and Path(read).exists()
            if written is not None and both and Path(written).samefile(read):
                raise ConfigError(f"{written} is what is read here; give the output another name")


def refuse_unwritable(path: Path) -> None:
    """Refuses a file that could not be written after the work, before the work; leaves nothing behind.

    Raises:
        DeviceError: names the file, and says why.
    """
    if path.is_dir():
        raise DeviceError(errno.EISDIR, f"cannot write {path}: {os.strerror(errno.EISDIR)}")
    if path.exists() and not path.is_file():
        return
    try:
        # Folders that are missing are made with the file, in the nearest one that is there.
        with tempfile.TemporaryFile(
            dir=next(folder for folder in path.absolute().parents if folder.exists())
        ):
            pass
    except OSError as error:
        raise DeviceError(error.errno, f"cannot write {path}: {error.strerror}") from None


class Output:
    """Where text goes: tables and lines to people, one JSON object to programs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.json = options.json == "-"
        self.json_path = None if options.json in (None, "-") else Path(options.json)
        self.quiet = bool(options.quiet)
        self.console = Console(stderr=self.json, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = _PIPE_WIDTH

    def line(self, text: str) -> None:
        """A line for people; progress goes to standard error when JSON is asked for."""
        if not self.quiet:
            self.console.print(text, markup=False)

    def result(self, text: str) -> None:
        """A line that is part of the result."""
        if not self.json:
            self.console.print(text, markup=False)

    def table(self, table: Table, *, wrap_last: bool = False) -> None:
        """A table, as wide as it needs to be where nobody looks at a terminal.

        Args:
            table: what to show.
            wrap_last: the last column is prose, and may take several lines.
        """
        if self.json:
            return
        shown = RichTable(title=table.title, title_justify="left", title_style="bold", show_edge=False)
        last = len(table.heads) - 1
        for number, head in enumerate(table.heads):
            prose = wrap_last and number == last
            shown.add_column(head, justify="left" if number == 0 or prose else "right", no_wrap=not prose)
        for row in table.rows:
            shown.add_row(*row)
        self.console.print(shown)
        if table.note:
            self.console.print(table.note, markup=False)
        self.console.print()

    def document(self, value: Mapping[str, Any]) -> None:
        """The one JSON object, if asked for."""
        if self.json:
            print(json.dumps(value, indent=2))
        if self.json_path is not None:
            write_text(self.json_path, json.dumps(value, indent=2) + "\n")

    def progress(self, name: str) -> "StepProgress":
        """Progress of one run: a bar on a terminal, a plain line now and then elsewhere."""
        return StepProgress(name, self)


class StepProgress:
    """Steps done, samples per second and loss."""

    def __init__(self, name: str, output: Output) -> None:
        self.name = name
        self.output = output
        self.bar: Progress | None = None
        self.last_line_s = time.monotonic()
        if not output.quiet and output.console.is_terminal:
            columns = (
                TextColumn("{task.description:<24}"),
                BarColumn(bar_width=30),
                TextColumn("{task.completed}/{task.total} steps"),
                TextColumn("{task.fields[rate]:>9,.0f} samples/s  loss {task.fields[loss]:.4f}"),
                TimeElapsedColumn(),
            )
            self.bar = Progress(*columns, console=output.console)
            self.task = self.bar.add_task(name, total=0, rate=0.0, loss=float("nan"))

    def __enter__(self) -> Callable[[int, int, float, float], None]:
        if self.bar is not None:
            self.bar.start()
        return self.step

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, done: int, total: int, loss: float, rate: float) -> None:
        """One step is done."""
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=total, rate=rate, loss=loss)
        elif done == total or time.monotonic() - self.last_line_s > _LINE_EVERY_S:
            self.last_line_s = time.monotonic()
            self.output.line(f"{self.name}: step {done}/{total}, {rate:,.0f} samples/s, loss {loss:.4f}")


@contextlib.contextmanager
def run_directory(chosen: str | None, verb: str) -> Iterator[Path]:
    """The directory of a run, made now so that a wrong place is known before the work, not after.

    A run that fails leaves no empty directory behind.

    Raises:
        DeviceError: if it cannot be made or written.
    """
    stamp = datetime.datetime.now(tz=datetime.UTC).strftime("%Y%m%d-%H%M%S")
    path = Path(chosen) if chosen is not None else Path("runs") / f"{verb}-{stamp}"
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DeviceError(error.errno, f"cannot write the run directory {path}: {error.strerror}") from None
    try:
        yield path
    finally:
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()


def save_run(path: Path, record: Mapping[str, Any], html: str | None) -> None:
    """Writes the resolved configuration, the record, and the page if there is one."""
    write_text(path / "config.json", json.dumps(record["config"], indent=2) + "\n")
    write_text(path / "record.json", json.dumps(record, indent=1) + "\n")
    if html is not None:
        write_text(path / "report.html", html)


def say_how_it_ran(output: Output, record: Mapping[str, Any]) -> None:
    """What a reader must know of the runs: engines that fell back, wall clocks that were not punctual."""
    for name, tiers in record["engines"].items():
        for tier, engine in tiers.items():
            if engine["fallback_reason"]:
                output.result(f"{name}: {tier} ran on {engine['engine']}: {engine['fallback_reason']}")
    for name, run in record["results"]["runs"].items():
        if "resumed_from_step" in run:
            output.result(
                f"{name}: went on from step {run['resumed_from_step']} with cold caches; losses, scores and"
                " step times are of the whole run, tiers and devices of the steps since"
            )
        lateness = run["store"]["lateness"]
        if not lateness["valid"]:
            output.result(
                f"{name}: INVALID as a wall-clock run: {lateness['late_share']:.1%} of the requests were late"
                " (at most 1 % may be); use the virtual clock, a slower device, or a quieter host"
            )
