"""Codecs, limits and explanations of plans travel whole; what makes no sense is refused by name."""

from __future__ import annotations

import dataclasses

import pytest

from mesh.core.plan import (
    Alternative,
    Bottleneck,
    Explanation,
    Limits,
    LinkBreakdown,
    Plan,
    Prediction,
    StageBreakdown,
)
from mesh.core.report import KernelTime, ModelProfile
from mesh.errors import ProtocolViolation
from mesh.v1 import node_pb2, plan_pb2
from mesh.wire.convert_measurement import profile_from_proto, profile_to_proto
from mesh.wire.convert_plan import plan_from_proto, plan_to_proto
from tests.wire.coordinator_material import NODE, PLAN

LINK = LinkBreakdown(11.75e6, 3e-4, 4.5e-3, 4.2e-3, measured=True)
PART = StageBreakdown(1e-3, 5e-3, 600_000, 50_000, 80_000_000, 512_000_000, LINK, memory_measured=True)
EXPLANATION = Explanation(
    (PART, dataclasses.replace(PART, link=None)),
    Bottleneck(0, True, 4.2e-3),
    (Alternative("one more board", Prediction(300.0, 0.01), "1.2 times the throughput"),),
)
EXPLAINED = dataclasses.replace(
    PLAN, limits=Limits((NODE,), ("f" * 32,), NODE, 2, ("zstd", "int8"), 0.05), explanation=EXPLANATION
)  # type: ignore[arg-type]


def through_bytes(plan: Plan) -> plan_pb2.Plan:
    return plan_pb2.Plan.FromString(plan_to_proto(plan).SerializeToString())


def test_they_return() -> None:
    assert plan_from_proto(through_bytes(EXPLAINED)) == EXPLAINED
    assert plan_from_proto(through_bytes(PLAN)) == PLAN


def test_a_plan_that_says_nothing_of_codecs_is_raw() -> None:
    proto = through_bytes(PLAN)
    proto.stages[0].codec = ""
    assert plan_from_proto(proto) == PLAN


def test_codecs_to_allow_are_known_ones() -> None:
    proto = through_bytes(EXPLAINED)
    proto.limits.codecs[1] = "zip"
    with pytest.raises(ProtocolViolation, match=r"plan\.limits\.codecs\[1\]: codec: 'zip'"):
        plan_from_proto(proto)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("stages.0.codec", "zip", r"plan\.stages\[0\]: codec: 'zip' is not spoken here"),
        ("limits.head", "pi", r"plan\.limits\.head"),
        ("limits.answer_change", -1.0, r"plan\.limits\.answer_change"),
        ("limits.replicas", 257, r"plan\.limits\.replicas"),
        ("explanation.bottleneck.stage", 2, r"explanation\.bottleneck: stage 2 of 2"),
        ("explanation.bottleneck.period_seconds", -1.0, r"explanation\.bottleneck\.period_seconds"),
        ("explanation.stages.0.link.bytes_per_second", float("nan"), r"explanation\.stages\[0\]: link\.bytes_per"),
        ("explanation.improvements.0.prediction.latency_s", -1.0, r"explanation\.improvements\[0\]: prediction"),
    ],
)
def test_what_makes_no_sense_is_refused(field: str, value: object, said: str) -> None:
    proto = through_bytes(EXPLAINED)
    *way, last = field.split(".")
    place: object = proto
    for step in way:
        place = place[int(step)] if step.isdigit() else getattr(place, step)  # type: ignore[index]
    setattr(place, last, value)
    with pytest.raises(ProtocolViolation, match=said):
        plan_from_proto(proto)


def test_profiles_return() -> None:
    told = ModelProfile((KernelTime("conv", 0.5),), (0.5, 0.25), 900, (500, 300))
    read = node_pb2.ProfileModelResponse.FromString(profile_to_proto(told).SerializeToString())
    assert profile_from_proto(read) == told
