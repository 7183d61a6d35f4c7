"""Errors, tensor specs, plans and deployments to protobuf and back. Used through `mesh.wire.convert`.

`*_to_proto` trusts its argument, which is ours. `*_from_proto` trusts nothing: it raises
`ProtocolViolation`, or `UsageError` for names and digests, naming the field.
"""

from __future__ import annotations

from typing import cast

from mesh.core.ids import DeploymentName, NodeId, check_name
from mesh.core.plan import (
    CODECS,
    DEFAULT_ANSWER_CHANGE,
    FLOAT,
    NO_LIMITS,
    RAW,
    Deployment,
    Fence,
    Limits,
    Objective,
    Plan,
    Segment,
    Stage,
)
from mesh.core.tensor import MAX_RANK, Dimension, DType, TensorSpec
from mesh.errors import MeshError, NodeLost, ProtocolViolation, from_code
from mesh.v1 import plan_pb2, tensor_pb2
from mesh.wire.convert_figures import (
    alternative_from_proto,
    alternative_to_proto,
    explanation_from_proto,
    explanation_to_proto,
    prediction_from_proto,
    prediction_to_proto,
)
from mesh.wire.door_checks import (
    check_address,
    check_count,
    check_digest,
    check_id,
    check_label,
    check_list,
    check_number,
    check_range,
    check_tensor_name,
    check_text,
    parse_message,
)
from mesh.wire.frame_format import MAX_CODE_BYTES, MAX_ERROR_BYTES, MAX_TENSORS
from mesh.wire.protobuf_bytes import cut_text

MAX_STAGES = 256
"""Hops that a frame may take; equal to the hops that a frame can tell of."""

MAX_REPLICAS = 256
"""Devices of one stage."""

MAX_DEVICES = MAX_STAGES * MAX_REPLICAS
"""As many as a plan may name."""

MAX_ALTERNATIVES = 1024
"""Rejected plans that a plan tells of."""

MAX_WINDOW = 4096
"""Frames in flight per stream."""

MAX_DIMENSION = 1 << 40
"""Of one axis: far above any tensor that could travel, low enough that products of a few stay exact everywhere."""

MAX_DEPLOYMENT_BYTES = 64 << 20
"""A plan of `MAX_STAGES` stages with wide boundaries and long names fits."""


def error_to_proto(error: MeshError) -> tensor_pb2.Error:
    """Texts above the limits of a frame's error are cut."""
    return tensor_pb2.Error(
        code=error.code,
        message=cut_text(error.message, MAX_ERROR_BYTES).decode(),
        hint=cut_text(error.hint, MAX_ERROR_BYTES).decode(),
        address=error.address if isinstance(error, NodeLost) else "",
    )


def error_from_proto(proto: tensor_pb2.Error) -> MeshError:
    """The error that was sent; an unknown code becomes a plain `MeshError`."""
    check_text(proto.code, "error.code", MAX_CODE_BYTES)
    check_text(proto.message, "error.message", MAX_ERROR_BYTES)
    check_text(proto.hint, "error.hint", MAX_ERROR_BYTES)
    error = from_code(proto.code, proto.message, proto.hint)
    if isinstance(error, NodeLost) and proto.address:
        error.address = check_address(proto.address, "error.address")
    return error


def tensor_spec_to_proto(spec: TensorSpec) -> tensor_pb2.TensorSpec:
    dimensions = [
        tensor_pb2.Dimension(size=dim) if isinstance(dim, int) else tensor_pb2.Dimension(symbol=dim)
        for dim in spec.shape or ()
    ]
    return tensor_pb2.TensorSpec(
        name=spec.name,
        data_type=cast("tensor_pb2.DataType", spec.dtype.value),
        has_rank=spec.shape is not None,
        dimensions=dimensions,
    )


def tensor_spec_from_proto(proto: tensor_pb2.TensorSpec) -> TensorSpec:
    name = check_tensor_name(proto.name)
    try:
        dtype = DType(proto.data_type)
    except ValueError:
        raise ProtocolViolation(f"tensor {name!r}: unknown element type {proto.data_type}") from None
    if not proto.has_rank:
        check_count(proto.dimensions, 0, f"tensor {name!r} without rank, dimensions")
        return TensorSpec(name, dtype, None)
    shape = check_list(proto.dimensions, MAX_RANK, f"tensor {name!r}, dimensions", _dimension_from_proto)
    return TensorSpec(name, dtype, shape)


def _dimension_from_proto(proto: tensor_pb2.Dimension) -> Dimension:
    kind = proto.WhichOneof("value")
    if kind == "size":
        return check_range(proto.size, 0, MAX_DIMENSION, "size")
    if kind == "symbol" and proto.symbol:
        return check_label(proto.symbol, "symbol")
    raise ProtocolViolation("neither a size nor a symbol")


