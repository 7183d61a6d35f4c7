"""A model without its large weights: what the ONNX checker and shape inference work on.

Both copy the model through protobuf, which takes seconds and gigabytes for large weights and fails
at 2 GiB. The skeleton keeps everything else, node positions included; large initialisers become
inputs of their type. Initialisers of few elements stay, because shapes are computed from them.
"""

from __future__ import annotations

import onnx

from mesh.model.traverse import all_nodes, domain_of

MAX_KEPT_ELEMENTS = 1024
"""More than any tensor of shapes, axes, pads or scales has."""

RUNTIME_DOMAIN = "com.microsoft"

RUNTIME_OPERATORS = frozenset(
    {
        "Affine",
        "Crop",
        "DynamicSlice",
        "GivenTensorFill",
        "ImageScaler",
        "LayerNormalization",
        "ParametricSoftplus",
        "Scale",
        "ScaledTanh",
        "SimplifiedLayerNormalization",
    }
)
"""Operators that ONNX Runtime registers in ONNX's own domain although ONNX does not have them (LayerNormalization:
not before operator set 17). Optimised models contain them."""

LAYER_NORMALIZATION_SINCE = 17


def make_skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` without large weights; operators that only the runtime knows move to its domain."""
    graph = model.graph
    skeleton = onnx.ModelProto(ir_version=model.ir_version)
    skeleton.opset_import.extend(model.opset_import)
    skeleton.functions.extend(model.functions)
    bones = skeleton.graph
    bones.name = graph.name or "graph"
    bones.node.extend(graph.node)
    bones.input.extend(graph.input)
    bones.output.extend(graph.output)
    bones.value_info.extend(graph.value_info)
    for tensor in graph.initializer:
        if element_count(tensor) <= MAX_KEPT_ELEMENTS:
            bones.initializer.append(tensor)
        else:
            bones.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    for sparse in graph.sparse_initializer:
        values = sparse.values
        bones.input.append(onnx.helper.make_tensor_value_info(values.name, values.data_type, list(sparse.dims)))
    _move_runtime_operators(skeleton)
    return skeleton


def element_count(tensor: onnx.TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count


def _move_runtime_operators(skeleton: onnx.ModelProto) -> None:
    opset = max((o.version for o in skeleton.opset_import if domain_of(o.domain) == ""), default=0)
    unknown = set(RUNTIME_OPERATORS)
    if opset >= LAYER_NORMALIZATION_SINCE:
        unknown.discard("LayerNormalization")
    moved = False
    for node in all_nodes(skeleton.graph.node):
        if node.op_type in unknown and domain_of(node.domain) == "":
            node.domain = RUNTIME_DOMAIN
            moved = True
    if moved and all(o.domain != RUNTIME_DOMAIN for o in skeleton.opset_import):
        skeleton.opset_import.append(onnx.helper.make_opsetid(RUNTIME_DOMAIN, 1))
