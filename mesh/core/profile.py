"""From what was timed on a device to what any segment takes there. Pure.

A segment takes what its operator groups take in the whole model, and something more at each end that is cut: one call,
fusions that the cut prevents, and tensors that change their layout there. How long groups take in proportion, a kernel
profile says; what ends cost, parts of the model that were timed against the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.core.graph import Graph


@dataclass(frozen=True, slots=True)
class TimedPart:
    """Groups `[start, end)`, in seconds, or in any unit that the whole model is told in."""

    start: int
    end: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SegmentTimes:
    """What any segment of one model takes on one device."""

    group_seconds: tuple[float, ...]
    run_seconds: float = 0.0
    """Of one call, however little it computes; the whole model's included."""
    cut_seconds: float = 0.0
    """What each end of a segment that is not an end of the model adds."""

    @property
    def whole_seconds(self) -> float:
        return self.run_seconds + math.fsum(self.group_seconds)

    def seconds(self, start: int, end: int) -> float:
        """Of groups `[start, end)` as a segment of its own."""
        ends = (start > 0) + (end < len(self.group_seconds))
        return self.run_seconds + math.fsum(self.group_seconds[start:end]) + ends * self.cut_seconds


EXACTLY = 1e-6
"""Of a period: a stretch that is one by arithmetic is not missed for its rounding."""

MOST_OF_A_RUN = 0.9
"""Of the whole model's time: the call of a model that computes next to nothing takes nearly all of it."""


def share(graph: Graph, seconds: float, work: Sequence[float]) -> tuple[float, ...]:
    """`seconds` of the whole model, given to its groups in proportion to `work`; to operations where that is 0."""
    known = list(work) if math.fsum(work) > 0 else [float(group.flops) for group in graph.groups]
    total = math.fsum(known)
    return tuple(seconds * each / total if total else seconds / len(known) for each in known)


def refine(group_seconds: Sequence[float], parts: Sequence[TimedPart]) -> list[float]:
    """Seconds of each group once real segments have been timed; of parts that overlap the later one counts.

    What was measured holds exactly. Groups of which nothing was measured follow the others: a device that
    is a third slower than its profile on what it runs is expected to be so on the rest. Parts that do not
    lie within the groups are passed over.
    """
    refined = list(group_seconds)
    known = [False] * len(refined)
    for part in parts:
        if not 0 <= part.start < part.end <= len(refined):
            continue
        predicted = math.fsum(refined[part.start : part.end])
        span = part.end - part.start
        for index in range(part.start, part.end):
            share = refined[index] / predicted if predicted > 0 else 1 / span
            refined[index] = part.seconds * share
            known[index] = True
    before = math.fsum(seconds for seconds, is_known in zip(group_seconds, known, strict=True) if is_known)
    after = math.fsum(seconds for seconds, is_known in zip(refined, known, strict=True) if is_known)
    scale = after / before if before > 0 else 1.0
    return [seconds if is_known else seconds * scale for seconds, is_known in zip(refined, known, strict=True)]


def steady_seconds(ends: Sequence[float], period_seconds: float, discarded_periods: int) -> float:
    """Seconds of each of many equal runs under a CPU quota, for a process that never rests.

    `ends`: when runs ended, at least two, each begun as the one before it ended. A process that has rested runs at full
    speed until its quota is used up, and so does every period begin: what single runs take says nothing, what many take
    depends on how often they were stopped. Any stretch of whole periods has the same share of running in it, wherever
    in a period it begins; so runs are counted over the longest such stretch after the first periods.
    """
    settled = ends[0] + discarded_periods * period_seconds
    first = min(next((index for index, end in enumerate(ends) if end >= settled), len(ends)), len(ends) - 2)
    span = ends[-1] - ends[first]
    whole = math.floor(span / period_seconds + EXACTLY) * period_seconds
    if whole <= 0:
        return span / (len(ends) - 1 - first)
    finish = min(ends[first] + whole, ends[-1])
    last = next(index for index, end in enumerate(ends) if end >= finish and index > first)
    part = (finish - ends[last - 1]) / (ends[last] - ends[last - 1])
    return (finish - ends[first]) / (last - 1 - first + part)


