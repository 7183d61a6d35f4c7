"""The verdict on a device, and the file that carries what it is judged by."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from mesh.errors import UsageError
from mesh.optimize import golden_set
from mesh.optimize.admission import why_refused
from mesh.optimize.golden_set import GoldenSet, decode_golden_set, encode_golden_set, take_golden_set
from mesh.optimize.turns import summarise_turns
from mesh.optimize.verdict import make_golden

COUNT, CLASSES = 200, 4


def scores_of(right: int) -> list[list[Any]]:
    """Answers of which the first `right` name class 1, the others class 0."""
    rows = np.zeros((COUNT, 1, CLASSES), np.float32)
    rows[:right, 0, 1] = 1
    rows[right:, 0, 0] = 1
    return [[row] for row in rows]


def golden(labels: bool = True) -> Any:
    return make_golden(scores_of(COUNT), np.ones(COUNT, np.int64) if labels else None, range(COUNT))


@pytest.mark.parametrize(
    ("right", "made_with", "said"),
    [
        (COUNT, 1.0, ""),
        (COUNT - 2, 0.99, ""),
        (COUNT - 2, 0.995, ""),
        (COUNT - 3, 1.0, "falls by 1.50 points"),
        (COUNT - 2, 1.0, "0.5 points may lie between"),
        (COUNT, 0.99, "0.5 points may lie between"),
        (COUNT - 2, None, ""),
        (0, 0.0, "falls by 100.00 points"),
    ],
)
def test_a_device_is_held_to_the_gate_and_to_where_the_variant_was_made(
    right: int, made_with: float | None, said: str
) -> None:
    judge = golden()
    reason = why_refused(judge, judge.score(scores_of(right)), made_with, 1.0)
    assert (said in reason) if said else not reason, reason


def test_one_answer_may_always_differ() -> None:
    few = make_golden(scores_of(COUNT)[:20], np.ones(20, np.int64), range(20))
    answers = scores_of(COUNT)[:19] + scores_of(0)[:1]
    assert why_refused(few, few.score(answers), 1.0, 10.0) == ""
    answers = scores_of(COUNT)[:18] + scores_of(0)[:2]
    assert "may lie between" in why_refused(few, few.score(answers), 1.0, 10.0)


def test_answers_that_are_no_numbers_are_refused() -> None:
    judge = golden(labels=False)
    answers = [[np.full((1, CLASSES), np.nan, np.float32)]] * COUNT
    assert "not finite" in why_refused(judge, judge.score(answers), None, 1.0)


def test_times_are_compared_within_rounds() -> None:
    float_ms = [10.0, 20.0, 40.0, 80.0, 160.0]
    times = summarise_turns([each / 2 for each in float_ms], float_ms)
    assert (times.p50_ms, times.p95_ms, times.speed_up) == (20.0, 80.0, 2.0)


# The file -----------------------------------------------------------------------------------------


def make_set(labels: bool = True) -> GoldenSet:
    samples = [{"an input/with: signs": np.full((1, 3), row, np.float32), "b": np.array([row])} for row in range(COUNT)]
    return take_golden_set(samples, golden(labels))


@pytest.mark.parametrize("labels", [True, False])
def test_what_is_written_is_read(labels: bool) -> None:
    taken = make_set(labels)
    read = decode_golden_set(encode_golden_set(taken))
    assert read.golden.metric == taken.golden.metric
    assert len(read.samples) == COUNT
    for wanted, found in zip(taken.samples, read.samples, strict=True):
        assert list(wanted) == list(found)
        for name in wanted:
            assert wanted[name].dtype == found[name].dtype and np.array_equal(wanted[name], found[name])
    assert read.golden.score(scores_of(50)) == taken.golden.score(scores_of(50))


def test_it_holds_as_many_samples_as_fit_and_one_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    sample_bytes = 3 * 4 + 8 + CLASSES * 4
    monkeypatch.setattr(golden_set, "MAX_GOLDEN_BYTES", 10 * sample_bytes)
    taken = make_set()
    assert len(taken.samples) == len(taken.golden.answers) == 10
    assert taken.golden.labels is not None and len(taken.golden.labels) == 10
    monkeypatch.setattr(golden_set, "MAX_GOLDEN_BYTES", 1)
    assert len(make_set().samples) == 1
    monkeypatch.undo()
    monkeypatch.setattr(golden_set, "MAX_GOLDEN_SAMPLES", 7)
    assert len(make_set().samples) == 7


def altered(**changes: Any) -> bytes:
    with np.load(io.BytesIO(encode_golden_set(make_set()))) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for name, value in changes.items():
        if value is None:
            del arrays[name]
        else:
            arrays[name] = np.array(value)
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    return packed.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK",
        b"nothing of the kind",
        encode_golden_set(make_set())[:-100],
        encode_golden_set(make_set())[100:],
        altered(format=9),
        altered(format=None),
        altered(count=0),
        altered(count=COUNT + 1),
        altered(count=10**6),
        altered(count=-1),
        altered(count=[1, 2]),
        altered(inputs=["one", "two", "three"]),
        altered(labels=[1, 2]),
        altered(labels=[0.5] * COUNT),
        altered(labels=[CLASSES] * COUNT),
        altered(**{"0.in.0": None}),
        altered(**{"0.out.0": None}),
        altered(**{"5.out.0": [np.nan] * CLASSES}),
        altered(**{"5.out.0": [object()]}),
    ],
)
def test_a_damaged_file_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match=r"golden\.npz is damaged"):
        decode_golden_set(data)


def test_a_file_that_unpacks_to_too_much_is_refused() -> None:
    packed = io.BytesIO()
    np.savez_compressed(packed, zeros=np.zeros(3 * golden_set.MAX_GOLDEN_BYTES, np.uint8))
    assert len(packed.getvalue()) < 1 << 20
    with pytest.raises(UsageError, match="unpacks to"):
        decode_golden_set(packed.getvalue())
