"""Energy per inference, by a meter and a clock that are set by hand."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.optimize import energy
from mesh.optimize.energy import Power, estimate_energy, measure_energy

REST_WATTS = 2.0
RUN_S, RUN_J = 0.05, 0.4


class World:
    """Time passes by resting and by running; each run takes energy on top of what rest takes."""

    source = "played"

    def __init__(self, factors: dict[bytes, float]) -> None:
        self.now = 0.0
        self.above = 0.0
        self.factors = factors

    def joules(self) -> float:
        return REST_WATTS * self.now + self.above

    def clock(self) -> float:
        return self.now

    def rest(self, seconds: float) -> None:
        self.now += seconds

    def open(self, data: bytes, **options: Any) -> Any:
        world = self

        class Session:
            def run(self, outputs: None, feeds: Any) -> None:
                world.now += RUN_S
                world.above += RUN_J * world.factors[data]

        return Session()


def test_what_the_machine_takes_at_rest_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World({b"float": 1.0, b"int8": 0.25})
    monkeypatch.setattr(energy, "open_session", world.open)
    models = {"float": b"float", "int8": b"int8"}
    found = measure_energy(models, [{}], world, world.clock, world.rest)
    assert found["float"].joules_per_inference == pytest.approx(RUN_J)
    assert found["int8"].joules_per_inference == pytest.approx(RUN_J / 4)
    assert found["int8"].is_measured and found["int8"].source == "played"


def test_without_a_meter_the_share_of_one_core_is_an_estimate_and_says_so() -> None:
    found = estimate_energy(Power(busy=10, idle=2, cores=4), seconds=0.5)
    assert found.joules_per_inference == pytest.approx(1.0)
    assert not found.is_measured
    assert "estimated from 10 W busy, 2 W idle" in found.source


@pytest.mark.parametrize(("busy", "idle"), [(1, 1), (1, 2), (1, -1), (float("nan"), 1), (1e9, 1), (5, float("nan"))])
def test_power_that_makes_no_sense_is_refused(busy: float, idle: float) -> None:
    with pytest.raises(ValueError, match="make no sense"):
        Power(busy, idle, 4)
