"""Answers on their way to the consumer: nobody hands the same one in twice, and what was dropped is one run."""

from __future__ import annotations

import pytest

from mesh.control.answer_queue import Answer, AnswerQueue
from mesh.core.frame import Outcome
from mesh.errors import Overloaded, ProtocolViolation


@pytest.mark.parametrize("is_ordered", [True, False])
def test_an_answer_that_waits_is_not_put_in_again(is_ordered: bool) -> None:
    queue = AnswerQueue(is_ordered)
    queue.put(Answer(0, Outcome.OK))
    with pytest.raises(ProtocolViolation, match="twice"):
        queue.put(Answer(0, Outcome.FAILED))
    taken = queue.take()
    assert taken is not None
    assert taken.outcome is Outcome.OK
    assert queue.take() is None


def test_an_answer_that_was_taken_in_order_is_not_put_in_again() -> None:
    queue = AnswerQueue(is_ordered=True)
    queue.put(Answer(0, Outcome.OK))
    assert queue.take() is not None
    with pytest.raises(ProtocolViolation, match="twice"):
        queue.put(Answer(0, Outcome.OK))
    assert not queue.has_next


def test_neighbours_that_were_dropped_are_one_run_and_come_out_one_by_one() -> None:
    queue, reason = AnswerQueue(is_ordered=True), Overloaded("superseded")
    for sequence in range(1, 1000):
        queue.put_dropped(sequence, reason)
    assert (len(queue), queue.has_next) == (1, False)
    queue.put(Answer(0, Outcome.OK))
    taken = [queue.take() for _ in range(1000)]
    assert [answer.sequence for answer in taken if answer is not None] == list(range(1000))
    assert {answer.outcome for answer in taken[1:] if answer is not None} == {Outcome.DROPPED}
