"""The plot is a picture with every variant in it, and labels lie neither on dots nor on each other."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mesh.errors import MissingExtra
from mesh.optimize.plot import FRONT, HEIGHT, OTHER, WIDTH, draw_plot, find_room
from mesh.optimize.report import Offer, Report
from mesh.optimize.turns import Timing
from mesh.optimize.verdict import Scores

DOT_PIXELS = 60
"""Fewer are the edges of letters."""


def report(points: Sequence[tuple[float, float | None]]) -> Report:
    offered = tuple(
        Offer(
            f"v{number}", bytes(100 + number), Scores(accuracy, accuracy, 30.0), timing=Timing(p50_ms, p50_ms, 1.0, 7)
        )
        for number, (p50_ms, accuracy) in enumerate(points)
    )
    metric = "sqnr" if points[0][1] is None else "top-1"
    return Report("0" * 64, metric, (10, 10), 1.0, offered, (), (), "v0", "", "onnxruntime 1")


def colours(data: bytes) -> set[str]:
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == ("PNG", (WIDTH, HEIGHT))
    found = image.getcolors(WIDTH * HEIGHT)
    assert found is not None
    areas = {colour: count for count, colour in found if isinstance(colour, tuple)}
    return {"#{:02x}{:02x}{:02x}".format(*colour[:3]) for colour, count in areas.items() if count >= DOT_PIXELS}


def test_those_on_the_front_are_told_from_the_others() -> None:
    assert {FRONT, OTHER} <= colours(draw_plot(report([(1.0, 0.9), (2.0, 0.8)])))
    assert OTHER not in colours(draw_plot(report([(1.0, 0.8), (2.0, 0.9)])))


@pytest.mark.parametrize("points", [[(1.0, 0.9)], [(1.0, 0.9)] * 9, [(1.0, None), (2.0, None)], [(0.0, 0.0)]])
def test_points_that_are_few_equal_or_without_classes_are_drawn(points: list[tuple[float, float | None]]) -> None:
    assert FRONT in colours(draw_plot(report(points)))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=8))
def test_labels_do_not_overlap(places: list[tuple[int, int]]) -> None:
    taken: list[tuple[float, float, float, float]] = []
    for left, top in places:
        box = find_room(left, top, 50, taken)
        for other in taken:
            assert box[0] >= other[2] or other[0] >= box[2] or box[1] >= other[3] or other[1] >= box[3]
        taken.append(box)


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match="needs Pillow"):
        draw_plot(report([(1.0, 0.9)]))
