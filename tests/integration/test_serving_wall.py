"""The engine beside a mapped file at small size: the same answers from both sides, and a whole report."""

import json
import subprocess
import sys
from pathlib import Path


def test_small_size(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "wall.json"
    command = [sys.executable, str(root / "benches" / "python" / "serving_wall.py"), "--small"]
    # The bench ends with an error if the sums of both sides differ in a bit.
    done = subprocess.run(
        [*command, "--directory", str(tmp_path), "--json", str(out)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    section = json.loads(out.read_text())["section"]
    assert section["figures"]["ratio, 1 threads"]["median"] > 0
    sides = [note.split(":")[0] for note in section["notes"]]
    assert {"tiermem", "mapped file"} <= set(sides)
    assert any("imit of" in note for note in section["notes"]), "whether memory was limited is said"
    assert [path.name for path in tmp_path.iterdir()] == ["wall.json"], "files are gone"
