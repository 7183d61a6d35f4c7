"""The gate: is a variant's answer as good as the float model's?

The golden set are the answers of the float model with optimisation off. With labels the verdict is top-1 against
them; without, the share of answers with the same top-1 as the float model's and the ratio of signal to quantisation
noise (SQNR). Outputs without classes are judged by SQNR alone. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mesh.arrays import Array
from mesh.errors import CalibrationError

MIN_SQNR_DB = 20.0
"""Without labels. Quantised networks that kept their accuracy had 25 dB and more on scores, less on probabilities."""

_SURE_DB = 200.0
"""Shown for equal answers, where the ratio would be infinite."""


@dataclass(frozen=True, slots=True)
class Scores:
    accuracy: float | None
    """Share of right answers, 0 to 1: by labels, or as the float model; None where outputs have no classes."""
    agreement: float | None
    """Share of answers whose top-1 is the float model's."""
    sqnr_db: float


@dataclass(frozen=True)
class Golden:
    """What variants are judged by; made once from the float model, never changed."""

    answers: list[list[Array]]
    labels: Array | None
    """Of the judging half, in order."""
    classes: int | None
    """Position of the output whose last axis are the classes."""

    @property
    def metric(self) -> str:
        if self.classes is None:
            return "sqnr"
        return "top-1" if self.labels is not None else "agreement"

    def score(self, answers: list[list[Array]]) -> Scores:
        """Scores of a variant's answers to the same runs."""
        sqnr = _sqnr_db(self.answers, answers)
        if self.classes is None:
            return Scores(None, None, sqnr)
        wanted, found = _top(self.answers, self.classes), _top(answers, self.classes)
        agreement = float(np.mean(wanted == found)) if wanted.shape == found.shape else 0.0
        if self.labels is None:
            return Scores(agreement, agreement, sqnr)
        return Scores(float(np.mean(found == self.labels)), agreement, sqnr)

    def judge(self, scores: Scores, reference: Scores, max_drop_points: float) -> str:
        """Why a variant with these `scores` is refused; "" where it passes."""
        if not math.isfinite(scores.sqnr_db):
            return "its answers are not finite numbers"
        if scores.accuracy is not None and reference.accuracy is not None:
            drop = 100 * (reference.accuracy - scores.accuracy)
            if drop > max_drop_points + 1e-9:
                what = "top-1" if self.labels is not None else "top-1 agreement with float"
                return (
                    f"{what} falls by {drop:.2f} points, from {reference.accuracy:.2%} to {scores.accuracy:.2%}; "
                    f"{max_drop_points:g} are allowed"
                )
        if self.labels is None and scores.sqnr_db < MIN_SQNR_DB:
            return f"signal to quantisation noise is {scores.sqnr_db:.1f} dB, at least {MIN_SQNR_DB:g} is asked for"
        return ""


def make_golden(answers: list[list[Array]], labels: Array | None, rows: Sequence[int]) -> Golden:
    """`rows`: where the answered samples stand in the user's arrays, for complaints.

    Raises `CalibrationError` for answers that are not finite, and for labels that do not fit the outputs.
    """
    for row, outputs in zip(rows, answers, strict=True):
        if not all(np.isfinite(each).all() for each in outputs if each.dtype.kind == "f"):
            raise CalibrationError(
                f"the float model answers sample {row} with NaN or infinity",
                hint="nothing can be compared with that; leave the sample out, or repair the model",
            )
    classes = _find_classes(answers)
    if labels is None:
        return Golden(answers, None, classes)
    if classes is None or _top(answers, classes).shape != labels.shape:
        shapes = ", ".join(str(list(each.shape)) for each in answers[0])
        raise CalibrationError(
            f"labels need one answer with at least two classes per sample, the model's outputs are {shapes}",
            hint="leave --labels out: variants are then held against the float model",
        )
    count = answers[0][classes].shape[-1]
    if labels.min() < 0 or labels.max() >= count:
        raise CalibrationError(
            f"the labels run from {labels.min()} to {labels.max()}, the model has {count} classes",
            hint="number the classes from 0, as the model's output does",
        )
    return Golden(answers, labels, classes)


def _find_classes(answers: Sequence[Sequence[Array]]) -> int | None:
    for position, output in enumerate(answers[0]):
        if output.dtype.kind == "f" and output.ndim >= 2 and output.shape[-1] >= 2:
            return position
    return None


def _top(answers: Sequence[Sequence[Array]], position: int) -> Array:
    found: Array = np.concatenate([np.argmax(outputs[position], axis=-1).reshape(-1) for outputs in answers])
    return found


def _sqnr_db(reference: Sequence[Sequence[Array]], answers: Sequence[Sequence[Array]]) -> float:
    """Of the worst output, over all runs; NaN where shapes differ or numbers are not finite."""
    worst = math.inf
    for position in range(len(reference[0])):
        signal = noise = 0.0
        for wanted, found in zip(reference, answers, strict=True):
            if wanted[position].shape != found[position].shape:
                return math.nan
            a, b = wanted[position].astype(np.float64), found[position].astype(np.float64)
            signal += float(np.sum(a * a))
            noise += float(np.sum((a - b) ** 2))
        if not math.isfinite(noise):
            return math.nan
        ratio = 10 * math.log10(signal / noise) if noise and signal else (0.0 if noise else _SURE_DB)
        worst = min(worst, ratio)
    return min(worst, _SURE_DB)
