"""The comparison with FBGEMM's IntNBit at small size: its checks of values, not its times."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

HAS_FBGEMM = importlib.util.find_spec("fbgemm_gpu") is not None


@pytest.mark.parametrize("with_fbgemm", [False, True])
def test_small_shapes(root: Path, tmp_path: Path, with_fbgemm: bool) -> None:
    if with_fbgemm and not HAS_FBGEMM:
        pytest.skip("FBGEMM is in the environment of make peers alone")
    out = tmp_path / "serving.json"
    command = [sys.executable, str(root / "benches" / "python" / "compare_serving.py"), "--small", "--json"]
    arguments = [str(out)] if with_fbgemm else [str(out), "--without-fbgemm"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sections = json.loads(out.read_text())["sections"]
    assert len(sections) == 6
    for section in sections.values():
        assert len(section["targets"]) == (2 if with_fbgemm else 0)
        assert "tiermem" in section["figures"]["gather, dequantise and pool"]
