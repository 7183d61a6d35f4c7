"""The Pareto plot of a report: accuracy over time, one dot per variant, larger where its file is larger. A PNG.

Drawn with Pillow, which pipelines and sensors use already: a dozen dots need no plotting library.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mesh.errors import MissingExtra

if TYPE_CHECKING:
    from mesh.optimize.report import Offer, Report

PLOT = "pareto.png"

WIDTH, HEIGHT = 900, 560
LEFT, RIGHT, TOP, BOTTOM = 80, 150, 50, 60
SMALLEST_DOT, LARGEST_DOT = 5, 16
LINE_HEIGHT = 17
MOST_LINES_AWAY = 20
TICKS = 5
MARGIN = 0.08
"""Of the span of an axis, free on both sides."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

INK, GRID, FRONT, OTHER = "#222222", "#dddddd", "#1f6fb4", "#9a9a9a"


def draw_plot(report: Report) -> bytes:
    """Raises `MissingExtra` without Pillow."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise MissingExtra(
            "the plot needs Pillow", hint="install the extra infermesh[images]: pip install '.[images]' in a clone"
        ) from None
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    dots = [(offer.timing.p50_ms, _height(offer), offer) for offer in report.offered if offer.timing is not None]
    across, along = _axis([dot[0] for dot in dots]), _axis([dot[1] for dot in dots])
    _draw_frame(draw, font, across, along, report)
    largest = max(len(offer.data) for _, _, offer in dots)
    front = report.pareto()
    dots.sort(key=lambda dot: dot[2].variant in front)  # those on the front above the others
    boxes: list[Box] = []
    for x, y, offer in dots:
        centre = _place(x, across, LEFT, WIDTH - RIGHT), _place(y, along, HEIGHT - BOTTOM, TOP)
        radius = max(SMALLEST_DOT, LARGEST_DOT * math.sqrt(len(offer.data) / largest))
        boxes.append((centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius))
        draw.ellipse(boxes[-1], fill=FRONT if offer.variant in front else OTHER, outline=INK)
    taken = list(boxes)
    for box, (_, _, offer) in zip(boxes, dots, strict=True):
        label = offer.variant + (" *" if offer.variant == report.chosen else "")
        middle = (box[1] + box[3]) / 2
        place = find_room(box[2] + 4, middle - LINE_HEIGHT / 2, draw.textlength(label, font=font), taken)
        if abs(place[1] + LINE_HEIGHT / 2 - middle) > 1:
            draw.line((box[2], middle, place[0] - 2, place[1] + LINE_HEIGHT / 2), fill=OTHER)
        draw.text((place[0], place[1]), label, fill=INK, font=font)
        taken.append(place)
    packed = io.BytesIO()
    image.save(packed, "PNG", optimize=True)
    return packed.getvalue()


def find_room(left: float, top: float, width: float, taken: Sequence[Box]) -> Box:
    """Where a label of `width` pixels fits: beside its dot, or as few lines above or below as it takes."""
    for lines in (0, *(sign * step for step in range(1, MOST_LINES_AWAY) for sign in (1, -1))):
        place = (left, top + lines * LINE_HEIGHT, left + width, top + (lines + 1) * LINE_HEIGHT)
        if not any(_overlap(place, other) for other in taken):
            return place
    return (left, top, left + width, top + LINE_HEIGHT)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _height(offer: Offer) -> float:
    """Accuracy in per cent; of models without classes signal to noise in dB."""
    return 100 * offer.scores.accuracy if offer.scores.accuracy is not None else offer.scores.sqnr_db


def _axis(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    return low - MARGIN * span, high + MARGIN * span


def _place(value: float, axis: tuple[float, float], start: int, end: int) -> float:
    return start + (value - axis[0]) / (axis[1] - axis[0]) * (end - start)


def _draw_frame(draw: Any, font: Any, across: tuple[float, float], along: tuple[float, float], report: Report) -> None:
    for number in range(TICKS):
        x_value, y_value = (axis[0] + (axis[1] - axis[0]) * number / (TICKS - 1) for axis in (across, along))
        x, y = _place(x_value, across, LEFT, WIDTH - RIGHT), _place(y_value, along, HEIGHT - BOTTOM, TOP)
        draw.line((x, TOP, x, HEIGHT - BOTTOM), fill=GRID)
        draw.line((LEFT, y, WIDTH - RIGHT, y), fill=GRID)
        draw.text((x - 16, HEIGHT - BOTTOM + 6), f"{x_value:.3g}", fill=INK, font=font)
        draw.text((LEFT - 56, y - 8), f"{y_value:.2f}", fill=INK, font=font)
    draw.rectangle((LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM), outline=INK)
    unit = "dB" if report.metric == "sqnr" else "%"
    draw.text((LEFT, TOP - 34), f"{report.metric} in {unit}; the dot's area is the file's size", fill=INK, font=font)
    told = "blue: no other variant is at least as good in everything; *: chosen here"
    draw.text((LEFT + 330, TOP - 34), told, fill=INK, font=font)
    draw.text(
        (LEFT, HEIGHT - 28), f"milliseconds per inference (p50), {report.engine}, one thread", fill=INK, font=font
    )
