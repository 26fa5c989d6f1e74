"""A system of like nodes: its hierarchy, what its network and accelerators take, its power and its price."""

import dataclasses
from collections.abc import Mapping

from tiermem.config import DeviceSpec, Hierarchy
from tiermem.config.hierarchy import Layout
from tiermem.config.node import NodeConfig
from tiermem.config.study import StudyModelConfig
from tiermem.errors import CapacityError
from tiermem.planner.target import tiers_price_dollars, tiers_watts

__all__ = ["Machine", "StepParts", "scaled"]

_PASSES = 3
"""A forward pass and the two halves of a backward pass."""
_GRADIENT_BYTES = 4


def scaled(spec: DeviceSpec, factor: float) -> DeviceSpec:
    """So many like devices, rows striped over them evenly, as one device.

    Rates, units and queues are so many times those of one; latencies are the same.
    """

    def grown(value: int) -> int:
        return min(2**63 - 1, round(value * factor))

    def faster(value_ns: int) -> int:
        return round(value_ns / factor)

    read, write = spec.read, spec.write
    return spec.replace(
        capacity_bytes=grown(spec.capacity_bytes),
        units=grown(spec.units),
        queue_depth=max(1, grown(spec.queue_depth)),
        read=read.replace(
            command_ns=faster(read.command_ns),
            small_command_ns=faster(read.small_command_ns),
            bandwidth_bytes_per_s=grown(read.bandwidth_bytes_per_s),
        ),
        write=write.replace(
            command_ns=faster(write.command_ns),
            small_command_ns=faster(write.small_command_ns),
            bandwidth_bytes_per_s=grown(write.bandwidth_bytes_per_s),
            buffer_bytes=grown(write.buffer_bytes),
            drain_bytes_per_s=grown(write.drain_bytes_per_s),
            sequential_drain_bytes_per_s=grown(write.sequential_drain_bytes_per_s),
        ),
        curves=tuple(
            {
                "read_percent": curve.read_percent,
                "points": tuple((grown(rate), latency_ns) for rate, latency_ns in curve.points),
            }
            for curve in spec.curves
        ),
        wear=spec.wear.replace(endurance_bytes=grown(spec.wear.endurance_bytes)),
        power=spec.power.replace(
            idle_milliwatts=grown(spec.power.idle_milliwatts),
            read_milliwatts=grown(spec.power.read_milliwatts),
            write_milliwatts=grown(spec.power.write_milliwatts),
        ),
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepParts:
    """A step without rows, in nanoseconds."""

    compute_ns: float
    """Dense layers, forward and backward."""
    all_to_all_ns: float
    """Pooled rows, and their gradients back."""
    all_reduce_ns: float
    """Of dense gradients, with the ids of the next batch; what dense work does not hide."""
    overhead_ns: float

    @property
    def total_ns(self) -> float:
        """One after the other."""
        return self.compute_ns + self.all_to_all_ns + self.all_reduce_ns + self.overhead_ns


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Some tiers of a node, in so many nodes."""

    node: NodeConfig
    tiers: tuple[str, ...]
    """From fastest to slowest."""
    nodes: int

    @property
    def accelerators(self) -> int:
        """In all nodes."""
        return self.nodes * self.node.accelerators

    def devices(self) -> dict[str, DeviceSpec]:
        """All devices of a tier of a node as one, with all of its capacity."""
        return {
            name: scaled(self.node.tiers[name].spec(), self.node.tiers[name].count) for name in self.tiers
        }

    def hierarchy(
        self, *, staging_bytes: int, index_bytes: int, layout: Layout, cache_share: float = 1.0
    ) -> Hierarchy:
        """Of one node. Staging is taken out of the fastest tier.

        Args:
            staging_bytes: rows of the batches in flight.
            index_bytes: where rows lie in a log; taken out of the second tier, the memory of the host.
            layout: how rows lie on a block device.
            cache_share: of the memory of every tier but the slowest, as much as is used.
        """
        devices = self.devices()
        taken = (staging_bytes, index_bytes)
        tiers = []
        for position, (name, device) in enumerate(devices.items()):
            usable = device.capacity_bytes * self.node.tiers[name].usable_percent // 100
            usable -= taken[position] if position < len(taken) else 0
            if usable <= 0:
                raise CapacityError(
                    f'rows in flight or the index of a log take all of tier "{name}"; use more nodes'
                )
            tier: dict[str, object] = {"name": name, "policy": "lru", "device": device}
            if device.kind == "block":
                tier["layout"] = layout
            if position < len(devices) - 1:
                tier["cache"] = max(1, int(usable * cache_share))
            else:
                tier["device"] = device.replace(capacity_bytes=usable)
            tiers.append(tier)
        return Hierarchy.from_mapping({"tiers": tiers, "staging_bytes": max(1, staging_bytes)})

    def step(self, model: StudyModelConfig, *, batch: int, dims: int, lookups_per_sample: float) -> StepParts:
        """What a step of so many samples over all nodes takes besides rows.

        The composition is that of hybrid-parallel training: dense layers are replicated and their gradients
        reduced, tables are divided and their pooled rows exchanged.
        """
        network = self.node.network
        samples = batch / self.accelerators
        compute_ns = _PASSES * model.flops_per_sample * samples / self.node.compute.flops_per_s * 1e9
        all_to_all_ns = 2 * self._exchange_ns(samples * dims * network.pooled_value_bytes)
        ids_ns = self._exchange_ns(samples * lookups_per_sample * network.id_bytes)
        within = self.nodes == 1
        rate = network.all_reduce_within_bytes_per_s if within else network.all_reduce_bytes_per_s
        reduced_ns = _GRADIENT_BYTES * model.dense_parameters / rate * 1e9 if self.accelerators > 1 else 0.0
        return StepParts(
            compute_ns=compute_ns,
            all_to_all_ns=all_to_all_ns,
            all_reduce_ns=max(0.0, reduced_ns + ids_ns - compute_ns),
            overhead_ns=float(self.node.compute.overhead_ns_per_step),
        )

    def _exchange_ns(self, nbytes: float) -> float:
        """All-to-all of so many bytes that each accelerator has, in equal parts for all."""
        network, total = self.node.network, self.accelerators
        near, far = self.node.accelerators - 1, total - self.node.accelerators
        return (
            nbytes * near / total / network.within_bytes_per_s * 1e9
            + nbytes * far / total / network.between_bytes_per_s * 1e9
            + far * network.message_ns
        )

    def price_dollars(self) -> float:
        """Of all nodes."""
        return self.nodes * (self.node.price_dollars + tiers_price_dollars(self._bought()))

    def power_watts(self, busy: Mapping[str, tuple[float, float]]) -> float:
        """Of all nodes.

        Args:
            busy: by tier the shares of the time for which it reads and for which it writes.
        """
        return self.nodes * (self.node.power_watts + tiers_watts(self._bought(), busy))

    def _bought(self) -> dict[str, tuple[DeviceSpec, float]]:
        return {name: (device, 1.0) for name, device in self.devices().items()}
