"""Model files that must be refused: hostile, broken, too new, or beyond what the mesh carries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mesh.errors import ModelError, ModelInvalid, ModelUnreadable, ModelUnsupported
from scripts.make_models import Builder, make_local_function, tensor


def chain() -> onnx.ModelProto:
    """A good model to spoil: MatMul, Add, Relu."""
    build = Builder()
    x = build.add("Relu", build.linear("x", 4, 4))
    return build.model("chain", [tensor("x", [1, 4])], [tensor(x, [1, 4])])


def spoilt(spoil: Callable[[onnx.ModelProto], object]) -> bytes:
    model = chain()
    spoil(model)
    return model.SerializeToString()


def with_weight(change: Callable[[onnx.TensorProto], object]) -> bytes:
    return spoilt(lambda model: change(model.graph.initializer[0]))


def _set_dims(tensor: onnx.TensorProto, *dims: int) -> None:
    del tensor.dims[:]
    tensor.dims.extend(dims)


def _set_input(model: onnx.ModelProto, *dims: int) -> None:
    model.graph.input[0].CopyFrom(tensor("x", dims))


def _make_cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[2].output[0]


def _set_version(model: onnx.ModelProto, version: int) -> None:
    model.opset_import[0].version = version


def _set_operator(model: onnx.ModelProto, kind: str, domain: str) -> None:
    model.graph.node[2].op_type = kind
    model.graph.node[2].domain = domain
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))


def _add_input(model: onnx.ModelProto, value: onnx.ValueInfoProto) -> None:
    model.graph.input.append(value)


def _typed(name: str, kind: onnx.TypeProto) -> onnx.ValueInfoProto:
    return helper.make_value_info(name, kind)


FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])


def make_recursion() -> bytes:
    model = make_local_function()
    swish = next(function for function in model.functions if function.name == "Swish")
    swish.opset_import.append(helper.make_opsetid("blocks", 1))
    swish.node.append(helper.make_node("Swish", ["y"], ["z"], domain="blocks"))
    return model.SerializeToString()


def make_expansion() -> bytes:
    """Sixty functions, each calling the one before twice."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("grow", 1)]
    functions = [helper.make_function("grow", "F0", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], opsets)]
    for level in range(1, 60):
        calls = [
            helper.make_node(f"F{level - 1}", ["x"], ["m"], domain="grow"),
            helper.make_node(f"F{level - 1}", ["m"], ["y"], domain="grow"),
        ]
        functions.append(helper.make_function("grow", f"F{level}", ["x"], ["y"], calls, opsets))
    build = Builder()
    y = build.add("F59", "x", domain="grow")
    model = build.model("grow", [tensor("x", [1])], [tensor(y, [1])], functions, [("", 17), ("grow", 1)])
    return model.SerializeToString()


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size, length = bytearray(), len(value)
    while True:
        size.append((length & 0x7F) | (0x80 if length > 0x7F else 0))
        length >>= 7
        if not length:
            return bytes([number << 3 | 2]) + bytes(size) + value


def make_nesting(depth: int) -> bytes:
    """Ifs within Ifs, written as bytes because protobuf's own objects stop at 100 levels."""
    graph = b""
    for _ in range(depth):
        attribute = _field(1, b"then_branch") + b"\xa0\x01\x05" + _field(6, graph)
        graph = _field(1, _field(1, b"c") + _field(2, b"o") + _field(4, b"If") + _field(5, attribute))
    return chain().SerializeToString() + _field(7, graph)


def make_random(size: int) -> bytes:
    return np.random.default_rng(0).bytes(size)


