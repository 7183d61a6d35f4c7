"""What only a coordinator is asked and says, to protobuf and back: plan options and its identity.

The same rules as in `mesh.wire.convert_plan`: encoders trust, decoders check and name the field.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.core.ids import NodeId, check_name
from mesh.core.plan import FLOAT, PlanOptions
from mesh.v1 import coordinator_pb2
from mesh.wire.convert_plan import (
    MAX_STAGES,
    limits_from_proto,
    limits_to_proto,
    objective_from_proto,
    objective_to_proto,
    plan_from_proto,
    plan_to_proto,
)
from mesh.wire.door_checks import check_id, check_label, check_range


@dataclass(frozen=True, slots=True)
class CoordinatorIdentity:
    """Who a coordinator is; `node_id` is the fingerprint of its key."""

    node_id: NodeId
    name: str
    software_version: str


def identity_to_proto(identity: CoordinatorIdentity) -> coordinator_pb2.GetIdentityResponse:
    return coordinator_pb2.GetIdentityResponse(
        node_id=identity.node_id, name=identity.name, software_version=identity.software_version
    )


def identity_from_proto(proto: coordinator_pb2.GetIdentityResponse) -> CoordinatorIdentity:
    return CoordinatorIdentity(
        node_id=check_id(proto.node_id, "identity.node_id"),
        name=check_name(proto.name, "identity.name"),
        software_version=check_label(proto.software_version, "identity.software_version"),
    )


def options_to_proto(options: PlanOptions) -> coordinator_pb2.PlanOptions:
    return coordinator_pb2.PlanOptions(
        objective=objective_to_proto(options.objective),
        stages=options.stages or 0,
        forced=plan_to_proto(options.forced) if options.forced is not None else None,
        limits=limits_to_proto(options.limits),
        explain=options.explain,
        measure=options.measure,
        variant=options.variant if options.variant != FLOAT else "",
    )


def options_from_proto(proto: coordinator_pb2.PlanOptions) -> PlanOptions:
    return PlanOptions(
        objective=objective_from_proto(proto.objective),
        stages=check_range(proto.stages, 1, MAX_STAGES, "options.stages") if proto.stages else None,
        forced=plan_from_proto(proto.forced) if proto.HasField("forced") else None,
        limits=limits_from_proto(proto.limits, "options.limits"),
        explain=proto.explain,
        measure=proto.measure,
        variant=check_label(proto.variant, "options.variant") or FLOAT,
    )
