"""Tables of a record, for the terminal and the page alike. docs/metrics.md defines the columns."""

from collections.abc import Mapping
from typing import Any

from tiermem.report.table import Table
from tiermem.report.table_counters import table_counters
from tiermem.units import format_bytes, format_duration

__all__ = [
    "all_tables",
    "device_table",
    "quality_table",
    "step_table",
    "summary_tables",
    "tier_table",
]


def quality_table(record: Mapping[str, Any]) -> Table | None:
    """Test scores of every run that has any, and of the baseline."""
    rows = []
    quality = record["quality"]
    for name, run in quality["runs"].items():
        if run["test"] is not None:
            rows.append((name, *_scores(run["test"]), str(run["best_epoch"] + 1)))
    if not rows:
        return None
    if quality.get("baseline"):
        rows.append(("logistic regression", *_scores(quality["baseline"]["test"]), "-"))
    heads = ("run", "test AUC", "logloss", "normalised entropy", "best epoch")
    return Table("Quality on the test split", heads, tuple(rows))


def _scores(scores: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(f"{scores[key]:.4f}" for key in ("auc", "logloss", "normalized_entropy"))


def step_table(record: Mapping[str, Any]) -> Table:
    """Step times of every run, and the mean of each stage."""
    rows = []
    for name, run in record["results"]["runs"].items():
        percentiles = [format_duration(run["step_ns"][key]) for key in ("p50", "p95", "p99")]
        stages = [format_duration(value) for value in run["stage_mean_ns"].values()]
        rows.append((name, *percentiles, *stages, f"{run['samples_per_s']:,.0f}"))
    heads = (
        "run",
        "p50",
        "p95",
        "p99",
        "wait",
        "gather",
        "dense",
        "update",
        "write-back",
        "samples/s",
    )
    return Table("Step time, and the mean of its stages", heads, tuple(rows))


def tier_table(record: Mapping[str, Any]) -> Table:
    """Rows and bytes of every tier of every run."""
    rows = []
    for name, tier in _tiers(record):
        device = tier["device"]
        moved = device["read_bytes"] + device["write_bytes"]
        media = device["media_read_bytes"] + device["media_write_bytes"]
        sizes = tuple(format_bytes(nbytes) for nbytes in (tier["asked_bytes"], moved, media))
        rows.append(
            (
                name,
                f"{tier['held']:,}",
                f"{tier['hit_rate']:.1%}",
                f"{tier['unconditional_hit_rate']:.1%}",
                *sizes,
            )
        )
    heads = ("run: tier", "held", "hit rate", "of all rows", "asked", "moved", "media")
    return Table("Tiers: rows and bytes", heads, tuple(rows))


def device_table(record: Mapping[str, Any]) -> Table:
    """Requests, latency, utilisation, wear, energy and cost of every tier's device."""
    rows = []
    for name, tier in _tiers(record):
        device = tier["device"]
        latency = device["read_latency"]
        rows.append(
            (
                name,
                device["name"],
                f"{device['reads']:,}",
                f"{device['writes']:,}",
                format_duration(latency["p50_ns"]),
                format_duration(latency["p99_ns"]),
                f"{device['utilisation']:.1%}",
                _years(device["lifetime_years"]),
                f"{device['energy_joules']:.3g} J",
                f"${device['cost_dollars']:.3g}",
            )
        )
    heads = (
        "run: tier",
        "emulated device",
        "reads",
        "writes",
        "read p50",
        "read p99",
        "utilisation",
        "life at this rate",
        "energy",
        "cost",
    )
    return Table("Tiers: emulated devices", heads, tuple(rows))


def _years(years: float | None) -> str:
    """A lifetime for people."""
    if years is None:
        return "-"
    return f"{years * 365.25:.3g} days" if years < 1 else f"{years:,.1f} years"


def _tiers(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    runs = record["results"]["runs"].items()
    return [(f"{name}: {tier['name']}", tier) for name, run in runs for tier in run["store"]["tiers"]]


def all_tables(record: Mapping[str, Any]) -> list[Table]:
    """Every table that the record has data for."""
    return [*summary_tables(record), *table_counters(record)]


def summary_tables(record: Mapping[str, Any]) -> list[Table]:
    """The tables that say how the runs went, without those that have a row for each table."""
    quality = quality_table(record)
    rest = [step_table(record), tier_table(record), device_table(record)]
    return rest if quality is None else [quality, *rest]
