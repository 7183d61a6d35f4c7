"""Frames go to the replica of least expected finish: shares follow speeds, and who stalls gets nothing more."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.control.dispatch import RETRY_AFTER_S, Dispatch

SIZE = 100
FOREVER = 1e9


def run(dispatch: Dispatch, seconds: Sequence[float], frames: int, window: int, began: float = 0.0) -> Counter[int]:
    """Serve `frames` with at most `window` under way, on replicas that take `seconds` each; who got how many."""
    count = len(seconds)
    free_at = [began] * count
    finishing: list[tuple[float, int]] = []
    given_to: Counter[int] = Counter()
    now = began
    for _ in range(frames):
        while len(finishing) >= window:
            now, replica = heapq.heappop(finishing)
            assert now < FOREVER, "everything waits for a replica that stands still"
            dispatch.credited(replica, SIZE, now)
        chosen = dispatch.choose(range(count), now)
        assert chosen is not None
        dispatch.handed(chosen, SIZE, now)
        given_to[chosen] += 1
        free_at[chosen] = max(free_at[chosen], now) + seconds[chosen]
        heapq.heappush(finishing, (free_at[chosen], chosen))
    for finished_at, replica in sorted(finishing):
        if finished_at < FOREVER:
            dispatch.credited(replica, SIZE, finished_at)
    return given_to


@given(
    seconds=st.lists(st.floats(0.001, 0.008), min_size=2, max_size=4),
    expected=st.floats(0.0, 0.1),
    extra=st.integers(2, 12),
)
@settings(deadline=None, max_examples=60)
def test_shares_follow_the_speeds(seconds: list[float], expected: float, extra: int) -> None:
    """Whatever the plan expected. The window has room for a frame of the slowest while the others go on."""
    dispatch = Dispatch(len(seconds), expected, 0.0)
    window = round(sum(max(seconds) / each for each in seconds)) + extra
    frames = 400
    run(dispatch, seconds, 100, window)
    given_to = run(dispatch, seconds, frames, window, 1000.0)
    rate = sum(1 / each for each in seconds)
    for replica, each in enumerate(seconds):
        fair = frames / each / rate
        assert abs(given_to[replica] - fair) <= 0.1 * fair + window


def test_twice_as_fast_gets_twice_as_many() -> None:
    given_to = run(Dispatch(2, 0.01, 0.0), (0.01, 0.02), 300, 6)
    assert given_to[0] == pytest.approx(200, abs=8)


@given(window=st.integers(4, 32), others=st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_a_replica_that_stands_still_does_not_fill_the_window(window: int, others: int) -> None:
    seconds = [FOREVER, *[0.01] * others]
    dispatch = Dispatch(1 + others, 0.01, 0.0)
    given_to = run(dispatch, seconds, 2000, window)
    assert given_to[0] <= window // (1 + others) + 2
    assert dispatch.outstanding(0) == given_to[0]


def test_one_that_was_slow_is_tried_again() -> None:
    dispatch = Dispatch(2, 0.001, 0.0)
    dispatch.handed(0, SIZE, 0.0)
    dispatch.credited(0, SIZE, 0.0001)
    dispatch.handed(1, SIZE, 0.0)
    dispatch.credited(1, SIZE, 0.5)
    assert [dispatch.choose((0, 1), 0.6) for _ in range(3)] == [0, 0, 0]
    later = 0.5 + 20 * dispatch.seconds_per_frame(1) + RETRY_AFTER_S
    dispatch.handed(0, SIZE, later)
    assert dispatch.choose((0, 1), later) == 1
    dispatch.handed(1, SIZE, later)
    assert dispatch.choose((0, 1), later) == 0, "one frame, not more"


def test_only_who_has_room_is_chosen() -> None:
    dispatch = Dispatch(3, 0.01, 0.0)
    assert dispatch.choose((), 0.0) is None
    assert dispatch.choose((2,), 0.0) == 2


def test_equals_take_turns() -> None:
    dispatch = Dispatch(3, 0.0, 0.0)
    order = []
    for turn in range(6):
        chosen = dispatch.choose(range(3), float(turn) / 100)
        assert chosen is not None
        order.append(chosen)
        dispatch.handed(chosen, 0, float(turn) / 100)
    assert order == [0, 1, 2, 0, 1, 2]


@given(
    events=st.lists(
        st.tuples(st.sampled_from(["hand", "credit", "withdraw", "lose"]), st.integers(0, 1), st.integers(1, 500)),
        max_size=80,
    )
)
@settings(deadline=None, max_examples=60)
def test_outstanding_is_what_was_handed_and_is_not_done(events: list[tuple[str, int, int]]) -> None:
    """Against a plain list of sizes; credits may cover part of a frame or several."""
    dispatch, held, now = Dispatch(2, 0.01, 0.0), [[], []], 0.0  # type: ignore[var-annotated]
    spare = [0, 0]
    for what, replica, size in events:
        now += 0.001
        sizes: list[int] = held[replica]
        if what == "hand":
            dispatch.handed(replica, size, now)
            sizes.append(size)
        elif what == "credit" and size <= sum(sizes) - spare[replica]:
            dispatch.credited(replica, size, now)
            spare[replica] += size
            while sizes and sizes[0] <= spare[replica]:
                spare[replica] -= sizes.pop(0)
        elif what == "withdraw" and sizes and sum(sizes[:-1]) >= spare[replica]:
            dispatch.withdrawn(replica, sizes.pop())
        elif what == "lose":
            dispatch.lost(replica)
            sizes.clear()
            spare[replica] = 0
        assert dispatch.outstanding(replica) == len(sizes)
        for each in (0, 1):
            assert dispatch.expected_seconds(each, now) >= 0
            assert dispatch.seconds_per_frame(each) >= 0
