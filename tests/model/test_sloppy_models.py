"""Models that say wrong or odd things and that the runtime runs all the same: so must the mesh, whole and cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, ValueInfoProto, helper

from mesh.model.compare import generate_inputs
from mesh.model.extract import extract
from mesh.model.tensors import MAX_SYMBOL_BYTES
from tests.model.running import inner_positions, load, load_graph, run, segments_at

FLOAT = TensorProto.FLOAT
ROWS = 4
"""Of the symbolic batch; the models that state one say 1."""


def value(name: str, *dims: int | str, kind: int = FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims)


def model(
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[ValueInfoProto],
    said: Sequence[ValueInfoProto] = (),
    opsets: Sequence[tuple[str, int]] = (("", 17),),
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "sloppy", [value("x", "n", 3)], outputs, value_info=said)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*opset) for opset in opsets], ir_version=8)


def chain(first: str = "Relu", **attributes: object) -> list[onnx.NodeProto]:
    return [helper.make_node(first, ["x"], ["h"], **attributes), helper.make_node("Exp", ["h"], ["y"])]


def with_function() -> onnx.ModelProto:
    body = [helper.make_node("Relu", ["a"], ["b"])]
    function = helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 13)])
    made = model(chain("F", domain="local"), [value("y", "n", 3)], opsets=[("", 17), ("local", 1)])
    made.functions.append(function)
    return made


SLOPPY: dict[str, Callable[[], onnx.ModelProto]] = {
    "output of one example": lambda: model(chain(), [value("y", 1, 3)]),
    "output of another rank": lambda: model(chain(), [value("y", 5)]),
    "output with the input's symbol": lambda: model(chain("Transpose"), [value("y", "n", 3)]),
    "output without type": lambda: model(chain(), [ValueInfoProto(name="y")]),
    "output read further on": lambda: model(chain(), [value("y", "n", 3), value("h", 1, 7)]),
    "inner value of one example": lambda: model(chain(), [value("y", "n", 3)], [value("h", 1, 3)]),
    "inner value of another rank": lambda: model(chain(), [value("y", "n", 3)], [value("h", 7)]),
    "size that depends on data": lambda: model(
        [helper.make_node("NonZero", ["x"], ["h"]), helper.make_node("Neg", ["h"], ["y"])],
        [value("y", 2, 1, kind=TensorProto.INT64)],
        [value("h", 2, 1, kind=TensorProto.INT64)],
    ),
    "formula for a symbol": lambda: model(chain(), [value("y", "(n + 1) - 1" * 100, 3)]),
    "ONNX's domain spelt out": lambda: model(
        chain("Relu", domain="ai.onnx"), [value("y", "n", 3)], opsets=[("ai.onnx", 17)]
    ),
    "runtime's domain not imported": lambda: model(chain("Gelu", domain="com.microsoft"), [value("y", "n", 3)]),
    "function of an older operator set": with_function,
}


@pytest.mark.parametrize("name", SLOPPY)
def test_runs_whole_and_cut_on_any_batch(name: str) -> None:
    made = SLOPPY[name]()
    source, graph = load_graph(made)
    feeds = generate_inputs(source.inputs, seed=1, batch=ROWS)
    names = [spec.name for spec in source.outputs]
    wanted = run(made.SerializeToString(), feeds, names)
    assert len(names) == len(made.graph.output)
    assert inner_positions(graph), "this model is to be cut"
    for positions in ([], [1]):
        frame = dict(feeds)
        for segment in segments_at(graph, positions):
            data = extract(source, graph, segment)
            if "function" not in name:  # the checker knows no functions of another operator set than the model's
                onnx.checker.check_model(onnx.ModelProto.FromString(data))
            frame |= run(data, {each: frame[each] for each in segment.consumes}, segment.produces)
            for each in segment.produces:  # as a stage holds them against what was agreed
                graph.specs[each].check(graph.specs[each].dtype, frame[each].shape)
        for spec in graph.outputs:
            spec.check(spec.dtype, frame[spec.name].shape)
            np.testing.assert_array_equal(frame[spec.name], wanted[spec.name])


def test_the_normal_form_is_reached_at_once() -> None:
    for make in SLOPPY.values():
        source = load(make())
        assert load(source.proto).data == source.data


def test_stated_sizes_still_serve_the_estimate() -> None:
    _, graph = load_graph(SLOPPY["size that depends on data"]())
    assert [cut.bytes for cut in graph.cuts] == [12, 16, 16]
    rows, found = graph.specs["h"].shape or ()
    assert rows == 2 and isinstance(found, str)


def test_long_symbols_are_left_out_of_specs() -> None:
    _, graph = load_graph(model(chain(), [value("y", "n", 3)], [value("h", "m" * (MAX_SYMBOL_BYTES + 1), 3)]))
    assert graph.specs["h"].shape == ("n", 3)
