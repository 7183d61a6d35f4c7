"""Capabilities, links and reports to protobuf and back. Used through `mesh.wire.convert`.

The same rules as in `mesh.wire.convert_plan`: encoders trust, decoders check and name the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, cast

from mesh.core.fleet import Capabilities, CodecSpeed, Handling, Link, NodeState, Peer, Provider, Watts
from mesh.core.ids import NodeId, check_name, check_node_id
from mesh.core.report import DeploymentReport, Happening, MeasuredModel, NodeView, StageReport
from mesh.errors import ProtocolViolation
from mesh.v1 import coordinator_pb2, node_pb2
from mesh.wire.convert_plan import MAX_REPLICAS, MAX_STAGES, deployment_from_proto, deployment_to_proto
from mesh.wire.door_checks import check_address, check_id, check_label, check_list, check_number, check_text

MAX_PROVIDERS = 64
"""ONNX Runtime knows about two dozen."""

MAX_CODECS = 64
"""There are five."""

MAX_HAPPENINGS = 1024
"""Events of one deployment in one answer."""

_NODE_STATES = {
    NodeState.MEASURING: node_pb2.NODE_STATE_MEASURING,
    NodeState.READY: node_pb2.NODE_STATE_READY,
    NodeState.DRAINING: node_pb2.NODE_STATE_DRAINING,
}
_STATE_PREFIX = "DEPLOYMENT_STATE_"

ReportMessage = TypeVar("ReportMessage", node_pb2.DeploymentStatus, coordinator_pb2.DeploymentView)


def node_state_to_proto(state: NodeState) -> node_pb2.NodeState:
    """LOST has no number, because no node says it of itself; it becomes unspecified."""
    return _NODE_STATES.get(state, node_pb2.NODE_STATE_UNSPECIFIED)


def node_state_from_proto(value: int) -> NodeState:
    for state, number in _NODE_STATES.items():
        if number == value:
            return state
    raise ProtocolViolation(f"node state: unknown value {value}")


def capabilities_to_proto(capabilities: Capabilities) -> node_pb2.Capabilities:
    return node_pb2.Capabilities(
        node_id=capabilities.node_id,
        name=capabilities.name,
        arch=capabilities.arch,
        cores=capabilities.cores,
        memory_bytes=capabilities.memory_bytes,
        memory_available_bytes=capabilities.memory_available_bytes,
        disk_available_bytes=capabilities.disk_available_bytes,
        providers=[
            node_pb2.Provider(name=provider.name, usable=provider.usable, detail=provider.detail)
            for provider in capabilities.providers
        ],
        runtime_version=capabilities.runtime_version,
        gflops=capabilities.gflops,
        memory_gb_per_s=capabilities.memory_gb_per_s,
        state=node_state_to_proto(capabilities.state),
        software_version=capabilities.software_version,
        hardware=capabilities.hardware,
        mode=capabilities.mode,
        codecs=[
            node_pb2.CodecSpeed(
                name=codec.name,
                encode_byte_seconds=codec.encode_byte_seconds,
                decode_byte_seconds=codec.decode_byte_seconds,
            )
            for codec in capabilities.codecs
        ],
        governor=capabilities.governor,
        watts_busy=capabilities.watts.busy if capabilities.watts is not None else 0.0,
        watts_idle=capabilities.watts.idle if capabilities.watts is not None else 0.0,
    )


def capabilities_from_proto(proto: node_pb2.Capabilities) -> Capabilities:
    return _capabilities_from_proto(proto, node_state_from_proto(proto.state))


def _capabilities_from_proto(proto: node_pb2.Capabilities, state: NodeState) -> Capabilities:
    return Capabilities(
        node_id=check_id(proto.node_id, "capabilities.node_id"),
        name=check_name(proto.name, "capabilities.name"),
        arch=check_label(proto.arch, "capabilities.arch"),
        cores=check_number(proto.cores, "capabilities.cores"),
        memory_bytes=proto.memory_bytes,
        memory_available_bytes=proto.memory_available_bytes,
        disk_available_bytes=proto.disk_available_bytes,
        providers=check_list(proto.providers, MAX_PROVIDERS, "capabilities.providers", _provider_from_proto),
        runtime_version=check_label(proto.runtime_version, "capabilities.runtime_version"),
        gflops=check_number(proto.gflops, "capabilities.gflops"),
        memory_gb_per_s=check_number(proto.memory_gb_per_s, "capabilities.memory_gb_per_s"),
        state=state,
        software_version=check_label(proto.software_version, "capabilities.software_version"),
        hardware=check_label(proto.hardware, "capabilities.hardware"),
        mode=check_label(proto.mode, "capabilities.mode"),
        codecs=check_list(proto.codecs, MAX_CODECS, "capabilities.codecs", _codec_from_proto),
        watts=_watts_from_proto(proto),
        governor=check_label(proto.governor, "capabilities.governor"),
    )


def _watts_from_proto(proto: node_pb2.Capabilities) -> Watts | None:
    busy = check_number(proto.watts_busy, "capabilities.watts_busy")
    idle = check_number(proto.watts_idle, "capabilities.watts_idle")
    if idle > busy:
        raise ProtocolViolation(f"capabilities.watts_idle: {idle:g} is above watts_busy, {busy:g}")
    return Watts(busy, idle) if busy else None


def _provider_from_proto(proto: node_pb2.Provider) -> Provider:
    return Provider(check_label(proto.name, "name"), proto.usable, check_text(proto.detail, "detail"))


def _codec_from_proto(proto: node_pb2.CodecSpeed) -> CodecSpeed:
    """Also of one that is not known here: a newer node may speak more."""
    return CodecSpeed(
        check_label(proto.name, "name"),
        check_number(proto.encode_byte_seconds, "encode_byte_seconds"),
        check_number(proto.decode_byte_seconds, "decode_byte_seconds"),
    )


def link_to_proto(link: Link) -> node_pb2.MeasureLinkResponse:
    return node_pb2.MeasureLinkResponse(
        latency_seconds=link.latency_seconds,
        bytes_per_second=link.bytes_per_second,
        sending=_handling_to_proto(link.sending),
        receiving=_handling_to_proto(link.receiving),
    )


def link_from_proto(proto: node_pb2.MeasureLinkResponse) -> Link:
    """What travels was measured; a link of 0 bytes per second is no measurement and refused."""
    if not proto.bytes_per_second:
        raise ProtocolViolation("link.bytes_per_second: 0 is not a possible value")
    return Link(
        latency_seconds=check_number(proto.latency_seconds, "link.latency_seconds"),
        bytes_per_second=check_number(proto.bytes_per_second, "link.bytes_per_second"),
        sending=_handling_from_proto(proto, "sending"),
        receiving=_handling_from_proto(proto, "receiving"),
    )


def _handling_to_proto(handling: Handling | None) -> node_pb2.Handling | None:
    if handling is None:
        return None
    return node_pb2.Handling(message_seconds=handling.message_seconds, byte_seconds=handling.byte_seconds)


def _handling_from_proto(proto: node_pb2.MeasureLinkResponse, field: str) -> Handling | None:
    if not proto.HasField(field):
        return None
    told = getattr(proto, field)
    return Handling(
        check_number(told.message_seconds, f"link.{field}.message_seconds"),
        check_number(told.byte_seconds, f"link.{field}.byte_seconds"),
        measured=True,
    )


def measured_model_to_proto(measured: MeasuredModel) -> node_pb2.MeasureModelResponse:
    return node_pb2.MeasureModelResponse(run_seconds=measured.run_seconds, runs=measured.runs)


def measured_model_from_proto(proto: node_pb2.MeasureModelResponse) -> MeasuredModel:
    return MeasuredModel(check_number(proto.run_seconds, "run_seconds"), proto.runs)


def introduced_to_proto(peer: Peer) -> node_pb2.IntroducedPeer:
    return node_pb2.IntroducedPeer(node_id=peer.node_id or "", name=peer.name, address=peer.addresses[0])


def introduced_from_proto(proto: node_pb2.IntroducedPeer) -> Peer:
    """Raises `UsageError` for an id, a name or an address that is none."""
    address = check_address(proto.address, "introduced.address")
    return Peer(check_node_id(proto.node_id), check_name(proto.name, "node"), "node", (address,), "introduced")


def node_view_to_proto(view: NodeView) -> coordinator_pb2.NodeView:
    return coordinator_pb2.NodeView(
        capabilities=capabilities_to_proto(view.capabilities), address=view.address, lost=view.is_lost
    )


def node_view_from_proto(proto: coordinator_pb2.NodeView) -> NodeView:
    """A lost node's last word may be that it was LOST, which travels as unspecified."""
    address = check_address(proto.address, "node.address")
    is_unspecified = proto.capabilities.state == node_pb2.NODE_STATE_UNSPECIFIED
    if not (proto.lost and is_unspecified):
        return NodeView(capabilities_from_proto(proto.capabilities), address, proto.lost)
    if proto.capabilities.node_id:
        return NodeView(_capabilities_from_proto(proto.capabilities, NodeState.LOST), address, is_lost=True)
    # A seed that never answered has no id, and no name but its address.
    return NodeView(_never_answered(address), address, is_lost=True)


