"""Laws of cuts, on random graphs: chained equals whole at every position, and live sets are what they must be."""

from __future__ import annotations

from itertools import pairwise

import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.graph import Graph
from mesh.model.compare import generate_inputs, verify
from mesh.model.extract import segment_between
from mesh.model.order import Unit, choose_order, least_bottleneck, lives
from mesh.model.read import SourceModel
from scripts.make_models import Builder, tensor
from tests.model.running import best_split, inner_positions, load_graph, run, segments_at

WIDTH = 4
UNARY = ("Relu", "Tanh", "Sigmoid", "Neg", "Identity", "Exp")
BINARY = ("Add", "Mul", "Sub", "Max")


@st.composite
def random_models(draw: st.DrawFn) -> onnx.ModelProto:
    """Up to 14 nodes over one or two inputs; any of their tensors may be outputs; some weights are computed."""
    build = Builder(draw(st.integers(0, 99)))
    inputs = ["a", "b"][: draw(st.integers(1, 2))]
    tensors = list(inputs)
    for _ in range(draw(st.integers(1, 14))):
        source = draw(st.sampled_from(tensors))
        choice = draw(st.sampled_from(("unary", "binary", "product", "computed", "two")))
        if choice == "unary":
            tensors.append(build.add(draw(st.sampled_from(UNARY)), source))
        elif choice == "binary":
            tensors.append(build.add(draw(st.sampled_from(BINARY)), source, draw(st.sampled_from(tensors))))
        elif choice == "product":
            tensors.append(build.add("MatMul", source, build.draw(WIDTH, WIDTH)))
        elif choice == "computed":
            tensors.append(build.add("Add", source, build.add("Abs", build.draw(WIDTH))))
        else:
            half = build.add("Split", source, outputs=2, axis=1)
            tensors.append(build.add("Concat", f"{half}.1", half, axis=1))
    made = tensors[len(inputs) :]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    values = [tensor(name, ["n", WIDTH]) for name in outputs]
    return build.model("random", [tensor(name, ["n", WIDTH]) for name in inputs], values)


def live_by_brute_force(source: SourceModel, graph: Graph, position: int) -> set[str]:
    """Tensors made by the nodes of groups before `position`, or inputs, that later nodes or the outputs read."""
    nodes = source.proto.graph.node
    after = {name for group in graph.groups[position:] for index in group.nodes for name in nodes[index].input}
    own = {name for group in graph.groups[position:] for index in group.nodes for name in nodes[index].output}
    before = {name for group in graph.groups[:position] for index in group.nodes for name in nodes[index].output}
    available = before | {spec.name for spec in graph.inputs}
    return (after - own | {spec.name for spec in graph.outputs}) & available


@given(random_models())
@settings(max_examples=40, deadline=None)
def test_chained_equals_whole_at_every_cut(model: onnx.ModelProto) -> None:
    source, graph = load_graph(model)
    feeds = generate_inputs(source.inputs, 1, batch=2)
    positions = inner_positions(graph)
    for position in positions:
        assert set(graph.cut_at[position].tensors) == live_by_brute_force(source, graph, position)
    for inner in ([], positions[: len(positions) // 2][-1:], positions):
        verify(run, source, graph, segments_at(graph, inner), feeds).require()


@given(random_models())
@settings(max_examples=60, deadline=None)
def test_frames_are_complete_at_every_boundary(model: onnx.ModelProto) -> None:
    _, graph = load_graph(model)
    positions = [cut.position for cut in graph.cuts]
    made_by: dict[str, int] = {}
    for group in graph.groups:
        for name in group.makes:
            assert made_by.setdefault(name, group.index) == group.index
        for name in group.reads:
            assert made_by.get(name, -1) < group.index, "a group reads what a later one makes"
    for start, end in pairwise(positions):
        segment = segment_between(graph, start, end)
        assert set(segment.produces) | set(segment.relays) == set(graph.cut_at[end].tensors)
        assert set(segment.consumes) | set(segment.relays) == set(graph.cut_at[start].tensors)
    for names in (cut.tensors for cut in graph.cuts):
        assert len(set(names)) == len(names)


@given(random_models(), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_bottleneck_search_agrees_with_dynamic_programming(model: onnx.ModelProto, stages: int, width: int) -> None:
    _, graph = load_graph(model)
    work = [graph.segment_flops(0, position) for position in range(len(graph.groups) + 1)]
    if work[-1]:
        inner, speedup = best_split(graph, stages, width)
        largest = least_bottleneck(work, inner_positions(graph, width), stages)
        assert largest == max(segment.flops for segment in segments_at(graph, inner))
        assert speedup == work[-1] / max(1, largest)


@st.composite
def random_units(draw: st.DrawFn) -> list[Unit]:
    units: list[Unit] = []
    for index in range(draw(st.integers(3, 12))):
        known = ["in", *(f"t{earlier}" for earlier in range(index))]
        reads = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True))
        units.append(Unit(tuple(reads), (f"t{index}",), draw(st.integers(0, 100))))
    return units


@given(random_units())
@settings(max_examples=100, deadline=None)
def test_chosen_order_is_topological_and_deterministic(units: list[Unit]) -> None:
    outputs = [f"t{len(units) - 1}"]
    sizes: dict[str, int | None] = {f"t{index}": 4 * index for index in range(len(units))} | {"in": 4}
    order = choose_order(units, ["in"], outputs, sizes)
    assert order == choose_order(units, ["in"], outputs, sizes)
    assert sorted(order) == list(range(len(units)))
    place = {index: position for position, index in enumerate(order)}
    maker = {unit.makes[0]: index for index, unit in enumerate(units)}
    for index, unit in enumerate(units):
        assert all(place[maker[name]] < place[index] for name in unit.reads if name in maker)
    for life in lives(units, order, ["in"], outputs).values():
        assert 0 <= life.born <= life.dies <= len(units)
