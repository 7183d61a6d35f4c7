"""Figures of a gateway and of nodes in Prometheus' terms. Pure; `metrics_server` serves them.

Names: prefix `mesh_`, base units, `_total` for what only grows; labels are models, stages and outcomes, never requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from mesh.core.fleet import NodeState
from mesh.gateways.statistics import BUCKETS_S, NANOSECONDS_PER_S, ModelStatistics
from mesh.runtime.fleet import Answered

OK = "ok"


def gateway_metrics(counted: Mapping[str, ModelStatistics], in_flight: int) -> Iterator[Metric]:
    """What came to this gateway."""
    requests = CounterMetricFamily(
        "mesh_inference_requests", "Inference requests by model and outcome.", labels=["model", "outcome"]
    )
    durations = HistogramMetricFamily(
        "mesh_inference_duration_seconds", "From a request's arrival to its answer.", labels=["model"]
    )
    for model, statistics in counted.items():
        requests.add_metric([model, OK], statistics.success.count)
        for code, count in statistics.failures.items():
            requests.add_metric([model, code], count)
        ends = [*map(str, BUCKETS_S), "+Inf"]
        buckets = list(zip(ends, accumulate(statistics.slots), strict=True))
        durations.add_metric([model], buckets, statistics.success.nanoseconds / NANOSECONDS_PER_S)
    yield requests
    yield durations
    yield GaugeMetricFamily("mesh_queue_depth", "Requests that wait or run.", value=in_flight)


def node_metrics(node: Answered) -> Iterator[Metric]:
    """What one node tells of itself and of the stages that it holds."""
    told = node.view.capabilities
    described = {"name": told.name, "arch": told.arch, "hardware": told.hardware, "version": told.software_version}
    yield InfoMetricFamily("mesh_node", "Who the node is.", value={**described, "runtime": told.runtime_version})
    yield GaugeMetricFamily("mesh_node_ready", "Whether the node takes work.", value=int(told.state is NodeState.READY))
    for name, text, value in (
        ("mesh_node_cores", "Share of the processor in cores.", told.cores),
        ("mesh_node_memory_bytes", "Memory that the node may use.", told.memory_bytes),
        ("mesh_node_memory_available_bytes", "Of it, what is free.", told.memory_available_bytes),
        ("mesh_node_disk_available_bytes", "What the content store may still take.", told.disk_available_bytes),
    ):
        yield GaugeMetricFamily(name, text, value=value)
    yield from _stage_metrics(node)


def _stage_metrics(node: Answered) -> Iterator[Metric]:
    place = ["model", "generation", "stage"]
    frames = CounterMetricFamily("mesh_stage_frames", "Frames that the stage has computed.", labels=place)
    failed = CounterMetricFamily("mesh_stage_failed_frames", "Frames that it could not compute.", labels=place)
    dropped = CounterMetricFamily(
        "mesh_dropped_frames", "Live frames that were dropped there, by reason.", labels=[*place, "reason"]
    )
    durations = GaugeMetricFamily(
        "mesh_stage_duration_seconds",
        "Per frame, weighted towards the latest: waiting, computing, leaving.",
        labels=[*place, "part"],
    )
    transfers = CounterMetricFamily(
        "mesh_transfer_bytes", "Payload that the stage sent, by who took it.", labels=[*place, "peer"]
    )
    states = GaugeMetricFamily(
        "mesh_deployment_state", "1 for the state that the node's part is in.", labels=["model", "generation", "state"]
    )
    for report in node.deployments:
        name, generation = str(report.deployment.name), str(report.deployment.fence)
        states.add_metric([name, generation, report.state], 1)
        for stage in report.stages:
            labels = [name, generation, str(stage.stage)]
            frames.add_metric(labels, stage.frames)
            failed.add_metric(labels, stage.failed)
            dropped.add_metric([*labels, "superseded"], stage.dropped)
            for device, count in stage.sent_bytes.items():
                transfers.add_metric([*labels, device[:8] or "client"], count)
            for part, seconds in (
                ("waiting", stage.waiting_seconds),
                ("computing", stage.compute_seconds),
                ("leaving", stage.leaving_seconds),
            ):
                durations.add_metric([*labels, part], seconds)
    yield from (frames, failed, dropped, durations, transfers, states)
