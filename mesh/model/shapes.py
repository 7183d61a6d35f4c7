"""Types and shapes of a model's tensors, as far as they can be known before it runs.

ONNX's shape inference does most of it, on the skeleton (weights do not matter to shapes). Where it
stops, at operators that only the runtime has or where a shape depends on data, element types are
carried on by the operators' schemas, because a cut needs the type of a tensor but not its shape.

What a model says of the tensors between its inputs and its outputs, and of its outputs, may be wrong:
exporters write the sizes of one example where any batch is meant, and the runtime goes on with what it
computes. So shapes are first inferred from the inputs alone; those are `proven`. What the model says
fills the gaps, for estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import onnx
from onnx import shape_inference

from mesh.core.tensor import Dimension, DType, TensorSpec
from mesh.model.skeleton import make_skeleton
from mesh.model.stand_ins import replace_runtime_operators
from mesh.model.tensors import spec_of, value_of
from mesh.model.traverse import domain_of

INFERENCE_ROUNDS = 32
"""Each round passes one more layer of Loops and of operators that ONNX does not know; few models have any."""

SAME_TYPE = frozenset({"Attention", "Crop", "FusedMatMul", "MatMulNBits", "MultiHeadAttention", "NhwcMaxPool"})
"""Runtime operators whose first output has the element type of their first input; the others have stand-ins."""


@dataclass(frozen=True, slots=True)
class Inference:
    """What is known of a model's tensors. `skeleton` has its nodes at the model's positions, and shapes in bodies."""

    skeleton: onnx.ModelProto
    specs: dict[str, TensorSpec]
    """By name; tensors of unknown or uncarried type are absent."""
    proven: dict[str, TensorSpec]
    """What follows from the inputs alone, as far as that goes: what a run will find."""
    others: frozenset[str]
    """Values that are known to be no dense tensors, or of a type that no frame carries."""
    failure: str
    """Why shape inference gave up; empty if it did not."""


def infer(model: onnx.ModelProto) -> Inference:
    """Infer types and shapes of `model`'s tensors. Never raises for a checked model."""
    skeleton = make_skeleton(model)
    replace_runtime_operators(skeleton)
    declared = _take_declared(skeleton)
    skeleton, failure = _infer_once(skeleton)
    proven = {} if failure else {n: spec for n, spec in _collect(skeleton)[0].items() if spec.shape is not None}
    is_changed = _fill_gaps(skeleton, declared)
    for _ in range(INFERENCE_ROUNDS):
        if is_changed and not failure:
            skeleton, failure = _infer_once(skeleton)
        specs, others = _collect(skeleton)
        added = _carry_types(skeleton, specs, others)
        if failure or not any(spec.shape is not None for spec in added):
            break
        names = {spec.name for spec in added}
        kept = [value for value in skeleton.graph.value_info if value.name not in names]
        del skeleton.graph.value_info[:]
        skeleton.graph.value_info.extend([*kept, *(value_of(spec) for spec in added if spec.shape is not None)])
        is_changed = True
    return Inference(skeleton, specs, proven, frozenset(others), failure)


