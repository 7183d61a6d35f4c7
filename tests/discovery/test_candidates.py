from __future__ import annotations

from mesh.discovery.candidates import MAX_CANDIDATES, MAX_NEW_PER_SECOND, Candidates


def drain(candidates: Candidates, start: float, seconds: float) -> list[str]:
    """What is taken in `seconds` by one who waits as long as told."""
    now, names = start, []
    while now <= start + seconds:
        taken = candidates.take(now)
        if taken is None:
            break
        if isinstance(taken, float):
            assert 0 < taken <= 1 / MAX_NEW_PER_SECOND
            now += taken + 1e-9
        else:
            names.append(taken)
    return names


def test_nothing_waits_at_first() -> None:
    assert Candidates().take(0.0) is None


def test_a_flood_is_cut_to_the_queue_and_taken_at_the_pace() -> None:
    candidates = Candidates()
    added = sum(candidates.add(f"forged-{number}", complete=False) for number in range(28_000))
    assert added == len(candidates) == MAX_CANDIDATES
    first = drain(candidates, 100.0, 1.0)
    assert MAX_NEW_PER_SECOND * 2 <= len(first) + 1 <= MAX_NEW_PER_SECOND * 2 + 2  # the burst, and one second's worth
    later = drain(candidates, 101.0, 2.0)
    assert len(later) <= 2 * MAX_NEW_PER_SECOND + 1


def test_complete_announcements_pass_a_flood_of_bare_names() -> None:
    candidates = Candidates()
    for number in range(1000):
        candidates.add(f"forged-{number}", complete=False)
    assert candidates.add("genuine", complete=True)
    assert candidates.take(0.0) == "genuine"


def test_a_name_waits_once_and_moves_up_when_its_records_arrive() -> None:
    candidates = Candidates()
    assert candidates.add("a", complete=False)
    assert candidates.add("b", complete=False)
    assert candidates.add("b", complete=True)
    assert candidates.add("b", complete=False)
    assert drain(candidates, 0.0, 1.0) == ["b", "a"]


def test_a_name_that_went_away_is_not_taken() -> None:
    candidates = Candidates()
    candidates.add("a", complete=True)
    candidates.add("b", complete=False)
    candidates.discard("a")
    candidates.discard("b")
    candidates.discard("never")
    assert candidates.take(0.0) is None


def test_a_clock_that_jumps_back_gives_nothing_away() -> None:
    candidates = Candidates()
    for number in range(100):
        candidates.add(str(number), complete=False)
    drain(candidates, 1000.0, 0.0)
    assert isinstance(candidates.take(5.0), float)
