"""Groups, order, cuts and figures of a model's summary."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import helper

from mesh.core.graph import Graph
from mesh.model.summarise import summarise
from scripts import make_models
from scripts.make_models import Builder, start_image, tensor
from tests.model.odd_models import ODD_MODELS, make_quantised
from tests.model.running import best_split, inner_positions, load, load_graph


def kinds(graph: Graph) -> list[tuple[str, ...]]:
    return [group.kinds for group in graph.groups]


# Groups


@pytest.mark.parametrize("act", ["Relu", "Clip", "SiLU", "Sigmoid", "HardSwish"])
def test_convolution_keeps_its_activation(act: str) -> None:
    build, x, inputs = start_image(8)
    y = build.conv(build.conv(x, 4, act=act), 4, act=act)
    _, graph = load_graph(build.model("m", inputs, [tensor(y, [1, 4, 8, 8])]))
    wanted = ("Conv", "Sigmoid", "Mul") if act == "SiLU" else ("Conv", act)
    assert kinds(graph) == [wanted, wanted]


def test_residual_add_joins_the_later_convolution() -> None:
    _, graph = load_graph(make_models.make_resnet18(pixels=32))
    block = [("Conv", "Relu"), ("Conv", "Add", "Relu")]
    shortcut = [("Conv",), *block]
    assert kinds(graph) == [
        ("Conv", "Relu"),
        ("MaxPool",),
        *block,
        *block,
        *(shortcut + block) * 3,
        ("GlobalAveragePool",),
        ("Flatten",),
        ("Gemm",),
    ]


def test_layer_norm_and_gelu_written_out_are_one_group_each() -> None:
    _, graph = load_graph(make_models.make_transformer(width=32, layers=1, tokens=8))
    norm = {"ReduceMean", "Sub", "Pow", "Add", "Sqrt", "Div", "Mul"}
    assert sum(norm <= set(group.kinds) for group in graph.groups) == 3
    gelu = [group for group in graph.groups if "Erf" in group.kinds]
    assert [group.kinds for group in gelu] == [("MatMul", "Add", "Div", "Erf", "Add", "Mul", "Mul")]


def test_batch_norm_scale_and_bias_stay_with_their_product() -> None:
    build = Builder()
    x = build.linear("x", 4, 4)
    x = build.add("Mul", x, build.draw(4))
    x = build.add("Tanh", build.add("Sub", x, build.draw(4)))
    _, graph = load_graph(build.model("m", [tensor("x", [1, 4])], [tensor(x, [1, 4])]))
    assert kinds(graph) == [("MatMul", "Add", "Mul", "Sub", "Tanh")]


def test_an_output_inside_a_pattern_ends_the_group() -> None:
    build = Builder()
    product = build.linear("x", 4, 4)
    y = build.add("Relu", product)
    outputs = [tensor(product, [1, 4]), tensor(y, [1, 4])]
    _, graph = load_graph(build.model("m", [tensor("x", [1, 4])], outputs))
    assert kinds(graph) == [("MatMul", "Add"), ("Relu",)]


def test_quantised_islands_are_whole_and_cuts_carry_integers() -> None:
    _, graph = load_graph(make_quantised())
    assert kinds(graph)[1:3] == [("Conv", "Relu", "QuantizeLinear"), ("Add", "QuantizeLinear")]
    for position in inner_positions(graph):
        assert all(graph.specs[name].dtype.label == "int8" for name in graph.cut_at[position].tensors)


def test_constants_go_to_every_reader_and_cross_no_cut() -> None:
    source, graph = load_graph(ODD_MODELS["computed_weights"]())
    nodes = source.proto.graph.node
    constant = {name for node in nodes if node.op_type in ("ConstantOfShape", "Mul") for name in node.output}
    for cut in graph.cuts:
        assert not constant & set(cut.tensors)
    fill = next(index for index, node in enumerate(nodes) if node.op_type == "ConstantOfShape")
    assert sum(fill in group.nodes for group in graph.groups) > 1


def test_dead_nodes_are_in_no_group() -> None:
    source, graph = load_graph(ODD_MODELS["dead_nodes"]())
    used = {index for group in graph.groups for index in group.nodes}
    assert all(source.proto.graph.node[index].op_type != "Tanh" for index in used)


def test_every_living_node_is_in_a_group() -> None:
    for make in (make_models.make_if_bodies, lambda: make_models.make_yolo(64, 8), make_quantised):
        source, graph = load_graph(make())
        assert {index for group in graph.groups for index in group.nodes} == set(range(len(source.proto.graph.node)))


# Cuts


def test_early_output_is_live_to_the_end() -> None:
    _, graph = load_graph(ODD_MODELS["many_inputs"]())
    early = graph.outputs[1].name
    born = next(group.index for group in graph.groups if early in group.makes) + 1
    assert all(early in graph.cut_at[position].tensors for position in inner_positions(graph) if position >= born)


def test_sequences_are_never_cut() -> None:
    source, graph = load_graph(ODD_MODELS["sequence"]())
    made = {n for node in source.proto.graph.node if "Sequence" in node.op_type for n in node.output}
    assert len(inner_positions(graph)) == 4
    assert "cannot cross" in " ".join(graph.notes)
    assert not any(made & set(cut.tensors) for cut in graph.cuts if 0 < cut.position < len(graph.groups) - 2)


def test_random_numbers_without_a_seed_run_whole() -> None:
    build = Builder()
    x = build.linear("x", 4, 4)
    y = build.linear(build.add("Add", x, build.add("RandomNormal", shape=[4])), 4, 4)
    _, graph = load_graph(build.model("m", [tensor("x", [1, 4])], [tensor(y, [1, 4])]))
    assert inner_positions(graph) == []
    assert "random" in graph.notes[0]


def test_types_and_bytes_of_a_cut() -> None:
    _, graph = load_graph(make_models.make_unet(pixels=32, width=4))
    for cut in graph.cuts:
        assert cut.bytes == sum(graph.specs[name].nominal_bytes() or 0 for name in cut.tensors)
    assert [cut.position for cut in graph.cuts] == sorted({cut.position for cut in graph.cuts})
    assert graph.cuts[0].tensors == ("image",)
    assert graph.cuts[-1].tensors == (graph.outputs[0].name,)


def test_summary_is_deterministic() -> None:
    data = make_models.make_yolo(64, 8)
    assert summarise(load(data)) == summarise(load(data))


# Balance and order


@pytest.mark.parametrize(("name", "least"), [("yolo", 3.5), ("unet", 3.3)])
def test_four_stages_balance_through_at_most_three_tensors(name: str, least: float) -> None:
    _, graph = load_graph(make_models.MODELS[name]())
    _, narrow = best_split(graph, 4, max_tensors=1)
    _, speedup = best_split(graph, 4, max_tensors=3)
    assert speedup >= least
    assert narrow < 1.5, "one tensor is not enough for this shape"


@pytest.mark.parametrize(
    ("name", "least"),
    [("mobilenetv2", 3.8), ("squeezenet", 3.7), ("resnet18", 3.4), ("vit_tiny", 3.7), ("minilm", 3.6)],
)
def test_four_stages_balance_for_classifiers_and_encoders(name: str, least: float) -> None:
    _, graph = load_graph(make_models.MODELS[name]())
    assert best_split(graph, 4)[1] >= least


def test_interleaved_branches_are_put_in_sequence() -> None:
    """Eight towers whose layers the file lists in turns: taken one by one, two tensors cross instead of eight."""
    build = Builder()
    towers = ["x"] * 8
    for _ in range(6):
        towers = [build.add("Tanh", build.linear(tower, 8, 8)) for tower in towers]
    y = build.add("Sum", *towers)
    _, graph = load_graph(build.model("m", [tensor("x", [1, 8])], [tensor(y, [1, 8])]))
    assert min(len(graph.cut_at[position].tensors) for position in inner_positions(graph)[10:30]) <= 5
    before = inner_positions(graph)[0]
    assert len(graph.cut_at[before].tensors) <= 2


# Figures


def flops_of(kind: str, shapes: dict[str, list[int]], out: list[int], opset: int = 17, **attributes: object) -> int:
    """Operations that the summary counts for one node alone."""
    names = list(shapes)
    node = helper.make_node(kind, names, ["y"], name="n", **attributes)
    inputs = [tensor(name, shape) for name, shape in shapes.items()]
    graph = helper.make_graph([node], "g", inputs, [tensor("y", out)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return summarise(load(model)).flops


def test_operations_of_the_common_operators() -> None:
    conv = {"x": [1, 8, 10, 10], "w": [16, 4, 3, 3]}
    assert flops_of("Conv", conv, [1, 16, 8, 8], group=2) == 2 * 16 * 64 * 4 * 9
    up = {"x": [1, 8, 5, 5], "w": [8, 6, 2, 2]}
    assert flops_of("ConvTranspose", up, [1, 6, 10, 10], strides=[2, 2]) == 2 * 8 * 25 * 6 * 4
    assert flops_of("MatMul", {"a": [2, 5, 7], "b": [7, 3]}, [2, 5, 3]) == 2 * 2 * 5 * 3 * 7
    assert flops_of("Gemm", {"a": [7, 5], "b": [3, 7]}, [5, 3], transA=1, transB=1) == 2 * 5 * 3 * 7
    assert flops_of("MaxPool", {"x": [1, 2, 8, 8]}, [1, 2, 4, 4], kernel_shape=[2, 2], strides=[2, 2]) == 32 * 4
    assert flops_of("GlobalAveragePool", {"x": [1, 2, 8, 8]}, [1, 2, 1, 1]) == 128
    assert flops_of("Relu", {"x": [3, 4]}, [3, 4]) == 12
    assert flops_of("Reshape", {"x": [3, 4]}, [3, 4], opset=1, shape=[3, 4]) == 0
    assert flops_of("Einsum", {"a": [2, 3, 4], "b": [2, 4, 5]}, [2, 3, 5], equation="bij,bjk->bik") == 2 * 2 * 3 * 4 * 5


def test_operations_of_bodies_count_once_and_the_dearer_branch() -> None:
    _, graph = load_graph(make_models.make_if_bodies(pixels=32))
    branch = 2 * 8 * 8 * 32 * 32 + 8 * 32 * 32
    found = [group.flops for group in graph.groups if group.kinds[0] == "If"]
    assert found == [branch, branch]


def test_symbolic_dimensions_count_as_one() -> None:
    build = Builder()
    y = build.linear("x", 6, 5)
    _, graph = load_graph(build.model("m", [tensor("x", ["batch", 6])], [tensor(y, ["batch", 5])]))
    assert graph.flops == 2 * 6 * 5 + 5
    assert [cut.bytes for cut in graph.cuts] == [24, 20]


def test_shared_weight_counts_once() -> None:
    _, graph = load_graph(ODD_MODELS["shared_weight"]())
    assert graph.total_weight_bytes == 16 * 16 * 4
    assert graph.segment_weight_bytes(0, len(graph.groups)) == 16 * 16 * 4
    assert all(graph.segment_weight_bytes(a, b) == 1024 for a, b in pairwise(range(len(graph.groups) + 1)))


def test_weights_read_in_bodies_and_held_in_constants_count() -> None:
    _, graph = load_graph(make_models.make_if_bodies())
    owner = next(group for group in graph.groups if group.kinds[0] == "If")
    assert sum(graph.weight_bytes[name] for name in owner.weights) == 8 * 8 * 4
    build = Builder()
    values = onnx.numpy_helper.from_array(np.ones((32, 32), dtype=np.float32))
    y = build.add("MatMul", "x", build.add("Constant", value=values))
    _, graph = load_graph(build.model("m", [tensor("x", [1, 32])], [tensor(y, [1, 32])]))
    assert graph.total_weight_bytes == 4096


def test_wide_graphs_stay_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.model.summarise.MAX_CUT_ENTRIES", 2000)
    build = Builder()
    early = [build.add("Relu", build.add("Add", "x", build.store(float(i)))) for i in range(100)]
    y = build.add("Sum", *early)
    y = build.linear(build.linear(y, 4, 4), 4, 4)
    begun = time.monotonic()
    _, graph = load_graph(build.model("m", [tensor("x", [1, 4])], [tensor(y, [1, 4])]))
    assert sum(len(cut.tensors) for cut in graph.cuts) <= 2000 + len(graph.inputs) + len(graph.outputs)
    assert "left out" in " ".join(graph.notes)
    assert time.monotonic() - begun < 5
