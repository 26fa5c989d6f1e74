"""Random reads of one file by the io_uring backend and by fio's, in turns: a ratio in one run.

`python benches/python/raw_io.py [--small] [--directory DIR] [--json FILE]` writes a file, reads it by
both with the same block size and queue depth, past the page cache where the filesystem allows it, and
prints a table and one line of JSON. fio runs with registered buffers and files and without, and the
faster of the two counts. The file is removed afterwards.
"""

import argparse
import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiermem.results import host, write_text

ROOT = Path(__file__).resolve().parents[2]
BLOCK_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is run."""

    file_bytes: int
    seconds: float
    repetitions: int
    depths: tuple[int, ...]


def _build() -> Path:
    """Compiles the program that reads through the backend."""
    command = ["cargo", "build", "--release", "--quiet", "--locked", "-p", "tiermem-benches"]
    messages = subprocess.run(
        [*command, "--example", "raw_io", "--message-format", "json"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    built = [json.loads(line) for line in messages.splitlines()]
    return next(Path(each["executable"]) for each in built if each.get("executable"))


def _write_file(path: Path, nbytes: int) -> None:
    """Real blocks, none of them zero: a hole would be read without the drive."""
    chunk = bytes(range(1, 256)) * 4112
    with path.open("wb") as file:
        for done in range(0, nbytes, len(chunk)):
            file.write(chunk[: min(len(chunk), nbytes - done)])


def _ours(program: Path, path: Path, *, depth: int, seconds: float, seed: int) -> dict[str, Any]:
    arguments = [str(path), "io_uring", "auto", str(depth), str(BLOCK_BYTES), str(seconds), str(seed)]
    done = subprocess.run([program, *arguments], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _fio(path: Path, depth: int, seconds: float, seed: int, *, direct: bool, registered: bool) -> float:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "fio.json"
        subprocess.run(
            [
                "fio", "--name=raw", f"--filename={path}", "--rw=randread", f"--bs={BLOCK_BYTES}",
                "--ioengine=io_uring", f"--iodepth={depth}", f"--direct={int(direct)}", f"--randseed={seed}",
                f"--fixedbufs={int(registered)}", f"--registerfiles={int(registered)}", "--norandommap",
                "--invalidate=0", "--time_based", f"--runtime={max(1, round(seconds * 1000))}ms",
                "--output-format=json", f"--output={out}",
            ],
            check=True, capture_output=True,
        )  # fmt: skip
        return float(json.loads(out.read_text())["jobs"][0]["read"]["iops"])


def _row(program: Path, path: Path, depth: int, sizes: Sizes) -> dict[str, Any]:
    probe = _ours(program, path, depth=depth, seconds=0.05, seed=1)
    direct = bool(probe["direct"])
    ours, plain, registered = [], [], []
    for seed in range(1, sizes.repetitions + 1):
        ours.append(_ours(program, path, depth=depth, seconds=sizes.seconds, seed=seed)["iops"])
        plain.append(_fio(path, depth, sizes.seconds, seed, direct=direct, registered=False))
        registered.append(_fio(path, depth, sizes.seconds, seed, direct=direct, registered=True))
    best = max((plain, registered), key=statistics.median)
    ratios = [mine / theirs for mine, theirs in zip(ours, best, strict=True)]
    return {
        "queue_depth": depth,
        "direct": direct,
        "registered_buffers": probe["registered_buffers"],
        "iops": statistics.median(ours),
        "fio_iops": statistics.median(plain),
        "fio_registered_iops": statistics.median(registered),
        "ratio": statistics.median(ours) / statistics.median(best),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a size that the checks run")
    parser.add_argument(
        "--directory", type=Path, help="where the file goes; default: the temporary directory"
    )
    parser.add_argument("--json", type=Path, help="also write the JSON to this file")
    options = parser.parse_args(arguments)
    if shutil.which("fio") is None:
        sys.exit("raw_io.py compares with fio, which is not installed (Debian: apt-get install fio)")
    sizes = Sizes(16 << 20, 0.05, 1, (1, 8)) if options.small else Sizes(1 << 30, 1.5, 7, (1, 8, 32))
    program = _build()
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        path = Path(folder) / "raw_io.bin"
        _write_file(path, sizes.file_bytes)
        rows = [_row(program, path, depth, sizes) for depth in sizes.depths]
    print(f"{'QD':>3} {'tiermem':>10} {'fio':>10} {'fio reg.':>10} {'ratio':>6}  spread")
    for row in rows:
        print(
            f"{row['queue_depth']:>3} {row['iops']:>10,.0f} {row['fio_iops']:>10,.0f}"
            f" {row['fio_registered_iops']:>10,.0f} {row['ratio']:>6.2f}"
            f"  {row['ratio_least']:.2f} to {row['ratio_most']:.2f}"
        )
    document = {"bench": "raw_io", "small": options.small, "block_bytes": BLOCK_BYTES, "points": rows}
    line = json.dumps(document)
    print(line)
    if options.json is not None:
        write_text(options.json, json.dumps({**document, "host": host()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
