"""One HTML page with everything in it: opens from a file, without network, in light and dark."""

import json
from collections.abc import Mapping
from typing import Any

from tiermem.errors import ConfigError
from tiermem.report.plots import figures
from tiermem.report.tables import all_tables

__all__ = ["render_html"]

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --back: #ffffff; --ink: #1a1c1f; --quiet: #5b6068; --line: #d9dce1; --good: #00734d; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181b; --ink: #e4e6ea; --quiet: #a2a8b1; --line: #363a41; --good: #4fd0a0; --bad: #ff8a80; }
}
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.quiet, figcaption, footer { color: var(--quiet); font-size: 0.9rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.88rem; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; color: var(--ink); }
pre { overflow-x: auto; padding: 0.8rem; border: 1px solid var(--line); font-size: 0.8rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="quiet">Times and energy of emulated devices come from a model; they are not measurements of those devices.
Clock: {{ clocks }}. Results digest: {{ record.results_digest }}.</p>
{% for check in checks %}<p class="{{ 'good' if check.passed else 'bad' }}">{{ '✓' if check.passed else '✗' }} {{ check.text }}</p>
{% endfor %}
{% for table in tables %}
<h2>{{ table.title }}</h2>
<div class="wide"><table><thead><tr>{% for head in table.heads %}<th>{{ head }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody></table></div>
{% endfor %}
{% for name, svg in plots.items() %}
<h2>{{ name }}</h2>
<figure role="img" aria-label="{{ name }}">{{ svg | safe }}</figure>
{% endfor %}
<h2>Configuration and host</h2>
<details><summary>Resolved configuration (hash {{ record.config_hash }}, seed {{ record.seed }})</summary><pre>{{ config }}</pre></details>
<details><summary>Host: {{ record.host.processor }}, {{ record.host.cores }} cores, OMP_NUM_THREADS {{ record.host.omp_num_threads }}, {{ record.build_profile }} build</summary><pre>{{ host }}</pre></details>
{% if assumed %}<details><summary>{{ assumed | length }} numbers of the device files are assumptions</summary><ul>{% for line in assumed %}<li>{{ line }}</li>{% endfor %}</ul></details>{% endif %}
</body>
</html>
"""


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
    runs = record["results"]["runs"].values()
    return environment.from_string(_TEMPLATE).render(
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
