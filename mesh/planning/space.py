"""What a plan may choose beyond cuts and devices: replicas, variants of the model, wire codecs; and what they cost.

All of it is off by default (`PLAIN`): one device per stage, the model as it is, tensors sent as they are. A value is
handed in with the `Problem`; prediction, pricing and validation read it, nobody edits it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mesh.core.costs import Costs
from mesh.core.fleet import Watts
from mesh.core.graph import Cut, Graph
from mesh.core.ids import NodeId
from mesh.core.plan import FLOAT, RAW
from mesh.errors import UsageError

MAX_REPLICAS = 64
"""As many as a fleet file has devices."""


@dataclass(frozen=True)
class Variant:
    """Another form of the model with the same groups, for example with 8-bit weights."""

    name: str
    prefix_seconds: Mapping[NodeId, tuple[float, ...]]
    """Per device that can run it, the seconds of groups `[0, i)`, as in `DeviceCosts`."""
    weight_bytes: Mapping[str, int] | None = None
    """Sizes of its weights by name; None where they are the model's."""
    cuts: frozenset[int] | None = None
    """Positions at which it may be cut; None for all of the model's."""


@dataclass(frozen=True)
class Codec:
    """How tensors are written on the wire between two stages."""

    name: str
    bytes_factor: float
    """Bytes on the wire over bytes of the tensors, where `factors` does not say it of a cut."""
    byte_seconds: Mapping[NodeId, float]
    """Per device that speaks it, CPU time per byte of the tensors: for writing, and for reading too where
    `read_byte_seconds` does not say it."""
    factors: Mapping[int, float] | None = None
    """By position, of the cuts at which it may be used; None where it may be used at all of them alike."""
    read_byte_seconds: Mapping[NodeId, float] = field(default_factory=dict)

    def seconds_of(self, device: NodeId) -> tuple[float, float] | None:
        """Per byte, for writing and for reading; None where `device` does not speak it."""
        if device not in self.byte_seconds:
            return None
        writing = self.byte_seconds[device]
        return writing, self.read_byte_seconds.get(device, writing)

    def may_cross(self, position: int) -> bool:
        return self.factors is None or position in self.factors

    def coded_bytes(self, cut: Cut) -> int:
        """What the tensors of `cut` take on the wire."""
        factor = self.bytes_factor if self.factors is None else self.factors.get(cut.position, self.bytes_factor)
        return math.ceil(cut.bytes * factor)


@dataclass(frozen=True, slots=True)
class Nic:
    """Rates of a device's network interface, which all its links share, in bytes per second."""

    up: float = math.inf
    down: float = math.inf


