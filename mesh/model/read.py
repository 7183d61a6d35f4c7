"""Reading a model: from a file or from bytes, through every check, to one self-contained normal form.

The normal form has its external data inside, initialisers that are not inputs, nodes that are named
and sorted, one spelling of ONNX's own domain, outputs with types, and unknown dimensions where the
file says -1. A model that is in normal form already
keeps its bytes, so its SHA-256 is that of its file; reading is idempotent.

Called by the coordinator and by the command line. Reads files, writes nothing, keeps no state.
"""

from __future__ import annotations

import hashlib
import heapq
import stat
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from mesh.core.ids import Sha256
from mesh.core.tensor import TensorSpec
from mesh.errors import ExternalDataRefused, ModelUnreadable, ModelUnsupported, NotFound
from mesh.model import check
from mesh.model.external import MAX_MODEL_BYTES, external_tensors, inline_external
from mesh.model.shapes import infer
from mesh.model.skeleton import RUNTIME_DOMAIN
from mesh.model.tensors import value_of
from mesh.model.traverse import all_nodes, domain_of, model_tensors, names_read

INITIALISERS_APART_SINCE = 4
"""IR version from which an initialiser need not be an input too."""

RUNTIME_OPSET = 1
"""The only version that the runtime's own domains have."""

RUNTIME_FORMAT_MAGIC = b"ORTM"
"""At offset 4 of ONNX Runtime's own file format, which is not ONNX."""


@dataclass(frozen=True, slots=True)
class SourceModel:
    """A model that passed the door, in normal form. Nobody modifies `proto`."""

    proto: onnx.ModelProto = field(repr=False)
    sha256: Sha256
    """Of `data`."""
    data: bytes = field(repr=False)
    """The model as one file without external data."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def read_model(path: Path) -> SourceModel:
    """Read the model file at `path`, with external data from its folder.

    Raises:
        NotFound: There is no such file.
        ModelUnreadable: A folder, not readable, empty, truncated, or not ONNX.
        ModelInvalid: The graph is wrong: names, cycles, dimensions, data, operators.
        ModelUnsupported: Too new, over 2 GB, custom operators, or inputs and outputs that are no tensors.
        ExternalDataRefused: Weights outside the model's folder, or behind a link.
    """
    data = _read_file(path)
    model = _parse(data, str(path))
    _check_parts(model)
    external = external_tensors(model_tensors(model))
    try:
        inline_external(external, path.parent, len(data))
    except OSError as error:
        raise ModelUnreadable(f"external data of {path} cannot be read: {error.strerror}") from error
    return _finish(model, None if external else data)


def read_model_bytes(data: bytes) -> SourceModel:
    """Read a self-contained model; raises as `read_model`, and `ExternalDataRefused` for any external data."""
    if len(data) > MAX_MODEL_BYTES:
        raise ModelUnsupported(f"the model is over 2 GB ({len(data)} bytes), which is not supported for now")
    model = _parse(data, "the model")
    _check_parts(model)
    external = external_tensors(model_tensors(model))
    if external:
        raise ExternalDataRefused(
            f"tensor {external[0].name[:80]!r} keeps its data in another file",
            hint="read the model from its folder, which makes it self-contained",
        )
    return _finish(model, data)


def _read_file(path: Path) -> bytes:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise NotFound(f"there is no model file {path}") from None
    except (OSError, ValueError) as error:
        raise ModelUnreadable(f"{path} cannot be read: {error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise ModelUnreadable(f"{path} is a folder", hint="give the .onnx file in it")
    if not stat.S_ISREG(status.st_mode):
        raise ModelUnreadable(f"{path} is not a regular file")
    if status.st_size > MAX_MODEL_BYTES:
        raise ModelUnsupported(f"{path} is over 2 GB ({status.st_size} bytes), which is not supported for now")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelUnreadable(f"{path} cannot be read: {error.strerror}") from error


def _parse(data: bytes, what: str) -> onnx.ModelProto:
    if not data:
        raise ModelUnreadable(f"{what} is empty")
    if data[4:8] == RUNTIME_FORMAT_MAGIC:
        raise ModelUnreadable(f"{what} is in ONNX Runtime's own format", hint="give the ONNX file it was made from")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelUnreadable(f"{what} is not an ONNX model, or is cut off: {error}") from error
    return model


def _check_parts(model: onnx.ModelProto) -> None:
    check.check_text(model)
    check.check_header(model)
    check.check_tensors(model)


def _finish(model: onnx.ModelProto, data: bytes | None) -> SourceModel:
    """Normalise and check `model`; `data` are its bytes as long as nothing was changed."""
    check.check_operators(model)
    if _normalise(model):
        data = None
    check.check_dimensions(model)
    if _type_outputs(model):
        data = None
    inputs, outputs = check.check_interface(model)
    check.check_wiring(model.graph)
    check.check_with_onnx(model)
    if data is None:
        data = model.SerializeToString(deterministic=True)
    return SourceModel(model, Sha256(hashlib.sha256(data).hexdigest()), data, inputs, outputs)


def _normalise(model: onnx.ModelProto) -> bool:
    """Bring `model` into normal form; True if that changed it."""
    changes = [
        _spell_domains(model),
        _import_runtime_domains(model),
        _separate_initialisers(model),
        _free_dimensions(model.graph),
        _name_nodes(model.graph),
        _sort_nodes(model.graph),
    ]
    return any(changes)


def _spell_domains(model: onnx.ModelProto) -> bool:
    """ONNX's own domain may be written in two ways, of which the checker knows one."""
    holders: list[onnx.ModelProto | onnx.FunctionProto] = [model, *model.functions]
    named: list[onnx.NodeProto | onnx.FunctionProto | onnx.OperatorSetIdProto] = [*model.functions]
    for holder in holders:
        named.extend(holder.opset_import)
        named.extend(all_nodes(holder.graph.node if isinstance(holder, onnx.ModelProto) else holder.node))
    long = [item for item in named if item.domain != domain_of(item.domain)]
    for item in long:
        item.domain = domain_of(item.domain)
    for holder in holders if long else ():
        imports = {opset.domain: opset.version for opset in holder.opset_import}
        del holder.opset_import[:]
        holder.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in imports.items())
    return bool(long)


