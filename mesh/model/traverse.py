"""Walking ONNX protobufs: bodies inside nodes, names they read from outside, functions, tensors.

Pure functions over messages that the caller owns; nothing is modified. Used by every other file of
this package. Nesting is bounded by the protobuf parser (100 levels), so recursion here is safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

FunctionKey = tuple[str, str, str]
"""Domain ("" for ONNX's own), operator name, overload."""


def domain_of(domain: str) -> str:
    """ONNX's own domain has two spellings; this is the short one."""
    return "" if domain == "ai.onnx" else domain


def function_key(item: onnx.NodeProto | onnx.FunctionProto) -> FunctionKey:
    """What a call names and a function is named by."""
    name = item.op_type if isinstance(item, onnx.NodeProto) else item.name
    return domain_of(item.domain), name, item.overload


def bodies_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside a node's attributes: branches of an If, body of a Loop or Scan."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """`nodes` and every node inside their bodies."""
    for node in nodes:
        yield node
        for body in bodies_of(node):
            yield from all_nodes(body.node)


def initialiser_names(graph: onnx.GraphProto) -> set[str]:
    names = {tensor.name for tensor in graph.initializer}
    names.update(sparse.values.name for sparse in graph.sparse_initializer)
    return names


def names_from_outside(body: onnx.GraphProto) -> list[str]:
    """Names that a body reads from the scopes around it, in order of first use."""
    known = initialiser_names(body)
    known.update(value.name for value in body.input)
    found: dict[str, None] = {}
    for node in body.node:
        for name in names_read(node):
            if name not in known:
                found[name] = None
        known.update(node.output)
    for value in body.output:
        if value.name not in known:
            found[value.name] = None
    return list(found)


def names_read(node: onnx.NodeProto) -> list[str]:
    """All names that a node needs: its inputs and what its bodies read from outside, each once."""
    found = {name: None for name in node.input if name}
    for body in bodies_of(node):
        for name in names_from_outside(body):
            found[name] = None
    return list(found)


def functions_used(
    nodes: Iterable[onnx.NodeProto], functions: dict[FunctionKey, onnx.FunctionProto]
) -> set[FunctionKey]:
    """Local functions that `nodes` call, directly or through other functions."""
    used: set[FunctionKey] = set()
    todo = [function_key(node) for node in all_nodes(nodes)]
    while todo:
        key = todo.pop()
        if key in used or key not in functions:
            continue
        used.add(key)
        todo.extend(function_key(node) for node in all_nodes(functions[key].node))
    return used


def attribute_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """Tensors in attributes and in bodies of `nodes`, the parts of sparse ones included."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from sparse_parts(attribute.sparse_tensor)
            for sparse in attribute.sparse_tensors:
                yield from sparse_parts(sparse)
        for body in bodies_of(node):
            yield from graph_tensors(body)


def graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that a graph carries, at any depth."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from sparse_parts(sparse)
    yield from attribute_tensors(graph.node)


def sparse_parts(sparse: onnx.SparseTensorProto) -> Iterator[onnx.TensorProto]:
    yield sparse.values
    yield sparse.indices


def model_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that a model carries: in its graph, bodies, functions and training parts."""
    yield from graph_tensors(model.graph)
    for function in model.functions:
        yield from attribute_tensors(function.node)
    for training in model.training_info:
        yield from graph_tensors(training.initialization)
        yield from graph_tensors(training.algorithm)


def texts(model: onnx.ModelProto) -> Iterator[tuple[object, tuple[str, ...]]]:
    """Every message whose text is read later, with the names of its text fields."""
    for opset in model.opset_import:
        yield opset, ("domain",)
    for entry in model.metadata_props:
        yield entry, ("key",)
    for function in model.functions:
        yield function, ("name", "domain", "overload", "input", "output", "attribute")
        yield from _node_texts(function.node)
        for opset in function.opset_import:
            yield opset, ("domain",)
    yield from _graph_texts(model.graph)
    for tensor in model_tensors(model):
        yield tensor, ("name",)
        for item in tensor.external_data:
            yield item, ("key", "value")


def _graph_texts(graph: onnx.GraphProto) -> Iterator[tuple[object, tuple[str, ...]]]:
    yield graph, ("name",)
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value, ("name",)
        for dim in value.type.tensor_type.shape.dim:
            yield dim, ("dim_param",)
    for note in graph.quantization_annotation:
        yield note, ("tensor_name",)
    yield from _node_texts(graph.node)


def _node_texts(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[object, tuple[str, ...]]]:
    for node in nodes:
        yield node, ("name", "op_type", "domain", "overload", "input", "output")
        for attribute in node.attribute:
            yield attribute, ("name",)
        for body in bodies_of(node):
            yield from _graph_texts(body)
