"""Sizes of ONNX tensors and the specs of ONNX values: dimensions are checked before anything is multiplied out.

Pure. `check_tensor` is the door for every tensor of a model file; the rest trusts what passed it.
"""

from __future__ import annotations

import math

import onnx
from onnx import TensorProto

from mesh.core.tensor import MAX_RANK, Dimension, DType, TensorSpec
from mesh.errors import ModelInvalid, ModelUnsupported

MAX_ELEMENTS = 1 << 40
"""No tensor in a file of at most 2 GB has more elements; anything above is a wrong or hostile dimension."""

MAX_SYMBOL_BYTES = 256
"""What a plan may carry as the name of a dimension. Exporters write whole formulas there, which say nothing to us."""

_BITS = {
    "COMPLEX64": 64,
    "COMPLEX128": 128,
    "FLOAT8E4M3FN": 8,
    "FLOAT8E4M3FNUZ": 8,
    "FLOAT8E5M2": 8,
    "FLOAT8E5M2FNUZ": 8,
    "FLOAT8E8M0": 8,
    "UINT4": 4,
    "INT4": 4,
    "FLOAT4E2M1": 4,
    "UINT2": 2,
    "INT2": 2,
}
"""Element sizes of the types that `DType` does not have."""


def type_name(data_type: int) -> str:
    """ONNX's name for an element type in lower case, or its number."""
    try:
        return TensorProto.DataType.Name(data_type).lower()
    except ValueError:
        return f"number {data_type}"


def dtype_of(data_type: int) -> DType | None:
    """The mesh's element type, or None for one that it does not carry (float8, int4, complex, ...)."""
    try:
        return DType(data_type)
    except ValueError:
        return None


def element_bits(data_type: int) -> int | None:
    """Bits per element; 0 for strings, None for an unknown type."""
    dtype = dtype_of(data_type)
    if dtype is not None:
        return dtype.item_bytes * 8
    return _BITS.get(type_name(data_type).upper())


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes that a (checked) tensor's elements take in memory."""
    if tensor.data_type == TensorProto.STRING:
        return sum(len(value) for value in tensor.string_data)
    return packed_bytes(tensor.data_type, math.prod(tensor.dims))


def packed_bytes(data_type: int, elements: int) -> int:
    return ((element_bits(data_type) or 0) * elements + 7) // 8


def check_tensor(tensor: onnx.TensorProto) -> None:
    """Raise `ModelInvalid` unless dimensions are sane and the data has exactly the bytes they need.

    Tensors whose data is in another file are checked for type and dimensions only.
    """
    name = tensor.name[:80]
    if any(dim < 0 for dim in tensor.dims):
        raise ModelInvalid(f"tensor {name!r} has a negative dimension in {list(tensor.dims)[:8]}")
    if len(tensor.dims) > MAX_RANK:
        raise ModelInvalid(f"tensor {name!r} has rank {len(tensor.dims)}, above the limit of {MAX_RANK}")
    elements = math.prod(tensor.dims)
    if elements > MAX_ELEMENTS:
        raise ModelInvalid(f"tensor {name!r} claims {elements} elements (dimensions {list(tensor.dims)[:8]})")
    bits = element_bits(tensor.data_type)
    if bits is None:
        raise ModelInvalid(f"tensor {name!r} has no valid element type ({type_name(tensor.data_type)})")
    if tensor.data_location == TensorProto.EXTERNAL:
        if tensor.data_type == TensorProto.STRING:
            raise ModelInvalid(f"string tensor {name!r} keeps its data in another file, which ONNX does not allow")
        return
    _check_data(tensor, name, elements, bits)


def _check_data(tensor: onnx.TensorProto, name: str, elements: int, bits: int) -> None:
    if tensor.HasField("raw_data"):
        want, got = (bits * elements + 7) // 8, len(tensor.raw_data)
        unit = "bytes"
    else:
        want, got = _typed_counts(tensor, elements)
        unit = "values"
    if want != got:
        raise ModelInvalid(
            f"tensor {name!r} has {got} {unit} of data, its dimensions {list(tensor.dims)[:8]} need {want}"
        )


def _typed_counts(tensor: onnx.TensorProto, elements: int) -> tuple[int, int]:
    """Values that the typed field of a tensor should hold and holds."""
    kind = tensor.data_type
    if kind == TensorProto.FLOAT:
        return elements, len(tensor.float_data)
    if kind == TensorProto.COMPLEX64:
        return 2 * elements, len(tensor.float_data)
    if kind == TensorProto.DOUBLE:
        return elements, len(tensor.double_data)
    if kind == TensorProto.COMPLEX128:
        return 2 * elements, len(tensor.double_data)
    if kind == TensorProto.INT64:
        return elements, len(tensor.int64_data)
    if kind in (TensorProto.UINT32, TensorProto.UINT64):
        return elements, len(tensor.uint64_data)
    if kind == TensorProto.STRING:
        return elements, len(tensor.string_data)
    bits = element_bits(kind) or 8
    if bits < 8:  # several elements to a value
        return (elements * bits + 7) // 8, len(tensor.int32_data)
    return elements, len(tensor.int32_data)


def spec_of(value: onnx.ValueInfoProto) -> TensorSpec | None:
    """The spec of a value, or None where it is no tensor or of a type that the mesh does not carry."""
    if value.type.WhichOneof("value") != "tensor_type":
        return None
    dtype = dtype_of(value.type.tensor_type.elem_type)
    if dtype is None:
        return None
    return TensorSpec(value.name, dtype, shape_of(value.type.tensor_type))


def shape_of(kind: onnx.TypeProto.Tensor) -> tuple[Dimension, ...] | None:
    """A tensor type's dimensions: sizes, names, and "?" where neither is given; None for unknown rank."""
    if not kind.HasField("shape"):
        return None
    dims: list[Dimension] = []
    for dim in kind.shape.dim:
        which = dim.WhichOneof("value")
        if which == "dim_value" and dim.dim_value >= 0:
            dims.append(dim.dim_value)
        else:
            is_name = which == "dim_param" and 0 < len(dim.dim_param.encode()) <= MAX_SYMBOL_BYTES
            dims.append(dim.dim_param if is_name else "?")
    return tuple(dims)


def require_carried(value: onnx.ValueInfoProto, what: str) -> TensorSpec:
    """The spec of a model's input or output; raises `ModelUnsupported`, naming it, if no frame can carry it."""
    name = value.name[:80]
    which = value.type.WhichOneof("value")
    if which is None:
        raise ModelInvalid(f"{what} {name!r} has no type")
    if which != "tensor_type":
        kind = which.removesuffix("_type").replace("_", " ")
        article = "an" if kind.startswith("o") else "a"
        raise ModelUnsupported(
            f"{what} {name!r} is {article} {kind}, not a tensor", hint="frames carry dense tensors only"
        )
    spec = spec_of(value)
    if spec is None:
        kind = type_name(value.type.tensor_type.elem_type)
        raise ModelUnsupported(f"{what} {name!r} has element type {kind}, which the mesh does not carry")
    if spec.shape is not None and len(spec.shape) > MAX_RANK:
        raise ModelUnsupported(f"{what} {name!r} has rank {len(spec.shape)}, above the limit of {MAX_RANK}")
    return spec


def value_of(spec: TensorSpec) -> onnx.ValueInfoProto:
    """The ONNX value that `spec` describes; "?" becomes a dimension without size and name."""
    shape = None if spec.shape is None else [None if dim == "?" else dim for dim in spec.shape]
    return onnx.helper.make_tensor_value_info(spec.name, spec.dtype.value, shape)
