"""The sections of `compare_peers.py`, in one process: what each workload compares, and the document."""

import argparse
import datetime
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import compare_peers_fbgemm
import torch
from compare_peers_forward import forward, threads
from compare_peers_measure import Settings, read_bandwidth
from compare_peers_training import adagrad, adam
from compare_peers_workloads import SHAPES, Work, prepare, small
from markdown import markdown_table
from tiering_report import Section
from tiermem import _core
from tiermem.results import canonical, host, write_text

_BANDWIDTH_BYTES = 1 << 30
_SMALL_BANDWIDTH_BYTES = 8 << 20
Part = Callable[[Work, Settings], Section]


def _on_small_pages(work: Work, settings: Settings) -> Section:
    return forward(work, settings, small_pages=True)


def _stochastic(work: Work, settings: Settings) -> Section:
    return adagrad(work, settings, stochastic=True)


PARTS: dict[str, tuple[Part, ...]] = {
    "W1": (forward, _on_small_pages, adagrad, adam, threads),
    "W1L": (forward, adagrad, threads),
    "W2": (forward, adagrad, _stochastic),
    "W2L": (forward, adagrad, _stochastic),
    "W3": (forward, adagrad),
    "W3H": (adagrad, _stochastic),
    "W5": (forward, _on_small_pages),
}


def _sections(names: list[str], settings: Settings) -> Iterator[Section]:
    for name in names:
        shape = small(SHAPES[name]) if settings.small else SHAPES[name]
        work = prepare(shape)
        for part in PARTS[name]:
            print(f"# {name}: {part.__name__.lstrip('_')}", file=sys.stderr, flush=True)
            yield part(work, settings)
            gc.collect()


def _document(
    sections: list[Section], settings: Settings, bandwidth: dict[str, float], about: dict[str, Any]
) -> dict[str, Any]:
    """The JSON object."""
    return {
        "bench": "compare_peers",
        **about,
        "small": settings.small,
        "threads": torch.get_num_threads(),
        "repeats": settings.repeats,
        "seconds_per_repetition": settings.seconds,
        "read_bandwidth_bytes_per_s": bandwidth,
        "sections": {section.name: section.document() for section in sections},
        "targets_missed": [
            f"{section.name}: {target.what}"
            for section in sections
            for target in section.targets
            if not target.met
        ],
        "build_profile": _core.BUILD_PROFILE,
        "host": host(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }


def _overview(sections: list[Section]) -> list[str]:
    """All targets in one table."""
    cells = [(section.name, *target.cells()) for section in sections for target in section.targets]
    heads = ("section", "condition", "measured: median (least to most)", "target", "")
    return ["### All targets", "", *markdown_table(heads, cells)]


def check() -> None:
    """Says which FBGEMM is loaded; fails if it is not the right one."""
    for name, value in compare_peers_fbgemm.verify().items():
        print(f"{name}: {value}")


def run(options: argparse.Namespace, command: str) -> None:
    """Everything: checks, measures, prints Markdown and JSON."""
    torch.set_num_threads(options.threads)
    # The default of torch's sparse optimizers, said aloud so that they do not warn.
    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
    with_fbgemm = not options.without_fbgemm
    loaded = compare_peers_fbgemm.verify() if with_fbgemm else None
    best, bandwidth = read_bandwidth(_SMALL_BANDWIDTH_BYTES if options.small else _BANDWIDTH_BYTES)
    settings = Settings(
        threads=options.threads,
        repeats=options.repeats,
        seconds=options.seconds,
        with_fbgemm=with_fbgemm,
        bandwidth=best,
        small=options.small,
    )
    sections = []
    for section in _sections(options.workload, settings):
        print("\n".join(section.lines()), flush=True)
        sections.append(section)
    about = {
        "command": command,
        "fbgemm": loaded,
        "peer_pages": options.peer_pages,
        "thp_mem_alloc_enable": os.environ.get("THP_MEM_ALLOC_ENABLE", "not set"),
    }
    found = canonical(_document(sections, settings, bandwidth, about))
    print("\n".join(_overview(sections)))
    shown = ", ".join(f"{name} {rate / 1e9:.1f} GB/s" for name, rate in bandwidth.items())
    versions = f"torch {metadata.version('torch')}, " + (
        f"{loaded['distribution']} {loaded['version']}" if loaded else "without FBGEMM"
    )
    machine = found["host"]
    print(f"{command}: {found['build_profile']} build, {versions}, {found['threads']} threads on all sides,")
    print(f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, {found['date']}.")
    print(f"Read bandwidth: {shown}; torch's allocator asks for {options.peer_pages} pages.")
    print("The least bytes are computed, not counted: rows asked for, ids, offsets, pooled rows; in a step")
    print("also gradients, ids again, and unique rows read and written with their state.\n")
    print(json.dumps(found))
    if options.json is not None:
        write_text(options.json, json.dumps(found, indent=1) + "\n")
