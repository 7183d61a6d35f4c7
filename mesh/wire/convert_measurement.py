"""Sources and traces to protobuf and back. The same rules as in `mesh.wire.convert`."""

from __future__ import annotations

from mesh.control.measuring import MAX_LATENCIES
from mesh.core.ids import DeploymentName, check_name
from mesh.core.measurement import EnergyReading, SourceReport, SourceRequest, StageFigures, StageSpan, StageTrace
from mesh.core.plan import Fence
from mesh.core.report import KernelTime, ModelProfile
from mesh.v1 import node_pb2
from mesh.wire.convert_plan import MAX_STAGES
from mesh.wire.door_checks import check_count, check_label, check_list, check_number, check_text

MAX_SPANS_PER_MESSAGE = 4096
"""About 200 KiB."""


def source_request_to_proto(name: str, fence: Fence, request: SourceRequest) -> node_pb2.RunSourceRequest:
    return node_pb2.RunSourceRequest(
        name=name,
        term=fence.term,
        generation=fence.generation,
        seconds=request.seconds,
        warm_up_seconds=request.warm_up_seconds,
        window=request.window,
        rate_per_s=request.rate_per_s,
    )


def source_request_from_proto(proto: node_pb2.RunSourceRequest) -> tuple[DeploymentName, Fence, SourceRequest]:
    name = DeploymentName(check_name(proto.name, "deployment"))
    request = SourceRequest(
        check_number(proto.seconds, "seconds"),
        check_number(proto.warm_up_seconds, "warm_up_seconds"),
        proto.window,
        check_number(proto.rate_per_s, "rate_per_s"),
    )
    return name, Fence(proto.term, proto.generation), request


def source_report_to_proto(report: SourceReport) -> node_pb2.RunSourceResponse:
    return node_pb2.RunSourceResponse(
        answered=report.answered,
        seconds=report.seconds,
        latencies_us=[min(latency, (1 << 32) - 1) for latency in report.latencies_us],
        stages=[
            node_pb2.StageFigures(
                stage=each.stage, compute_seconds=each.compute_seconds, queue_seconds=each.queue_seconds
            )
            for each in report.stages
        ],
        cpu_seconds=report.cpu_seconds,
    )


def source_report_from_proto(proto: node_pb2.RunSourceResponse) -> SourceReport:
    check_count(proto.latencies_us, MAX_LATENCIES, "latencies_us")
    return SourceReport(
        proto.answered,
        check_number(proto.seconds, "seconds"),
        tuple(proto.latencies_us),
        check_list(proto.stages, MAX_STAGES, "stages", _figures_from_proto),
        check_number(proto.cpu_seconds, "cpu_seconds"),
    )


def _figures_from_proto(proto: node_pb2.StageFigures) -> StageFigures:
    return StageFigures(
        proto.stage,
        check_number(proto.compute_seconds, "compute_seconds"),
        check_number(proto.queue_seconds, "queue_seconds"),
    )


def energy_to_proto(reading: EnergyReading) -> node_pb2.ReadEnergyResponse:
    return node_pb2.ReadEnergyResponse(
        monotonic_seconds=reading.monotonic_seconds,
        processor_seconds=reading.processor_seconds,
        joules=reading.joules,
        source=reading.source,
    )


def energy_from_proto(proto: node_pb2.ReadEnergyResponse) -> EnergyReading:
    return EnergyReading(
        monotonic_seconds=check_number(proto.monotonic_seconds, "monotonic_seconds"),
        processor_seconds=check_number(proto.processor_seconds, "processor_seconds"),
        joules=check_number(proto.joules, "joules") if proto.HasField("joules") else None,
        source=check_label(proto.source, "source"),
    )


def trace_to_proto(trace: StageTrace) -> node_pb2.TraceStageResponse:
    spans = [
        node_pb2.StageSpan(
            stream=span.stream,
            sequence=span.sequence,
            received=span.received,
            engine_started=span.engine_started,
            engine_ended=span.engine_ended,
            sent=span.sent,
            traceparent=span.traceparent,
        )
        for span in trace.spans
    ]
    return node_pb2.TraceStageResponse(stage=trace.stage, spans=spans)


def trace_from_proto(proto: node_pb2.TraceStageResponse) -> StageTrace:
    return StageTrace(proto.stage, check_list(proto.spans, MAX_SPANS_PER_MESSAGE, "spans", _span_from_proto))


def _span_from_proto(proto: node_pb2.StageSpan) -> StageSpan:
    return StageSpan(
        proto.stream,
        proto.sequence,
        check_number(proto.received, "received"),
        check_number(proto.engine_started, "engine_started"),
        check_number(proto.engine_ended, "engine_ended"),
        check_number(proto.sent, "sent"),
        check_text(proto.traceparent, "traceparent"),
    )


MAX_PARTS = 64
MAX_KERNEL_CHARACTERS = 500
MAX_KERNELS = 20_000
"""About 1 MB: what fits into one message. Beyond it the rest of a profile is not told."""


def profile_to_proto(profile: ModelProfile) -> node_pb2.ProfileModelResponse:
    kernels = [
        node_pb2.KernelTime(name=kernel.name[:MAX_KERNEL_CHARACTERS], seconds=kernel.seconds)
        for kernel in profile.kernels[:MAX_KERNELS]
    ]
    return node_pb2.ProfileModelResponse(
        kernels=kernels,
        part_ratios=profile.part_ratios,
        peak_bytes=profile.peak_bytes,
        part_peak_bytes=profile.part_peak_bytes,
    )


def profile_from_proto(proto: node_pb2.ProfileModelResponse) -> ModelProfile:
    check_count(proto.part_ratios, MAX_PARTS, "part_ratios")
    check_count(proto.part_peak_bytes, MAX_PARTS, "part_peak_bytes")
    return ModelProfile(
        check_list(proto.kernels, MAX_KERNELS, "kernels", _kernel_from_proto),
        tuple(check_number(ratio, "part_ratios") for ratio in proto.part_ratios),
        proto.peak_bytes,
        tuple(proto.part_peak_bytes),
    )


def _kernel_from_proto(proto: node_pb2.KernelTime) -> KernelTime:
    return KernelTime(check_text(proto.name, "kernel name"), check_number(proto.seconds, "kernel seconds"))
