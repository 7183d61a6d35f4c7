"""A client's stream against a mesh that is played: whatever happens, every frame gets one answer, and nothing grows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.control.answer_queue import Answer
from mesh.control.client_stream import ClientStream, StreamOptions
from mesh.core.frame import Frame, Outcome, StreamClass
from mesh.core.plan import Fence
from mesh.errors import MeshError, NodeLost, Overloaded, ProtocolViolation, Refused, RunFailed, StaleGeneration

LOST = NodeLost("gone")


@dataclass
class Mesh:
    """Holds what was sent on every path, also on those that are lost: their answers may still come."""

    stream: ClientStream
    now: float = 0.0
    sent: dict[int, list[Frame]] = field(default_factory=dict)
    taken: list[Answer] = field(default_factory=list)
    generation: int = 0

    def open(self) -> int:
        self.generation += 1
        path = self.stream.open_path(Fence(1, self.generation), 100 + self.generation)
        self.sent[path] = []
        return path

    def send(self, count: int = 1000) -> list[int]:
        """Send what is due; the sequences in the order in which they left."""
        left = []
        while len(left) < count and (due := self.stream.next_frame(self.now)) is not None:
            path, frame = due
            self.sent[path].append(frame)
            left.append(frame.sequence)
        return left

    def answer(self, path: int, sequence: int, outcome: Outcome = Outcome.OK, error: MeshError | None = None) -> None:
        frame = next(frame for frame in self.sent[path] if frame.sequence == sequence)
        self.sent[path].remove(frame)
        answer = Frame(frame.stream, sequence, frame.term, frame.generation, (), 0, outcome, error)
        self.stream.answer(path, answer, self.now)

    def offer(self, count: int = 1) -> list[int]:
        """Offer and send one after the other."""
        left = []
        for _ in range(count):
            self.stream.offer((), self.now)
            left += self.send()
        return left

    def take(self, count: int = 1000) -> list[tuple[int, Outcome]]:
        told = []
        while len(told) < count and (answer := self.stream.take()) is not None:
            self.taken.append(answer)
            told.append((answer.sequence, answer.outcome))
        return told

    def check(self) -> None:
        stream, window = self.stream, self.stream.window
        assert stream.counters.offered == stream.counters.outcomes.total() + stream.unanswered
        assert stream.in_flight <= window
        for path in stream.paths:
            assert len(self.sent[path]) <= window
        assert stream.ready_runs <= 6 * window + 2
        sequences = [answer.sequence for answer in self.taken]
        assert len(set(sequences)) == len(sequences), "an answer was given twice"
        if stream.options.is_ordered:
            assert sequences == list(range(len(sequences)))


def make(
    stream_class: StreamClass = StreamClass.LOSSLESS,
    window: int = 4,
    deadline_s: float | None = None,
    is_ordered: bool = True,
) -> Mesh:
    mesh = Mesh(ClientStream(StreamOptions(stream_class, is_ordered, window, deadline_s), window))
    mesh.open()
    return mesh


# --- the law --------------------------------------------------------------------------------------

TURNS = ["offer", "send", "answer", "answer old", "fail", "lose", "open", "tick", "take"]


@settings(max_examples=300, deadline=None)
@given(
    stream_class=st.sampled_from(StreamClass),
    is_ordered=st.booleans(),
    window=st.integers(1, 4),
    deadline_s=st.sampled_from([None, 3.0]),
    turns=st.lists(st.tuples(st.sampled_from(TURNS), st.integers(0, 7)), max_size=120),
    breaks=st.booleans(),
)
def test_every_frame_gets_one_answer(
    stream_class: StreamClass,
    is_ordered: bool,
    window: int,
    deadline_s: float | None,
    turns: list[tuple[str, int]],
    breaks: bool,
) -> None:
    mesh = make(stream_class, window, deadline_s, is_ordered)
    stream = mesh.stream
    for turn, number in turns:
        mesh.now += 0.25
        under_way = [(path, frame.sequence) for path, frames in mesh.sent.items() for frame in frames]
        open_paths = stream.paths
        if turn == "offer" and stream.may_offer:
            stream.offer((), mesh.now)
        elif turn == "send":
            mesh.send(number)
        elif turn in ("answer", "answer old", "fail"):
            is_old = turn == "answer old"
            able = [(path, sequence) for path, sequence in under_way if (path not in open_paths) == is_old]
            if able:
                outcome = Outcome.FAILED if turn == "fail" else Outcome.OK
                mesh.answer(*able[number % len(able)], outcome, RunFailed("no") if turn == "fail" else None)
        elif turn == "lose" and open_paths:
            stream.lose_path(open_paths[number % len(open_paths)], LOST)
        elif turn == "open" and len(open_paths) < 3:
            mesh.open()
        elif turn == "tick":
            stream.tick(mesh.now)
        elif turn == "take":
            mesh.take(number)
        for path in stream.take_retired():
            assert not {frame.sequence for frame in mesh.sent[path]} & set(stream._unanswered)
        mesh.check()
    finish(mesh, breaks)
    assert Counter(answer.sequence for answer in mesh.taken) == Counter(range(stream.counters.offered))
    assert Counter(answer.outcome for answer in mesh.taken) == stream.counters.outcomes
    if stream_class is StreamClass.LOSSLESS and not breaks:
        assert stream.counters.outcomes[Outcome.UNKNOWN] == stream.counters.outcomes[Outcome.DROPPED] == 0
        assert deadline_s is not None or stream.counters.outcomes[Outcome.LATE] == 0


def finish(mesh: Mesh, breaks: bool) -> None:
    """Let everything be answered, or break the stream; then take it all."""
    stream = mesh.stream
    stream.finish()
    if breaks:
        error = None if stream.is_answered else LOST
        stream.break_off(LOST, mesh.now)
        assert stream.error is error
        for path in stream.paths:
            stream.lose_path(path, LOST)  # as closing does: frames that were given up may still be on one
    else:
        if stream.current_path is None:
            mesh.open()
        for _ in range(20):
            mesh.now += 10.0
            mesh.send()
            for path in stream.paths:
                for frame in list(mesh.sent[path]):
                    mesh.answer(path, frame.sequence)
            stream.tick(mesh.now)
            mesh.take()
            mesh.check()
    mesh.take()
    assert stream.is_over or breaks
    assert stream.unanswered == stream.in_flight == 0
    assert not stream._given_up and not stream._lost and not stream._on_path
    assert stream.take() is None


# --- lossless -------------------------------------------------------------------------------------


def test_what_was_on_a_lost_path_goes_first_through_the_next_one() -> None:
    mesh = make(window=5)
    mesh.offer(4)
    mesh.answer(1, 1)
    mesh.stream.lose_path(1, LOST)
    assert not mesh.stream.may_offer, "there is no path"
    with pytest.raises(Overloaded):
        mesh.stream.offer((), mesh.now)
    mesh.open()
    assert not mesh.stream.may_offer, "what is held goes first"
    assert mesh.send() == [0, 2, 3]
    assert {(frame.generation, frame.stream) for frame in mesh.sent[2]} == {(2, 102)}
    assert mesh.offer() == [4]
    for sequence in (4, 3, 2, 0):
        mesh.answer(2, sequence)
    assert mesh.take() == [(sequence, Outcome.OK) for sequence in range(5)]
    counters = mesh.stream.counters
    assert (counters.replays, counters.losses, counters.recoveries, counters.replacements) == (3, 1, 1, 0)


def test_answers_that_come_twice_are_dropped_and_counted() -> None:
    mesh = make()
    mesh.offer(2)
    mesh.stream.lose_path(1, LOST)
    mesh.open()
    mesh.send()
    mesh.answer(2, 0)
    mesh.answer(1, 0)  # of the lost path, after the replay was answered
    mesh.answer(1, 1)  # before
    assert mesh.take() == [(0, Outcome.OK), (1, Outcome.OK)]
    assert mesh.stream.in_flight == 1, "the replayed frame is still somewhere in the mesh"
    mesh.answer(2, 1)
    assert (mesh.stream.counters.duplicates, mesh.stream.in_flight, mesh.take()) == (2, 0, [])


def test_a_newer_path_takes_over_between_two_frames_and_the_older_one_is_closed_when_it_is_empty() -> None:
    mesh = make(window=4)
    mesh.offer(2)
    mesh.open()
    assert mesh.stream.take_retired() == ()
    mesh.offer(2)
    assert [frame.sequence for frame in mesh.sent[2]] == [2, 3]
    mesh.answer(2, 2)
    mesh.answer(1, 1)
    assert mesh.stream.take_retired() == ()
    mesh.answer(1, 0)
    assert mesh.stream.take_retired() == (1,)
    assert mesh.stream.paths == (2,)
    mesh.answer(2, 3)
    assert [sequence for sequence, _ in mesh.take()] == [0, 1, 2, 3]
    assert (mesh.stream.counters.replacements, mesh.stream.counters.replays) == (1, 0)


def test_what_is_left_on_the_older_path_goes_through_the_newer_one_when_it_breaks() -> None:
    mesh = make(window=4)
    mesh.offer(2)
    mesh.open()
    mesh.offer(1)
    mesh.stream.lose_path(1, LOST)
    assert mesh.stream.current_path == 2
    assert mesh.send() == [0, 1]


def test_failed_and_late_answers_are_answers() -> None:
    mesh = make(deadline_s=1.0)
    mesh.offer(2)
    mesh.answer(1, 0, Outcome.FAILED, RunFailed("no"))
    mesh.now = 2.0
    mesh.stream.tick(mesh.now)
    mesh.stream.lose_path(1, LOST)
    mesh.open()
    assert mesh.send() == []
    assert mesh.take() == [(0, Outcome.FAILED), (1, Outcome.LATE)]


def test_a_replayed_frame_has_less_time_left() -> None:
    mesh = make(deadline_s=5.0)
    mesh.offer()
    assert mesh.sent[1][0].budget_us == 5_000_000
    mesh.now = 2.0
    mesh.stream.lose_path(1, LOST)
    mesh.open()
    mesh.send()
    assert mesh.sent[2][0].budget_us == 3_000_000


# --- live -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("deadline_s", [None, 1.0])
def test_live_frames_of_a_lost_path_are_given_up_and_the_newest_goes_on(deadline_s: float | None) -> None:
    mesh = make(StreamClass.LIVE, window=2, deadline_s=deadline_s)
    mesh.offer(2)
    mesh.stream.lose_path(1, LOST)
    mesh.now = 0.9
    mesh.offer(3)
    given_up = Outcome.UNKNOWN if deadline_s is None else Outcome.LATE
    assert (
        mesh.take()
        == (
            [(0, given_up), (1, given_up), (2, Outcome.DROPPED), (3, Outcome.DROPPED)][: 4 if deadline_s is None else 0]
        )
    )
    mesh.open()
    assert mesh.send() == [4]
    mesh.now = 1.1
    mesh.stream.tick(mesh.now)
    mesh.answer(2, 4)
    assert mesh.take(10)[-1] == (4, Outcome.OK)
    assert [answer.outcome for answer in mesh.taken] == [
        given_up,
        given_up,
        Outcome.DROPPED,
        Outcome.DROPPED,
        Outcome.OK,
    ]
    if deadline_s is None:
        assert mesh.taken[0].error is LOST


def test_losses_within_one_deadline_do_not_pile_up() -> None:
    mesh = make(StreamClass.LIVE, window=2, deadline_s=1000.0)
    for _ in range(20):
        mesh.offer(2)
        mesh.stream.lose_path(mesh.stream.paths[-1], LOST)
        mesh.open()
        mesh.take()
        mesh.check()
        assert mesh.stream.unanswered <= 2 * 2 + 1


@pytest.mark.parametrize("is_ordered", [True, False])
@pytest.mark.parametrize("deadline_s", [None, 0.5])
def test_a_consumer_that_takes_nothing_costs_no_memory(is_ordered: bool, deadline_s: float | None) -> None:
    mesh = make(StreamClass.LIVE, window=3, deadline_s=deadline_s, is_ordered=is_ordered)
    for number in range(2000):
        mesh.now += 0.3
        mesh.offer()
        mesh.stream.tick(mesh.now)
        if number % 2 and mesh.sent[1]:
            mesh.answer(1, mesh.sent[1][0].sequence)
        mesh.check()
    finish(mesh, breaks=False)
    assert sorted(answer.sequence for answer in mesh.taken) == list(range(2000))


# --- ends -----------------------------------------------------------------------------------------


def test_after_a_break_come_answers_then_unknown_ones() -> None:
    mesh = make(is_ordered=False)
    mesh.offer(3)
    mesh.answer(1, 2)
    mesh.stream.break_off(LOST, mesh.now)
    assert mesh.take() == [(2, Outcome.OK), (0, Outcome.UNKNOWN), (1, Outcome.UNKNOWN)]
    with pytest.raises(NodeLost):
        mesh.stream.offer((), mesh.now)
    assert mesh.stream.next_frame(mesh.now) is None


def test_nothing_is_taken_after_the_end() -> None:
    mesh = make()
    mesh.stream.finish()
    assert mesh.stream.is_over
    mesh.stream.break_off(LOST, mesh.now)
    assert mesh.stream.error is None
    with pytest.raises(Refused, match="finished"):
        mesh.stream.offer((), mesh.now)


def test_what_a_peer_makes_up_is_refused() -> None:
    mesh = make()
    mesh.offer()
    with pytest.raises(ProtocolViolation, match="not sent"):
        mesh.stream.answer(1, Frame(101, 1, 1, 1, ()), mesh.now)


def test_an_older_generation_does_not_replace_a_newer_one() -> None:
    mesh = make()
    mesh.open()
    with pytest.raises(StaleGeneration):
        mesh.stream.open_path(Fence(1, 1), 7)


def test_the_longest_silence_is_counted_while_answers_are_owed() -> None:
    mesh = make()
    for at, act in (
        (10.0, "offer"),
        (11.0, "answer"),
        (90.0, "offer"),
        (90.5, "lose"),
        (94.0, "open"),
        (95.0, "answer"),
    ):
        mesh.now = at
        path = mesh.stream.current_path or 0
        if act == "offer":
            mesh.offer()
        elif act == "answer":
            mesh.answer(path, mesh.sent[path][0].sequence)
        elif act == "lose":
            mesh.stream.lose_path(path, LOST)
        else:
            mesh.open()
            mesh.send()
    assert mesh.stream.counters.longest_gap_s == 5.0


def test_what_was_taken_is_known_in_any_order() -> None:
    mesh = make(is_ordered=False)
    mesh.offer(4)
    for sequence in (1, 0, 3):
        mesh.answer(1, sequence)
    assert mesh.stream.taken_through == -1
    mesh.take(1)
    assert mesh.stream.taken_through == -1
    mesh.take()
    assert mesh.stream.taken_through == 1
    mesh.answer(1, 2)
    mesh.take()
    assert mesh.stream.taken_through == 3
