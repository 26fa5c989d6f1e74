"""tiermem's embedding operators beside torch's and those of FBGEMM's CPU build, in one process.

`make peers`, then `.venv-peers/bin/python benches/python/compare_peers.py [--small] [--workload W1,W3]
[--threads N] [--repeats N] [--peer-pages huge|base] [--without-fbgemm] [--json FILE]` prints Markdown tables
and one JSON object. Values are compared before times. Sides run in turns over the same batches with the same
number of threads; ratios are of neighbours in one repetition. Every target that was set beforehand is shown
with what was measured, met or not.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

WORKLOADS = ("W1", "W1L", "W2", "W2L", "W3", "W3H", "W5")


def _workloads(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no workload {', '.join(unknown)}; there are {', '.join(WORKLOADS)}"
        )
    return names


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    parser.add_argument("--small", action="store_true", help="a size that the checks run")
    parser.add_argument(
        "--workload", type=_workloads, default=list(WORKLOADS), metavar="NAME,...", help=", ".join(WORKLOADS)
    )
    parser.add_argument("--threads", type=_positive, default=1, help="of every side; default: 1")
    parser.add_argument("--repeats", type=_positive, help="repetitions; default: 7, small 2")
    parser.add_argument(
        "--seconds", type=float, help="the least time of a repetition of a side; default: 0.05, small 0"
    )
    parser.add_argument(
        "--peer-pages",
        choices=("huge", "base"),
        default="huge",
        help="whether torch's allocator, which FBGEMM uses, asks for huge pages, as tiermem does",
    )
    parser.add_argument("--check", action="store_true", help="only say which FBGEMM is loaded")
    parser.add_argument("--without-fbgemm", action="store_true", help="compare with torch alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON to this file")
    options = parser.parse_args(arguments)
    if options.repeats is None:
        options.repeats = 2 if options.small else 7
    if options.seconds is None:
        options.seconds = 0.0 if options.small else 0.05
    return options


def _environment(options: argparse.Namespace) -> dict[str, str]:
    """What has to be set before torch is loaded."""
    threads = str(options.threads)
    return {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "THP_MEM_ALLOC_ENABLE": "1" if options.peer_pages == "huge" else "0",
    }


def main() -> None:
    options = _options(sys.argv[1:])
    if not options.without_fbgemm and importlib.util.find_spec("fbgemm_gpu") is None:
        print(
            "FBGEMM is not installed here: run `make peers`, then use .venv-peers/bin/python; or compare with"
            " torch alone by --without-fbgemm",
            file=sys.stderr,
        )
        sys.exit(2)
    needed = _environment(options)
    if any(os.environ.get(name) != value for name, value in needed.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **needed})
    # Not before: torch reads the environment when it is loaded.
    from compare_peers_run import check, run  # noqa: PLC0415

    if options.check:
        check()
        return
    run(options, " ".join(["compare_peers.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
