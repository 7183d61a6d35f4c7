"""What readings of energy mean: measured above rest, estimated by processor time, or not known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.control.energy import DevicePower, joules_per_frame, judge_power, rest_watts
from mesh.core.fleet import Watts
from mesh.core.ids import NodeId
from mesh.core.measurement import EnergyReading

A, B = NodeId("a" * 32), NodeId("b" * 32)
STATED = Watts(15.0, 3.0)


def reading(at: float, processor: float = 0.0, joules: float | None = None) -> EnergyReading:
    return EnergyReading(at, processor, joules, "RAPL" if joules is not None else "")


def test_what_is_measured_is_above_rest() -> None:
    at_rest = rest_watts(reading(10, joules=100), reading(11, joules=104))
    assert at_rest == 4
    power = judge_power(A, reading(20, joules=200), reading(22, joules=228), at_rest, STATED, 4)
    assert (power.watts, power.is_measured, power.source) == (10, True, "measured by RAPL")


def test_less_than_at_rest_is_nothing() -> None:
    assert judge_power(A, reading(0, joules=0), reading(1, joules=3), 4.0, None, 4).watts == 0


def test_without_a_meter_it_is_a_cores_share_of_what_is_stated() -> None:
    assert rest_watts(reading(0), reading(1)) is None
    power = judge_power(A, reading(0, processor=5), reading(2, processor=8), None, STATED, 4)
    assert power.watts == pytest.approx((15 - 3) / 4 * 1.5)
    assert not power.is_measured and "estimated" in power.source


def test_all_cores_at_work_are_what_is_stated() -> None:
    assert judge_power(A, reading(0), reading(2, processor=8), None, STATED, 4).watts == pytest.approx(12)


def test_with_neither_it_is_not_known() -> None:
    power = judge_power(A, reading(0), reading(1, processor=1), None, None, 4)
    assert power.watts is None and "--watts-busy" in power.source
    assert joules_per_frame([power, DevicePower(B, 2.0, "")], 10) is None


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=5), st.floats(0.1, 1e4))
def test_devices_add_up(watts: list[float], frames_per_s: float) -> None:
    powers = [DevicePower(A, each, "") for each in watts]
    apart = [joules_per_frame([power], frames_per_s) or 0.0 for power in powers]
    assert joules_per_frame(powers, frames_per_s) == pytest.approx(sum(apart))


def test_nothing_answered_has_no_energy() -> None:
    assert joules_per_frame([DevicePower(A, 1.0, "")], 0.0) is None
