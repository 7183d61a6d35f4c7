"""What a stage tells of itself is bounded by what a stage can be."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mesh.core.fleet import Watts
from mesh.core.measurement import EnergyReading
from mesh.core.report import DeploymentReport, StageReport
from mesh.errors import ProtocolViolation, UsageError
from mesh.v1 import node_pb2
from mesh.wire import convert, convert_measurement
from mesh.wire.convert_plan import MAX_REPLICAS
from tests.wire.coordinator_material import DEPLOYMENT


@pytest.mark.parametrize("peers", [["nobody"], [f"{number:032x}" for number in range(MAX_REPLICAS + 1)]])
def test_a_stage_sends_to_no_more_devices_than_it_can_have(peers: list[str]) -> None:
    stage = StageReport(0, 1, 0.1, 1.0, 0, 0, sent_bytes=dict.fromkeys(peers, 1))
    proto = convert.report_to_proto(DeploymentReport(DEPLOYMENT, "active", "", (stage,), ()))
    with pytest.raises((ProtocolViolation, UsageError)):
        convert.report_from_proto(proto)


def test_what_an_engine_took_returns() -> None:
    stage = StageReport(0, 1, 0.1, 1.0, 0, 0, peak_bytes=1 << 40, load_seconds=0.25)
    report = DeploymentReport(DEPLOYMENT, "active", "", (stage,), ())
    assert convert.report_from_proto(convert.report_to_proto(report)) == report


@pytest.mark.parametrize("variant", ["float", "int8"])
def test_a_plan_tells_its_variant(variant: str) -> None:
    plan = replace(DEPLOYMENT.plan, variant=variant)
    assert convert.plan_from_proto(convert.plan_to_proto(plan)) == plan


@pytest.mark.parametrize("reading", [EnergyReading(1.5, 2.5), EnergyReading(1.5, 2.5, 0.0, "RAPL")])
def test_readings_of_energy_return(reading: EnergyReading) -> None:
    assert convert_measurement.energy_from_proto(convert_measurement.energy_to_proto(reading)) == reading


@pytest.mark.parametrize(("busy", "idle"), [(1.0, 2.0), (math.nan, 0.0), (-1.0, 0.0)])
def test_power_that_makes_no_sense_is_refused(busy: float, idle: float) -> None:
    proto = node_pb2.Capabilities(node_id="a" * 32, name="n", state="NODE_STATE_READY", watts_busy=4, watts_idle=1)
    proto.governor = "ondemand"
    told = convert.capabilities_from_proto(proto)
    assert (told.watts, told.governor) == (Watts(4, 1), "ondemand")
    assert convert.capabilities_from_proto(convert.capabilities_to_proto(told)) == told
    proto.watts_busy, proto.watts_idle = busy, idle
    with pytest.raises(ProtocolViolation, match="watts"):
        convert.capabilities_from_proto(proto)
