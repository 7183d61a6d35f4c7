"""What a plan tells of itself, to protobuf and back: predictions, alternatives, explanations.

Used by `mesh.wire.convert_plan`, with the same rules: encoders trust, decoders check and name the field.
"""

from __future__ import annotations

from mesh.core.plan import Alternative, Bottleneck, Explanation, LinkBreakdown, Prediction, StageBreakdown
from mesh.errors import ProtocolViolation
from mesh.v1 import plan_pb2
from mesh.wire.door_checks import check_list, check_number, check_text

MAX_EXPLAINED_STAGES = 256
"""As many as a plan may have."""

MAX_IMPROVEMENTS = 64


def prediction_to_proto(prediction: Prediction) -> plan_pb2.Prediction:
    return plan_pb2.Prediction(throughput_per_s=prediction.throughput_per_s, latency_s=prediction.latency_s)


def prediction_from_proto(proto: plan_pb2.Prediction) -> Prediction:
    return Prediction(
        throughput_per_s=check_number(proto.throughput_per_s, "prediction.throughput_per_s"),
        latency_s=check_number(proto.latency_s, "prediction.latency_s"),
    )


def alternative_to_proto(alternative: Alternative) -> plan_pb2.Alternative:
    return plan_pb2.Alternative(
        name=alternative.name,
        prediction=prediction_to_proto(alternative.prediction) if alternative.prediction else None,
        reason=alternative.reason,
    )


def alternative_from_proto(proto: plan_pb2.Alternative) -> Alternative:
    return Alternative(
        name=check_text(proto.name, "name"),
        prediction=prediction_from_proto(proto.prediction) if proto.HasField("prediction") else None,
        reason=check_text(proto.reason, "reason"),
    )


def explanation_to_proto(explanation: Explanation) -> plan_pb2.Explanation:
    bottleneck = explanation.bottleneck
    return plan_pb2.Explanation(
        stages=map(_breakdown_to_proto, explanation.stages),
        bottleneck=plan_pb2.Bottleneck(
            stage=bottleneck.stage, is_link=bottleneck.is_link, period_seconds=bottleneck.period_seconds
        ),
        improvements=map(alternative_to_proto, explanation.improvements),
    )


def explanation_from_proto(proto: plan_pb2.Explanation) -> Explanation:
    stages = check_list(proto.stages, MAX_EXPLAINED_STAGES, "explanation.stages", _breakdown_from_proto)
    if proto.bottleneck.stage >= len(stages):
        raise ProtocolViolation(f"explanation.bottleneck: stage {proto.bottleneck.stage} of {len(stages)}")
    return Explanation(
        stages=stages,
        bottleneck=Bottleneck(
            stage=proto.bottleneck.stage,
            is_link=proto.bottleneck.is_link,
            period_seconds=check_number(proto.bottleneck.period_seconds, "explanation.bottleneck.period_seconds"),
        ),
        improvements=check_list(
            proto.improvements, MAX_IMPROVEMENTS, "explanation.improvements", alternative_from_proto
        ),
    )


def _breakdown_to_proto(stage: StageBreakdown) -> plan_pb2.StageBreakdown:
    link = stage.link
    return plan_pb2.StageBreakdown(
        handling_seconds=stage.handling_seconds,
        period_seconds=stage.period_seconds,
        bytes_in=stage.bytes_in,
        bytes_out=stage.bytes_out,
        memory_bytes=stage.memory_bytes,
        memory_available_bytes=stage.memory_available_bytes,
        link=None
        if link is None
        else plan_pb2.LinkBreakdown(
            bytes_per_second=link.bytes_per_second,
            latency_seconds=link.latency_seconds,
            transfer_seconds=link.transfer_seconds,
            period_seconds=link.period_seconds,
            measured=link.measured,
        ),
        memory_measured=stage.memory_measured,
    )


def _breakdown_from_proto(proto: plan_pb2.StageBreakdown) -> StageBreakdown:
    link = proto.link
    return StageBreakdown(
        handling_seconds=check_number(proto.handling_seconds, "handling_seconds"),
        period_seconds=check_number(proto.period_seconds, "period_seconds"),
        bytes_in=proto.bytes_in,
        bytes_out=proto.bytes_out,
        memory_bytes=proto.memory_bytes,
        memory_available_bytes=proto.memory_available_bytes,
        link=None
        if not proto.HasField("link")
        else LinkBreakdown(
            bytes_per_second=check_number(link.bytes_per_second, "link.bytes_per_second"),
            latency_seconds=check_number(link.latency_seconds, "link.latency_seconds"),
            transfer_seconds=check_number(link.transfer_seconds, "link.transfer_seconds"),
            period_seconds=check_number(link.period_seconds, "link.period_seconds"),
            measured=link.measured,
        ),
        memory_measured=proto.memory_measured,
    )
