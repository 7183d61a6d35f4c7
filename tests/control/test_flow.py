"""Flow control against small models: windows never deadlock nor overrun, the newest wins."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.control.flow import (
    CREDIT_SHARE,
    FRAMES_OF_UNKNOWN_ANSWERS,
    MAX_CREDIT_BYTES,
    MAX_UNREAD_BYTES,
    FrameWindow,
    Inbox,
    ReceiveWindow,
    SendWindow,
)
from mesh.errors import ProtocolViolation

LIMIT = 100

# --- byte credits ---------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 3 * LIMIT), max_size=40),
    turns=st.lists(st.sampled_from(["send", "arrive", "consume", "credit"]), max_size=300),
)
def test_two_ends_never_deadlock_and_never_hold_more_than_the_limit(sizes: list[int], turns: list[str]) -> None:
    sender, receiver = SendWindow(LIMIT), ReceiveWindow(LIMIT)
    waiting, down, held, up = deque(sizes), deque[int](), deque[int](), deque[int]()
    consumed: list[int] = []

    def move(turn: str) -> bool:
        if turn == "send" and waiting and sender.may_send(waiting[0]):
            sender.sent(waiting[0])
            down.append(waiting.popleft())
        elif turn == "arrive" and down:
            receiver.received(down[0])
            held.append(down.popleft())
        elif turn == "consume" and held:
            consumed.append(held.popleft())
            if credit := receiver.consumed(consumed[-1]):
                up.append(credit)
        elif turn == "credit" and up:
            sender.credited(up.popleft())
        else:
            return False
        under_way = [*down, *held]
        assert sum(under_way) <= LIMIT or sum(under_way) - max(under_way) < LIMIT / CREDIT_SHARE
        assert receiver.held_bytes == sum(held)
        assert sum(under_way) <= sender.outstanding_bytes
        return True

    for turn in turns:
        move(turn)
    while any(move(turn) for turn in ("send", "arrive", "consume", "credit")):
        pass
    assert consumed == sizes, "somebody waits for ever"
    assert sender.outstanding_bytes * CREDIT_SHARE < LIMIT, "what is not credited is too little to wait for"


@given(st.lists(st.integers(1, LIMIT), min_size=1, max_size=30))
def test_every_byte_that_is_consumed_is_credited_once(sizes: list[int]) -> None:
    window = ReceiveWindow(sum(sizes))
    for size in sizes:
        window.received(size)
    credits_given = [window.consumed(size) for size in sizes]
    kept_back = sum(sizes) - sum(credits_given)
    assert kept_back >= 0 and kept_back * CREDIT_SHARE < sum(sizes)


@pytest.mark.parametrize("limit", [-1, 0, MAX_CREDIT_BYTES + 1, 1 << 63])
def test_a_senseless_limit_is_refused(limit: int) -> None:
    with pytest.raises(ProtocolViolation):
        SendWindow(limit)


@pytest.mark.parametrize("credit", [-1, 0, 61, 1 << 63])
def test_a_senseless_credit_is_refused_and_changes_nothing(credit: int) -> None:
    window = SendWindow(LIMIT)
    window.sent(60)
    with pytest.raises(ProtocolViolation):
        window.credited(credit)
    assert window.outstanding_bytes == 60
    window.credited(60)
    assert window.may_send(5 * LIMIT)


def test_a_sender_that_overruns_is_refused_at_both_ends() -> None:
    sender, receiver = SendWindow(LIMIT), ReceiveWindow(LIMIT)
    sender.sent(60)
    receiver.received(60)
    assert not sender.may_send(41)
    with pytest.raises(ProtocolViolation):
        sender.sent(41)
    with pytest.raises(ProtocolViolation):
        receiver.received(41)
    assert (sender.outstanding_bytes, receiver.held_bytes) == (60, 60)
    sender.sent(40)
    receiver.received(40)


def test_consumed_but_not_credited_bytes_still_count_against_the_sender() -> None:
    receiver = ReceiveWindow(LIMIT)
    receiver.received(50)
    receiver.received(10)
    assert receiver.consumed(10) == 0, "a tenth waits for more to be worth a message"
    with pytest.raises(ProtocolViolation):
        receiver.received(41)


def test_more_cannot_be_consumed_than_is_held() -> None:
    receiver = ReceiveWindow(LIMIT)
    receiver.received(10)
    with pytest.raises(ProtocolViolation):
        receiver.consumed(11)
    assert receiver.held_bytes == 10


# --- frames in flight -----------------------------------------------------------------------------


@given(size=st.integers(1, 4), turns=st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=60))
def test_a_frame_window_is_a_bounded_set(size: int, turns: list[tuple[bool, int]]) -> None:
    window, model = FrameWindow(size), set[int]()
    for enters, sequence in turns:
        is_legal = (len(model) < size and sequence not in model) if enters else sequence in model
        if is_legal:
            (window.enter if enters else window.answered)(sequence)
            (model.add if enters else model.remove)(sequence)
        else:
            with pytest.raises(ProtocolViolation):
                (window.enter if enters else window.answered)(sequence)
        assert (window.unanswered, len(window), window.is_open) == (tuple(sorted(model)), len(model), len(model) < size)
        assert (sequence in window) == (sequence in model)


@pytest.mark.parametrize(
    ("answer_bytes", "room"),
    [(0, 8), (1, 8), (MAX_UNREAD_BYTES // 3, 3), (MAX_UNREAD_BYTES + 1, 1), (None, FRAMES_OF_UNKNOWN_ANSWERS)],
)
def test_large_answers_make_a_window_smaller(answer_bytes: int | None, room: int) -> None:
    window = FrameWindow(8, answer_bytes)
    assert window.room == room
    for sequence in range(room):
        window.enter(sequence)
    with pytest.raises(ProtocolViolation, match=f"window of {room} frames"):
        window.enter(room)
    window.learn(MAX_UNREAD_BYTES // 2)
    assert window.room == min(room, 2)
    window.learn(1)
    assert window.room <= 2, "the largest answer counts"


def test_the_first_answer_may_make_a_window_larger() -> None:
    window = FrameWindow(8, None)
    window.learn(1)
    assert window.room == 8


@pytest.mark.parametrize("size", [0, -1])
def test_a_window_that_cannot_move_is_refused(size: int) -> None:
    with pytest.raises(ProtocolViolation):
        FrameWindow(size)


# --- newest wins ----------------------------------------------------------------------------------

Item = tuple[str, int]


def is_superseded(old: Item, new: Item) -> bool:
    return old[0] == new[0] and old[0].isupper()


@given(st.lists(st.one_of(st.none(), st.sampled_from("ABxy")), max_size=60), st.integers(1, 5))
def test_an_inbox_keeps_order_and_of_live_streams_the_newest(turns: list[str | None], capacity: int) -> None:
    inbox: Inbox[Item] = Inbox(capacity, is_superseded)
    model: list[Item] = []
    for number, stream in enumerate(turns):
        if stream is None:
            assert inbox.take() == (model.pop(0) if model else None)
            continue
        item = (stream, number)
        older = [each for each in model if is_superseded(each, item)]
        if len(model) - len(older) >= capacity:
            with pytest.raises(ProtocolViolation):
                inbox.put(item)
        else:
            assert inbox.put(item) == older
            model = [each for each in model if each not in older] + [item]
        assert len(inbox) == len(model) <= capacity
        assert sum(1 for each in model if each[0] == "A") <= 1
    removed = [each for each in model if each[0] == "x"]
    assert inbox.remove(lambda each: each[0] == "x") == removed
    assert [inbox.take() for _ in range(len(inbox))] == [each for each in model if each not in removed]
