"""Tables and documents: what people read, and what `--json` prints."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mesh.core.coding import RAW
from mesh.core.ids import NodeId
from mesh.core.plan import FLOAT
from mesh.core.report import DeploymentReport, NodeView, StageReport

if TYPE_CHECKING:
    from mesh.core.plan import Plan


def human_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain columns: readable in a terminal, in a log and through a pipe."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(line.rstrip() for line in lines)


def node_document(view: NodeView) -> dict[str, Any]:
    can = view.capabilities
    return {
        "id": can.node_id,
        "name": can.name,
        "address": view.address,
        "state": can.state.value,
        "arch": can.arch,
        "cores": can.cores,
        "memory_bytes": can.memory_bytes,
        "memory_available_bytes": can.memory_available_bytes,
        "providers": [provider.name for provider in can.providers if provider.usable],
        "unusable_providers": {p.name: p.detail for p in can.providers if not p.usable},
        "gflops": can.gflops,
        "memory_gb_per_s": can.memory_gb_per_s,
        "governor": can.governor or None,
        "watts": None if can.watts is None else {"busy": can.watts.busy, "idle": can.watts.idle},
        "codecs": {codec.name: [codec.encode_byte_seconds, codec.decode_byte_seconds] for codec in can.codecs},
        "runtime_version": can.runtime_version,
        "software_version": can.software_version,
    }


def nodes_table(views: Sequence[NodeView]) -> str:
    header = ("NAME", "STATE", "ADDRESS", "ARCH", "CORES", "MEMORY", "GFLOP/S", "ID")
    rows = [
        (
            view.capabilities.name,
            view.capabilities.state.value,
            view.address,
            view.capabilities.arch or "-",
            f"{view.capabilities.cores:g}" if view.capabilities.cores else "-",
            human_bytes(view.capabilities.memory_bytes) if view.capabilities.memory_bytes else "-",
            f"{view.capabilities.gflops:.1f}" if view.capabilities.gflops else "-",
            view.capabilities.node_id[:8],
        )
        for view in views
    ]
    return format_table(header, rows)


def plan_table(plan: Plan, names: Mapping[NodeId, str]) -> str:
    has_codecs = any(stage.codec != RAW for stage in plan.stages)
    variants = [plan.variant_of(stage) for stage in plan.stages]
    has_variants = any(variant != FLOAT for variant in variants)
    header = (
        *("STAGE", "DEVICE", "GROUPS", *(("VARIANT",) if has_variants else ())),
        *("WEIGHTS", "COMPUTE", "TENSORS OUT", *(("AS",) if has_codecs else ())),
    )
    rows = [
        (
            str(index),
            ", ".join(names.get(device, device[:8]) for device in stage.devices),
            f"{stage.segment.start}-{stage.segment.end}",
            *((variants[index],) if has_variants else ()),
            human_bytes(stage.segment.weight_bytes),
            f"{stage.compute_seconds * 1e3:.2f} ms{'' if stage.measured else ' (estimated)'}",
            str(len(stage.segment.produces) + len(stage.segment.relays)),
            *((stage.codec,) if has_codecs else ()),
        )
        for index, stage in enumerate(plan.stages)
    ]
    kind = "forced plan" if plan.forced else "plan"
    predicted = plan.predicted
    return (
        f"{format_table(header, rows)}\n"
        f"{kind}: {predicted.throughput_per_s:.1f} frames/s, {predicted.latency_s * 1e3:.2f} ms per frame predicted; "
        f"{plan.certificate}"
    )


def deployment_document(report: DeploymentReport, plan: dict[str, Any]) -> dict[str, Any]:
    """`throughput_per_s` of the deployment is that of its last stage; a stage has an entry for each of its devices."""
    return {
        "name": report.deployment.name,
        "state": report.state,
        "reason": report.reason,
        "generation": report.deployment.fence.generation,
        "term": report.deployment.fence.term,
        "plan": plan,
        "throughput_per_s": sum(stage.throughput_per_s for stage in _last_stage(report)),
        "stages": [
            {
                "stage": stage.stage,
                "device": stage.device,
                "frames": stage.frames,
                "compute_ms": stage.compute_seconds * 1e3,
                "waiting_ms": stage.waiting_seconds * 1e3,
                "leaving_ms": stage.leaving_seconds * 1e3,
                "throughput_per_s": stage.throughput_per_s,
                "dropped": stage.dropped,
                "failed": stage.failed,
                "peak_bytes": stage.peak_bytes or None,
                "load_ms": stage.load_seconds * 1e3 or None,
                "sent_bytes": {device or "client": count for device, count in stage.sent_bytes.items()},
            }
            for stage in report.stages
        ],
        "events": [{"time": happening.time, "text": happening.text} for happening in report.happenings],
    }


def wall_time(unix_seconds: float) -> str:
    """Local date and time to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_seconds))


def _last_stage(report: DeploymentReport) -> list[StageReport]:
    """What the devices of the tail tell."""
    return [stage for stage in report.stages if stage.stage == report.stages[-1].stage]


def _changed_at(report: DeploymentReport) -> float:
    """When the generation in force became so, as its nodes remember; the first that is remembered where they do not."""
    found = [each.time for each in report.happenings if report.deployment.cause in each.text]
    return min(found or [each.time for each in report.happenings], default=0.0)


def status_table(reports: Sequence[DeploymentReport]) -> str:
    header = ("NAME", "STATE", "GENERATION", "STAGES", "FRAMES", "FRAMES/S", "PREDICTED", "NODES")
    rows = [
        (
            report.deployment.name,
            report.state,
            str(report.deployment.fence),
            str(len(report.deployment.plan.stages)),
            str(sum(stage.frames for stage in _last_stage(report))),
            f"{sum(stage.throughput_per_s for stage in _last_stage(report)):.1f}",
            f"{report.deployment.plan.predicted.throughput_per_s:.1f}",
            ", ".join("|".join(device[:8] for device in stage.devices) for stage in report.deployment.plan.stages),
        )
        for report in reports
    ]
    lines = [format_table(header, rows)]
    lines.extend(
        f"{report.deployment.name}: is the variant {report.deployment.plan.variant}"
        for report in reports
        if report.deployment.plan.variant != FLOAT
    )
    lines.extend(f"{report.deployment.name}: {report.reason}" for report in reports if report.reason)
    lines.extend(
        f"{report.deployment.name}: since {wall_time(_changed_at(report))}: {report.deployment.cause}"
        for report in reports
        if report.deployment.cause
    )
    return "\n".join(lines)
