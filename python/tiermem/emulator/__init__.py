"""Single emulated devices, loads on them, profiles made from published numbers, and what this host can do."""

from tiermem.emulator.bench import BenchPoint, Load, bench_device
from tiermem.emulator.device import Device, open_device
from tiermem.emulator.fio import targets_from_fio
from tiermem.emulator.fit import Fit, FitPoint, FitTargets, fit_device
from tiermem.emulator.host import HostReport, probe_host
from tiermem.emulator.nbd import NbdServer, ServerStats
from tiermem.emulator.predict import Comparison, Prediction, compare_published, predict

__all__ = [
    "BenchPoint",
    "Comparison",
    "Device",
    "Fit",
    "FitPoint",
    "FitTargets",
    "HostReport",
    "Load",
    "NbdServer",
    "Prediction",
    "ServerStats",
    "bench_device",
    "compare_published",
    "fit_device",
    "open_device",
    "predict",
    "probe_host",
    "targets_from_fio",
]
