"""A model's nodes as planning sees them: who really depends on what a frame carries.

Nodes fall into four classes:
- dead: no output depends on them; the runtime drops them, and so do we;
- constant: they depend on weights only (Constant, ConstantOfShape, a weight's DequantizeLinear).
  Carrying their results across a cut would send the same bytes with every frame, so they are
  copied into each segment that reads them;
- rematerialised: a DequantizeLinear of an activation; copied to its readers, so that the cut
  carries the integers and the runtime finds its Q/DQ patterns whole;
- core: everything else; each is in exactly one operator group.

Copied nodes are the `companions` of the core nodes that read them. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from mesh.model.traverse import (
    FunctionKey,
    all_nodes,
    bodies_of,
    function_key,
    functions_used,
    initialiser_names,
    names_read,
)

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
DEQUANTIZE = "DequantizeLinear"

MAX_COMPANIONS = 256
"""A constant computed in more steps is carried across cuts like any tensor: copying it would cost more."""


@dataclass(frozen=True)
class Wiring:
    """Dependencies between core nodes, by node position in the model's graph."""

    core: tuple[int, ...]
    reads: dict[int, tuple[str, ...]]
    """Tensors that a frame carries or a core node makes, read by a core node or its companions."""
    makes: dict[int, tuple[str, ...]]
    companions: dict[int, tuple[int, ...]]
    stored: dict[int, tuple[str, ...]]
    """Initialisers that a core node or its companions read."""
    producer: dict[str, int]
    """Core node that makes a tensor; a model's inputs are absent."""
    consumers: dict[str, list[int]]
    outputs: frozenset[str]
    """The model's outputs that frames carry or core nodes make."""
    trailing: tuple[int, ...]
    """Constant nodes that the model's outputs show; they belong to the last group."""
    trailing_stored: tuple[str, ...]
    unseeded: tuple[str, ...]
    """Names of nodes that draw random numbers without a seed."""


class _Builder:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.nodes = list(model.graph.node)
        self.functions = {function_key(function): function for function in model.functions}
        self.names = [names_read(node) for node in self.nodes]
        self.initialisers = initialiser_names(model.graph)
        self.made_by = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}
        self.outputs = [value.name for value in model.graph.output]

    def alive(self) -> list[bool]:
        alive = [False] * len(self.nodes)
        todo = [self.made_by[name] for name in self.outputs if name in self.made_by]
        while todo:
            index = todo.pop()
            if not alive[index]:
                alive[index] = True
                todo.extend(self.made_by[name] for name in self.names[index] if name in self.made_by)
        return alive

    def copied(self, alive: list[bool]) -> list[bool]:
        """Which nodes are copied to their readers: constant ones and rematerialised ones."""
        constant_steps: dict[str, int] = dict.fromkeys(self.initialisers, 0)
        copied = [False] * len(self.nodes)
        outputs = set(self.outputs)
        for index, node in enumerate(self.nodes):
            if not alive[index]:
                continue
            if all(name in constant_steps for name in self.names[index]) and not self.is_random(node):
                steps = 1 + sum(constant_steps[name] for name in self.names[index])
                if steps <= MAX_COMPANIONS:
                    copied[index] = True
                    constant_steps.update((name, steps) for name in node.output if name)
            elif node.op_type == DEQUANTIZE and node.output[0] not in outputs:
                copied[index] = all(name in constant_steps for name in node.input[1:] if name)
        return copied

    def is_constant(self, output: str, copied: list[bool]) -> bool:
        """Whether an output of the model shows an initialiser or what a constant node makes."""
        return output in self.initialisers or (output in self.made_by and copied[self.made_by[output]])

    def is_random(self, node: onnx.NodeProto) -> bool:
        return node.op_type in RANDOM or any(inner.op_type in RANDOM for inner in self.inside(node))

    def inside(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Nodes in a node's bodies and in the functions that it calls."""
        key = function_key(node)
        if key not in self.functions and next(bodies_of(node), None) is None:
            return []
        found = [inner for body in bodies_of(node) for inner in all_nodes(body.node)]
        calls: set[FunctionKey] = functions_used([node], self.functions)
        for called in calls:
            found.extend(all_nodes(self.functions[called].node))
        return found

    def gather(self, names: list[str], copied: list[bool]) -> tuple[list[str], list[int], list[str]]:
        """Follow `names` through copied nodes: tensors reached, companions (sorted), initialisers."""
        reads: dict[str, None] = {}
        stored: dict[str, None] = {}
        companions: set[int] = set()
        todo = list(reversed(names))
        while todo:
            name = todo.pop()
            index = self.made_by.get(name)
            if name in self.initialisers:
                stored[name] = None
            elif index is None or not copied[index]:
                reads[name] = None
            elif index not in companions:
                companions.add(index)
                todo.extend(reversed(self.names[index]))
        return list(reads), sorted(companions), list(stored)


def wire(model: onnx.ModelProto) -> Wiring:
    """Classify the nodes of a checked model and connect the core ones."""
    builder = _Builder(model)
    alive = builder.alive()
    copied = builder.copied(alive)
    core = tuple(index for index in range(len(builder.nodes)) if alive[index] and not copied[index])
    reads: dict[int, tuple[str, ...]] = {}
    companions: dict[int, tuple[int, ...]] = {}
    stored: dict[int, tuple[str, ...]] = {}
    consumers: dict[str, list[int]] = {}
    for index in core:
        read, company, kept = builder.gather(builder.names[index], copied)
        reads[index], companions[index], stored[index] = tuple(read), tuple(company), tuple(kept)
        for name in read:
            consumers.setdefault(name, []).append(index)
    makes = {index: tuple(name for name in builder.nodes[index].output if name) for index in core}
    constant = [name for name in builder.outputs if builder.is_constant(name, copied)]
    _, trailing, trailing_stored = builder.gather(constant, copied)
    return Wiring(
        core=core,
        reads=reads,
        makes=makes,
        companions=companions,
        stored=stored,
        producer={name: index for index in core for name in makes[index]},
        consumers=consumers,
        outputs=frozenset(builder.outputs) - frozenset(constant),
        trailing=tuple(trailing),
        trailing_stored=tuple(trailing_stored),
        unseeded=tuple(builder.nodes[i].name for i in core if _draws_unseeded(builder, builder.nodes[i])),
    )


def _draws_unseeded(builder: _Builder, node: onnx.NodeProto) -> bool:
    drawing = [inner for inner in (node, *builder.inside(node)) if inner.op_type in RANDOM]
    return any(all(attribute.name != "seed" for attribute in inner.attribute) for inner in drawing)
