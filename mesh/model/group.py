"""Operator groups: which nodes are never separated.

A group is a pattern that ONNX Runtime fuses into one kernel: cutting inside would compute more
slowly and, in the last digits, differently. Every group has a single exit: only its last node is
read from outside. Contracting such a group can never make a cycle, and ordering groups by their
exits is a topological order.

    anchor (Conv, Gemm, MatMul, ...) [scale, shift, batch norm]* [residual Add] [activation] [QuantizeLinear]
    reconvergent elementwise patterns: layer norm, GELU, SiLU, HardSwish, Mish, as exporters write them out
    any operator and the QuantizeLinear of its only result

Pure; called by `mesh.model.summarise`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import onnx

from mesh.model.wiring import Wiring

ANCHORS = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "ConvInteger",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "Gemm",
        "MatMul",
        "MatMulInteger",
        "MatMulNBits",
        "MatMulBnb4",
    }
)
ACCUMULATORS = frozenset({"ConvInteger", "MatMulInteger"})
"""Anchors that answer in int32, which a Cast and a Mul turn back into floats."""
SCALES = frozenset({"Add", "BatchNormalization", "Div", "Mul", "Sub"})
ACTIVATIONS = frozenset(
    {
        "Celu",
        "Clip",
        "Elu",
        "FastGelu",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Mish",
        "PRelu",
        "QuickGelu",
        "Relu",
        "Selu",
        "Sigmoid",
        "Softplus",
        "Swish",
        "Tanh",
        "ThresholdedRelu",
    }
)
ELEMENTWISE = ACTIVATIONS | frozenset(
    {
        "Add",
        "Div",
        "Erf",
        "Exp",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Pow",
        "Reciprocal",
        "ReduceMean",
        "Sqrt",
        "Sub",
    }
)
MARKS = frozenset(
    {
        "Clip",
        "Erf",
        "HardSigmoid",
        "ReduceMean",
        "Sigmoid",
        "Softplus",
        "Tanh",
    }
)
"""A reconvergent pattern without one of these is nothing that the runtime fuses."""

MAX_PATTERN = 16
"""Nodes of the longest pattern (GELU by tanh, written out) with room to spare."""
MAX_BRANCHES = 8
"""A tensor with more readers does not open a pattern."""


class Grouping:
    """Grows groups over a wiring. `owner[node]` is the exit of the group that a core node is in."""

    def __init__(self, nodes: Sequence[onnx.NodeProto], wiring: Wiring) -> None:
        self._kinds = [node.op_type for node in nodes]
        self._wiring = wiring
        self._members: dict[int, list[int]] = {}
        self._owner: dict[int, int] = {}

    def run(self) -> list[tuple[int, ...]]:
        """All groups in topological order of their exits, nodes ascending."""
        core = self._wiring.core
        for index in reversed(core):
            if self._kinds[index] in ANCHORS and index not in self._owner:
                self._claim(self._grow(index))
        for name in self._wiring.consumers:
            self._claim(self._reconverge(name))
        for index in core:
            if index not in self._owner:
                self._claim([index])
        self._attach_quantizers()
        return [tuple(sorted(self._members[exit_])) for exit_ in sorted(self._members)]

    def _claim(self, members: Sequence[int]) -> None:
        """Make `members`, whose last is the exit, a group; nothing for an empty list."""
        if members:
            self._members[members[-1]] = list(members)
            self._owner.update(dict.fromkeys(members, members[-1]))

    def _only_result(self, index: int) -> str | None:
        """The one tensor of a node that is read, if there is one and no output of the model."""
        read = [n for n in self._wiring.makes[index] if n in self._wiring.consumers or n in self._wiring.outputs]
        return read[0] if len(read) == 1 and read[0] not in self._wiring.outputs else None

    def _grow(self, anchor: int) -> list[int]:
        members = [anchor]
        residual = False
        while (name := self._only_result(members[-1])) is not None:
            followers = self._wiring.consumers[name]
            if len(followers) > 1:
                pattern = self._reconverge(name)
                if pattern and set(followers) <= set(pattern):
                    members.extend(pattern)
                break
            follower = followers[0]
            kind = self._kinds[follower]
            if follower in self._owner:
                break
            alone = self._wiring.reads[follower] == (name,)
            if alone and kind in ACTIVATIONS:
                members.append(follower)
                break
            scale = alone and (kind in SCALES or (kind == "Cast" and self._kinds[anchor] in ACCUMULATORS))
            if not scale:
                if residual or not self._is_tail(follower, name, self._kinds[anchor]):
                    break
                residual = kind == "Add"
            members.append(follower)
        return members

    def _is_tail(self, follower: int, name: str, anchor: str) -> bool:
        """Whether `follower` joins `name` with something that is already there: residual Add, dynamic scale."""
        if self._kinds[follower] != "Add" and not (self._kinds[follower] == "Mul" and anchor in ACCUMULATORS):
            return False
        producer = self._wiring.producer
        mine = producer[name]
        return all(producer.get(other, -1) < mine for other in self._wiring.reads[follower] if other != name)

    def _reconverge(self, opening: str) -> list[int]:
        """The pattern that opens at tensor `opening` and meets again in one tensor; empty if there is none.

        Nodes are taken in order while they read nothing but `opening` and each other. Wherever a
        single result is left and `opening` is needed by no later taken node, the pattern is closed.
        """
        consumers = self._wiring.consumers
        first = consumers.get(opening, [])
        if not 2 <= len(first) <= MAX_BRANCHES:
            return []
        heap, taken = sorted(set(first)), list[int]()
        made: dict[str, int] = {}
        snapshots: list[tuple[int, frozenset[int]]] = []
        while heap and len(taken) < MAX_PATTERN:
            index = heapq.heappop(heap)
            if not self._is_free(index, made, opening):
                continue
            taken.append(index)
            name = self._wiring.makes[index][0]
            made[name] = index
            for follower in consumers.get(name, []):
                if follower not in heap and len(heap) <= 4 * MAX_PATTERN:
                    heapq.heappush(heap, follower)
            inside = set(taken)
            shown = self._wiring.outputs
            still = [m for m in made if m in shown or any(c not in inside for c in consumers.get(m, []))]
            if still == [name] and len(taken) > 1:
                snapshots.append((len(taken), frozenset(c for c in first if c not in inside)))
        chosen = set(taken)
        for count, missing in snapshots:
            if missing & chosen:
                continue
            kinds = {self._kinds[index] for index in taken[:count]}
            if not kinds & MARKS or kinds == {"ReduceMean", "Sub"}:
                continue
            return self._extend(taken[:count])
        return []

    def _is_free(self, index: int, made: dict[str, int], opening: str) -> bool:
        return (
            self._kinds[index] in ELEMENTWISE
            and index not in self._owner
            and len(self._wiring.makes[index]) == 1
            and all(name in made or name == opening for name in self._wiring.reads[index])
        )

    def _extend(self, pattern: list[int]) -> list[int]:
        """Add the scale and shift by constants that end a layer norm or a GELU."""
        for kind in ("Mul", "Add"):
            name = self._only_result(pattern[-1])
            followers = self._wiring.consumers.get(name, []) if name else []
            if len(followers) != 1 or followers[0] in self._owner or self._kinds[followers[0]] != kind:
                continue
            if self._wiring.reads[followers[0]] == (name,):
                pattern = [*pattern, followers[0]]
        return pattern

    def _attach_quantizers(self) -> None:
        """Join every QuantizeLinear to the group that makes what it reads, if nobody else reads that."""
        for index in self._wiring.core:
            if self._kinds[index] != "QuantizeLinear" or self._members.get(index) != [index]:
                continue
            names = self._wiring.reads[index]
            source = self._wiring.producer.get(names[0]) if len(names) == 1 else None
            if source is None or source not in self._members or self._only_result(source) != names[0]:
                continue
            if self._wiring.consumers[names[0]] == [index]:
                del self._members[index]
                self._claim([*self._members.pop(source), index])


def group_nodes(nodes: Sequence[onnx.NodeProto], wiring: Wiring) -> list[tuple[int, ...]]:
    """Core nodes in groups that are never separated, in topological order; companions are not in them."""
    return Grouping(nodes, wiring).run()