@dataclass(frozen=True)
class Space:
    """Options of a problem. Raises `UsageError` that names the field for figures that make no sense."""

    max_replicas: int = 1
    """Most devices that share the frames of one stage."""
    variants: tuple[Variant, ...] = ()
    """Besides the model as it is."""
    codecs: tuple[Codec, ...] = ()
    """Besides raw tensors."""
    nics: Mapping[NodeId, Nic] = field(default_factory=dict)
    """Where an interface limits a device further than its links do."""
    watts: Mapping[NodeId, Watts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.max_replicas <= MAX_REPLICAS:
            raise UsageError(f"max_replicas is {self.max_replicas}; it must be 1 to {MAX_REPLICAS}")
        for what, names, own in (
            ("variants", [variant.name for variant in self.variants], FLOAT),
            ("codecs", [codec.name for codec in self.codecs], RAW),
        ):
            if len({own, *names}) != len(names) + 1:
                raise UsageError(f"{what}: names must differ from each other and from {own!r}")
        for variant in self.variants:
            for node, prefix in variant.prefix_seconds.items():
                _check_prefix(prefix, f"variants[{variant.name}].prefix_seconds[{node}]")
        for codec in self.codecs:
            _check(codec.bytes_factor > 0, codec.bytes_factor, f"codecs[{codec.name}].bytes_factor", "above 0")
            for position, factor in (codec.factors or {}).items():
                _check(factor > 0, factor, f"codecs[{codec.name}].factors[{position}]", "above 0")
            for node, seconds in (*codec.byte_seconds.items(), *codec.read_byte_seconds.items()):
                _check(seconds >= 0, seconds, f"codecs[{codec.name}].byte_seconds[{node}]", "of 0 or more")
        for node, nic in self.nics.items():
            for name, rate in (("up", nic.up), ("down", nic.down)):
                if not rate > 0:
                    raise UsageError(f"nics[{node}].{name} is {rate}; it must be above 0")
        for node, watts in self.watts.items():
            _check(watts.idle >= 0, watts.idle, f"watts[{node}].idle", "of 0 or more")
            _check(watts.busy >= watts.idle, watts.busy, f"watts[{node}].busy", "of at least its idle power")

    @cached_property
    def codec_at(self) -> Mapping[str, Codec]:
        return {codec.name: codec for codec in self.codecs}

    @cached_property
    def variant_at(self) -> Mapping[str, Variant]:
        return {variant.name: variant for variant in self.variants}

    def compute_seconds(self, costs: Costs, device: NodeId, variant: str, start: int, end: int) -> float:
        """Seconds of groups `[start, end)`; infinite where `device` does not run the variant, or it has no such cut."""
        if variant == FLOAT:
            return costs.compute(device, start, end).seconds
        known = self.variant_at.get(variant)
        if known is None or device not in known.prefix_seconds or not keeps(known, start, end):
            return math.inf
        prefix = known.prefix_seconds[device]
        return prefix[end] - prefix[start]

    def handling_seconds(self, costs: Costs, device: NodeId, codec: str, cut: Cut, *, sent: bool) -> float:
        """CPU time of one message at either end, coding included; infinite where `device` does not speak it, or where
        it may not be used at `cut`."""
        if codec == RAW:
            return costs.handling(device, cut.bytes, sent=sent).seconds
        known = self.codec_at.get(codec)
        coding = None if known is None else known.seconds_of(device)
        if known is None or coding is None or not known.may_cross(cut.position):
            return math.inf
        moved = costs.handling(device, known.coded_bytes(cut), sent=sent).seconds
        return moved + coding[0 if sent else 1] * cut.bytes

    def wire_bytes(self, codec: str, cut: Cut) -> int:
        known = self.codec_at.get(codec)
        return cut.bytes if known is None else known.coded_bytes(cut)

    def link_bytes_per_second(self, costs: Costs, source: NodeId, target: NodeId) -> float:
        """Of a link and the interfaces at its ends, the slowest."""
        rate = costs.link(source, target).bytes_per_second
        return min(rate, self.nic(source).up, self.nic(target).down)

    def nic(self, device: NodeId) -> Nic:
        return self.nics.get(device, UNLIMITED)

    def graph_of(self, graph: Graph, variant: str) -> Graph:
        """`graph` with the weights of `variant`, for what depends on their size."""
        known = self.variant_at.get(variant)
        if known is None or known.weight_bytes is None:
            return graph
        return _reweigh(graph, known.weight_bytes)


def without_beaten(codecs: Sequence[Codec]) -> tuple[Codec, ...]:
    """Those that some plan could need: each takes fewer bytes somewhere, or less time on some device, than any other.

    Of equal ones the first stays.
    """
    kept: list[Codec] = []
    for index, codec in enumerate(codecs):
        others = [*kept, *codecs[index + 1 :]]
        if not any(_beats(other, codec) for other in others):
            kept.append(codec)
    return tuple(kept)


def _beats(one: Codec, other: Codec) -> bool:
    """Whether `one` is at least as good wherever `other` may be used, and speaks on all of its devices."""
    if other.factors is None:
        is_smaller = one.factors is None and one.bytes_factor <= other.bytes_factor
    else:
        is_smaller = all(
            one.may_cross(position) and _factor(one, position) <= factor for position, factor in other.factors.items()
        )
    return is_smaller and all(
        (mine := one.seconds_of(device)) is not None
        and (its := other.seconds_of(device)) is not None
        and mine[0] <= its[0]
        and mine[1] <= its[1]
        for device in other.byte_seconds
    )


def _factor(codec: Codec, position: int) -> float:
    return codec.bytes_factor if codec.factors is None else codec.factors.get(position, codec.bytes_factor)


UNLIMITED = Nic()
PLAIN = Space()


def keeps(variant: Variant, start: int, end: int) -> bool:
    return variant.cuts is None or (start in variant.cuts and end in variant.cuts)


def _reweigh(graph: Graph, weight_bytes: Mapping[str, int]) -> Graph:
    return Graph(
        graph.model_sha256,
        graph.model_bytes,
        graph.inputs,
        graph.outputs,
        graph.groups,
        graph.cuts,
        graph.specs,
        {name: weight_bytes.get(name, nbytes) for name, nbytes in graph.weight_bytes.items()},
        graph.notes,
    )


def _check(right: bool, value: float, name: str, wanted: str) -> None:
    if not right or not math.isfinite(value):
        raise UsageError(f"{name} is {value}; it must be a finite number {wanted}")


def _check_prefix(prefix: tuple[float, ...], name: str) -> None:
    if not prefix or prefix[0] != 0:
        raise UsageError(f"{name} must begin with 0")
    for index, value in enumerate(prefix[1:], start=1):
        _check(value >= prefix[index - 1], value, f"{name}[{index}]", "not below the one before it")
