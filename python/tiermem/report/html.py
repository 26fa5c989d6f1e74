"""One HTML page with everything in it: opens from a file, without network, in light and dark."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tiermem.errors import ConfigError
from tiermem.report.plots import figures
from tiermem.report.table import Table
from tiermem.report.tables import all_tables

__all__ = ["Section", "render_html", "render_study"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the page of a study."""

    title: str
    text: tuple[str, ...] = ()
    """Paragraphs."""
    tables: tuple[Table, ...] = ()
    plots: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """SVG text by title."""


def render_html(record: Mapping[str, Any], *, title: str) -> str:
    """The page of a record.

    Raises:
        ConfigError: if jinja2 or matplotlib is not installed.
    """
    runs = record["results"]["runs"].values()
    return _rendered(
        "template.html",
        title=title,
        record=record,
        clocks=" and ".join(sorted({run["clock"] for run in runs})),
        checks=record["quality"].get("checks", []),
        tables=all_tables(record),
        plots=figures(record),
        config=json.dumps(record["config"], indent=2),
        host=json.dumps(record["host"], indent=2),
        assumed=_assumed(record["config"]),
    )


def render_study(*, title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The page of a study.

    Raises:
        ConfigError: if jinja2 is not installed.
    """
    return _rendered("study.html", title=title, lead=lead, sections=sections)


def _rendered(template: str, **values: Any) -> str:  # noqa: ANN401 (what a template takes)
    try:
        import jinja2  # noqa: PLC0415 (an optional dependency)
    except ModuleNotFoundError:
        raise ConfigError("an HTML report needs jinja2: pip install 'tiermem[report]'") from None
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    folder = Path(str(resources.files("tiermem"))) / "report"
    style = (folder / "page.css").read_text(encoding="utf-8")
    text = (folder / template).read_text(encoding="utf-8")
    return environment.from_string(text).render(style=style, **values)


def _assumed(config: Mapping[str, Any]) -> list[str]:
    """Every assumed number of every device in the configuration."""
    found: set[str] = set()

    def walk(value: Any) -> None:  # noqa: ANN401 (a JSON value)
        if isinstance(value, Mapping):
            if "source" in value and isinstance(value["source"], Mapping):
                found.update(
                    f"{value.get('name')}: {path} ({source['ref']})"
                    for path, source in value["source"].items()
                    if source["kind"] == "assumed"
                )
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(config)
    return sorted(found)
