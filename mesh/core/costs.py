"""What things take, in seconds: the only place in the system where seconds come from.

Planning, simulation and the comparison of a running plan with its prediction all ask one `Costs`.
It is an immutable value about one model on one fleet: for each device the seconds of every prefix of
the model's operator groups, its memory and what handling a message costs its CPU; for each ordered
pair of devices a `Link`. Whoever measured (the coordinator) makes it and owns it; nobody edits it.

Every answer is a `Figure`, which says whether it was measured or estimated. A device's whole-model
time is measured on the device, shared over the groups by their work. Where no board has run the
model (it may not fit), the time is estimated from the matrix-multiplication rate of the device,
corrected by how far other devices fall short of theirs on this very model.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from mesh.core.fleet import Capabilities, Handling, Link
from mesh.core.graph import Graph
from mesh.core.ids import NodeId
from mesh.core.memory import ESTIMATED, MemoryModel
from mesh.errors import UsageError

ASSUMED_EFFICIENCY = 0.5
"""Share of its matrix-multiplication rate that a device reaches on a whole model, used only while no
device has run the model. It scales all such devices alike, so it does not change which is faster."""


CORES_DECIMALS = 2
"""Of a device type: a cgroup quota is told in hundredths of a core."""


@dataclass(frozen=True, slots=True)
class DeviceType:
    """What equal devices have in common: figures measured on one of them hold for the others."""

    hardware: str
    """What the board or its processor calls itself."""
    cores: float
    """The share that the node may use, a quota included."""
    runtime_version: str
    mode: str
    """Threads per run x runs at once."""


def type_of(capabilities: Capabilities) -> DeviceType:
    told = capabilities
    cores = round(told.cores, CORES_DECIMALS)
    return DeviceType(told.hardware or told.arch, cores, told.runtime_version, told.mode)


@dataclass(frozen=True, slots=True)
class Figure:
    """A duration and where it comes from. A sum is measured only if all its parts are."""

    seconds: float
    measured: bool

    def __add__(self, other: Figure) -> Figure:
        return Figure(self.seconds + other.seconds, self.measured and other.measured)


@dataclass(frozen=True, slots=True)
class DeviceCosts:
    """One device. `prefix_seconds[i]` is the time of groups `[0, i)`; it begins with 0 and never falls."""

    prefix_seconds: tuple[float, ...]
    memory_bytes: int
    measured: bool
    handling: Handling = field(default_factory=Handling)
    run_seconds: float = 0.0
    """Of one call, however little it computes; in no prefix."""
    cut_seconds: float = 0.0
    """What each end of a segment that is not an end of the model adds to its time."""
    memory: MemoryModel = ESTIMATED
    """What of `memory_bytes` a segment takes here."""

    def seconds(self, start: int, end: int) -> float:
        """Of groups `[start, end)` as a segment of its own."""
        ends = (start > 0) + (end < len(self.prefix_seconds) - 1)
        return self.prefix_seconds[end] - self.prefix_seconds[start] + (self.run_seconds + ends * self.cut_seconds)

    @property
    def whole_model_seconds(self) -> float:
        return self.prefix_seconds[-1] + self.run_seconds


@dataclass(frozen=True)
class Costs:
    """Seconds for one model on one fleet.

    `links` holds every ordered pair of distinct devices. Raises `UsageError` that names the field for
    a missing link, prefix sums of different lengths, and figures that are no finite, sensible number.
    """

    devices: Mapping[NodeId, DeviceCosts]
    links: Mapping[tuple[NodeId, NodeId], Link]

    def __post_init__(self) -> None:
        lengths = {len(device.prefix_seconds) for device in self.devices.values()}
        if len(lengths) > 1:
            raise UsageError(f"prefix_seconds: devices disagree on the number of groups: {sorted(lengths)}")
        for node, device in self.devices.items():
            _check_device(node, device)
        for source in self.devices:
            for target in self.devices:
                if source != target:
                    _check_link(source, target, self.links.get((source, target)))

    @classmethod
    def from_measurements(
        cls,
        graph: Graph,
        whole_model_seconds: Mapping[NodeId, float | None],
        gflops: Mapping[NodeId, float],
        links: Mapping[tuple[NodeId, NodeId], Link],
        memory_bytes: Mapping[NodeId, int],
        *,
        handling: Mapping[NodeId, Handling] | None = None,
        group_work: Sequence[float] | None = None,
    ) -> Costs:
        """Costs of `graph` on the devices that are the keys of `whole_model_seconds`.

        `whole_model_seconds`: measured time of one inference of the whole model, None where the device
        has not run it. `gflops`: 10^9 floating-point operations per second of the probe; needed where
        the time is None, and of the others to learn how far a device falls short of its probe.
        `group_work`: relative work of each group, for example seconds from a profile on some device;
        floating-point operations by default. Raises `UsageError` naming the field that makes no sense.
        """
        for node, seconds in whole_model_seconds.items():
            if seconds is not None:
                _check_positive(seconds, f"whole_model_seconds[{node}]")
            if seconds is None or node in gflops:
                _check_positive(gflops.get(node), f"gflops[{node}]")
            if node not in memory_bytes:
                raise UsageError(f"memory_bytes[{node}] is missing")
        shares = _work_prefix(graph, group_work)
        probe_work = _probe_giga_operations(graph, whole_model_seconds, gflops)
        devices = {}
        for node, seconds in whole_model_seconds.items():
            total = probe_work / gflops[node] if seconds is None else seconds
            devices[node] = DeviceCosts(
                prefix_seconds=tuple(share * total for share in shares),
                memory_bytes=memory_bytes[node],
                measured=seconds is not None,
                handling=(handling or {}).get(node, Handling()),
            )
        return cls(devices, links)

    def device(self, node: NodeId) -> DeviceCosts:
        """What is known of `node`; raises `UsageError` for a device that these costs do not cover."""
        try:
            return self.devices[node]
        except KeyError:
            raise UsageError(f"no costs are known of device {node!r}", hint="measure it before planning") from None

    def link(self, source: NodeId, target: NodeId) -> Link:
        """The link from `source` to another device; raises `UsageError` for an unknown pair."""
        try:
            return self.links[source, target]
        except KeyError:
            raise UsageError(f"links[{source} -> {target}] is missing") from None

    def compute(self, device: NodeId, start: int, end: int) -> Figure:
        """Time to compute groups `[start, end)` once on `device`, without sending or receiving."""
        costs = self.device(device)
        return Figure(costs.seconds(start, end), costs.measured)

    def handling(self, device: NodeId, nbytes: int, *, sent: bool) -> Figure:
        """CPU time of `device` to send, else to receive, one message of `nbytes`."""
        costs = self.device(device).handling
        return Figure(costs.seconds(nbytes, sent=sent), costs.measured)

    def transfer(self, source: NodeId, target: NodeId, nbytes: int) -> Figure:
        """Time from the first byte sent to the last byte received; 0 from a device to itself."""
        if source == target:
            return Figure(0.0, True)
        link = self.link(source, target)
        return Figure(link.latency_seconds + nbytes / link.bytes_per_second, link.measured)


def _work_prefix(graph: Graph, group_work: Sequence[float] | None) -> tuple[float, ...]:
    """Share of the whole work in groups `[0, i)` for every position; equal shares where there is no work."""
    work = [float(group.flops) for group in graph.groups] if group_work is None else list(group_work)
    if len(work) != len(graph.groups):
        raise UsageError(f"group_work has {len(work)} entries for {len(graph.groups)} groups")
    for index, value in enumerate(work):
        if not math.isfinite(value) or value < 0:
            raise UsageError(f"group_work[{index}] is {value}; it must be a finite number of 0 or more")
    total = sum(work)
    if total == 0:
        work, total = [1.0] * len(work), float(len(work))
    return (0.0, *(partial / total for partial in accumulate(work)))


def _probe_giga_operations(
    graph: Graph, whole_model_seconds: Mapping[NodeId, float | None], gflops: Mapping[NodeId, float]
) -> float:
    """What one inference is worth in 10^9 operations of the probe, to divide by a device's rate.

    Devices that ran the model say it as seconds times rate; the median of them is taken.
    """
    worth = [
        seconds * gflops[node]
        for node, seconds in whole_model_seconds.items()
        if seconds is not None and node in gflops
    ]
    return statistics.median(worth) if worth else graph.flops / 1e9 / ASSUMED_EFFICIENCY


def _check_positive(value: float | None, field_name: str) -> None:
    if value is None:
        raise UsageError(f"{field_name} is missing")
    if not math.isfinite(value) or value <= 0:
        raise UsageError(f"{field_name} is {value}; it must be a finite number above 0")


def _check_not_negative(value: float, field_name: str) -> None:
    if not math.isfinite(value) or value < 0:
        raise UsageError(f"{field_name} is {value}; it must be a finite number of 0 or more")


def _check_device(node: NodeId, device: DeviceCosts) -> None:
    prefix = device.prefix_seconds
    if not prefix or prefix[0] != 0:
        raise UsageError(f"prefix_seconds[{node}] must begin with 0")
    for index, value in enumerate(prefix):
        _check_not_negative(value, f"prefix_seconds[{node}][{index}]")
        if index and value < prefix[index - 1]:
            raise UsageError(f"prefix_seconds[{node}][{index}] is below the one before it")
    _check_not_negative(device.run_seconds, f"run_seconds[{node}]")
    _check_not_negative(device.cut_seconds, f"cut_seconds[{node}]")
    _check_positive(device.memory_bytes, f"memory_bytes[{node}]")
    _check_not_negative(device.handling.message_seconds, f"handling[{node}].message_seconds")
    _check_not_negative(device.handling.byte_seconds, f"handling[{node}].byte_seconds")
    if device.handling.sent_byte_seconds is not None:
        _check_not_negative(device.handling.sent_byte_seconds, f"handling[{node}].sent_byte_seconds")


def _check_link(source: NodeId, target: NodeId, link: Link | None) -> None:
    name = f"links[{source} -> {target}]"
    if link is None:
        raise UsageError(f"{name} is missing", hint="every ordered pair of devices needs a measured or assumed link")
    _check_not_negative(link.latency_seconds, f"{name}.latency_seconds")
    _check_positive(link.bytes_per_second, f"{name}.bytes_per_second")
