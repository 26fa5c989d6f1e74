"""Same seed, configuration and trace: the same results on every host, to the bit."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiermem.config import available
from tiermem.results import canonical, digest

HERE = Path(__file__).parent


def _load_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden", HERE / "golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = _load_module()
EXPECTED: dict[str, Any] = json.loads((HERE / "golden.json").read_text())


@pytest.mark.parametrize("name", available("devices"))
def test_devices_give_the_golden_results(name: str) -> None:
    rows = canonical(golden.device_rows(name))
    expected = EXPECTED["devices"][name]
    # The figures first: a failure that shows them says more than one that shows a digest.
    assert [row["iops"] for row in rows] == expected["iops"]
    assert [row["mean_us"] for row in rows] == expected["mean_us"]
    assert digest(rows) == expected["digest"]


@pytest.mark.parametrize("name", available("hierarchies"))
def test_trainings_give_the_golden_results(name: str, tmp_path: Path) -> None:
    assert golden.training_digest(name, tmp_path) == EXPECTED["trainings"][name]


def test_the_golden_file_covers_everything_that_is_shipped() -> None:
    assert sorted(EXPECTED["devices"]) == available("devices")
    assert sorted(EXPECTED["trainings"]) == available("hierarchies")
