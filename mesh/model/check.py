"""The door for models: what must hold before anything else looks at one.

Called by `mesh.model.read` only. Each check raises a typed error that names the culprit; the ONNX
checker comes last, on a skeleton without weights, and its exceptions are translated. A model that
passed may still be refused by the runtime, but cannot make the analysis crash or run for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import onnx
from onnx import checker

from mesh.core.tensor import MAX_TENSOR_BYTES, TensorSpec
from mesh.errors import ModelInvalid, ModelUnreadable, ModelUnsupported
from mesh.model.skeleton import RUNTIME_OPERATORS, make_skeleton
from mesh.model.tensors import check_tensor, require_carried
from mesh.model.traverse import (
    FunctionKey,
    all_nodes,
    domain_of,
    function_key,
    initialiser_names,
    model_tensors,
    names_read,
    texts,
)

KNOWN_DOMAINS = frozenset(
    {
        "",
        "ai.onnx.ml",
        "ai.onnx.training",
        "ai.onnx.preview",
        "ai.onnx.preview.training",
        "com.microsoft",
        "com.microsoft.nchwc",
    }
)
"""Operator domains that ONNX Runtime brings along; any other needs a library, which the mesh does not load."""

MAX_EXPANDED_NODES = 2_000_000
"""Nodes after every local function is expanded: functions that call each other twice grow exponentially."""


def check_header(model: onnx.ModelProto) -> None:
    """Raise unless this is an ONNX model at all, of versions that the installed onnx knows.

    Protobuf parses much that is no model, so the fields that every model has are required.
    """
    if not model.HasField("graph") or not model.ir_version or not model.opset_import:
        missing = [
            name
            for name, present in (
                ("IR version", bool(model.ir_version)),
                ("graph", model.HasField("graph")),
                ("operator set", bool(model.opset_import)),
            )
            if not present
        ]
        raise ModelUnreadable(f"not an ONNX model: it has no {', no '.join(missing)}")
    if model.ir_version < 1:
        raise ModelInvalid(f"IR version {model.ir_version} is not valid")
    if model.ir_version > onnx.IR_VERSION:
        raise ModelUnsupported(
            f"IR version {model.ir_version} is newer than what this installation knows ({int(onnx.IR_VERSION)})",
            hint="export the model for an older version, or upgrade onnx and onnxruntime",
        )
    _check_opsets(model.opset_import, "the model")
    for function in model.functions:
        _check_opsets(function.opset_import, f"function {function.name[:80]!r}")


@cache
def newest_opset(domain: str) -> int:
    """The newest operator set of `domain` that the installed onnx knows; 0 for domains that are not ONNX's."""
    if domain == "":
        return onnx.defs.onnx_opset_version()
    return max((s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.domain == domain), default=0)


def _check_opsets(opsets: Iterable[onnx.OperatorSetIdProto], where: str) -> None:
    seen: dict[str, int] = {}
    for opset in opsets:
        domain = domain_of(opset.domain)
        shown = domain[:80] or "ai.onnx"
        if seen.setdefault(domain, opset.version) != opset.version:
            raise ModelInvalid(f"{where} imports operator set {shown!r} in two versions")
        if opset.version < 1:
            raise ModelInvalid(f"{where} imports operator set {shown!r} in version {opset.version}")
        if domain in KNOWN_DOMAINS and 0 < newest_opset(domain) < opset.version:
            raise ModelUnsupported(
                f"{where} needs operator set {shown!r} {opset.version}; the newest known is {newest_opset(domain)}",
                hint="export the model for an older operator set, or upgrade onnx and onnxruntime",
            )


def check_text(model: onnx.ModelProto) -> None:
    """Refuse names that are not UTF-8, which protobuf lets through and fails on later."""
    for holder, fields in texts(model):
        for field in fields:
            try:
                value = getattr(holder, field)
                fine = isinstance(value, str) or all(isinstance(item, str) for item in value)
            except UnicodeDecodeError:
                fine = False
            if not fine:
                raise ModelUnreadable(f"not a valid ONNX model: a {field} is not UTF-8 text")


def check_tensors(model: onnx.ModelProto) -> None:
    """Check type, dimensions and amount of data of every tensor in the model."""
    for tensor in model_tensors(model):
        check_tensor(tensor)


def check_operators(model: onnx.ModelProto) -> None:
    """Refuse operators of unknown domains, recursive functions and functions that expand without bound."""
    functions = {function_key(function): function for function in model.functions}
    if len(functions) != len(model.functions):
        raise ModelInvalid("two local functions have the same domain, name and overload")
    local_domains = {key[0] for key in functions}
    bodies: list[Iterable[onnx.NodeProto]] = [model.graph.node]
    bodies.extend(function.node for function in model.functions)
    for nodes in bodies:
        for node in all_nodes(nodes):
            key = function_key(node)
            if key in functions or key[0] in KNOWN_DOMAINS:
                continue
            wanted = f"operator {key[1][:80]!r} of domain {key[0][:80]!r}"
            if key[0] in local_domains:
                raise ModelInvalid(f"node {node.name[:80]!r} calls {wanted}, which the model does not define")
            raise ModelUnsupported(
                f"node {node.name[:80]!r} needs {wanted}",
                hint="libraries of custom operators are not loaded; use standard operators or a local function",
            )
    _check_expansion(model, functions)