def _never_answered(address: str) -> Capabilities:
    return Capabilities(
        node_id=NodeId(""),
        name=address,
        arch="",
        cores=0.0,
        memory_bytes=0,
        memory_available_bytes=0,
        disk_available_bytes=0,
        providers=(),
        runtime_version="",
        gflops=0.0,
        memory_gb_per_s=0.0,
        state=NodeState.LOST,
        software_version="",
    )


def report_to_proto(report: DeploymentReport) -> node_pb2.DeploymentStatus:
    """What a node says."""
    return _fill_report(node_pb2.DeploymentStatus(leaving=report.is_leaving), report)


def report_to_view(report: DeploymentReport) -> coordinator_pb2.DeploymentView:
    """What a coordinator says."""
    return _fill_report(coordinator_pb2.DeploymentView(), report)


def _fill_report(proto: ReportMessage, report: DeploymentReport) -> ReportMessage:
    proto.deployment.CopyFrom(deployment_to_proto(report.deployment))
    proto.state = cast("node_pb2.DeploymentState", node_pb2.DeploymentState.Value(_STATE_PREFIX + report.state.upper()))
    proto.reason = report.reason
    proto.stages.extend(
        node_pb2.StageStatus(
            stage=stage.stage,
            frames=stage.frames,
            compute_seconds=stage.compute_seconds,
            throughput_per_s=stage.throughput_per_s,
            dropped=stage.dropped,
            failed=stage.failed,
            node_id=stage.device or "",
            waiting_seconds=stage.waiting_seconds,
            leaving_seconds=stage.leaving_seconds,
            sent_bytes=stage.sent_bytes,
            peak_bytes=stage.peak_bytes,
            load_seconds=stage.load_seconds,
        )
        for stage in report.stages
    )
    proto.events.extend(
        node_pb2.Event(time=happening.time, text=happening.text) for happening in report.happenings[-MAX_HAPPENINGS:]
    )
    return proto


