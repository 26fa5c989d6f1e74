"""What is tested is the installed wheel, and it carries everything that it needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiermem
from tiermem import _core, errors
from tiermem.config import available


def _python(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pytest_imports_the_wheel_and_not_the_tree(root: Path) -> None:
    location = Path(tiermem.__file__).resolve()
    assert "site-packages" in location.parts
    assert not location.is_relative_to(root / "python")
    assert _core.BUILD_PROFILE == "release"
    assert tiermem.__version__ == _core.__version__


def test_import_needs_neither_torch_nor_the_extension(tmp_path: Path) -> None:
    code = """
import json, sys
import tiermem
first = [name for name in ("torch", "tiermem._core", "numpy", "matplotlib") if name in sys.modules]
tiermem.Hierarchy.load("dram-nand")
import tiermem.perf, tiermem.report, tiermem.results
second = [name for name in ("torch", "tiermem._core") if name in sys.modules]
print(json.dumps([first, second]))
"""
    assert json.loads(_python(code, tmp_path)) == [[], []]


def test_names_resolve_from_any_folder_of_the_installed_package(tmp_path: Path) -> None:
    code = "import tiermem as tm; print(tm.Hierarchy.load('dram-optane-nand').tiers[1].device.name)"
    assert _python(code, tmp_path).strip() == "optane-p4800x"


def test_the_shipped_files_are_those_of_the_checkout(root: Path) -> None:
    installed = Path(tiermem.__file__).parent / "emulator_configs"
    for tree in (root / "emulator_configs", root / "python" / "tiermem" / "emulator_configs"):
        files = sorted(path.relative_to(tree) for path in tree.rglob("*.toml"))
        assert files == sorted(path.relative_to(installed) for path in installed.rglob("*.toml"))
        for path in files:
            assert (tree / path).read_bytes() == (installed / path).read_bytes()
    assert available("devices")


def test_every_kind_of_error_has_a_class_of_the_tree() -> None:
    classes = dict(_core.error_classes())
    assert len(classes) == 8
    for name in classes.values():
        assert issubclass(getattr(errors, name), errors.TiermemError)
    assert classes["Config"] == "ConfigError"
    assert classes["NoSpace"] == "DeviceError"
    assert classes["Corruption"] == "CorruptionError"


def test_every_public_name_exists_and_is_listed() -> None:
    for name in tiermem.__all__:
        assert getattr(tiermem, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tiermem.nothing


def test_the_licences_of_the_trace_travel_with_it() -> None:
    folder = Path(tiermem.__file__).parent / "data" / "traces"
    assert "Apache-2.0" in (folder / "SOURCES.txt").read_text()
    assert (folder / "scarab-recs.trace.xz").is_file()