def objective_to_proto(objective: Objective) -> plan_pb2.Objective:
    return cast("plan_pb2.Objective", plan_pb2.Objective.Value(f"OBJECTIVE_{objective.name}"))


def objective_from_proto(value: int) -> Objective:
    """Unspecified is refused: a caller that wants a default says so itself."""
    for objective in Objective:
        if value == objective_to_proto(objective):
            return objective
    raise ProtocolViolation(f"objective: unknown value {value}")


def plan_to_proto(plan: Plan) -> plan_pb2.Plan:
    return plan_pb2.Plan(
        model_sha256=plan.model_sha256,
        objective=objective_to_proto(plan.objective),
        forced=plan.forced,
        stages=[_stage_to_proto(stage) for stage in plan.stages],
        predicted=prediction_to_proto(plan.predicted),
        bound_throughput_per_s=plan.bound_throughput_per_s,
        certificate=plan.certificate,
        alternatives=map(alternative_to_proto, plan.alternatives),
        window=plan.window,
        limits=limits_to_proto(plan.limits) if plan.limits != NO_LIMITS else None,
        explanation=explanation_to_proto(plan.explanation) if plan.explanation is not None else None,
        variant=plan.variant if plan.variant != FLOAT else "",
    )


def plan_from_proto(proto: plan_pb2.Plan) -> Plan:
    """That the stages cover the model is for the receiver to check, who knows the model."""
    stages = check_list(proto.stages, MAX_STAGES, "plan.stages", _stage_from_proto)
    if not stages:
        raise ProtocolViolation("plan.stages: a plan has at least one")
    return Plan(
        model_sha256=check_digest(proto.model_sha256, "plan.model_sha256"),
        objective=objective_from_proto(proto.objective),
        forced=proto.forced,
        stages=stages,
        predicted=prediction_from_proto(proto.predicted),
        bound_throughput_per_s=check_number(
            proto.bound_throughput_per_s, "plan.bound_throughput_per_s", may_be_infinite=True
        ),
        certificate=check_text(proto.certificate, "plan.certificate"),
        alternatives=check_list(proto.alternatives, MAX_ALTERNATIVES, "plan.alternatives", alternative_from_proto),
        window=check_range(proto.window, 1, MAX_WINDOW, "plan.window"),
        limits=limits_from_proto(proto.limits, "plan.limits"),
        explanation=explanation_from_proto(proto.explanation) if proto.HasField("explanation") else None,
        variant=check_label(proto.variant, "plan.variant") or FLOAT,
    )


def _stage_to_proto(stage: Stage) -> plan_pb2.Stage:
    segment = stage.segment
    return plan_pb2.Stage(
        segment=plan_pb2.Segment(
            start=segment.start,
            end=segment.end,
            consumes=segment.consumes,
            produces=segment.produces,
            relays=segment.relays,
            weight_bytes=segment.weight_bytes,
            flops=segment.flops,
            sha256=segment.sha256 or "",
        ),
        devices=stage.devices,
        compute_seconds=stage.compute_seconds,
        measured=stage.measured,
        variant=stage.variant,
        codec=stage.codec,
    )


def _stage_from_proto(proto: plan_pb2.Stage) -> Stage:
    devices = check_list(proto.devices, MAX_REPLICAS, "devices", lambda device: check_id(device, "node id"))
    if not devices or len(set(devices)) != len(devices):
        raise ProtocolViolation("devices: a stage has at least one, and each once")
    return Stage(
        segment=_segment_from_proto(proto.segment),
        devices=devices,
        compute_seconds=check_number(proto.compute_seconds, "compute_seconds"),
        measured=proto.measured,
        variant=check_label(proto.variant, "variant"),
        codec=_check_codec(proto.codec or RAW),
    )


def _check_codec(codec: str) -> str:
    if codec not in CODECS:
        raise ProtocolViolation(f"codec: {codec[:40]!r} is not spoken here", hint=f"known: {', '.join(CODECS)}")
    return codec


def limits_to_proto(limits: Limits) -> plan_pb2.Limits:
    return plan_pb2.Limits(
        only=limits.only,
        excluded=limits.excluded,
        head=limits.head or "",
        replicas=limits.replicas,
        codecs=limits.codecs,
        answer_change=limits.answer_change if limits.answer_change != DEFAULT_ANSWER_CHANGE else 0.0,
    )


def limits_from_proto(proto: plan_pb2.Limits, name: str) -> Limits:
    """An empty message means no limits."""
    return Limits(
        only=check_list(proto.only, MAX_DEVICES, f"{name}.only", lambda device: check_id(device, "node id")),
        excluded=check_list(
            proto.excluded, MAX_DEVICES, f"{name}.excluded", lambda device: check_id(device, "node id")
        ),
        head=check_id(proto.head, f"{name}.head") if proto.head else None,
        replicas=check_range(proto.replicas or 1, 1, MAX_REPLICAS, f"{name}.replicas"),
        codecs=check_list(proto.codecs, len(CODECS), f"{name}.codecs", _check_codec),
        answer_change=check_number(proto.answer_change, f"{name}.answer_change") or DEFAULT_ANSWER_CHANGE,
    )


