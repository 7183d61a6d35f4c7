"""A model that also answers with what is inside of it: for looking at the tensors that cross its cuts. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from mesh.errors import ModelInvalid
from mesh.model.read import SourceModel


def tap(model: SourceModel, names: Iterable[str]) -> bytes:
    """`model` with the tensors `names` among its outputs; those that are outputs, or inputs, already are left alone.

    Raises `ModelInvalid` where it is too large for one file.
    """
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model.proto)
    known = {value.name for value in (*tapped.graph.output, *tapped.graph.input)}
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in known)
    try:
        return tapped.SerializeToString()
    except ValueError as error:
        raise ModelInvalid(f"the model cannot be looked into: {error}") from error
