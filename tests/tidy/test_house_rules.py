"""House rules, each with a message that says what to do. docs/ARCHITECTURE.md gives the reasons."""

import re
import subprocess
from pathlib import Path

import pytest
from tiermem.config import DeviceSpec, available

LINES_MAX = 500
MAY_USE_CORE = {
    "_interop.py", "emulator/bench.py", "emulator/device.py", "emulator/fit.py", "emulator/host.py",
    "emulator/nbd.py", "embedding/store.py", "embedding/table.py", "embedding/bag.py",
    "embedding/collection.py", "cli/runs.py",
    "serve/engine.py", "serve/loadgen.py", "data/access_stream.py", "data/synth.py", "data/trace_file.py",
}  # fmt: skip
# Arrays over bytes that are no tensors: trace files, and what the core computed of them.
MAY_VIEW_BYTES = {"access_stream.py", "trace.py", "trace_file.py"}
# A module of the core may use only modules of a lower level.
LEVELS = {
    "bits": 0, "error": 0, "units": 0, "clock": 0, "rng": 0, "planted": 0,
    "stats": 1, "backend": 2, "device": 3, "cache": 3, "nbd": 4,
    "tier": 4, "embedding": 5, "snapshot": 5, "trace": 5, "store": 6, "serve": 6, "testkit": 5,
}  # fmt: skip


def _tracked(root: Path, *patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [root / name for name in listed.stdout.split("\0") if name and (root / name).is_file()]


def test_files_are_short(root: Path) -> None:
    for path in _tracked(root, "*.rs", "*.py", "*.pyi"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= LINES_MAX, f"{path}: {lines} lines (max {LINES_MAX}); split it by responsibility"


def test_sources_are_ascii(root: Path) -> None:
    for path in _tracked(root, "*.rs", "*.py", "*.toml"):
        text = path.read_text(encoding="utf-8")
        assert text.isascii(), f"{path}: has characters that are not ASCII"


def test_only_named_modules_touch_the_extension(root: Path) -> None:
    package = root / "python" / "tiermem"
    for path in package.rglob("*.py"):
        name = str(path.relative_to(package))
        uses = re.search(
            r"^\s*(from tiermem import .*_core|from tiermem\._core|import tiermem\._core)",
            path.read_text(),
            re.M,
        )
        assert not uses or name in MAY_USE_CORE, f"{path}: goes past the layers; use emulator or embedding"


def test_raw_memory_of_tensors_is_taken_in_one_place(root: Path) -> None:
    package = root / "python" / "tiermem"
    for path in package.rglob("*.py"):
        if path.name != "_interop.py":
            assert "data_ptr(" not in path.read_text(), f"{path}: use _interop"
            assert "frombuffer(" not in path.read_text() or path.name in MAY_VIEW_BYTES, (
                f"{path}: use _interop"
            )


def test_modules_of_the_core_depend_downwards(root: Path) -> None:
    source = root / "rust_core" / "src"
    for path in source.rglob("*.rs"):
        module = path.relative_to(source).parts[0].removesuffix(".rs")
        if module == "lib":
            continue
        for used in re.findall(r"crate::(\w+)", path.read_text()):
            if used in LEVELS and used != module:
                below = LEVELS[used] < LEVELS[module] or used == "error"
                assert below, f"{path}: {module} must not use {used}"


def test_the_core_knows_no_python(root: Path) -> None:
    assert "pyo3" not in (root / "rust_core" / "Cargo.toml").read_text()


def test_unsafe_code_is_in_listed_files(root: Path) -> None:
    listed = {
        "rust_core/capi/src/lib.rs",
        "rust_core/src/backend/buffer.rs",
        "rust_core/src/backend/in_flight.rs",
        "rust_core/src/backend/in_flight_interleavings.rs",
        "rust_core/src/backend/uring.rs",
        "rust_core/src/embedding/kernels/avx2.rs",
        "rust_core/src/embedding/kernels/avx512.rs",
        "rust_core/src/embedding/kernels/mod.rs",
        "rust_core/py/src/buffer.rs",
    }
    for path in _tracked(root, "*.rs"):
        name = str(path.relative_to(root))
        assert "unsafe {" not in path.read_text() or name in listed, (
            f"{name}: unsafe code belongs in {sorted(listed)}"
        )


@pytest.mark.parametrize("name", available("devices"))
def test_every_number_of_a_device_has_a_source(name: str) -> None:
    spec = DeviceSpec.load(name)
    assert spec.name == name
    for path, source in spec.source.items():
        assert len(source.ref) > 5, path
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", source.date), path
    for point in spec.published:
        assert point.kind != "assumed", f"{name}: a published point has a source"
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", point.date)
    assert spec.published, "a device that nothing published can be compared with cannot be trusted"


def test_no_file_names_a_machine_or_a_registry(root: Path) -> None:
    for path in _tracked(root, "*.toml", "*.lock", "*.md", "*.sh", "Makefile", ".ci/*"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"index-url|extra-index", text), f"{path}: names an index"
        if path.suffix == ".lock":
            urls = set(re.findall(r"https?://\S+", text))
            assert urls <= {'https://github.com/rust-lang/crates.io-index"'}, f"{path}: {urls}"


def test_links_in_the_documentation_lead_somewhere(root: Path) -> None:
    for path in _tracked(root, "*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path}: link to {target}"
