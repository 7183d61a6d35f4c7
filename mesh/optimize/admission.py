"""May a variant run on a device? It answers the golden set there, and the answers are judged as they were where the
variant was made: by the same gate, and by how far the two places are apart. Pure.

Whoever deploys a folder of variants asks; a plan then uses a variant only on devices that were asked and agreed.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.core.ids import NodeId
from mesh.optimize.verdict import Golden, Scores

MAX_APART_POINTS = 0.5
"""Of accuracy, between two devices with the same variant: orders of summation differ, arithmetic does not."""


@dataclass(frozen=True, slots=True)
class Admission:
    """One variant on one device. Figures are None where it came to none."""

    variant: str
    device: NodeId
    reason: str = ""
    """Why it is refused there, in words; empty where it is admitted."""
    accuracy: float | None = None
    """0 to 1, as `Scores.accuracy`."""
    sqnr_db: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    speed_up: float | None = None
    """Over float on the same device, in turns; None where float was not timed beside it."""
    load_ms: float | None = None
    """That the engine took to load it."""
    peak_bytes: int | None = None
    """What loading it and its first runs took; None where the engine does not tell."""
    at: float = 0.0
    """Unix time."""

    @property
    def is_admitted(self) -> bool:
        return not self.reason


def why_refused(golden: Golden, scores: Scores, made_with: float | None, max_drop_points: float) -> str:
    """Why a variant with these `scores` on a device may not run there; "" where it may.

    `made_with`: its accuracy on the same samples where it was made; None where that is not known.
    """
    reason = golden.judge(scores, golden.score(golden.answers), max_drop_points)
    if reason or made_with is None or scores.accuracy is None:
        return reason
    apart = 100 * abs(scores.accuracy - made_with)
    allowed = max(MAX_APART_POINTS, 100 / len(golden.answers))
    if apart <= allowed + 1e-9:
        return ""
    return (
        f"{scores.accuracy:.2%} of its answers are right here, {made_with:.2%} where it was made; "
        f"{allowed:.2g} points may lie between"
    )
