"""Targets for a fit out of the JSON of a fio run: "make a profile of my drive"."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiermem.emulator.fit import FitTargets, is_possible
from tiermem.errors import ConfigError

__all__ = ["targets_from_fio"]

_QUANTILES = {"50.000000": 0.5, "99.000000": 0.99, "99.900000": 0.999, "99.990000": 0.9999}
_SIZES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
_BYTES_MAX = 64 * 2**20
_SYNCHRONOUS = ("sync", "psync", "vsync", "pvsync", "pvsync2", "mmap")
# A deeper queue that gains less than this share of what it adds has reached the highest IOPS.
_PLATEAU = 0.25
# Requests of at least this many bytes show the link's bandwidth.
_STREAM_BYTES = 65_536


def _size(text: str) -> int:
    number = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = number[-1:] if number[-1:] in "kmg" else ""
    digits = number.removesuffix(unit) if unit else number
    if not digits.isdigit():
        raise ConfigError(f'"{text}" is not a block size of fio')
    return int(digits) * _SIZES[unit]


class _Job:
    """One job of a run."""

    def __init__(self, job: Mapping[str, Any], common: Mapping[str, Any], direction: str) -> None:
        options = {**common, **job.get("job options", {})}
        self.name = str(job.get("jobname", "?"))
        self.pattern = str(options.get("rw") or options.get("readwrite") or "read")
        self.block_bytes = _size(str(options.get("bs") or options.get("blocksize") or "4k"))
        if int(job.get("error", 0)) != 0:
            raise ConfigError(f'job "{self.name}" ended with error {job["error"]}; run it again')
        threads = int(options.get("numjobs", 1))
        if threads > 1 and "group_reporting" not in options:
            raise ConfigError(
                f'job "{self.name}" has {threads} threads, each reported by itself;'
                " run fio with --group_reporting"
            )
        # A synchronous engine (the default) has one request a thread outstanding, whatever iodepth says.
        synchronous = str(options.get("ioengine", "psync")) in _SYNCHRONOUS
        self.depth = (1 if synchronous else int(options.get("iodepth", 1))) * threads
        side = job[direction]
        self.iops = float(side["iops"])
        self.bytes_per_s = float(side["bw_bytes"])
        self.mean_us = float(side["lat_ns"]["mean"]) / 1000
        self.max_ns = int(side["lat_ns"]["max"])
        # Percentiles leave out the submission, the mean and the highest do not.
        submission_ns = max(0.0, float(side["lat_ns"]["mean"]) - float(side["clat_ns"].get("mean", math.inf)))
        found: Mapping[str, int] = side["clat_ns"].get("percentile", {})
        self.percentiles = {key: round(ns + submission_ns) for key, ns in found.items()}


def _jobs(document: Mapping[str, Any], direction: str) -> list[_Job]:
    common = document.get("global options", {})
    return [_Job(job, common, direction) for job in document["jobs"] if int(job[direction]["total_ios"])]


def targets_from_fio(path: Path, *, name: str) -> tuple[FitTargets, list[str]]:
    """Reads a run of one or more jobs with different queue depths.

    Random reads give latency, loaded points, and the highest IOPS if the deepest queue gained little over
    the one before; quantiles come from the job at queue depth 1. Large reads give the link's bandwidth, jobs
    that write the write side. What no job shows is assumed not to bind, and noted.

    Returns:
        The targets, and notes on what was left out.

    Raises:
        ConfigError: if the file is not such a run, or has no random reads at queue depth 1.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_BYTES_MAX)
        # fio prints notes of its engines before the document.
        document = json.loads(text[max(0, text.find("{")) :])
        reads, writes = _jobs(document, "read"), _jobs(document, "write")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path} is not the JSON of a fio run ({type(error).__name__}: {error});"
            " run fio with --output-format=json --output=FILE"
        ) from None
    random = [job for job in reads if job.pattern.startswith("rand") and not _mixed(job)]
    first = next((job for job in random if job.depth == 1), None)
    if first is None:
        raise ConfigError(
            f"{path} has no random reads at queue depth 1; add a job with rw=randread and iodepth=1"
        )
    notes = [f'job "{job.name}" was left out: it mixes reads and writes' for job in reads if _mixed(job)]
    same = [job for job in random if job.block_bytes == first.block_bytes]
    same.sort(key=lambda job: job.depth)
    fastest = _saturated(same)
    if fastest is None:
        notes.append(
            "no queue was deep enough to reach the highest IOPS: the controller is assumed not to bind"
        )
    big = [job.bytes_per_s for job in reads if job.block_bytes >= _STREAM_BYTES and not _mixed(job)]
    if not big:
        notes.append(f"no job reads {_STREAM_BYTES:,} bytes at a time: the link is assumed not to bind")
    loaded = tuple((job.depth, job.mean_us) for job in same if job.depth > 1 and job is not fastest)
    own_writes = [job for job in writes if not _mixed(job)]
    random_writes = [
        job for job in own_writes if job.pattern == "randwrite" and job.block_bytes == first.block_bytes
    ]
    first_write = next((job for job in random_writes if job.depth == 1), None)
    streams = [job for job in own_writes if job.pattern == "write"]
    targets = FitTargets(
        name=name,
        read_latency_us=first.mean_us,
        max_read_iops=fastest.iops if fastest else None,
        read_bandwidth=max(big, default=None),
        loaded=loaded,
        write_latency_us=first_write.mean_us if first_write else None,
        max_write_iops=_highest(random_writes),
        write_bandwidth=max((job.bytes_per_s for job in streams), default=None),
        block_bytes=first.block_bytes,
        max_iops_queue_depth=same[-1].depth,
        source_kind="measured",
        source=f"{document.get('fio version', 'fio')}, {path.name}",
    )
    return _with_quantiles(targets, first, notes), notes


def _saturated(jobs: list[_Job]) -> _Job | None:
    """The deepest of jobs in order of depth, if it gains little over the one before."""
    if len(jobs) < 2:
        return None
    before, last = jobs[-2:]
    gained, added = last.iops / before.iops - 1, last.depth / before.depth - 1
    return last if gained <= _PLATEAU * added else None


def _highest(writes: list[_Job]) -> float | None:
    """Sustained IOPS, if a queue was deep enough to show them."""
    found = _saturated(sorted(writes, key=lambda job: job.depth))
    return found.iops if found else None


def _mixed(job: _Job) -> bool:
    return job.pattern in ("rw", "readwrite", "randrw")


def _with_quantiles(targets: FitTargets, first: _Job, notes: list[str]) -> FitTargets:
    """Adds the quantiles if some distribution with this mean can have them."""
    points = tuple(
        (share, int(first.percentiles[key])) for key, share in _QUANTILES.items() if key in first.percentiles
    )
    if not points:
        return targets
    while points:
        largest_ns = max(first.max_ns, points[-1][1])
        candidate = dataclasses.replace(targets, latency_quantiles_ns=points, latency_max_ns=largest_ns)
        if is_possible(candidate):
            return candidate
        points = points[:-1]
    notes.append("the quantiles at queue depth 1 were left out: no distribution with that mean has them")
    return targets
