"""`tiermem data`: what there is, and how to get it."""

import argparse
from pathlib import Path
from typing import Any

from tiermem.cli.common import Output, add_output_options
from tiermem.data import DATA_SETS, data_directory, fetch_ml_100k
from tiermem.errors import ConfigError

__all__ = ["add"]


def add(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Adds the verb."""
    parser = verbs.add_parser("data", help="list and fetch data sets")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="data sets that have a name")
    add_output_options(listing)
    listing.set_defaults(run=_list)
    fetch = actions.add_parser(
        "fetch", help="fetch a data set into $TIERMEM_DATA (default: the user's cache directory)"
    )
    fetch.add_argument("name", metavar="NAME", help="ml-100k")
    fetch.add_argument(
        "--from",
        dest="source",
        metavar="PATH",
        help="a copy that you have: the RecBole 1.2.1 wheel, or a folder of its atomic files",
    )
    fetch.add_argument("--force", action="store_true", help="replace a copy that is there")
    add_output_options(fetch)
    fetch.set_defaults(run=_fetch)


def _list(options: argparse.Namespace) -> int:
    output = Output(options)
    for name, text in DATA_SETS.items():
        output.result(f"{name:<14} {text}")
    output.document({"data_sets": dict(DATA_SETS), "directory": str(data_directory())})
    return 0


def _fetch(options: argparse.Namespace) -> int:
    output = Output(options)
    if options.name != "ml-100k":
        shipped = " ships with the package" if options.name in DATA_SETS else " is not a data set"
        raise ConfigError(f'"{options.name}"{shipped}; only ml-100k is fetched')
    source = None if options.source is None else Path(options.source)
    if source is not None and not source.exists():
        raise ConfigError(f"there is no {source}")
    folder = fetch_ml_100k(source, force=options.force)
    output.result(f"ml-100k is in {folder} (checked by SHA-256)")
    output.document({"name": "ml-100k", "folder": str(folder)})
    return 0
