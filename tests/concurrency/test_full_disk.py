"""A medium that is full: an error that says so, at once, and no stale row afterwards."""

import subprocess
import sys
from pathlib import Path

import pytest

# A limit on the size of files stands for a full disk; it holds for one process, hence a child.
PRELUDE = """
import resource, signal, sys
import numpy as np, torch
import tiermem as tm
from tiermem.errors import CapacityError, DeviceError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def fill_the_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

engine, directory = sys.argv[1:]
backend = tm.BackendConfig(engine=engine, directory=directory)
"""
DEVICE = """
device = tm.open_device("nand-p3700", capacity="4MiB", backend=backend)
fill_the_disk()
try:
    device.write_batch(np.arange(600) * 4096, np.zeros((600, 4096), dtype=np.uint8))
except DeviceError as error:
    assert error.errno is not None and "scratch file" in str(error), error
    print("refused")
"""
STORE = """
hierarchy = tm.Hierarchy.load("dram-nand", budgets={"dram": "512B"})
dram, nand = hierarchy.tiers
hierarchy = hierarchy.replace(tiers=(dram.model_dump(), nand.replace(backend=backend).model_dump()))
bag = tm.TieredEmbeddingBag(5000, 16, mode="sum", hierarchy=hierarchy, optimizer=tm.SGD(lr=1.0))
fill_the_disk()
errors = []
for step in range(20):
    try:
        ids = torch.arange(step % 2 * 2500, step % 2 * 2500 + 2500)
        bag(ids, torch.arange(0, 2500, 2)).sum().backward()
        bag.optimizer().step()
        bag.bags.store.read_rows(0, 0, 10)
    except (DeviceError, CapacityError) as error:
        errors.append(error)
assert len(errors) == 20 and isinstance(errors[0], DeviceError), errors
assert "tier=nand, operation=writing, rows=weight row" in str(errors[0]), errors[0]
try:
    bag.close()
except DeviceError:
    print("refused")
"""


@pytest.mark.parametrize("engine", ["file", "auto"])
@pytest.mark.parametrize("code", [DEVICE, STORE], ids=["device", "store"])
def test_a_full_disk_is_an_error_and_nothing_hangs(engine: str, code: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PRELUDE + code, engine, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "refused"
    assert list(tmp_path.iterdir()) == []
