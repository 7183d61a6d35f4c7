"""The verdict of scripts/check_recovery: what breaks a promise is told."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from check_recovery import KINDS, Happened, Told, choose, judge
from recovery_client import Account

from mesh.control.answer_queue import Answer
from mesh.core.frame import Outcome

WHOLE = {"generation": [1, 2], "state": "active", "cause": "", "devices": [["a"], ["b"], ["c"]]}


def told(**lossless: Any) -> Told:
    end = {"sent": 9, "outcomes": {"OK": 9}, "duplicated": 0, "out_of_order": 0, "wrong": 0, "error": "",
           "failures": [], "counters": {}}  # fmt: skip
    live = {**end, "outcomes": {"OK": 6, "DROPPED": 2, "LATE": 1}}
    return Told(gaps=[(10.0, 12.1)], ends={"lossless": {**end, **lossless}, "live": live})


def fault(kind: str, begin: float = 10.5) -> Happened:
    return Happened(kind, "a", 0, 1.0, begin, [1, 1], begin + 10, [1, 2])


def test_what_is_promised_passes() -> None:
    assert judge([fault("freeze")], 1, told()) == []


@pytest.mark.parametrize(
    "lossless",
    [{"sent": 10}, {"duplicated": 1}, {"out_of_order": 1}, {"wrong": 1}, {"error": "broke"}, {"outcomes": {"LATE": 9}}],
)
def test_a_frame_that_is_not_answered_as_promised_is_told(lossless: dict[str, Any]) -> None:
    (broken,) = judge([fault("freeze")], 1, told(**lossless))
    assert broken.startswith("lossless: ")


def test_silences_are_judged_by_the_kind_of_fault_that_they_belong_to() -> None:
    assert judge([fault("kill-node")], 1, told()) == ["kill-node: 1 of 1 gaps above 2 s"]
    assert judge([fault("kill-node", begin=12.2)], 1, told()) == []


def test_missing_faults_and_broken_streams_are_told() -> None:
    said = told()
    said.broken.append("node-lost")
    assert len(judge([fault("freeze")], 2, said)) == 2


def test_the_schedule_follows_from_the_seed_and_takes_each_kind_in_turn() -> None:
    assert choose(40, 3, list(KINDS)) == choose(40, 3, list(KINDS)) != choose(40, 4, list(KINDS))
    counts = Counter(kind for kind, *_ in choose(40, 3, list(KINDS)))
    assert set(counts) == set(KINDS)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_deployment_is_whole_where_nothing_older_is_left_and_everybody_answers() -> None:
    boards: dict[str, Any] = {"a": [WHOLE], "b": [WHOLE], "c": [WHOLE], "d": []}
    assert Told(boards=boards, used=[[1, 2]]).what_is_amiss() == ""
    assert "[1, 1]" in Told(boards=boards, used=[[1, 1]]).what_is_amiss()
    older = {**WHOLE, "generation": [1, 1]}
    assert "d still holds" in Told(boards={**boards, "d": [older]}).what_is_amiss()
    assert "'d'" in Told(boards={**boards, "d": None}).what_is_amiss()
    assert "b is none" in Told(boards={**boards, "b": []}).what_is_amiss()


def test_the_account_counts_what_comes_twice_or_too_early() -> None:
    account = Account("live")
    for sequence in (0, 0, 2):
        account.hear(Answer(sequence, Outcome.DROPPED))
    assert (account.duplicated, account.out_of_order) == (1, 1)
