"""What a planner is asked, and its answer where no plan exists.

A `Problem` is a value: the same problem always gets the same plan. `Infeasible` is an expected
outcome and therefore returned, not raised; the command line turns it into the error of that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mesh import errors
from mesh.core.costs import Costs
from mesh.core.fleet import Watts
from mesh.core.graph import Cut, Graph
from mesh.core.ids import NodeId
from mesh.core.plan import CODECS, DEFAULT_ANSWER_CHANGE, FLOAT, NO_LIMITS, RAW, Limits, Objective, PlanOptions
from mesh.errors import UsageError
from mesh.planning.space import MAX_REPLICAS, PLAIN, Codec, Space

LEAST_GAIN = 0.03
"""Less than the error of a prediction is not worth a device that may fail, and that makes every frame take longer."""


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
    least_gain: float = 0.0
    """For throughput, share by which one more device must make the plan faster; else it is left out."""
    space: Space = PLAIN
    """Replicas, variants and codecs that may be chosen, and power; nothing but cuts and devices by default."""
    answer_change: float = DEFAULT_ANSWER_CHANGE
    """That lossy codecs of `space` may make; told on to plans, which are held to it by whoever can run the model."""
    codecs: tuple[str, ...] = ()
    """That were allowed by name; `space` has those of them that are worth a search."""
    variant: str = FLOAT
    """Which variant the whole model is; told on to plans."""
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
    def limits(self) -> Limits:
        """What of the problem a plan that replaces its answer must keep to as well."""
        only = () if self.trusted is None else tuple(sorted(self.trusted))
        return Limits(
            only, tuple(sorted(self.excluded)), self.head, self.space.max_replicas, self.codecs, self.answer_change
        )

    @property
    def usable_devices(self) -> tuple[NodeId, ...]:
        allowed = self.trusted if self.trusted is not None else self.devices
        return tuple(device for device in self.devices if device in allowed and device not in self.excluded)

    def name_of(self, device: NodeId) -> str:
        return _name(device, self.names)


def make_problem(
    graph: Graph,
    costs: Costs,
    options: PlanOptions,
    names: Mapping[NodeId, str],
    watts: Mapping[NodeId, Watts] | None = None,
    codecs: tuple[Codec, ...] = (),
) -> Problem:
    """What `options` ask for, on all devices of `costs`. Raises `UsageError` as `check_options` does.

    Frames come over the network, unless the first stage is pinned to where they are made.
    """
    check_options(options, names)
    limits = options.limits
    return Problem(
        graph if limits.head is None else _made_at_the_head(graph),
        costs,
        tuple(costs.devices),
        options.objective,
        options.stages,
        excluded=frozenset(limits.excluded),
        head=limits.head,
        trusted=frozenset(limits.only) if limits.only else None,
        least_gain=LEAST_GAIN,
        space=Space(max_replicas=limits.replicas, watts=watts or {}, codecs=codecs),
        answer_change=limits.answer_change,
        codecs=limits.codecs,
        variant=options.variant,
        names=names,
    )


def _made_at_the_head(graph: Graph) -> Graph:
    """As far as costs go: nothing is received."""
    return replace(graph, cuts=tuple(replace(cut, bytes=0) if cut.position == 0 else cut for cut in graph.cuts))


def uncut(problem: Problem) -> Problem:
    """The same with the model in one piece: for one whose cuts cannot be proven equal to the whole."""
    return replace(problem, graph=replace(problem.graph, cuts=(problem.graph.cuts[0], problem.graph.cuts[-1])))


def check_options(options: PlanOptions, names: Mapping[NodeId, str]) -> None:
    """Raises `UsageError` for wishes that contradict each other, whatever the model and the costs are."""
    limits, head = options.limits, options.limits.head
    if options.forced is not None and (options.stages is not None or limits != NO_LIMITS):
        raise UsageError(
            "a given plan is carried out as it is; stages, pins and exclusions are for plans that are searched",
            hint="leave out either the plan or the others",
        )
    if head is not None and head in limits.excluded:
        raise UsageError(f"{_name(head, names)} is excluded and shall run the first stage", hint="give one of the two")
    if head is not None and not limits.allows(head):
        raise UsageError(
            f"{_name(head, names)} shall run the first stage and is not among the devices to use",
            hint="pin one of those, or allow it",
        )
    if limits.only and not any(limits.allows(device) for device in limits.only):
        raise UsageError("every device that may be used is excluded", hint="exclude fewer")
    if not 1 <= limits.replicas <= MAX_REPLICAS:
        raise UsageError(f"replicas is {limits.replicas}; it must be 1 to {MAX_REPLICAS}")
    unknown = [codec for codec in limits.codecs if codec not in CODECS or codec == RAW]
    if unknown:
        raise UsageError(f"codec {unknown[0][:40]!r} is not one to allow", hint=f"known: {', '.join(CODECS[1:])}")
    if not 0 < limits.answer_change <= 1:
        raise UsageError(f"answer_change is {limits.answer_change}; it must be above 0 and at most 1")
    if options.stages is not None and limits.replicas > 1:
        raise UsageError("a forced number of stages has one device per stage", hint="leave out stages or replicas")


def _name(device: NodeId, names: Mapping[NodeId, str]) -> str:
    return names.get(device, device[:8])


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