def _segment_from_proto(proto: plan_pb2.Segment) -> Segment:
    if proto.end < proto.start:
        raise ProtocolViolation(f"segment: it ends at {proto.end}, before its start at {proto.start}")
    return Segment(
        start=proto.start,
        end=proto.end,
        consumes=check_list(proto.consumes, MAX_TENSORS, "segment.consumes", check_tensor_name),
        produces=check_list(proto.produces, MAX_TENSORS, "segment.produces", check_tensor_name),
        relays=check_list(proto.relays, MAX_TENSORS, "segment.relays", check_tensor_name),
        weight_bytes=proto.weight_bytes,
        flops=proto.flops,
        sha256=check_digest(proto.sha256, "segment.sha256") if proto.sha256 else None,
    )


def deployment_to_proto(deployment: Deployment) -> plan_pb2.Deployment:
    return plan_pb2.Deployment(
        name=deployment.name,
        term=deployment.fence.term,
        generation=deployment.fence.generation,
        plan=plan_to_proto(deployment.plan),
        inputs=map(tensor_spec_to_proto, deployment.inputs),
        outputs=map(tensor_spec_to_proto, deployment.outputs),
        boundaries=[
            plan_pb2.Boundary(tensors=map(tensor_spec_to_proto, boundary)) for boundary in deployment.boundaries
        ],
        addresses={str(node_id): address for node_id, address in deployment.addresses.items()},
        standbys=[plan_pb2.Standbys(node_ids=node_ids) for node_ids in deployment.standbys],
        cause=deployment.cause,
    )


def deployment_from_proto(proto: plan_pb2.Deployment) -> Deployment:
    plan = plan_from_proto(proto.plan)
    boundaries = check_list(proto.boundaries, MAX_STAGES + 1, "deployment.boundaries", _boundary_from_proto)
    if len(boundaries) != len(plan.stages) + 1:
        raise ProtocolViolation(
            f"deployment.boundaries: {len(boundaries)} for {len(plan.stages)} stages, there is one more than stages"
        )
    return Deployment(
        name=DeploymentName(check_name(proto.name, "deployment.name")),
        fence=Fence(proto.term, proto.generation),
        plan=plan,
        inputs=check_list(proto.inputs, MAX_TENSORS, "deployment.inputs", tensor_spec_from_proto),
        outputs=check_list(proto.outputs, MAX_TENSORS, "deployment.outputs", tensor_spec_from_proto),
        boundaries=boundaries,
        addresses=_addresses_from_proto(proto, plan),
        standbys=_standbys_from_proto(proto, plan),
        cause=check_text(proto.cause, "deployment.cause"),
    )


def _boundary_from_proto(proto: plan_pb2.Boundary) -> tuple[TensorSpec, ...]:
    return check_list(proto.tensors, MAX_TENSORS, "tensors", tensor_spec_from_proto)


def _addresses_from_proto(proto: plan_pb2.Deployment, plan: Plan) -> dict[NodeId, str]:
    check_count(proto.addresses, MAX_STAGES * MAX_REPLICAS, "deployment.addresses")
    addresses = {
        check_id(node_id, "deployment.addresses"): check_address(address, "deployment.addresses")
        for node_id, address in proto.addresses.items()
    }
    missing = [device for device in plan.devices if device not in addresses]
    if missing:
        raise ProtocolViolation(f"deployment.addresses: none for node {missing[0]}")
    return addresses


def _standbys_from_proto(proto: plan_pb2.Deployment, plan: Plan) -> tuple[tuple[NodeId, ...], ...]:
    standbys = check_list(proto.standbys, MAX_STAGES, "deployment.standbys", _standby_from_proto)
    if standbys and len(standbys) != len(plan.stages):
        raise ProtocolViolation(f"deployment.standbys: {len(standbys)} for {len(plan.stages)} stages")
    missing = [node for nodes in standbys for node in nodes if node not in proto.addresses]
    if missing:
        raise ProtocolViolation(f"deployment.addresses: none for stand-by {missing[0]}")
    return standbys


def _standby_from_proto(proto: plan_pb2.Standbys) -> tuple[NodeId, ...]:
    return check_list(proto.node_ids, MAX_REPLICAS, "standbys", lambda node_id: check_id(node_id, "standbys"))


def deployment_to_bytes(deployment: Deployment) -> bytes:
    """What a node keeps on disk; equal deployments have equal bytes."""
    return deployment_to_proto(deployment).SerializeToString(deterministic=True)


def deployment_from_bytes(data: bytes) -> Deployment:
    """Raises `ProtocolViolation` or `UsageError` for bytes that are no deployment."""
    return deployment_from_proto(parse_message(plan_pb2.Deployment, data, MAX_DEPLOYMENT_BYTES))
