"""The tiered store against all rows in DRAM and against what else keeps rows on a drive: ratios in one run.

`python benches/python/tiering.py [--small] [--only NAME ...] [--directory DIR] [--json FILE]` prints
Markdown tables and one JSON object. Sides of one section run in turns with the same threads; median and
spread are over the repetitions, processor time stands beside wall time, and every condition that was set
beforehand is shown with what was measured, met or not. rocksdict, lmdb and fio are used where installed.
"""

import argparse
import datetime
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tiering_cold import cold
from tiering_hits import all_hit
from tiering_layouts import layouts
from tiering_memory import memory
from tiering_report import Section
from tiering_scaled import scaled_out
from tiering_warm import warm
from tiermem import _core
from tiermem.results import canonical, host, write_text

SECTIONS: dict[str, Callable[[bool, Path], list[Section]]] = {
    "scaled-out": lambda small, folder: [  # noqa: ARG005
        scaled_out("scaled-out (a)", "scaled-out.toml", small=small),
        scaled_out("scaled-out (b)", "scaled-out-wall.toml", small=small),
    ],
    "layouts": lambda small, folder: [layouts(small=small)],  # noqa: ARG005
    "all-hit": lambda small, folder: [all_hit(small=small)],  # noqa: ARG005
    "cold": lambda small, folder: [cold(folder, small=small)],
    "warm": lambda small, folder: [warm(folder, small=small)],
    "memory": lambda small, folder: [memory(folder, small=small)],
}


def measure(names: Sequence[str], directory: Path, *, small: bool) -> list[Section]:
    """Runs sections one after the other; files go into a temporary folder of `directory`."""
    found = []
    with tempfile.TemporaryDirectory(dir=directory, prefix="tiering-") as folder:
        for name in names:
            print(f"# {name}", file=sys.stderr, flush=True)
            found += SECTIONS[name](small, Path(folder))
    return found


def document(sections: Sequence[Section], *, small: bool, command: str) -> dict[str, Any]:
    """The JSON object."""
    return {
        "bench": "tiering",
        "small": small,
        "command": command,
        "sections": {section.name: section.document() for section in sections},
        "targets_missed": [
            f"{section.name}: {target.what}"
            for section in sections
            for target in section.targets
            if not target.met
        ],
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "build_profile": _core.BUILD_PROFILE,
        "host": host(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--small", action="store_true", help="a size that the checks run, without other stores"
    )
    parser.add_argument(
        "--only", nargs="+", choices=tuple(SECTIONS), metavar="NAME", help=", ".join(SECTIONS)
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path.cwd(),
        help="where files go, on a filesystem with a drive under it; default: the working directory",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the JSON to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    command = " ".join(["tiering.py", *(sys.argv[1:] if arguments is None else arguments)])
    names = options.only or list(SECTIONS)
    sections = measure(names, options.directory, small=options.small)
    found = canonical(document(sections, small=options.small, command=command))
    for section in sections:
        print("\n".join(section.lines()))
    about = found["host"]
    print(f"{command}: {found['build_profile']} build, {found['threads']} torch thread, OMP_NUM_THREADS")
    print(f"{found['omp_num_threads']}; {about['processor']}, {about['cores']} cores, {about['system']},")
    print(f"{found['date']}\n")
    print(json.dumps(found))
    if options.json is not None:
        write_text(options.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
