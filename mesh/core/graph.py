"""A model's summary for planning: operator groups in a topological order and the cuts between them.

This is not ONNX: it holds sizes and names only, so that planning needs nothing but this. `mesh.model`
makes it. Group `i` lies between positions `i` and `i+1`; a cut at position `p` separates groups
`[0, p)` from `[p, n)`. Position 0 is before everything, position `n` after everything.

`Graph.cuts` lists the legal cuts in ascending position. It always contains positions 0 (the model's
inputs) and `n` (its outputs); positions at which something that cannot travel is live are absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from mesh.core.ids import Sha256
from mesh.core.tensor import TensorSpec


@dataclass(frozen=True, slots=True)
class OperatorGroup:
    """The smallest unit that is never split: a fused pattern, a Q/DQ pair, a whole If or Loop."""

    index: int
    name: str
    kinds: tuple[str, ...]
    """Operator types in it, e.g. ("Conv", "Relu")."""
    nodes: tuple[int, ...]
    """Positions of its nodes in the (normalised) ONNX graph's node list."""
    flops: int
    """Floating-point operations, multiply and add counted as two; symbolic dimensions at 1."""
    weights: tuple[str, ...]
    """Names of the initialisers that it reads; sizes are in `Graph.weight_bytes`."""
    activation_bytes: int
    """Bytes of the tensors it makes, symbolic dimensions at 1."""
    reads: tuple[str, ...]
    """Activations that it reads and does not make (model inputs among them), each once, in order of first use."""
    makes: tuple[str, ...]
    """Activations that it makes, in order; a tensor is made by exactly one group."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A position and the tensors that are live there: made before (or inputs), needed after (or outputs)."""

    position: int
    tensors: tuple[str, ...]
    bytes: int
    """What one frame carries across, symbolic dimensions at 1; strings and unknown ranks count 0."""


@dataclass(frozen=True)
class Graph:
    """Immutable summary of one model."""

    model_sha256: Sha256
    model_bytes: int
    """Size of the model as one file, weights included."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    groups: tuple[OperatorGroup, ...]
    cuts: tuple[Cut, ...]
    specs: Mapping[str, TensorSpec]
    """Every tensor that some cut carries, by name."""
    weight_bytes: Mapping[str, int]
    notes: tuple[str, ...] = ()
    """What limited the analysis, for people: e.g. why no inner cut is legal."""

    @property
    def flops(self) -> int:
        return sum(group.flops for group in self.groups)

    @property
    def total_weight_bytes(self) -> int:
        return sum(self.weight_bytes.values())

    @cached_property
    def cut_at(self) -> Mapping[int, Cut]:
        return {cut.position: cut for cut in self.cuts}

    def segment_flops(self, start: int, end: int) -> int:
        return sum(group.flops for group in self.groups[start:end])

    def segment_weight_bytes(self, start: int, end: int) -> int:
        """Weights that groups `[start, end)` reach, a shared one counted once."""
        names = {name for group in self.groups[start:end] for name in group.weights}
        return sum(self.weight_bytes[name] for name in names)
