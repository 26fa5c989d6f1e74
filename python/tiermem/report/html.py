"""One HTML page with everything in it: opens from a file, without network, in light and dark."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from tiermem.errors import ConfigError
from tiermem.report.plots import figures
from tiermem.report.tables import all_tables

__all__ = ["render_html"]


def render_html(record: Mapping[str, Any], *, title: str) -> str:
    """The page of a record.

    Raises:
        ConfigError: if jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2  # noqa: PLC0415 (an optional dependency)
    except ModuleNotFoundError:
        raise ConfigError("an HTML report needs jinja2: pip install 'tiermem[report]'") from None
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = (Path(str(resources.files("tiermem"))) / "report" / "template.html").read_text(
        encoding="utf-8"
    )
    runs = record["results"]["runs"].values()
    return environment.from_string(template).render(
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
