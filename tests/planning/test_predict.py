"""Predictions and windows of known pipelines, by hand."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from mesh.core.costs import Costs, DeviceCosts
from mesh.core.fleet import Handling, Link
from mesh.core.plan import Limits, Plan, PlanOptions, Stage
from mesh.core.segments import segment_between
from mesh.planning.exact import plan
from mesh.planning.predict import (
    latency_seconds,
    make_stage,
    period_seconds,
    predict,
    window_for,
)
from mesh.planning.problem import make_problem
from tests.planning.instances import PLENTY, chain_graph, node_ids

GRAPH = chain_graph([10, 10, 10, 10], sizes=[100, 0, 1_000_000, 0, 100])
DEVICES = node_ids(4)


def costs(latency: float = 0.0, rate: float = 1e9, handling: Handling | None = None) -> Costs:
    known = DeviceCosts((0.0, 0.010, 0.020, 0.030, 0.040), PLENTY, True, handling or Handling(0.0, 0.0, True))
    return Costs(
        dict.fromkeys(DEVICES, known), {(a, b): Link(latency, rate) for a in DEVICES for b in DEVICES if a != b}
    )


def stages(known: Costs, *bounds: int) -> list[Stage]:
    return [
        make_stage(segment_between(GRAPH, start, end), (DEVICES[index],), known)
        for index, (start, end) in enumerate(itertools.pairwise(bounds))
    ]


def test_one_device_is_its_time() -> None:
    known = costs()
    prediction = predict(GRAPH, stages(known, 0, 4), known)
    assert prediction.throughput_per_s == pytest.approx(25)
    assert prediction.latency_s == pytest.approx(0.040)
    assert window_for(GRAPH, stages(known, 0, 4), known) == 2


def test_slowest_stage_gives_the_period() -> None:
    known = costs()
    assert period_seconds(GRAPH, stages(known, 0, 1, 4), known) == pytest.approx(0.030)
    assert latency_seconds(GRAPH, stages(known, 0, 1, 4), known) == pytest.approx(0.040)


def test_link_rate_can_be_the_slowest() -> None:
    known = costs(rate=1e7)
    assert period_seconds(GRAPH, stages(known, 0, 2, 4), known) == pytest.approx(0.100)
    assert latency_seconds(GRAPH, stages(known, 0, 2, 4), known) == pytest.approx(0.140)


def test_handling_costs_every_stage_a_message_in_and_a_message_out() -> None:
    known = costs(handling=Handling(0.001, 1e-8, True))
    pipeline = stages(known, 0, 2, 4)
    assert period_seconds(GRAPH, pipeline, known) == pytest.approx(0.020 + 2 * 0.001 + 1e-8 * 1_000_100)
    assert latency_seconds(GRAPH, pipeline, known) == pytest.approx(
        0.040 + 4 * 0.001 + 1e-8 * (100 + 2 * 1_000_000 + 100) + 0.001
    )


def test_frames_that_are_made_at_the_head_are_not_received() -> None:
    known = costs(handling=Handling(0.0, 1e-4, True))
    names = {device: f"n{index}" for index, device in enumerate(DEVICES)}
    sent = make_problem(GRAPH, known, PlanOptions(stages=1), names)
    made = make_problem(GRAPH, known, PlanOptions(stages=1, limits=Limits(head=DEVICES[2])), names)
    far, near = plan(sent), plan(made)
    assert isinstance(far, Plan) and isinstance(near, Plan)
    assert near.devices == (DEVICES[2],)
    assert far.predicted.latency_s - near.predicted.latency_s == pytest.approx(100 * 1e-4)


def test_replicas_share_the_frames_but_not_the_latency() -> None:
    known = costs()
    pipeline = stages(known, 0, 1, 4)
    replicated = [pipeline[0], dataclasses.replace(pipeline[1], devices=DEVICES[1:4])]
    assert period_seconds(GRAPH, replicated, known) == pytest.approx(0.010)
    assert latency_seconds(GRAPH, replicated, known) == pytest.approx(0.040)
    assert window_for(GRAPH, replicated, known) == 5


@pytest.mark.parametrize(("bounds", "window"), [((0, 4), 2), ((0, 2, 4), 3), ((0, 1, 2, 3, 4), 5)])
def test_window_is_a_frame_per_busy_stage_and_one_more(bounds: tuple[int, ...], window: int) -> None:
    graph = chain_graph([10] * 4, sizes=[0] * 5)
    known = costs()
    pipeline = [
        make_stage(segment_between(graph, start, end), (DEVICES[index],), known)
        for index, (start, end) in enumerate(itertools.pairwise(bounds))
    ]
    assert window_for(graph, pipeline, known) == window


def test_window_covers_far_links_and_stays_within_its_bound() -> None:
    far = costs(latency=0.5)
    pipeline = stages(far, 0, 1, 2, 3, 4)
    window = window_for(GRAPH, pipeline, far)
    assert 5 < window <= 3 * 4
    assert window / latency_seconds(GRAPH, pipeline, far) >= 1 / period_seconds(GRAPH, pipeline, far)
