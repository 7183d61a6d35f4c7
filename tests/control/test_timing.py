"""When silence means loss: on time, after late ticks, and within what is promised."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.control.timing import HEARTBEAT_INTERVAL_S, SILENCE_LIMIT_S, Liveness

PROMISED_S = 4.0


def first_loss(liveness: Liveness, ticks: list[float]) -> float | None:
    return next((now for now in ticks if liveness.is_lost(now)), None)


def on_time(start: float, count: int) -> list[float]:
    return [start + HEARTBEAT_INTERVAL_S * (index + 1) for index in range(count)]


def test_silence_is_loss_soon_after_the_limit() -> None:
    lost_at = first_loss(Liveness(0.0), on_time(0.0, 20))
    assert lost_at is not None
    assert SILENCE_LIMIT_S < lost_at <= SILENCE_LIMIT_S + HEARTBEAT_INTERVAL_S < PROMISED_S


@given(st.floats(0, 1e6), st.lists(st.floats(0.01, SILENCE_LIMIT_S * 0.8), min_size=1, max_size=50))
def test_who_speaks_within_the_limit_is_never_lost(start: float, gaps: list[float]) -> None:
    liveness = Liveness(start)
    heard, tick = start, start
    for gap in gaps:
        heard += gap
        while tick + HEARTBEAT_INTERVAL_S <= heard:
            tick += HEARTBEAT_INTERVAL_S
            assert not liveness.is_lost(tick)
        liveness.heard(heard)


def test_a_watcher_that_slept_gives_the_peer_another_chance() -> None:
    liveness = Liveness(0.0)
    assert not liveness.is_lost(0.5)
    assert not liveness.is_lost(60.0), "it was this side that slept: messages may wait unread"
    assert not liveness.is_lost(60.5)
    liveness.heard(60.6)
    assert first_loss(liveness, on_time(60.5, 4)) is None


def test_after_a_late_tick_real_silence_is_still_found_within_the_promise() -> None:
    liveness = Liveness(0.0)
    assert not liveness.is_lost(60.0)
    lost_at = first_loss(liveness, on_time(60.0, 20))
    assert lost_at is not None
    assert lost_at - 60.0 < PROMISED_S


def test_a_slightly_late_tick_forgives_nothing() -> None:
    late = HEARTBEAT_INTERVAL_S * 1.9
    lost_at = first_loss(Liveness(0.0), [late * (index + 1) for index in range(10)])
    assert lost_at is not None
    assert lost_at <= SILENCE_LIMIT_S + late
