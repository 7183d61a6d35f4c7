"""When an engine that died is started again, and what becomes of its item."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.control.engine_health import (
    MAX_RESTARTS,
    RESTART_WINDOW_S,
    EngineHealth,
    Verdict,
    engine_died,
    is_resubmitted,
)


def test_five_restarts_within_a_minute_are_the_last() -> None:
    health = EngineHealth()
    for second in range(MAX_RESTARTS):
        health, verdict = engine_died(health, float(second), "a fault")
        assert verdict is Verdict.RESTART
    health, verdict = engine_died(health, 10.0, "a fault")
    assert verdict is Verdict.QUARANTINE
    assert "5 times within 60 s" in health.reason
    assert "a fault" in health.reason


def test_a_quarantine_is_not_lifted_by_time() -> None:
    health = EngineHealth(is_quarantined=True, reason="before")
    assert engine_died(health, 1e9, "again") == (health, Verdict.QUARANTINE)


@given(st.lists(st.floats(0, 100), max_size=40))
def test_more_than_five_restarts_never_lie_within_one_minute(pauses: list[float]) -> None:
    health, now, restarts = EngineHealth(), 0.0, list[float]()
    for pause in pauses:
        now += pause
        health, verdict = engine_died(health, now, "")
        recent = [at for at in restarts if now - at < RESTART_WINDOW_S]
        if verdict is Verdict.QUARANTINE:
            assert len(recent) == MAX_RESTARTS
            return
        assert len(recent) < MAX_RESTARTS
        restarts.append(now)
        assert len(health.restarts) <= MAX_RESTARTS


def test_an_item_goes_into_two_engines_at_most() -> None:
    assert [is_resubmitted(deaths) for deaths in (1, 2, 3)] == [True, False, False]