def _external(tensor: onnx.TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


BAD_MODELS: dict[str, tuple[Callable[[], bytes], type[ModelError], str]] = {
    "empty": (lambda: b"", ModelUnreadable, "empty"),
    "random": (lambda: make_random(4096), ModelUnreadable, "not an ONNX model"),
    "zeros": (lambda: bytes(4096), ModelUnreadable, "not an ONNX model"),
    "text": (lambda: b"this is not a model at all\n" * 40, ModelUnreadable, "not an ONNX model"),
    "truncated": (lambda: chain().SerializeToString()[:-7], ModelUnreadable, "not an ONNX model"),
    "a tensor": (lambda: numpy_helper.from_array(np.zeros(9)).SerializeToString(), ModelUnreadable, "not an ONNX"),
    "no graph": (lambda: spoilt(lambda m: m.ClearField("graph")), ModelUnreadable, "no graph"),
    "no versions": (lambda: spoilt(lambda m: m.ClearField("ir_version")), ModelUnreadable, "no IR version"),
    "no opset": (lambda: spoilt(lambda m: m.ClearField("opset_import")), ModelUnreadable, "no operator set"),
    "runtime format": (lambda: b"\x20\0\0\0ORTM" + bytes(64), ModelUnreadable, "own format"),
    "new ir": (lambda: spoilt(lambda m: setattr(m, "ir_version", 9999)), ModelUnsupported, "9999"),
    "negative ir": (lambda: spoilt(lambda m: setattr(m, "ir_version", -5)), ModelInvalid, "IR version"),
    "new opset": (lambda: spoilt(lambda m: _set_version(m, 9999)), ModelUnsupported, "9999"),
    "opset 0": (lambda: spoilt(lambda m: _set_version(m, 0)), ModelInvalid, "version 0"),
    "unknown operator": (lambda: spoilt(lambda m: _set_operator(m, "Relux", "")), ModelInvalid, "Relux"),
    "operator too new": (lambda: spoilt(lambda m: _set_operator(m, "Gelu", "")), ModelInvalid, "Gelu"),
    "unknown domain": (lambda: spoilt(lambda m: _set_operator(m, "Magic", "acme")), ModelUnsupported, "acme"),
    "cycle": (lambda: spoilt(_make_cycle), ModelInvalid, "cycle"),
    "output twice": (
        lambda: spoilt(lambda m: m.graph.node[2].output.__setitem__(0, m.graph.node[0].output[0])),
        ModelInvalid,
        "given twice",
    ),
    "initialiser twice": (
        lambda: spoilt(lambda m: m.graph.initializer.append(m.graph.initializer[0])),
        ModelInvalid,
        "given twice",
    ),
    "listed twice": (lambda: spoilt(lambda m: m.graph.output.append(m.graph.output[0])), ModelInvalid, "twice"),
    "dangling": (
        lambda: spoilt(lambda m: m.graph.node[0].input.__setitem__(0, "nowhere")),
        ModelInvalid,
        "nowhere",
    ),
    "unmade output": (lambda: spoilt(lambda m: setattr(m.graph.output[0], "name", "ghost")), ModelInvalid, "ghost"),
    "no output": (lambda: spoilt(lambda m: m.graph.ClearField("output")), ModelInvalid, "no outputs"),
    "negative dimension": (lambda: with_weight(lambda t: _set_dims(t, -4, -4)), ModelInvalid, "negative dimension"),
    "2^40 elements": (lambda: with_weight(lambda t: _set_dims(t, 1 << 40)), ModelInvalid, "need"),
    "wrapped product": (lambda: with_weight(lambda t: _set_dims(t, 1 << 33, 1 << 33)), ModelInvalid, "claims"),
    "short data": (lambda: with_weight(lambda t: setattr(t, "raw_data", bytes(15))), ModelInvalid, "15 bytes"),
    "huge rank": (lambda: with_weight(lambda t: _set_dims(t, *[1] * 100)), ModelInvalid, "rank 100"),
    "element type 77": (lambda: with_weight(lambda t: setattr(t, "data_type", 77)), ModelInvalid, "element type"),
    "negative input": (lambda: spoilt(lambda m: _set_input(m, -4, 4)), ModelInvalid, "negative dimension"),
    "huge input": (lambda: spoilt(lambda m: _set_input(m, 1 << 62, 1 << 62)), ModelUnsupported, "'x'"),
    "recursive function": (make_recursion, ModelInvalid, "calls itself"),
    "expanding functions": (make_expansion, ModelUnsupported, "expands"),
    "2000 levels": (lambda: make_nesting(2000), ModelUnreadable, "not an ONNX model"),
    "30 levels": (lambda: make_nesting(30), ModelInvalid, ""),
    "external in bytes": (lambda: with_weight(_external), ModelError, "another file"),
    "sequence input": (
        lambda: spoilt(lambda m: _add_input(m, _typed("many", helper.make_sequence_type_proto(FLOATS)))),
        ModelUnsupported,
        "'many' is a sequence",
    ),
    "optional input": (
        lambda: spoilt(lambda m: _add_input(m, _typed("maybe", helper.make_optional_type_proto(FLOATS)))),
        ModelUnsupported,
        "'maybe' is an optional",
    ),
    "float8 input": (
        lambda: spoilt(lambda m: _add_input(m, tensor("tiny", [1], TensorProto.FLOAT8E4M3FN))),
        ModelUnsupported,
        "float8e4m3fn",
    ),
    "int4 input": (
        lambda: spoilt(lambda m: _add_input(m, tensor("nibbles", [2], TensorProto.INT4))),
        ModelUnsupported,
        "int4",
    ),
    "complex input": (
        lambda: spoilt(lambda m: _add_input(m, tensor("waves", [2], TensorProto.COMPLEX64))),
        ModelUnsupported,
        "complex64",
    ),
}
"""Name to bytes, the error that they must cause, and a part of its message."""
