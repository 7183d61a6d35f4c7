"""Channels that go: which may, that the network stays whole, and what the repair is worth on a trained one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mesh.arrays import Array
from mesh.model.read import read_model, read_model_bytes
from mesh.optimize.channels import find_spans, take_out
from mesh.optimize.contract import Material
from mesh.optimize.pruning import prune
from mesh.optimize.quantiser import MeasuredRanges
from mesh.optimize.running import answers_of
from mesh.optimize.samples import Samples, read_samples
from mesh.optimize.table import PASSES
from tests.optimize.tiny_models import draw, make, weight

DATA = Path(__file__).parents[2] / "nodes" / "demo_data"
FLOAT = TensorProto.FLOAT


@pytest.fixture(scope="module")
def residual() -> tuple[onnx.ModelProto, Samples, Samples, Array]:
    """The trained network, prepared, the two halves of the digits and the labels of the second."""
    source = read_model(Path(__file__).with_name("digits_residual.onnx"))
    with np.load(DATA / "digits_test.npz") as archive:
        images, labels = archive["image"], archive["label"]
    calibrating, judging = read_samples({"image": images}, source.inputs).halves()
    prepared = PASSES["preprocess"]().apply(source.proto, Material((), MeasuredRanges(())))
    return prepared, calibrating, judging, labels[1::2]


def points_right(model: onnx.ModelProto, samples: Samples, labels: Array) -> float:
    answers = answers_of(model.SerializeToString(), samples, optimised=True)
    return 100 * float(np.mean([each[0].argmax() for each in answers] == labels))


def test_half_of_the_inner_channels_go_without_loss_where_readers_are_repaired(
    residual: tuple[onnx.ModelProto, Samples, Samples, Array],
) -> None:
    model, calibrating, judging, labels = residual
    before = points_right(model, judging, labels)
    losses: dict[str, float] = {}
    repaired = prune(model, calibrating, frozenset(), losses=losses)
    ruined = prune(model, calibrating, frozenset(), repairs=False)
    assert before > 97
    assert points_right(repaired, judging, labels) >= before - 0.5, "not one of 180 answers"
    assert points_right(ruined, judging, labels) < before - 5
    assert repaired.ByteSize() < 0.6 * model.ByteSize()
    assert len(losses) == 9, "three spans, each in three steps"
    assert all(0 < loss < 0.1 for loss in losses.values())


def test_both_together_are_a_sixth_of_the_size(residual: tuple[onnx.ModelProto, Samples, Samples, Array]) -> None:
    model, calibrating, judging, labels = residual
    made = PASSES["pruned-int8"]().apply(model, Material(calibrating, MeasuredRanges(calibrating)))
    weights = sum(len(each.raw_data) for each in made.graph.initializer if each.data_type == TensorProto.INT8)
    before = sum(len(each.raw_data) for each in model.graph.initializer if each.data_type == FLOAT)
    assert weights * 6 < before
    assert points_right(made, judging, labels) >= points_right(model, judging, labels) - 1.2


def test_channels_go_in_steps_and_the_costliest_are_given_back_first(
    residual: tuple[onnx.ModelProto, Samples, Samples, Array],
) -> None:
    model, calibrating, _judging, _labels = residual
    few = calibrating[:8]
    makers = [span.maker for span in find_spans(model)]
    order = PASSES["pruned"]().order(model, few)
    assert sorted(order) == sorted(f"{maker} to {count} channels" for maker in makers for count in (40, 32, 24))
    for maker in makers:
        own = [step for step in order if step.startswith(f"{maker} ")]
        assert own == [f"{maker} to {count} channels" for count in (24, 32, 40)], "later steps take what counts more"
    given_back = frozenset(order[:4])
    widths = {span.maker: span.channels for span in find_spans(prune(model, few, given_back))}
    assert widths == {maker: 24 + 8 * sum(step.startswith(f"{maker} ") for step in given_back) for maker in makers}
    assert find_spans(prune(model, few, frozenset(order))) == find_spans(model)


# Small graphs --------------------------------------------------------------------------------------


def conv(name: str, source: str, size: int = 3, **more: Any) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, f"{name}.w"], [name], name, pads=[size // 2] * 4, **more)


def filters(name: str, made: int, read: int, size: int = 3) -> onnx.TensorProto:
    return weight(f"{name}.w", made, read, size, size, seed=sum(map(ord, name)))


def build(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], out: str, shape: list[Any]) -> onnx.ModelProto:
    image = helper.make_tensor_value_info("x", FLOAT, ["batch", 4, 8, 8])
    return make(nodes, [image], [helper.make_tensor_value_info(out, FLOAT, shape)], weights)


def mobile(batch: str = "batch") -> onnx.ModelProto:
    """Widen, one filter per channel, narrow, with strides, dilations and a clip between."""
    nodes = [
        conv("wide", "x", 1),
        helper.make_node("Clip", ["wide", "zero", "six"], ["clipped"], "clip"),
        conv("each", "clipped", group=32, strides=[2, 2]),
        helper.make_node("Relu", ["each"], ["positive"], "relu"),
        conv("narrow", "positive", 1),
    ]
    weights = [
        filters("wide", 32, 4, 1),
        filters("each", 32, 1),
        filters("narrow", 8, 32, 1),
        numpy_helper.from_array(np.float32(0), "zero"),
        numpy_helper.from_array(np.float32(6), "six"),
    ]
    return build(nodes, weights, "narrow", [batch, 8, 4, 4])


def classifier() -> onnx.ModelProto:
    """A flattened image before a matrix product: many columns for each channel."""
    nodes = [
        conv("first", "x", dilations=[1, 1]),
        helper.make_node("Relu", ["first"], ["r"], "relu"),
        helper.make_node("MaxPool", ["r"], ["p"], "pool", kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "dense.w", "dense.b"], ["dense"], "dense", transB=1),
        helper.make_node("Relu", ["dense"], ["rd"], "relu2"),
        helper.make_node("MatMul", ["rd", "last.w"], ["y"], "last"),
    ]
    weights = [
        filters("first", 16, 4),
        weight("dense.w", 24, 64),
        weight("dense.b", 24),
        weight("last.w", 24, 5, seed=4),
    ]
    return build(nodes, weights, "y", ["batch", 5])


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (mobile(), [("wide", ("each",), "narrow", 1)]),
        (classifier(), [("first", (), "dense", 4), ("dense", (), "last", 1)]),
    ],
    ids=["mobile", "classifier"],
)
def test_spans_are_found(model: onnx.ModelProto, expected: list[tuple[str, tuple[str, ...], str, int]]) -> None:
    assert [(s.maker, s.depthwise, s.reader, s.per_channel) for s in find_spans(model)] == expected


def reading(extra: list[onnx.NodeProto], out: str = "b", weights: int = 0) -> onnx.ModelProto:
    """Two convolutions, and something else that looks at what is between them."""
    nodes = [conv("a", "x"), helper.make_node("Relu", ["a"], ["r"], "relu"), conv("b", "r"), *extra]
    return build(nodes, [filters("a", 16, 4), filters("b", 16, 16)], out, ["batch", 16 + weights, 8, 8])


@pytest.mark.parametrize(
    "model",
    [
        reading([helper.make_node("Add", ["b", "r"], ["sum"], "add")], "sum"),
        reading([helper.make_node("Concat", ["b", "r"], ["both"], "concat", axis=1)], "both", weights=16),
        reading([helper.make_node("Softmax", ["b"], ["s"], "softmax", axis=1)], "s"),
        build(
            [conv("a", "x"), helper.make_node("Softmax", ["a"], ["s"], "s", axis=1), conv("b", "s")],
            [filters("a", 16, 4), filters("b", 8, 16)],
            "b",
            ["batch", 8, 8, 8],
        ),
        build(
            [conv("a", "x"), helper.make_node("Conv", ["a", "a.w"], ["b"], "b", pads=[1] * 4)],
            [filters("a", 4, 4)],
            "b",
            ["batch", 4, 8, 8],
        ),
    ],
    ids=["sum", "concat", "softmax after", "softmax between", "shared weights"],
)
def test_channels_that_others_count_on_stay(model: onnx.ModelProto) -> None:
    spans = [span for span in find_spans(model) if span.maker == "a"]
    assert len(spans) == (1 if model.graph.output[0].name == "s" else 0)


def test_an_output_keeps_its_channels() -> None:
    model = mobile()
    model.graph.output.append(helper.make_tensor_value_info("positive", FLOAT, ["batch", 32, 4, 4]))
    assert find_spans(model) == []


def test_what_a_body_reads_keeps_its_channels() -> None:
    """Two levels down."""
    shown = helper.make_tensor_value_info("seen", FLOAT, None)
    inner = helper.make_graph([helper.make_node("Identity", ["positive"], ["seen"])], "inner", [], [shown])
    outer_out = helper.make_tensor_value_info("found", FLOAT, None)
    nested = helper.make_node("If", ["yes"], ["found"], then_branch=inner, else_branch=inner)
    outer = helper.make_graph([nested], "outer", [], [outer_out])
    model = mobile()
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["z"], name="if", then_branch=outer, else_branch=outer))
    assert find_spans(model) == []


@pytest.mark.parametrize("shape", [(1,), (1, 16), ()], ids=["one", "row", "scalar"])
def test_a_bias_for_all_channels_at_once_keeps_them(shape: tuple[int, ...]) -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "a.w", "a.b"], ["a"], "a"),
        helper.make_node("Gemm", ["a", "b.w"], ["b"], "b"),
    ]
    bias = numpy_helper.from_array(np.zeros(shape, np.float32), "a.b")
    model = build(nodes, [weight("a.w", 256, 16), bias, weight("b.w", 16, 3)], "b", ["batch", 3])
    assert find_spans(model) == []


@pytest.mark.parametrize("model", [mobile(), classifier()], ids=["mobile", "classifier"])
def test_channels_that_say_nothing_go_without_a_trace(model: onnx.ModelProto) -> None:
    """Half of each span's channels are silenced first: then the pruned network is the network."""
    silenced = onnx.ModelProto()
    silenced.CopyFrom(model)
    for span in find_spans(model):
        [maker] = [node for node in silenced.graph.node if node.name == span.maker]
        for tensor in silenced.graph.initializer:
            if tensor.name in maker.input[1:]:
                values = numpy_helper.to_array(tensor).copy()
                values[1::2] = 0
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    arrays = draw(silenced, 16)
    samples = read_samples(arrays, read_model_bytes(silenced.SerializeToString()).inputs)
    made = prune(silenced, samples, frozenset())
    assert [span.channels for span in find_spans(made)] == [
        16 if span.channels == 24 else span.channels // 2 for span in find_spans(model)
    ]
    wanted = answers_of(silenced.SerializeToString(), samples, optimised=False)
    found = answers_of(made.SerializeToString(), samples, optimised=True)
    scale = max(float(np.abs(each[0]).max()) for each in wanted)
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_allclose(other[0], one[0], atol=1e-3 * scale)


def test_channels_taken_out_leave_the_readers_weights_of_the_others() -> None:
    model = classifier()
    before = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    span = find_spans(model)[0]
    take_out(model, span, [1, 3])
    after = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    assert np.array_equal(after["first.w"], before["first.w"][[1, 3]])
    assert np.array_equal(after["dense.w"], before["dense.w"][:, [4, 5, 6, 7, 12, 13, 14, 15]])