def report_from_proto(
    proto: node_pb2.DeploymentStatus | coordinator_pb2.DeploymentView,
) -> DeploymentReport:
    """From a node's answer or a coordinator's."""
    known = node_pb2.DeploymentState.values()
    if proto.state not in known or proto.state == node_pb2.DEPLOYMENT_STATE_UNSPECIFIED:
        raise ProtocolViolation(f"deployment state: unknown value {proto.state}")
    return DeploymentReport(
        deployment=deployment_from_proto(proto.deployment),
        state=node_pb2.DeploymentState.Name(proto.state).removeprefix(_STATE_PREFIX).lower(),
        reason=check_text(proto.reason, "report.reason"),
        stages=check_list(proto.stages, MAX_STAGES * MAX_REPLICAS, "report.stages", _stage_report_from_proto),
        happenings=check_list(proto.events, MAX_HAPPENINGS, "report.events", _happening_from_proto),
        is_leaving=isinstance(proto, node_pb2.DeploymentStatus) and proto.leaving,
    )


def _stage_report_from_proto(proto: node_pb2.StageStatus) -> StageReport:
    return StageReport(
        stage=proto.stage,
        frames=proto.frames,
        compute_seconds=check_number(proto.compute_seconds, "compute_seconds"),
        throughput_per_s=check_number(proto.throughput_per_s, "throughput_per_s"),
        dropped=proto.dropped,
        failed=proto.failed,
        device=check_id(proto.node_id, "node id") if proto.node_id else None,
        waiting_seconds=check_number(proto.waiting_seconds, "waiting_seconds"),
        leaving_seconds=check_number(proto.leaving_seconds, "leaving_seconds"),
        sent_bytes=_sent_bytes_from_proto(proto.sent_bytes),
        peak_bytes=proto.peak_bytes,
        load_seconds=check_number(proto.load_seconds, "load_seconds"),
    )


def _sent_bytes_from_proto(proto: Mapping[str, int]) -> dict[str, int]:
    if len(proto) > MAX_REPLICAS:
        raise ProtocolViolation(f"a stage that sends to {len(proto)} devices, the limit is {MAX_REPLICAS}")
    return {check_id(device, "node id") if device else "": count for device, count in proto.items()}


def _happening_from_proto(proto: node_pb2.Event) -> Happening:
    return Happening(check_number(proto.time, "time"), check_text(proto.text, "text"))
