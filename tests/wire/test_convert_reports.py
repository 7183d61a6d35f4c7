"""What a stage tells of itself is bounded by what a stage can be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh.core.report import DeploymentReport, StageReport
from mesh.errors import ProtocolViolation, UsageError
from mesh.wire import convert
from mesh.wire.convert_plan import MAX_REPLICAS
from tests.wire.coordinator_material import DEPLOYMENT


@pytest.mark.parametrize("peers", [["nobody"], [f"{number:032x}" for number in range(MAX_REPLICAS + 1)]])
def test_a_stage_sends_to_no_more_devices_than_it_can_have(peers: list[str]) -> None:
    stage = StageReport(0, 1, 0.1, 1.0, 0, 0, sent_bytes=dict.fromkeys(peers, 1))
    proto = convert.report_to_proto(DeploymentReport(DEPLOYMENT, "active", "", (stage,), ()))
    with pytest.raises((ProtocolViolation, UsageError)):
        convert.report_from_proto(proto)


@pytest.mark.parametrize("variant", ["float", "int8"])
def test_a_plan_tells_its_variant(variant: str) -> None:
    plan = replace(DEPLOYMENT.plan, variant=variant)
    assert convert.plan_from_proto(convert.plan_to_proto(plan)) == plan
