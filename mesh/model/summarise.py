"""From a model to a `Graph`: operator groups in a good order, and every legal cut with what it carries.

This is where ONNX ends: planning works on the `Graph` alone. Pure, deterministic, and tolerant: what
shape inference cannot tell costs precision of the estimates or some cuts, never the model. Whatever
limited the analysis is said in `Graph.notes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from mesh.core.graph import Cut, Graph, OperatorGroup
from mesh.core.tensor import MAX_RANK, MAX_TENSOR_BYTES, TensorSpec
from mesh.model.group import group_nodes
from mesh.model.order import Unit, choose_order, lives
from mesh.model.read import SourceModel
from mesh.model.shapes import Inference, infer
from mesh.model.traverse import function_key
from mesh.model.weigh import MIN_WEIGHT_BYTES, Scales, carried_bytes, initialiser_bytes, local_shapes
from mesh.model.wiring import Wiring, wire

MAX_CUT_ENTRIES = 2_000_000
"""Names in all cuts together; a graph of 200 000 groups across which hundreds of tensors are alive would
otherwise take gigabytes. The widest cuts are left out first."""


@dataclass(frozen=True, slots=True)
class _Draft:
    """A group before it has a place."""

    nodes: tuple[int, ...]
    core: tuple[int, ...]
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    stored: tuple[str, ...]
    flops: int


class _Summary:
    def __init__(self, model: SourceModel) -> None:
        self.model = model
        self.nodes = list(model.proto.graph.node)
        self.wiring: Wiring = wire(model.proto)
        self.inference: Inference = infer(model.proto)
        self.weight_bytes = initialiser_bytes(model.proto.graph)
        self.inputs = tuple(spec.name for spec in model.inputs)
        self.outputs = tuple(spec.name for spec in model.outputs)
        said = {spec.name: spec for spec in model.outputs}
        given = {spec.name: spec for spec in model.inputs}
        self.specs: dict[str, TensorSpec] = {**said, **self.inference.specs, **given}
        self.read = {*self.wiring.consumers, *self.outputs}
        self.scales = self._make_scales()
        self.carried = self._weigh_carried()

    def _make_scales(self) -> Scales:
        skeleton = self.inference.skeleton
        shapes = local_shapes(skeleton.graph)
        functions = {function_key(function): function for function in self.model.proto.functions}
        return Scales(shapes.get, functions)

    def _weigh_carried(self) -> dict[int, str]:
        """Weights inside nodes (Constant, bodies) by node position; their sizes join `weight_bytes`."""
        names: dict[int, str] = {}
        for index, node in enumerate(self.nodes):
            size = carried_bytes(node)
            if size >= MIN_WEIGHT_BYTES:
                name = node.output[0] if node.op_type == "Constant" else f"{node.name}: constants"
                names[index] = name
                self.weight_bytes[name] = self.weight_bytes.get(name, 0) + size
        return names

    def drafts(self) -> list[_Draft]:
        wiring = self.wiring
        drafts: list[_Draft] = []
        for members in group_nodes(self.nodes, wiring):
            inside = set(members)
            made = {name for index in members for name in wiring.makes[index]}
            reads = dict.fromkeys(n for index in members for n in wiring.reads[index] if n not in made)
            company = {index for member in members for index in wiring.companions[member]}
            nodes = tuple(sorted(inside | company))
            shown = [
                name
                for index in members
                for name in wiring.makes[index]
                if name in wiring.outputs or any(c not in inside for c in wiring.consumers.get(name, ()))
            ]
            stored = dict.fromkeys(n for index in members for n in wiring.stored[index])
            stored.update(dict.fromkeys(self.carried[index] for index in nodes if index in self.carried))
            flops = sum(self._flops(index) for index in members)
            drafts.append(_Draft(nodes, members, tuple(reads), tuple(shown), tuple(stored), flops))
        return drafts

    def _flops(self, index: int) -> int:
        # The skeleton's node: its bodies have shapes, and the runtime's own operators have stand-ins.
        return self.scales.flops(self.inference.skeleton.graph.node[index])

    def sizes(self, drafts: Sequence[_Draft]) -> dict[str, int | None]:
        """Bytes of every tensor that could cross a cut; None where no frame can carry it."""
        names = [*self.inputs, *(name for draft in drafts for name in draft.makes)]
        return {name: self._carried_size(name) for name in names}

    def _carried_size(self, name: str) -> int | None:
        spec = self.specs.get(name)
        # Without a rank a segment's input would not pass the ONNX checker.
        if spec is None or spec.shape is None or len(spec.shape) > MAX_RANK:
            return None
        size = spec.nominal_bytes() or 0
        return size if size <= MAX_TENSOR_BYTES else None

    def carried_spec(self, name: str) -> TensorSpec:
        """What frames carry under `name`: sizes that do not follow from the inputs are left open.

        The model may state them, but an exporter writes there what one example had, and the runtime does not care.
        """
        spec = self.specs[name]
        if name in self.inputs or spec.shape is None:
            return spec
        proven = self.inference.proven.get(name)
        if proven is None or proven.shape is None or proven.dtype is not spec.dtype:
            return replace(spec, shape=tuple("?" if isinstance(dim, int) else dim for dim in spec.shape))
        return proven

    def group(self, place: int, draft: _Draft, last: bool) -> OperatorGroup:
        nodes, stored = draft.nodes, draft.stored
        made = [name for index in draft.core for name in self.wiring.makes[index]]
        reads = list(draft.reads)
        if place == 0:
            # The head keeps the model's interface, inputs that nothing reads included.
            reads.extend(name for name in self.inputs if name not in self.read and name not in reads)
        if last:
            # Outputs that are inputs, weights or constants pass through the last group.
            shown = [name for name in self.outputs if name not in self.wiring.producer]
            made.extend(shown)
            reads.extend(name for name in shown if name in self.inputs and name not in reads)
        if last and (self.wiring.trailing or self.wiring.trailing_stored):
            nodes = tuple(sorted({*nodes, *self.wiring.trailing}))
            extra = [self.carried[index] for index in self.wiring.trailing if index in self.carried]
            stored = tuple(dict.fromkeys((*stored, *self.wiring.trailing_stored, *extra)))
        exit_node = self.nodes[draft.core[-1]] if draft.core else None
        sizes = [spec.nominal_bytes() for name in made if (spec := self.specs.get(name)) is not None]
        return OperatorGroup(
            index=place,
            name=exit_node.name if exit_node is not None else "constants",
            kinds=tuple(self.nodes[index].op_type for index in (draft.core or nodes)),
            nodes=nodes,
            flops=draft.flops,
            weights=stored,
            activation_bytes=sum(size or 0 for size in sizes),
            reads=tuple(reads),
            makes=tuple(made),
        )


def summarise(model: SourceModel) -> Graph:
    """Analyse `model` into operator groups and legal cuts.

    Always succeeds for a model that `read_model` accepted; a model that cannot be cut has the cuts
    at 0 and at the end only.
    """
    summary = _Summary(model)
    drafts = summary.drafts()
    sizes = summary.sizes(drafts)
    units = [Unit(draft.reads, draft.makes, draft.flops) for draft in drafts]
    order = choose_order(units, summary.inputs, summary.outputs, sizes)
    # Constants shown as outputs, or an output that is an input: one group, so that there is a segment to make.
    placed = [drafts[index] for index in order] or [_Draft((), (), (), (), (), 0)]
    groups = tuple(summary.group(place, draft, place == len(placed) - 1) for place, draft in enumerate(placed))
    cuts, notes = _list_cuts(summary, units, order, sizes, len(groups))
    carried = {name for cut in cuts for name in cut.tensors}
    used = {name for group in groups for name in group.weights}
    return Graph(
        model_sha256=model.sha256,
        model_bytes=len(model.data),
        inputs=model.inputs,
        outputs=tuple(summary.carried_spec(spec.name) for spec in model.outputs),
        groups=groups,
        cuts=cuts,
        specs={name: summary.carried_spec(name) for name in sorted(carried)},
        weight_bytes={name: size for name, size in summary.weight_bytes.items() if name in used},
        notes=notes,
    )


def _list_cuts(
    summary: _Summary, units: Sequence[Unit], order: Sequence[int], sizes: Mapping[str, int | None], count: int
) -> tuple[tuple[Cut, ...], tuple[str, ...]]:
    """All legal cuts in ascending position, and notes on those that are not."""
    notes: list[str] = []
    if summary.inference.failure:
        notes.append(f"shapes are only partly known: {summary.inference.failure}")
    first = Cut(0, summary.inputs, _total(sizes, summary.inputs))
    last = Cut(count, summary.outputs, sum(summary.specs[name].nominal_bytes() or 0 for name in summary.outputs))
    if summary.wiring.unseeded:
        notes.append(f"not cut: node {summary.wiring.unseeded[0]!r} draws random numbers without a seed")
        return (first, last), tuple(notes)
    widest = _widest_within_budget(units, order, summary)
    inner, banned, left_out = _inner_cuts(units, order, summary, sizes, widest)
    if banned:
        shown = ", ".join(repr(name) for name in sorted(banned)[:3])
        notes.append(f"{len(banned)} tensors cannot cross a cut (type or rank unknown, or not carried): {shown}")
    if left_out:
        notes.append(f"{left_out} cuts through more than {widest} tensors are left out to bound memory")
    if not inner and count > 1:
        notes.append("no inner cut is legal: the model runs whole")
    return (first, *inner, last), tuple(notes)


def _total(sizes: Mapping[str, int | None], names: Iterable[str]) -> int:
    return sum(sizes.get(name) or 0 for name in names)


def _widest_within_budget(units: Sequence[Unit], order: Sequence[int], summary: _Summary) -> int:
    """The largest number of live tensors up to which all cuts together stay within `MAX_CUT_ENTRIES`."""
    steps = [0] * (len(order) + 2)
    for life in lives(units, order, summary.inputs, summary.outputs).values():
        steps[life.born] += 1
        steps[life.dies + 1] -= 1
    entries = widest = 0
    for count in sorted(accumulate(steps[:-1])):
        entries += count
        if entries > MAX_CUT_ENTRIES:
            break
        widest = count
    return widest


def _inner_cuts(
    units: Sequence[Unit], order: Sequence[int], summary: _Summary, sizes: Mapping[str, int | None], widest: int
) -> tuple[list[Cut], set[str], int]:
    """Cuts at positions 1..n-1 that can travel, the tensors that ban others, and how many were too wide.

    Tensors are listed in the order in which they are made, inputs first.
    """
    born: list[list[str]] = [[] for _ in range(len(order) + 1)]
    gone: list[list[str]] = [[] for _ in range(len(order) + 2)]
    for life in lives(units, order, summary.inputs, summary.outputs).values():
        born[life.born].append(life.name)
        gone[life.dies + 1].append(life.name)
    live: dict[str, None] = {}
    blockers: set[str] = set()
    banned: set[str] = set()
    cuts: list[Cut] = []
    left_out = 0
    for position in range(len(order)):
        for name in gone[position]:
            live.pop(name, None)
            blockers.discard(name)
        for name in born[position]:
            live[name] = None
            if sizes[name] is None:
                blockers.add(name)
        if position == 0 or not live:
            continue
        if blockers:
            banned |= blockers
        elif len(live) > widest:
            left_out += 1
        else:
            cuts.append(Cut(position, tuple(live), _total(sizes, live)))
    return cuts, banned, left_out