def _check_expansion(model: onnx.ModelProto, functions: dict[FunctionKey, onnx.FunctionProto]) -> None:
    calls = {key: [function_key(node) for node in all_nodes(function.node)] for key, function in functions.items()}
    sizes: dict[FunctionKey, int] = {}
    for root in functions:
        path = [root]
        while path:
            key = path[-1]
            callee = next((other for other in calls[key] if other in functions and other not in sizes), None)
            if callee is None:
                sizes[key] = sum(1 + sizes.get(other, 0) for other in calls[key])
                path.pop()
            elif callee in path:
                raise ModelInvalid(f"local function {callee[1][:80]!r} calls itself, directly or through others")
            else:
                path.append(callee)
    total = sum(1 + sizes.get(function_key(node), 0) for node in all_nodes(model.graph.node))
    if total > MAX_EXPANDED_NODES:
        raise ModelUnsupported(f"the model expands to {total} nodes, above the limit of {MAX_EXPANDED_NODES}")


def check_interface(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The specs of a (normalised) model's inputs and outputs; refuses, by name, what no frame can carry."""
    inputs = tuple(require_carried(value, "input") for value in model.graph.input)
    outputs = tuple(require_carried(value, "output") for value in model.graph.output)
    if not outputs:
        raise ModelInvalid("the model has no outputs")
    for what, specs in (("input", inputs), ("output", outputs)):
        for spec in specs:
            size = spec.nominal_bytes()
            if size is not None and size > MAX_TENSOR_BYTES:
                raise ModelUnsupported(
                    f"{what} {spec.name[:80]!r} has dimensions {list(spec.shape or ())[:8]}: {size} bytes, "
                    f"above the limit of {MAX_TENSOR_BYTES}"
                )
    return inputs, outputs


def check_dimensions(model: onnx.ModelProto) -> None:
    """Refuse negative sizes among the declared dimensions (-1, meaning "any", is gone by now)."""
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.WhichOneof("value") == "tensor_type":
            sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            if any(size < 0 for size in sizes):
                raise ModelInvalid(f"value {value.name[:80]!r} has a negative dimension in {sizes[:8]}")


def check_wiring(graph: onnx.GraphProto) -> None:
    """Refuse names that are given twice, read without being made, or made too late (a cycle).

    `graph` is normalised: initialisers are no inputs and nodes are sorted as far as they can be.
    """
    known: set[str] = set()
    stored = [tensor.name for tensor in graph.initializer]
    stored.extend(sparse.values.name for sparse in graph.sparse_initializer)
    for what, names in (("input", [value.name for value in graph.input]), ("initialiser", stored)):
        for name in names:
            if not name:
                raise ModelInvalid(f"an {what} has no name")
            if name in known:
                raise ModelInvalid(f"the name {name[:80]!r} is given twice (once to an {what})")
            known.add(name)
    made = {name for node in graph.node for name in node.output if name}
    for node in graph.node:
        for name in names_read(node):
            if name not in known:
                raise _explain_unknown(node, name, made)
        for name in node.output:
            if name in known:
                raise ModelInvalid(f"the name {name[:80]!r} is given twice (again by node {node.name[:80]!r})")
            if name:
                known.add(name)
    outputs = [value.name for value in graph.output]
    for name in outputs:
        if name not in known:
            raise ModelInvalid(f"output {name[:80]!r} is made by no node")
    if len(set(outputs)) != len(outputs):
        raise ModelInvalid("an output is listed twice")


def _explain_unknown(node: onnx.NodeProto, name: str, made: set[str]) -> ModelInvalid:
    if name in made:
        return ModelInvalid(f"the graph has a cycle: node {node.name[:80]!r} needs {name[:80]!r}, which depends on it")
    return ModelInvalid(f"node {node.name[:80]!r} reads {name[:80]!r}, which nothing in the graph makes")


def check_with_onnx(model: onnx.ModelProto) -> None:
    """Run the ONNX checker on the model without its large weights; raises `ModelInvalid` with its reason."""
    known = {function_key(function) for function in model.functions}
    for node in all_nodes(model.graph.node):
        domain, name, _ = key = function_key(node)
        if domain == "" and key not in known and name not in RUNTIME_OPERATORS and not _has_schema(name):
            raise ModelInvalid(f"node {node.name[:80]!r}: there is no operator {name[:80]!r} in ONNX")
    skeleton = make_skeleton(model)
    for value in (*skeleton.graph.input, *skeleton.graph.output):
        if not value.type.tensor_type.HasField("shape"):
            # The checker insists on a shape here, although the runtime does without; it does not look at it.
            value.type.tensor_type.shape.SetInParent()
    _leave_out_other_opsets(skeleton)
    try:
        checker.check_model(skeleton)
    except checker.ValidationError as error:
        raise ModelInvalid(f"the ONNX checker refuses the model: {_first_lines(str(error))}") from error
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise ModelInvalid(f"the ONNX checker fails on the model: {_first_lines(str(error))}") from error


def _leave_out_other_opsets(skeleton: onnx.ModelProto) -> None:
    """Empty the functions that import another version than the model: the runtime runs them, the checker cannot."""
    versions = {domain_of(opset.domain): opset.version for opset in skeleton.opset_import}
    for function in skeleton.functions:
        if any(versions.get(domain_of(o.domain), o.version) != o.version for o in function.opset_import):
            del function.node[:]
            del function.opset_import[:]


@cache
def _has_schema(name: str) -> bool:
    return bool(onnx.defs.has(name))


def _first_lines(text: str) -> str:
    return " ".join(text.split())[:300]


def initialisers_as_inputs(graph: onnx.GraphProto) -> set[str]:
    """Initialisers that are listed as inputs too, as models before IR version 4 must do."""
    stored = initialiser_names(graph)
    return {value.name for value in graph.input if value.name in stored}
