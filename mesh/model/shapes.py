"""Types and shapes of a model's tensors, as far as they can be known before it runs.

ONNX's shape inference does most of it, on the skeleton (weights do not matter to shapes). Where it
stops, at operators that only the runtime has or where a shape depends on data, element types are
carried on by the operators' schemas, because a cut needs the type of a tensor but not its shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import onnx
from onnx import shape_inference

from mesh.core.tensor import DType, TensorSpec
from mesh.model.skeleton import make_skeleton
from mesh.model.tensors import spec_of, value_of
from mesh.model.traverse import domain_of

INFERENCE_ROUNDS = 3
"""Each round passes one more layer of operators that ONNX does not know; few models have any."""

SAME_SHAPE = frozenset(
    {
        "BiasGelu",
        "FastGelu",
        "Gelu",
        "QuickGelu",
        "LayerNormalization",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "ScaledTanh",
        "ParametricSoftplus",
        "Affine",
        "Scale",
        "ImageScaler",
    }
)
"""Runtime operators whose first output is like their first input in type and shape."""

SAME_TYPE = frozenset(
    {
        "Attention",
        "Crop",
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "MatMulNBits",
        "MultiHeadAttention",
        "NhwcMaxPool",
        "QLinearAdd",
        "QLinearAveragePool",
        "QLinearConcat",
        "QLinearGlobalAveragePool",
        "QLinearLeakyRelu",
        "QLinearMul",
        "QLinearSigmoid",
    }
)
"""Runtime operators whose first output has the element type of their first input."""


@dataclass(frozen=True, slots=True)
class Inference:
    """What is known of a model's tensors. `skeleton` has shapes inside bodies too; its nodes are the model's."""

    skeleton: onnx.ModelProto
    specs: dict[str, TensorSpec]
    """By name; tensors of unknown or uncarried type are absent."""
    others: frozenset[str]
    """Values that are known to be no dense tensors, or of a type that no frame carries."""
    failure: str
    """Why shape inference gave up; empty if it did not."""


def infer(model: onnx.ModelProto) -> Inference:
    """Infer types and shapes of `model`'s tensors. Never raises for a checked model."""
    skeleton = make_skeleton(model)
    failure = ""
    for _ in range(INFERENCE_ROUNDS):
        try:
            skeleton = shape_inference.infer_shapes(skeleton, data_prop=True)
        except (shape_inference.InferenceError, RuntimeError, ValueError) as error:
            failure = " ".join(str(error).split())[:200]
        specs, others = _collect(skeleton)
        added = _carry_types(skeleton, specs, others)
        if failure or not any(spec.shape is not None for spec in added):
            break
        skeleton.graph.value_info.extend(value_of(spec) for spec in added)
    return Inference(skeleton, specs, frozenset(others), failure)


def _collect(skeleton: onnx.ModelProto) -> tuple[dict[str, TensorSpec], set[str]]:
    specs: dict[str, TensorSpec] = {}
    others: set[str] = set()
    graph = skeleton.graph
    for tensor in graph.initializer:
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        spec = spec_of(value)
        if spec is not None:
            specs[tensor.name] = spec
    for value in (*graph.input, *graph.output, *graph.value_info):
        spec = spec_of(value)
        if spec is not None:
            specs[value.name] = spec
        elif value.type.WhichOneof("value") is not None and not _is_untyped(value):
            others.add(value.name)
    return specs, others


def _is_untyped(value: onnx.ValueInfoProto) -> bool:
    return (
        value.type.WhichOneof("value") == "tensor_type"
        and value.type.tensor_type.elem_type == onnx.TensorProto.UNDEFINED
    )


def _carry_types(skeleton: onnx.ModelProto, specs: dict[str, TensorSpec], others: set[str]) -> list[TensorSpec]:
    """Add to `specs` what schemas say of tensors that inference left without a type; returns what was added."""
    opsets = {domain_of(opset.domain): opset.version for opset in skeleton.opset_import}
    added: list[TensorSpec] = []
    for node in skeleton.graph.node:
        for index, name in enumerate(node.output):
            if not name or name in specs or name in others:
                continue
            spec = _output_spec(node, index, name, opsets, specs)
            if spec is not None:
                specs[name] = spec
                added.append(spec)
    return added


def _output_spec(
    node: onnx.NodeProto, index: int, name: str, opsets: dict[str, int], specs: dict[str, TensorSpec]
) -> TensorSpec | None:
    domain = domain_of(node.domain)
    first = specs.get(node.input[0]) if node.input else None
    if domain.startswith("com.microsoft"):
        if index or first is None:
            return None
        if node.op_type in SAME_SHAPE:
            return TensorSpec(name, first.dtype, first.shape)
        return TensorSpec(name, first.dtype, None) if node.op_type in SAME_TYPE else None
    result = _result_type(node.op_type, domain, opsets.get(domain, 1), index)
    if isinstance(result, DType):
        return TensorSpec(name, result, None)
    for position in result:
        if position < len(node.input) and node.input[position] in specs:
            return TensorSpec(name, specs[node.input[position]].dtype, None)
    return None


@cache
def _result_type(operator: str, domain: str, version: int, index: int) -> DType | tuple[int, ...]:
    """The fixed element type of an operator's output, or the inputs that have the same type parameter."""
    try:
        schema = onnx.defs.get_schema(operator, version, domain)
    except onnx.defs.SchemaError:
        return ()
    if not schema.outputs:
        return ()
    parameter = schema.outputs[min(index, len(schema.outputs) - 1)].type_str
    if parameter.startswith("tensor("):
        label = parameter.removeprefix("tensor(").removesuffix(")")
        label = {"float": "float32", "double": "float64"}.get(label, label).upper()
        return DType[label] if label in DType.__members__ else ()
    allowed = next((c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == parameter), [])
    if any(not kind.startswith("tensor(") for kind in allowed):
        return ()
    return tuple(position for position, item in enumerate(schema.inputs) if item.type_str == parameter)