@dataclass(frozen=True, slots=True)
class TimedPiece:
    """Groups `[start, start + len(work))` of a model, timed as a segment of their own, and parts of them."""

    start: int
    seconds: float
    """Above 0."""
    work: tuple[float, ...]
    """What its groups take in proportion to each other; adds up to more than 0."""
    parts: tuple[TimedPart, ...] = ()
    """In the model's groups and in seconds."""

    @property
    def end(self) -> int:
        return self.start + len(self.work)


def fit_segments(groups: Sequence[float], parts: Sequence[TimedPart]) -> SegmentTimes:
    """From the whole model, timed and shared over its groups, and `parts` that were timed against it."""
    return join_pieces([TimedPiece(0, math.fsum(groups), tuple(groups), tuple(parts))])


def join_pieces(pieces: Sequence[TimedPiece]) -> SegmentTimes:
    """One profile of a model of which `pieces` were timed, which follow each other from its first group to its last.

    Price of a call and of a cut are what explains best, relative to their size, that parts took more than their share
    of the piece that they are of. One price for all cuts: it also grows with the bytes that cross, but a few parts do
    not tell by how much, and a wrong slope is worse than none on the widest tensors (measured). Each piece takes as a
    segment what it took, unless that is less than a call and its cuts are thought to take.
    """
    end = pieces[-1].end
    rows = [row for piece in pieces for row in _rows(piece, end)]
    fits = [(0.0, 0.0), _fit_one(rows, 0), _fit_one(rows, 1), _fit_both(rows)]
    run, cut = min(fits, key=lambda fit: _misfit(rows, fit))
    run = min(run, MOST_OF_A_RUN * min(piece.seconds for piece in pieces))
    groups: list[float] = []
    for piece in pieces:
        own = piece.seconds - run - _cut_ends(piece.start, piece.end, end) * cut
        own = max(own, (1 - MOST_OF_A_RUN) * piece.seconds)
        total = math.fsum(piece.work)
        groups.extend(own * work / total for work in piece.work)
    return SegmentTimes(tuple(groups), run, cut)


def _cut_ends(start: int, end: int, model_end: int) -> int:
    return (start > 0) + (end < model_end)


def _rows(piece: TimedPiece, model_end: int) -> list[tuple[float, float, float]]:
    """Of each part that says something: how often it paid for a call and for a cut beyond its share of the piece, and
    what that came to, all over its seconds."""
    rows = []
    total = math.fsum(piece.work)
    of_piece = _cut_ends(piece.start, piece.end, model_end)
    for part in piece.parts:
        is_whole = (part.start, part.end) == (piece.start, piece.end)
        if is_whole or part.seconds <= 0:
            continue
        share = math.fsum(piece.work[part.start - piece.start : part.end - piece.start]) / total
        ends = _cut_ends(part.start, part.end, model_end) - share * of_piece
        more = part.seconds - share * piece.seconds
        rows.append(((1 - share) / part.seconds, ends / part.seconds, more / part.seconds))
    return rows


Rows = Sequence[tuple[float, float, float]]
Fit = tuple[float, float]


def _misfit(rows: Rows, fit: Fit) -> float:
    if min(fit) < 0:
        return math.inf
    return math.fsum((fit[0] * first + fit[1] * second - more) ** 2 for first, second, more in rows)


def _fit_one(rows: Rows, column: int) -> Fit:
    square = math.fsum(row[column] ** 2 for row in rows)
    value = math.fsum(row[column] * row[2] for row in rows) / square if square else 0.0
    return (value, 0.0) if column == 0 else (0.0, value)


def _fit_both(rows: Rows) -> Fit:
    """Least squares in two unknowns; nothing where the rows do not tell them apart."""
    a = math.fsum(first * first for first, _, _ in rows)
    b = math.fsum(first * second for first, second, _ in rows)
    c = math.fsum(second * second for _, second, _ in rows)
    x = math.fsum(first * more for first, _, more in rows)
    y = math.fsum(second * more for _, second, more in rows)
    determinant = a * c - b * b
    return ((x * c - y * b) / determinant, (y * a - x * b) / determinant) if determinant > 1e-6 * a * c else (0.0, 0.0)