def _infer_once(skeleton: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """One pass of ONNX's inference, and why it gave up; then `skeleton` is returned as it is."""
    try:
        return shape_inference.infer_shapes(skeleton, data_prop=True), ""
    except (shape_inference.InferenceError, RuntimeError, ValueError) as error:
        return skeleton, " ".join(str(error).split())[:200]


def _take_declared(skeleton: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Remove, and return, what the model says of values that its nodes make."""
    graph = skeleton.graph
    declared = [*graph.value_info]
    del graph.value_info[:]
    for value in graph.output:
        if value.type.WhichOneof("value") == "tensor_type":
            copy = onnx.ValueInfoProto()
            copy.CopyFrom(value)
            declared.append(copy)
            value.type.tensor_type.ClearField("shape")
    return declared


def _fill_gaps(skeleton: onnx.ModelProto, declared: list[onnx.ValueInfoProto]) -> bool:
    """Put back what the model says where nothing better is known; True if that added anything."""
    graph = skeleton.graph
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    symbols = {dim.dim_param for value in graph.input for dim in value.type.tensor_type.shape.dim} - {""}
    is_changed = False
    for said in declared:
        value = known.get(said.name)
        if value is None:
            graph.value_info.append(said)
        elif "tensor_type" != said.type.WhichOneof("value") != value.type.WhichOneof("value"):
            continue
        elif not value.type.tensor_type.HasField("shape"):
            value.type.CopyFrom(said.type)
        elif not _fill_dimensions(value.type.tensor_type.shape, said.type.tensor_type.shape, symbols):
            continue
        is_changed = True
    return is_changed


def _fill_dimensions(known: onnx.TensorShapeProto, said: onnx.TensorShapeProto, symbols: set[str]) -> bool:
    """Take over the dimensions of which `known` knows nothing; True if there were any."""
    is_changed = False
    for dim, said_dim in zip(known.dim, said.dim, strict=False):
        is_known = dim.HasField("dim_value") or dim.dim_param in symbols
        if len(known.dim) == len(said.dim) and not is_known and said_dim.WhichOneof("value") is not None:
            dim.CopyFrom(said_dim)
            is_changed = True
    return is_changed


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
            if not name or name in others or (name in specs and specs[name].shape is not None):
                continue
            if node.op_type == "Loop":
                spec = _loop_output(node, index, name, specs)
                if spec is not None:
                    specs[name] = spec
                    added.append(spec)
                continue
            if name in specs:
                continue
            spec = _output_spec(node, index, name, opsets, specs)
            if spec is not None:
                specs[name] = spec
                added.append(spec)
    return added


def _loop_output(node: onnx.NodeProto, index: int, name: str, specs: dict[str, TensorSpec]) -> TensorSpec | None:
    """An output of a Loop, which ONNX leaves without a rank, from what the body declares.

    A carried value ends as what it was before the first run or as what the body made of it: where
    both have one rank, the dimensions in which they agree hold. A scanned one is the body's, stacked.
    """
    body = next((attribute.g for attribute in node.attribute if attribute.name == "body"), None)
    carried = len(node.input) - 2
    if body is None or index + 1 >= len(body.output):
        return None
    made = spec_of(body.output[index + 1])
    if made is None or made.shape is None:
        return None
    if index >= carried:
        return TensorSpec(name, made.dtype, ("?", *made.shape))
    before = specs.get(node.input[index + 2])
    if before is None or before.shape is None or len(before.shape) != len(made.shape):
        return None
    pairs = zip(before.shape, made.shape, strict=True)
    return TensorSpec(name, made.dtype, tuple(a if a == b else "?" for a, b in pairs))


def _product_shape(node: onnx.NodeProto, specs: dict[str, TensorSpec]) -> tuple[Dimension, ...] | None:
    """The shape of a FusedMatMul, which transposes the last two axes of its factors on the way."""
    shapes = [specs[name].shape if name in specs else None for name in node.input[:2]]
    set_flags = {attribute.name for attribute in node.attribute if attribute.i}
    if len(shapes) < 2 or shapes[0] is None or shapes[1] is None or {"transBatchA", "transBatchB"} & set_flags:
        return None
    one, other = shapes[0], shapes[1]
    if min(len(one), len(other)) < 2 or (len(one) != len(other) and len(other) != 2):
        return None
    rows = one[-1] if "transA" in set_flags else one[-2]
    columns = other[-2] if "transB" in set_flags else other[-1]
    batch = one[:-2] if len(other) == 2 else tuple(b if a == 1 else a for a, b in zip(one, other, strict=True))[:-2]
    return (*batch, rows, columns)


def _output_spec(
    node: onnx.NodeProto, index: int, name: str, opsets: dict[str, int], specs: dict[str, TensorSpec]
) -> TensorSpec | None:
    domain = domain_of(node.domain)
    first = specs.get(node.input[0]) if node.input else None
    if domain.startswith("com.microsoft"):
        if index or first is None:
            return None
        shape = _product_shape(node, specs) if node.op_type == "FusedMatMul" else None
        return TensorSpec(name, first.dtype, shape) if node.op_type in SAME_TYPE else None
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
