"""Fixtures. What pytest imports is the installed wheel, never the tree; `packaging` checks it."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def ml_100k() -> Path:
    """MovieLens-100K in the user's cache, fetched once; a host without network skips, and says so."""
    from tiermem.data import fetch_ml_100k
    from tiermem.errors import DeviceError

    try:
        return fetch_ml_100k()
    except DeviceError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"MovieLens-100K is not in the cache and cannot be fetched: {error}")


@pytest.fixture
def tiny_ml_100k(tmp_path: Path) -> Path:
    """Twelve hand-made interactions in the format of MovieLens-100K."""
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    inter = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    # 881250949 is Thursday 1997-12-04 15:55:49 in UTC; the twelve hours run into Friday.
    inter += [f"{n % 3 + 1}\t{n % 4 + 1}\t{n % 5 + 1}\t{881250949 + n * 3600}" for n in range(12)]
    (folder / "ml-100k.inter").write_text("\n".join(inter) + "\n")
    users = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
    users += ["1\t24\tM\ttechnician\t85711", "2\t53\tF\tother\t94043", "3\t24\tM\twriter\t32067"]
    (folder / "ml-100k.user").write_text("\n".join(users) + "\n")
    items = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    items += [
        "1\tToy Story\t1995\tAnimation Comedy",
        "2\tGoldenEye\t1995\tAction",
        "3\tX\t\t",
        "4\tY\t1994\tComedy",
    ]
    (folder / "ml-100k.item").write_text("\n".join(items) + "\n")
    return folder
