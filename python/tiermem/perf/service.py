"""How long a device takes for the requests of a step, in closed form.

Each stage of `docs/design/device-model.md` is a queue with a constant service time. With many requests
outstanding at random places, a media unit is near an M/D/1 queue; the requests in all stages add up to the
queue depth (Little's law), which gives the throughput. A step reads, and then writes: the two phases overlap
by as much as is outstanding when one follows the other, and the write buffer goes on draining. A memory with
measured curves takes the emulator's own formula.
"""

import dataclasses
import functools
import itertools
import math

from tiermem.config import DeviceSpec
from tiermem.config.device import ReadSpec, WriteSpec

__all__ = ["READ_STAGES", "WRITE_STAGES", "Demand", "DeviceService"]

READ_STAGES = ("controller", "read link", "media units")
WRITE_STAGES = ("controller", "write link", "write drain", "media units")

_BISECTIONS = 50
_SERIAL_SHARE = 1 - 1e-9
_BALLS_MAX = 4096
_BLOCK_BYTES = 4096
_YEAR_NS = 365 * 24 * 3600 * 1e9


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What a step asks of a device; means, so fractions are fine.

    Bytes are those of the link. `read_accesses` and `write_accesses` are pages, which are what media units
    serve.
    """

    reads: float = 0.0
    """Requests."""
    read_bytes: float = 0.0
    read_accesses: float = 0.0
    """Pages that they touch."""
    writes: float = 0.0
    """Requests."""
    write_bytes: float = 0.0
    write_accesses: float = 0.0
    sequential_share: float = 0.0
    """Of the bytes written, the share that continues the write before."""

    def __add__(self, other: "Demand") -> "Demand":
        """Both, one after the other."""
        written = self.write_bytes + other.write_bytes
        sequential = self.write_bytes * self.sequential_share + other.write_bytes * other.sequential_share
        return Demand(
            reads=self.reads + other.reads,
            read_bytes=self.read_bytes + other.read_bytes,
            read_accesses=self.read_accesses + other.read_accesses,
            writes=self.writes + other.writes,
            write_bytes=written,
            write_accesses=self.write_accesses + other.write_accesses,
            sequential_share=sequential / written if written else 0.0,
        )

    def reads_only(self) -> "Demand":
        """Its reads."""
        return Demand(reads=self.reads, read_bytes=self.read_bytes, read_accesses=self.read_accesses)

    def writes_only(self) -> "Demand":
        """Its writes."""
        return dataclasses.replace(self, reads=0.0, read_bytes=0.0, read_accesses=0.0)


class DeviceService:
    """Times of one device.

    Args:
        spec: its numbers, with the queue depth and the state of the tier.
    """

    def __init__(self, spec: DeviceSpec) -> None:
        self.spec = spec
        read = spec.read
        small = read.reference_bytes <= read.small_bytes
        command_ns = read.small_command_ns if small else read.command_ns
        link_ns = read.reference_bytes * 1e9 / read.bandwidth_bytes_per_s
        self._host_ns = float(spec.host.submit_ns + spec.host.complete_ns)
        self._fixed_ns = self._host_ns + command_ns + link_ns

    def stages_ns(self, demand: Demand) -> dict[str, float]:
        """Busy time of each stage; the longest is the least that the device needs, whatever is outstanding.

        The keys are "controller", "read link", "write link", "write drain" and "media units"; or "curve".
        """
        reads, writes = self.busy_ns(demand)
        return {stage: reads.get(stage, 0.0) + writes.get(stage, 0.0) for stage in {**reads, **writes}}

    def busy_ns(self, demand: Demand) -> tuple[dict[str, float], dict[str, float]]:
        """Busy time of each of `READ_STAGES` by reads and of `WRITE_STAGES` by writes; or of "curve"."""
        spec = self.spec
        if spec.curves:
            return (
                {"curve": self._curve_batch_ns(100, demand.read_accesses)},
                {"curve": self._curve_batch_ns(0, demand.write_accesses)},
            )
        units = max(1, spec.units)
        reads = {
            "controller": self._commands_ns(demand.reads, demand.read_bytes, spec.read),
            "read link": demand.read_bytes * 1e9 / spec.read.bandwidth_bytes_per_s,
            "media units": demand.read_accesses * self._media_ns(demand) / units if spec.units else 0.0,
        }
        writes = {
            "controller": self._commands_ns(demand.writes, demand.write_bytes, spec.write),
            "write link": demand.write_bytes * 1e9 / spec.write.bandwidth_bytes_per_s,
            "write drain": self._drain_ns(demand),
            "media units": self._background_ns(demand) / units,
        }
        return reads, writes

    @functools.cached_property
    def overlap_ns(self) -> float:
        """By how much reading and writing overlap in a step, if both take longer."""
        if self.spec.curves:
            return 0.0
        nbytes = self.spec.granule_bytes if self.spec.kind == "byte" else _BLOCK_BYTES
        one = Demand(
            reads=1, read_bytes=nbytes, read_accesses=1, writes=1, write_bytes=nbytes, write_accesses=1,
            sequential_share=1.0,
        )  # fmt: skip
        reads, writes = self.busy_ns(one)
        fronts = writes["controller"], writes["write link"]
        return 2 * self.spec.queue_depth * min(max(reads.values()), max(fronts))

    @functools.cached_property
    def buffered_ns(self) -> float:
        """How long the write buffer goes on draining when nothing more is written."""
        return self.spec.write.buffer_bytes * 1e9 / self.spec.write.drain_bytes_per_s

    def sustained_ns(self, demand: Demand) -> float:
        """Time per step if the device always has requests to go on with."""
        stages = self.stages_ns(demand)
        longest = max(stages.values())
        if self.spec.curves or longest == 0:
            return longest
        reading = self._closed_loop_ns(demand.reads_only())
        writing = self._closed_loop_ns(demand.writes_only(), drained_ns=self.buffered_ns)
        overlap = min(reading, writing, self.overlap_ns)
        return max(longest, reading + writing - overlap)

    def burst_ns(self, demand: Demand) -> float:
        """From submission of all requests at once to the completion of the last."""
        if self.spec.curves:
            return self._curve_ns(demand)
        requests = demand.reads + demand.writes
        if requests == 0:
            return 0.0
        sustained = self.sustained_ns(demand)
        accesses = max(demand.read_accesses, demand.reads)
        if demand.reads == 0 or self.spec.units == 0:
            return sustained + self.spec.write.acknowledge_ns + self._host_ns
        # What is outstanding at the end drains; the unit with the most of it is last.
        outstanding = min(requests, float(self.spec.queue_depth))
        share = outstanding / requests
        media_ns = self._media_ns(demand)
        last_ns = _most_loaded(accesses * share, self.spec.units) * media_ns + self._fixed_ns
        serial = max(time for stage, time in self.stages_ns(demand).items() if stage != "media units")
        last_ns = max(last_ns, serial * share + media_ns + self._fixed_ns, self._tail_ns(demand.reads))
        return sustained * (1 - share) + last_ns

    def worn_ns(self, demand: Demand, life_years: int) -> float:
        """How long a device may take for these writes, if it is to last so many years."""
        wear = self.spec.wear
        if wear.endurance_bytes == 0:
            return 0.0
        random_bytes, sequential_bytes = self._drains(demand)
        # The endurance is stated for random writes, which the medium amplifies.
        nbytes = random_bytes + sequential_bytes * 100 / wear.write_amplification_percent
        return nbytes / wear.endurance_bytes * life_years * _YEAR_NS

    def _commands_ns(self, requests: float, nbytes: float, direction: ReadSpec | WriteSpec) -> float:
        command_ns, small_bytes = direction.command_ns, direction.small_bytes
        is_small = requests > 0 and nbytes / requests <= small_bytes
        return requests * (direction.small_command_ns if is_small else command_ns)

    def _media_ns(self, demand: Demand) -> float:
        """Of one access."""
        read = self.spec.read
        latency_ns = float(read.latency_ns)
        if read.latency_by_bytes_ns and demand.read_accesses:
            latency_ns = _interpolate(read.latency_by_bytes_ns, demand.read_bytes / demand.read_accesses)
        return max(1.0, latency_ns - self._fixed_ns)

    def _drains(self, demand: Demand) -> tuple[float, float]:
        """Random and sequential bytes that drain, whole granules."""
        granule = self.spec.granule_bytes
        each = demand.write_bytes / demand.writes if demand.writes else 0.0
        grown = math.ceil(each / granule) * granule / each if each else 0.0
        nbytes = demand.write_bytes * grown
        sequential = 1.0 if self.spec.state == "fresh" else demand.sequential_share
        return nbytes * (1 - sequential), nbytes * sequential

    def _drain_ns(self, demand: Demand) -> float:
        write = self.spec.write
        random_bytes, sequential_bytes = self._drains(demand)
        sequential_rate = write.sequential_drain_bytes_per_s or write.drain_bytes_per_s
        return random_bytes * 1e9 / write.drain_bytes_per_s + sequential_bytes * 1e9 / sequential_rate

    def _background_ns(self, demand: Demand) -> float:
        """Programs, erases and stalls, all units together."""
        background = self.spec.background
        if background is None:
            return 0.0
        random_bytes, sequential_bytes = self._drains(demand)
        media_bytes = random_bytes * self.spec.wear.write_amplification_percent / 100 + sequential_bytes
        work_ns = media_bytes / background.program_bytes * background.program_ns
        if background.erase_bytes:
            work_ns += media_bytes / background.erase_bytes * background.erase_ns
        if background.stall_every_bytes and self.spec.state == "steady":
            work_ns += random_bytes / background.stall_every_bytes * background.stall_ns
        return work_ns

    def _closed_loop_ns(self, demand: Demand, drained_ns: float = 0.0) -> float:
        """Time at which what is in all stages adds up to the queue depth, for reads alone or writes alone.

        A drain that goes on for `drained_ns` afterwards holds nobody up.
        """
        units = self.spec.units
        requests = demand.reads + demand.writes
        if requests == 0:
            return 0.0
        reads, writes = self.busy_ns(demand)
        drain_ns = max(0.0, writes["write drain"] - drained_ns)
        media_ns = reads["media units"] * units
        idle_ns = requests * self._host_ns + demand.writes * self.spec.write.acknowledge_ns
        serial = [reads["controller"] + writes["controller"], reads["read link"], writes["write link"]]
        accesses_per_read = max(1.0, demand.read_accesses / demand.reads) if demand.reads else 1.0
        # On byte-addressable devices each access has a place in the queue of its own.
        depth = float(self.spec.queue_depth)
        if self.spec.kind == "block":
            depth *= accesses_per_read

        def outstanding(time_ns: float) -> float:
            held = idle_ns / time_ns
            if units:
                load = min(media_ns / (units * time_ns), _SERIAL_SHARE)
                held += units * (load + load * load / (2 * (1 - load)))
            return held + sum(min(stage_ns / time_ns, _SERIAL_SHARE) for stage_ns in serial)

        low = max(*serial, drain_ns, media_ns / max(1, units))
        if outstanding(low * (1 + 1e-6)) <= depth:
            return low
        high = low
        while outstanding(high) > depth:
            high *= 2
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if outstanding(middle) > depth else (low, middle)
        return high

    def _tail_ns(self, reads: float) -> float:
        """Latency that one of so many reads is expected to reach."""
        quantiles = self.spec.read.latency_quantiles_ns
        if not quantiles or reads < 2:
            return float(self.spec.read.latency_ns)
        probability = 1 - 1 / reads
        below = [(p, ns) for p, ns in quantiles if p <= probability]
        above = [(p, ns) for p, ns in quantiles if p > probability]
        if not below:
            return float(self.spec.read.latency_ns)
        if not above:
            return float(below[-1][1])
        # The latency's logarithm is linear in that of the survival probability, as in the emulator.
        (p0, ns0), (p1, ns1) = below[-1], above[0]
        weight = math.log((1 - p0) / (1 - probability)) / math.log((1 - p0) / (1 - p1))
        return float(ns0 * (ns1 / ns0) ** weight)

    def _curve_ns(self, demand: Demand) -> float:
        """As `CurveFamily::batch_ps`: reads, then writes, each as one batch."""
        return sum(
            self._curve_batch_ns(share, accesses)
            for share, accesses in ((100, demand.read_accesses), (0, demand.write_accesses))
        )

    def _curve_batch_ns(self, read_percent: int, accesses: float) -> float:
        if accesses <= 0:
            return 0.0
        page = float(self.spec.page_bytes)
        outstanding = min(accesses, float(self.spec.queue_depth))
        latency_ns, bytes_per_ns = _closed(self._curves[read_percent], max(1.0, outstanding) * page)
        return latency_ns + (accesses - outstanding) * page / bytes_per_ns

    @functools.cached_property
    def _curves(self) -> dict[int, tuple[tuple[float, float], ...]]:
        """Of reads (100) and writes (0): bandwidth in bytes per ns and latency in ns, the nearest curve."""
        nearest = {
            wanted: min(self.spec.curves, key=lambda curve: abs(curve.read_percent - wanted))
            for wanted in (100, 0)
        }
        return {
            wanted: tuple((bandwidth * 1e-9, float(ns)) for bandwidth, ns in curve.points)
            for wanted, curve in nearest.items()
        }


def _closed(curve: tuple[tuple[float, float], ...], target: float) -> tuple[float, float]:
    """Where latency x bandwidth is `target` bytes: latency in ns and bytes per ns."""
    for (x0, l0), (x1, l1) in itertools.pairwise(curve):
        if x1 * l1 >= target:
            slope = (l1 - l0) / (x1 - x0)
            linear = l0 - slope * x0
            if slope == 0:
                return linear, target / linear
            bytes_per_ns = (math.sqrt(linear * linear + 4 * slope * target) - linear) / (2 * slope)
            return target / bytes_per_ns, bytes_per_ns
    top = curve[-1][0]
    return target / top, top


def _interpolate(points: tuple[tuple[int, int], ...], at: float) -> float:
    """Straight lines between points, constant outside."""
    if at <= points[0][0]:
        return float(points[0][1])
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if at <= x1:
            return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return float(points[-1][1])


@functools.lru_cache(maxsize=4096)
def _most_loaded_cached(accesses: int, units: int) -> float:
    mean = accesses / units
    term = math.exp(-mean)
    below, expected, load = term, 0.0, 0
    while load < 2 or below < 1 - 1e-12 / units:
        expected += 1 - below**units
        load += 1
        term *= mean / load
        below += term
        if load > _BALLS_MAX:
            break
    return expected


def _most_loaded(accesses: float, units: int) -> float:
    """Expected accesses of the unit that has most of them, if each goes to a random one (Poisson)."""
    if accesses <= 0:
        return 0.0
    if accesses / units > 500:
        return accesses / units + math.sqrt(2 * accesses / units * math.log(max(2, units)))
    return _most_loaded_cached(math.ceil(accesses), units)
