"""Cutting: from a segment (`segment_between`, which is core's) to an ONNX model of its own.

A segment's model has the nodes of its groups with the constants they read, the weights they reach,
the local functions they call, and the model's operator sets. Its bytes are deterministic, so equal
cuts of equal models have equal SHA-256. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from mesh.core.graph import Graph
from mesh.core.plan import Segment
from mesh.core.segments import segment_between
from mesh.core.tensor import TensorSpec
from mesh.errors import ModelInvalid, UsageError
from mesh.model.pairs import complete_pairs
from mesh.model.read import SourceModel
from mesh.model.tensors import value_of
from mesh.model.traverse import domain_of, function_key, functions_used, names_read

SEGMENT_KEY = "infermesh.segment"
MODEL_KEY = "infermesh.model"

__all__ = ["MODEL_KEY", "SEGMENT_KEY", "extract", "segment_between"]


def extract(model: SourceModel, graph: Graph, segment: Segment) -> bytes:
    """The ONNX model of `segment`, serialised deterministically.

    `graph` must be the summary of `model`. Inputs are `segment.consumes`, outputs
    `segment.produces`, both in that order. The whole model is returned as it is.

    Raises:
        UsageError: `graph` is of another model.
        ModelInvalid: The segment computes nothing, or is too large for one file.
    """
    if graph.model_sha256 != model.sha256:
        raise UsageError(f"the graph is of model {graph.model_sha256[:12]}, not of {model.sha256[:12]}")
    if (segment.start, segment.end) == (0, len(graph.groups)):
        return model.data
    source = model.proto.graph
    chosen = sorted({index for group in graph.groups[segment.start : segment.end] for index in group.nodes})
    if not chosen and not segment.produces:
        raise ModelInvalid(f"the segment from {segment.start} to {segment.end} computes nothing")
    nodes = [source.node[index] for index in chosen]
    part = _make_frame(model, segment, nodes)
    part.graph.node.extend(nodes)
    _declare(part.graph, source, graph, segment, nodes)
    _store(part.graph, source, nodes, segment.produces)
    opset = next((opset.version for opset in part.opset_import if domain_of(opset.domain) == ""), 0)
    complete_pairs(part.graph, source, graph.specs, opset)
    try:
        return part.SerializeToString(deterministic=True)
    except ValueError as error:
        raise ModelInvalid(
            f"the segment from {segment.start} to {segment.end} cannot be serialised: {error}"
        ) from error


def _make_frame(model: SourceModel, segment: Segment, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """A model without a graph: versions, operator sets, the functions that `nodes` call, and where it is from."""
    whole = model.proto
    part = onnx.ModelProto(ir_version=whole.ir_version, producer_name="infermesh")
    part.opset_import.extend(whole.opset_import)
    functions = {function_key(function): function for function in whole.functions}
    used = functions_used(nodes, functions)
    part.functions.extend(function for key, function in functions.items() if key in used)
    entries = {SEGMENT_KEY: f"{segment.start}-{segment.end}", MODEL_KEY: model.sha256}
    for entry in whole.metadata_props:
        if entry.key not in entries:
            part.metadata_props.append(entry)
    for key, value in entries.items():
        part.metadata_props.add(key=key, value=value)
    part.graph.name = f"{whole.graph.name or 'graph'}[{segment.start}:{segment.end}]"
    return part


def _declare(
    part: onnx.GraphProto, source: onnx.GraphProto, graph: Graph, segment: Segment, nodes: list[onnx.NodeProto]
) -> None:
    """Inputs, outputs, and what the model says of the tensors between."""
    inputs = {value.name: value for value in source.input}
    specs: dict[str, TensorSpec] = {**graph.specs, **{spec.name: spec for spec in (*graph.inputs, *graph.outputs)}}

    def describe(names: Iterable[str]) -> list[onnx.ValueInfoProto]:
        return [inputs[name] if name in inputs else value_of(specs[name]) for name in names]

    part.input.extend(describe(segment.consumes))
    part.output.extend(describe(segment.produces))
    made = {name for node in nodes for name in node.output if name}
    shown = {*segment.consumes, *segment.produces}
    part.value_info.extend(value for value in source.value_info if value.name in made - shown)
    inside = {*made, *shown, *(name for node in nodes for name in node.input)}
    part.quantization_annotation.extend(note for note in source.quantization_annotation if note.tensor_name in inside)


def _store(
    part: onnx.GraphProto, source: onnx.GraphProto, nodes: list[onnx.NodeProto], produces: tuple[str, ...]
) -> None:
    """The initialisers that `nodes` or their bodies read, and those that are outputs themselves."""
    needed = {name for node in nodes for name in names_read(node)} | set(produces)
    part.initializer.extend(tensor for tensor in source.initializer if tensor.name in needed)
    part.sparse_initializer.extend(sparse for sparse in source.sparse_initializer if sparse.values.name in needed)