def _import_runtime_domains(model: onnx.ModelProto) -> bool:
    """Name the operator sets of the runtime's own domains; it takes them for granted, the checker does not."""
    imported = {opset.domain for opset in model.opset_import}
    used = {node.domain for node in all_nodes(model.graph.node)}
    missing = sorted(domain for domain in used - imported if domain.startswith(RUNTIME_DOMAIN))
    model.opset_import.extend(onnx.helper.make_opsetid(domain, RUNTIME_OPSET) for domain in missing)
    return bool(missing)


def _type_outputs(model: onnx.ModelProto) -> bool:
    """Infer the types of outputs that come without; the runtime does. What cannot be inferred stays as it is."""
    untyped = [value for value in model.graph.output if value.type.WhichOneof("value") is None]
    if not untyped:
        return False
    check.check_wiring(model.graph)  # inference is for graphs that hang together
    specs = infer(model).specs
    for value in untyped:
        if value.name in specs:
            value.CopyFrom(value_of(specs[value.name]))
    return True


def _separate_initialisers(model: onnx.ModelProto) -> bool:
    graph = model.graph
    both = check.initialisers_as_inputs(graph)
    if both:
        kept = [value for value in graph.input if value.name not in both]
        del graph.input[:]
        graph.input.extend(kept)
    old = model.ir_version < INITIALISERS_APART_SINCE
    if old:
        model.ir_version = INITIALISERS_APART_SINCE
    return bool(both) or old


def _free_dimensions(graph: onnx.GraphProto) -> bool:
    """Dimensions of -1, which some exporters write for "any size" and the runtime reads so, become unknown."""
    changed = False
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.WhichOneof("value") != "tensor_type":
            continue
        for dim in value.type.tensor_type.shape.dim:
            if dim.WhichOneof("value") == "dim_value" and dim.dim_value == -1:
                dim.ClearField("dim_value")
                changed = True
    return changed


def _name_nodes(graph: onnx.GraphProto) -> bool:
    """Give every node a name of its own; profiles and errors name nodes."""
    taken = {node.name for node in graph.node}
    seen: set[str] = set()
    changed = False
    for index, node in enumerate(graph.node):
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        stem = node.name or node.op_type
        name = f"{stem}_{index}"
        while name in taken:
            name += "_"
        node.name = name
        taken.add(name)
        seen.add(name)
        changed = True
    return changed


def _sort_nodes(graph: onnx.GraphProto) -> bool:
    """Sort nodes topologically, keeping the order where it is one; nodes on a cycle come last, unsorted."""
    producer = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    reads = [names_read(node) for node in graph.node]
    if all(producer.get(name, -1) < index for index, names in enumerate(reads) for name in names):
        return False
    waiting = [0] * len(reads)
    followers: list[list[int]] = [[] for _ in reads]
    for index, names in enumerate(reads):
        for source in {producer[name] for name in names if name in producer}:
            waiting[index] += 1
            followers[source].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for follower in followers[index]:
            waiting[follower] -= 1
            if waiting[follower] == 0:
                heapq.heappush(ready, follower)
    order.extend(index for index, count in enumerate(waiting) if count > 0)
    nodes = [graph.node[index] for index in order]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return True
