"""What is known at the end: values, and the document of `report.json` made of them. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from mesh.optimize.energy import Energy
from mesh.optimize.footprint import Footprint
from mesh.optimize.golden_set import GoldenSet
from mesh.optimize.turns import Timing
from mesh.optimize.verdict import Scores


@dataclass(frozen=True)
class Offer:
    variant: str
    data: bytes = field(repr=False)
    scores: Scores
    kept_float: tuple[str, ...] = ()
    timing: Timing | None = None
    footprint: Footprint | None = None
    energy: Energy | None = None
    golden_accuracy: float | None = None
    """Of the samples that go with the folder, which devices are judged by."""

    @property
    def file(self) -> str:
        return f"{self.variant}.onnx"


@dataclass(frozen=True, slots=True)
class Refusal:
    variant: str
    reason: str


@dataclass(frozen=True, slots=True)
class PassSize:
    name: str
    bytes_before: int
    bytes_after: int
    operators_before: int
    operators_after: int


@dataclass(frozen=True)
class Report:
    model_sha256: str
    metric: str
    samples: tuple[int, int]
    """How many calibrated, how many judged."""
    max_drop_points: float
    offered: tuple[Offer, ...]
    """The float model first."""
    refused: tuple[Refusal, ...]
    passes: tuple[PassSize, ...]
    chosen: str
    why_chosen: str
    engine: str
    notes: tuple[str, ...] = ()
    golden_set: GoldenSet | None = field(default=None, repr=False)
    """What devices are judged by."""

    @property
    def reference(self) -> Offer:
        return self.offered[0]

    def pareto(self) -> set[str]:
        """Variants that no other beats or equals in size, time, memory and accuracy at once."""
        points = {
            offer.variant: (len(offer.data), _p50(offer), _peak(offer), -(offer.scores.accuracy or 0.0))
            for offer in self.offered
        }
        return {
            name
            for name, own in points.items()
            if not any(
                other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in points.values()
            )
        }

    def document(self) -> dict[str, Any]:
        """As `report.json`; the keys `reference`, `offered` and `refused` are what others script against."""
        front = self.pareto()
        return {
            "model_sha256": self.model_sha256,
            "reference": {
                **_offer_document(self.reference),
                "metric": self.metric,
                "samples": {
                    "calibrated": self.samples[0],
                    "judged": self.samples[1],
                    "rule": "by position from 0: even ones calibrate, odd ones judge",
                },
                "max_drop_points": self.max_drop_points,
            },
            "chosen": {"variant": self.chosen, "file": f"{self.chosen}.onnx", "reason": self.why_chosen},
            "offered": [{**_offer_document(offer), "pareto": offer.variant in front} for offer in self.offered],
            "refused": [{"variant": each.variant, "reason": each.reason} for each in self.refused],
            "passes": [
                {
                    "name": each.name,
                    "bytes_before": each.bytes_before,
                    "bytes_after": each.bytes_after,
                    "operators_before": each.operators_before,
                    "operators_after": each.operators_after,
                }
                for each in self.passes
            ],
            "measured": {"engine": self.engine, "threads": 1},
            "notes": list(self.notes),
        }


def _p50(offer: Offer) -> float:
    return offer.timing.p50_ms if offer.timing else math.inf


def _peak(offer: Offer) -> float:
    return offer.footprint.peak_memory_bytes if offer.footprint else math.inf


def _offer_document(offer: Offer) -> dict[str, Any]:
    timing, footprint = offer.timing, offer.footprint
    return {
        "file": offer.file,
        "variant": offer.variant,
        "bytes": len(offer.data),
        "accuracy": offer.scores.accuracy,
        "agreement": offer.scores.agreement,
        "golden_accuracy": offer.golden_accuracy,
        "sqnr_db": round(offer.scores.sqnr_db, 2),
        "p50_ms": round(timing.p50_ms, 5) if timing else None,
        "p95_ms": round(timing.p95_ms, 5) if timing else None,
        "speed_up": round(timing.speed_up, 3) if timing else None,
        "rounds": timing.rounds if timing else None,
        "load_ms": round(footprint.load_ms, 2) if footprint else None,
        "peak_memory_bytes": footprint.peak_memory_bytes if footprint else None,
        "energy": _energy_document(offer.energy),
        "kept_float": list(offer.kept_float),
    }


def _energy_document(energy: Energy | None) -> dict[str, Any] | None:
    if energy is None:
        return None
    return {
        "joules_per_inference": float(f"{energy.joules_per_inference:.4g}"),
        "measured": energy.is_measured,
        "source": energy.source,
    }
