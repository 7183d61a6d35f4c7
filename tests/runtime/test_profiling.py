"""How time is spread over operator groups: the marks add up, and a slow part is found where operations hide it."""

from __future__ import annotations

from itertools import accumulate

import pytest

from mesh.engines import make_engine
from mesh.model.read import read_model_bytes
from mesh.model.summarise import summarise
from mesh.runtime import profiling
from mesh.runtime.profiling import compare_times, measure_spread, spread
from scripts.make_models import make_mobilenetv2

MODEL = read_model_bytes(make_mobilenetv2(96).SerializeToString())
GRAPH = summarise(MODEL)
END = len(GRAPH.groups)


def test_marks_keep_their_times_and_operations_share_what_lies_between() -> None:
    middle = GRAPH.cuts[len(GRAPH.cuts) // 2].position
    work = spread(GRAPH, {0: 0.0, middle: 3.0, END: 4.0})
    assert len(work) == END
    assert sum(work[:middle]) == pytest.approx(3.0) and sum(work[middle:]) == pytest.approx(1.0)
    operations = sum(group.flops for group in GRAPH.groups[:middle])
    assert work[1] == pytest.approx(3.0 * GRAPH.groups[1].flops / operations)


def test_a_mark_that_noise_made_faster_than_the_one_before_never_takes_time_back() -> None:
    first, second = GRAPH.cuts[3].position, GRAPH.cuts[6].position
    work = spread(GRAPH, {0: 0.0, first: 2.0, second: 1.5, END: 4.0})
    assert min(work) >= 0
    assert list(accumulate(work))[-1] == pytest.approx(4.0)


def test_without_a_budget_only_the_whole_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "MARK_BUDGET_S", 0.0)
    work = measure_spread(make_engine(), MODEL, GRAPH, budget_s=0.0)
    shares = [each / sum(work) for each in work]
    assert shares == pytest.approx([group.flops / GRAPH.flops for group in GRAPH.groups])


def test_real_marks_give_every_group_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "MARK_BUDGET_S", 0.01)
    work = measure_spread(make_engine(), MODEL, GRAPH)
    shares = [each / sum(work) for each in work]
    assert len(work) == END and min(work) >= 0
    assert shares != pytest.approx([group.flops / GRAPH.flops for group in GRAPH.groups])


def test_a_machine_that_slows_down_meanwhile_does_not_change_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "MARK_BUDGET_S", 0.0)
    pace = iter([1.0, 1.0, 1.9, 1.9, 2.0, 2.0])
    assert compare_times(lambda: 3.0 * next(pace), lambda: 12.0 * next(pace)) == pytest.approx(0.25)
