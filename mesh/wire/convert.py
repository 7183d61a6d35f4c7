"""Core values to protobuf messages and back: the one door through which control messages come in.

Pure. Encoders trust their argument; decoders check counts, names, digests, numbers and enums before
anything is built, and raise `ProtocolViolation` or `UsageError` naming the field.
"""

from __future__ import annotations

from mesh.wire.convert_fleet import (
    capabilities_from_proto,
    capabilities_to_proto,
    introduced_from_proto,
    introduced_to_proto,
    link_from_proto,
    link_to_proto,
    measured_model_from_proto,
    measured_model_to_proto,
    node_state_from_proto,
    node_state_to_proto,
    node_view_from_proto,
    node_view_to_proto,
    report_from_proto,
    report_to_proto,
    report_to_view,
)
from mesh.wire.convert_plan import (
    deployment_from_bytes,
    deployment_from_proto,
    deployment_to_bytes,
    deployment_to_proto,
    error_from_proto,
    error_to_proto,
    objective_from_proto,
    objective_to_proto,
    plan_from_proto,
    plan_to_proto,
    tensor_spec_from_proto,
    tensor_spec_to_proto,
)

__all__ = [
    "capabilities_from_proto",
    "capabilities_to_proto",
    "deployment_from_bytes",
    "deployment_from_proto",
    "deployment_to_bytes",
    "deployment_to_proto",
    "error_from_proto",
    "error_to_proto",
    "introduced_from_proto",
    "introduced_to_proto",
    "link_from_proto",
    "link_to_proto",
    "measured_model_from_proto",
    "measured_model_to_proto",
    "node_state_from_proto",
    "node_state_to_proto",
    "node_view_from_proto",
    "node_view_to_proto",
    "objective_from_proto",
    "objective_to_proto",
    "plan_from_proto",
    "plan_to_proto",
    "report_from_proto",
    "report_to_proto",
    "report_to_view",
    "tensor_spec_from_proto",
    "tensor_spec_to_proto",
]
