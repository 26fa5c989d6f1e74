"""The study of a fleet's power as numbers and as a page."""

import dataclasses
from typing import Any

from tiermem.report import Section, Table
from tiermem.report.plan_plots import power_ratios
from tiermem.report.style import INK, svg_text
from tiermem.study.sdm import FleetStudy, HostPoint, Scenario

__all__ = ["document", "headline_table", "sections", "sensitivity_table"]

_DIGITS = 5
"""Significant ones."""
ORIGINAL_SAVES = (0.05, 0.29)
"""Share of power that the original saves in its scenarios (arXiv 2110.11489, abstract)."""
_QUESTIONS = {
    "small host": "A large host with all tables in DRAM, against a small host with user tables on devices.",
    "scale-out": (
        "An accelerated host whose user tables are in the DRAM of remote hosts, which it keeps a part of"
        " busy, against the same host with user tables on devices of its own."
    ),
    "co-location": (
        "A host for several models, bound by its DRAM, against the same host with user tables on devices:"
        " models until DRAM or threads end."
    ),
}


def _plain(value: Any) -> Any:  # noqa: ANN401 (a JSON value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def document(study: FleetStudy) -> dict[str, Any]:
    """All that was found, rounded to five digits."""
    return {
        "study": study.config.model_dump(mode="json"),
        "engine": study.engine.model_dump(mode="json"),
        "remote_hosts": _plain(study.remote_hosts),
        "scenarios": _plain(list(study.scenarios)),
        "sensitivities": _plain(list(study.sensitivities)),
    }


def headline_table(study: FleetStudy) -> Table:
    """Power of the fleet by scenario and device."""
    low, high = (1 - share for share in reversed(ORIGINAL_SAVES))
    saved = " to ".join(f"{share:.0%}" for share in ORIGINAL_SAVES)
    note = (
        f"The original saves {saved} of the power over its scenarios, a ratio of {low:.2f} to {high:.2f}."
        " Power of hosts is assumed."
    )
    heads = (
        "scenario and device",
        "power ratio",
        "queries/s a host",
        "before",
        "watts a host",
        "before",
        "hosts",
        "before",
    )
    return Table(
        "Power of the fleet, with over without", heads, tuple(_row(each) for each in study.scenarios), note
    )


def _row(each: Scenario) -> tuple[str, ...]:
    name = f"{each.name}, {each.device}"
    if each.other is None or each.power_ratio is None:
        return (name, "cannot: " + each.problem, *("",) * 6)
    before, after = each.hosts
    return (
        name,
        f"{each.power_ratio:.2f}",
        f"{each.other.queries_per_s:,.0f}",
        f"{each.base.queries_per_s:,.0f}",
        f"{each.other.watts:,.0f}",
        f"{each.base.watts:,.0f}",
        f"{after:,.1f}",
        f"{before:,.1f}",
    )


def sensitivity_table(study: FleetStudy) -> Table:
    """Scenarios with one thing changed."""
    rows = tuple(
        (
            f"{each.scenario}, {each.what}: {each.value:g}",
            *("cannot" if ratio is None else f"{ratio:.2f}" for _, ratio in each.ratios),
        )
        for each in study.sensitivities
    )
    return Table("Power ratio with one thing changed", ("changed", *study.config.devices), rows)


def _points_table(study: FleetStudy) -> Table:
    def cells(name: str, point: HostPoint) -> tuple[str, ...]:
        return (
            name,
            f"{point.queries_per_s:,.0f}",
            f"{point.p99_ms:.2f}",
            f"{point.row_hit_rate:.1%}",
            f"{point.reads_per_query:,.1f}",
            f"{point.device_watts:.1f}",
            f"{point.joules_per_query * 1e3:.2f}",
        )

    rows = []
    for each in study.scenarios:
        if each.device == study.config.devices[0]:
            rows.append(cells(f"{each.name}, before", each.base))
        if each.other is not None:
            rows.append(cells(f"{each.name}, {each.device}", each.other))
    heads = ("host", "queries/s", "p99 ms", "rows cached", "reads a query", "watts of devices", "mJ a query")
    return Table("Hosts at their highest rate within the bound", heads, tuple(rows))


def _assumed_table(study: FleetStudy) -> Table:
    rows = tuple((path, reference) for path, reference in study.config.assumed())
    return Table("Assumed", ("number", "why"), rows, "Costs of a host are those of the engine, all assumed.")


def sections(study: FleetStudy) -> list[Section]:
    """The page, part by part."""
    low, high = (1 - share for share in reversed(ORIGINAL_SAVES))
    ratios: dict[str, dict[str, float]] = {}
    for each in study.scenarios:
        of_scenario = ratios.setdefault(each.name, {})
        if each.power_ratio is not None:
            of_scenario[each.device] = each.power_ratio
    figure = power_ratios(ratios, (low, high), title="Power, with over without", ink=INK)
    questions = tuple(f"{name}: {text}" for name, text in _QUESTIONS.items())
    return [
        Section(
            title="Power in three scenarios",
            text=(study.config.description + ".", *questions),
            tables=(headline_table(study), _points_table(study)),
            plots={"Power, with over without": svg_text(figure)},
        ),
        Section(
            title="What the answer hangs on",
            text=(
                "Each line changes one thing. The bound and the dense work of the small host are those of the"
                " large one, too.",
                f"Lookups of an accelerated host keep {study.remote_hosts:.2g} remote hosts busy.",
            ),
            tables=(sensitivity_table(study),),
        ),
        Section(
            title="What is assumed",
            text=(
                "Rates, hits and power of devices follow from the emulation; the emulated tables stand for"
                f" {study.config.model_bytes / 1e9:,.0f} GB. All other numbers are assumed:",
            ),
            tables=(_assumed_table(study),),
        ),
    ]
