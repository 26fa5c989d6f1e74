"""Single emulated devices, and what this host can do."""

from tiermem.emulator.bench import BenchResult, bench_device
from tiermem.emulator.device import Device, open_device
from tiermem.emulator.host import HostReport, probe_host

__all__ = ["BenchResult", "Device", "HostReport", "bench_device", "open_device", "probe_host"]
