"""Windows are the same however samples are spread over messages; gaps are treated as the rule says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.arrays import Array
from mesh.errors import SourceUnreadable
from mesh.pipelines.windows import MAX_GAP_WINDOWS, MAX_WINDOWS_AT_ONCE, GapPolicy, Windower, WindowKind, WindowRule

RATE_HZ = 100.0


def ramp(first: int, count: int) -> Array:
    return np.arange(first, first + count, dtype=np.float32)[:, None]


def firsts(windows: list[Array]) -> list[float]:
    return [float(window[0, 0]) for window in windows]


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=30),
    st.integers(1, 12),
    st.integers(1, 15),
    st.sampled_from(list(WindowKind)),
    st.booleans(),
)
def test_windows_do_not_depend_on_how_samples_come(
    lengths: list[int], size: int, hop: int, kind: WindowKind, is_timed: bool
) -> None:
    if kind is WindowKind.SLIDING:
        return  # those end with messages, by definition
    hop = hop if kind is WindowKind.HOPPING else size
    windower = Windower(WindowRule(kind, size, hop, RATE_HZ if is_timed else None), 1)
    total, found = 0, []
    for length in lengths:
        found += windower.push(ramp(total, length), total / RATE_HZ if is_timed else None)
        total += length
    wanted = [ramp(first, size) for first in range(0, max(0, total - size + 1), hop)]
    assert len(found) == len(wanted)
    for window, expected in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(window, expected)
    assert windower.counters.gaps == windower.counters.passed_over == 0


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 0, 0, 3, 200])), min_size=1, max_size=30),
    st.integers(1, 12),
    st.integers(1, 15),
    st.sampled_from(list(WindowKind)),
    st.sampled_from(list(GapPolicy)),
)
def test_unseen_are_the_samples_that_wait_for_their_first_window(
    steps: list[tuple[int, int]], size: int, hop: int, kind: WindowKind, gap: GapPolicy
) -> None:
    """Samples are their own numbers; each step is a message, and what is missing before it."""
    hop = hop if kind is WindowKind.HOPPING else size
    windower = Windower(WindowRule(kind, size, hop, RATE_HZ, gap), 1)
    next_number, seen = 1, set[float]()
    for length, missing in steps:
        next_number += missing
        windows = windower.push(ramp(next_number, length), next_number / RATE_HZ)
        next_number += length
        seen |= {float(value) for window in windows for value in window[:, 0]}
        held = windower._held[:, 0].tolist()
        waiting = [value not in seen for value in held]
        if gap is GapPolicy.RESET:  # else what fills a gap has values that others have as well
            assert waiting == [False] * (len(held) - windower.unseen) + [True] * windower.unseen
        assert 0 <= windower.unseen <= len(held)
        assert len(held) < size or kind is WindowKind.SLIDING


def test_a_sliding_window_ends_with_each_message() -> None:
    windower = Windower(WindowRule(WindowKind.SLIDING, 4, 1), 1)
    assert windower.push(ramp(0, 3)) == []
    assert firsts(windower.push(ramp(3, 3))) == [2]
    assert windower.push(ramp(6, 0)) == []
    assert firsts(windower.push(ramp(6, 10))) == [12]


def test_windows_that_overlap_share_their_samples_and_are_not_too_many() -> None:
    windower = Windower(WindowRule(WindowKind.HOPPING, 5000, 1), 1)
    found = windower.push(ramp(0, MAX_WINDOWS_AT_ONCE + 4999))
    assert len(found) == MAX_WINDOWS_AT_ONCE
    assert np.shares_memory(found[0], found[1])
    with pytest.raises(SourceUnreadable, match="completes 10001 windows"):
        windower.push(ramp(0, MAX_WINDOWS_AT_ONCE + 1))
    assert windower.push(ramp(0, 4999)) == [], "it begins anew"
    assert firsts(windower.push(ramp(4999, 1))) == [0]


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from(list(GapPolicy)))
def test_a_gap_is_filled_or_begins_anew(before: int, missing: int, gap: GapPolicy) -> None:
    size = 5
    windower = Windower(WindowRule(WindowKind.TUMBLING, size, size, RATE_HZ, gap), 1)
    found = windower.push(ramp(0, before) + 1, 0.0)
    found += windower.push(ramp(before + missing, 2 * size) + 1, (before + missing) / RATE_HZ)
    held = before % size
    assert windower.counters.gaps == 1
    if gap is GapPolicy.RESET or not held:
        assert windower.counters.passed_over == (held if gap is GapPolicy.RESET else 0)
        assert firsts(found[before // size :]) == [before + missing + 1, before + missing + 1 + size]
        return
    assert windower.counters.filled == missing <= MAX_GAP_WINDOWS * size
    whole = ramp(0, before + missing + 2 * size) + 1
    if gap is GapPolicy.PAD:
        whole[before : before + missing] = 0
    joined = np.concatenate(found)
    np.testing.assert_allclose(joined, whole[: len(joined)], rtol=1e-5)
    assert len(found) == (before + missing + 2 * size) // size


def test_a_long_gap_is_not_filled() -> None:
    windower = Windower(WindowRule(WindowKind.TUMBLING, 4, 4, RATE_HZ, GapPolicy.PAD), 1)
    windower.push(ramp(0, 3), 0.0)
    assert firsts(windower.push(ramp(1000, 4), 10.0)) == [1000]
    assert (windower.counters.filled, windower.counters.passed_over) == (0, 3)


@pytest.mark.parametrize("again", [2, 6])
def test_what_came_already_is_passed_over(again: int) -> None:
    windower = Windower(WindowRule(WindowKind.TUMBLING, 4, 4, RATE_HZ), 1)
    windower.push(ramp(0, 6), 0.0)
    found = windower.push(ramp(6 - again, again + 2), (6 - again) / RATE_HZ)
    assert firsts(found) == [4]
    assert windower.counters.passed_over == again
    assert windower.push(ramp(0, 6), 0.0) == []


def test_a_clock_that_wanders_a_little_is_no_gap() -> None:
    windower = Windower(WindowRule(WindowKind.TUMBLING, 10, 10, RATE_HZ), 1)
    found = [window for n in range(20) for window in windower.push(ramp(5 * n, 5), 0.05 * n + (-1) ** n * 0.002)]
    assert firsts(found) == [10.0 * n for n in range(10)]


def test_count_ignores_times() -> None:
    windower = Windower(WindowRule(WindowKind.COUNT, 4, 4, RATE_HZ), 1)
    windower.push(ramp(0, 3), 0.0)
    assert firsts(windower.push(ramp(3, 1), 99.0)) == [0]
