"""MovieLens-100K as the demo uses it. GroupLens does not allow redistribution: see `fetch`."""

import datetime
from collections.abc import Callable
from pathlib import Path

from tiermem.config.experiment import Ml100kData
from tiermem.data.dataset import Dataset, Split
from tiermem.data.fetch import data_directory
from tiermem.data.recbole import categorical, join, multi_hot, normalise, read_atomic
from tiermem.errors import ConfigError

__all__ = ["read_ml_100k"]

_USER_COLUMNS = ("age", "gender", "occupation", "zip_code")


def read_ml_100k(config: Ml100kData, split_of: Callable[[int], Split]) -> Dataset:
    """100,000 ratings: nine categorical columns, genres as bags, the timestamp as a dense feature.

    Hour and weekday are those of the timestamp in UTC.
    """
    folder = data_directory() / "ml-100k" if config.path is None else Path(config.path)
    if not folder.is_dir():
        raise ConfigError(
            f'there is no folder {folder}; run "tiermem data fetch ml-100k" first'
            " (with --from PATH if you have a copy)"
        )
    inter = read_atomic(folder / "ml-100k.inter")
    users = read_atomic(folder / "ml-100k.user")
    items = read_atomic(folder / "ml-100k.item")
    user_rows, item_rows = join(inter, users), join(inter, items)
    times = inter.numbers("timestamp")
    moments = [datetime.datetime.fromtimestamp(time, tz=datetime.UTC) for time in times]

    def of_item(name: str) -> list[str]:
        texts = items.text(name)
        return [texts[row] for row in item_rows]

    sparse = [
        categorical("user_id", inter.text("user_id")),
        categorical("item_id", inter.text("item_id")),
    ]
    for name in _USER_COLUMNS:
        texts = users.text(name)
        sparse.append(categorical(name, [texts[row] for row in user_rows]))
    sparse.append(categorical("release_year", of_item("release_year")))
    sparse.append(categorical("hour", [f"{moment.hour:02}" for moment in moments]))
    sparse.append(categorical("weekday", [str(moment.weekday()) for moment in moments]))
    sparse.append(multi_hot("genres", of_item("class")))
    split = split_of(len(inter))
    labels = (inter.numbers("rating") >= config.label_threshold).astype("float32")
    return Dataset("ml-100k", normalise([times], split, len(inter)), tuple(sparse), labels, split)
