"""What a planner is asked, and its answer where no plan exists.

A `Problem` is a value: the same problem always gets the same plan. `Infeasible` is an expected
outcome and therefore returned, not raised; the command line turns it into the error of that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mesh import errors
from mesh.core.costs import Costs
from mesh.core.graph import Cut, Graph
from mesh.core.ids import NodeId
from mesh.core.plan import Objective
from mesh.errors import UsageError
from mesh.planning.space import PLAIN, Space


@dataclass(frozen=True)
class Problem:
    """Place `graph` on a choice of `devices`, in any order, to the `objective`.

    Raises `UsageError` for unknown or repeated devices and for limits that make no sense.
    """

    graph: Graph
    costs: Costs
    devices: tuple[NodeId, ...]
    objective: Objective = Objective.THROUGHPUT
    stages: int | None = None
    """Forced number of stages; None lets the planner choose."""
    max_tensors: int | None = None
    """Inner cuts that carry more tensors are not used; None allows any number."""
    excluded: frozenset[NodeId] = frozenset()
    """Devices that must not be used."""
    head: NodeId | None = None
    """Device that must run the first stage, for example where the sensor is."""
    tail: NodeId | None = None
    """Device that must run the last stage."""
    trusted: frozenset[NodeId] | None = None
    """The only devices that may see the frames; None for all."""
    space: Space = PLAIN
    """Replicas, variants and codecs that may be chosen, and power; nothing but cuts and devices by default."""
    names: Mapping[NodeId, str] = field(default_factory=dict)
    """How people call the devices; used in texts only."""

    def __post_init__(self) -> None:
        if len(set(self.devices)) != len(self.devices):
            raise UsageError("devices: a device is listed twice")
        if self.stages is not None and self.stages < 1:
            raise UsageError(f"stages is {self.stages}; it must be at least 1")
        if self.max_tensors is not None and self.max_tensors < 1:
            raise UsageError(f"max_tensors is {self.max_tensors}; it must be at least 1")
        for device in self.devices:
            groups = len(self.costs.device(device).prefix_seconds) - 1
            if groups != len(self.graph.groups):
                raise UsageError(f"costs cover {groups} groups, the model has {len(self.graph.groups)}")
        for variant in self.space.variants:
            for device, prefix in variant.prefix_seconds.items():
                if len(prefix) != len(self.graph.groups) + 1:
                    name = f"variants[{variant.name}].prefix_seconds[{self.name_of(device)}]"
                    raise UsageError(f"{name} covers {len(prefix) - 1} groups, the model has {len(self.graph.groups)}")

    @property
    def usable_devices(self) -> tuple[NodeId, ...]:
        allowed = self.trusted if self.trusted is not None else self.devices
        return tuple(device for device in self.devices if device in allowed and device not in self.excluded)

    def name_of(self, device: NodeId) -> str:
        return self.names.get(device, device[:8])


@dataclass(frozen=True, slots=True)
class Infeasible:
    """No plan satisfies the problem; `reasons` say why, the most telling first."""

    reasons: tuple[str, ...]

    def as_error(self) -> errors.Infeasible:
        return errors.Infeasible("; ".join(self.reasons))


def usable_cuts(graph: Graph, max_tensors: int | None) -> tuple[Cut, ...]:
    """Both ends of the graph and the legal inner cuts that carry at most `max_tensors` tensors."""
    last = len(graph.groups)
    return tuple(
        cut for cut in graph.cuts if cut.position in (0, last) or max_tensors is None or len(cut.tensors) <= max_tensors
    )
