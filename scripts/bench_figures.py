"""Figures of scripts/bench_dataplane: samples of interleaved rounds, medians with their spread, targets, the table."""

from __future__ import annotations

import fnmatch
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Sample = dict[str, float]


@dataclass
class Target:
    pattern: str
    """Of figure names, as in a shell."""
    comparison: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Target:
        for comparison in (">=", "<="):
            pattern, found, value = text.partition(comparison)
            if found:
                return cls(pattern.strip(), comparison, float(value))
        raise ValueError(f"{text!r} is not of the form NAME>=NUMBER or NAME<=NUMBER")

    def holds(self, value: float) -> bool:
        return value >= self.value if self.comparison == ">=" else value <= self.value


DEFAULT_TARGETS = [
    # Row 1: what a daemon takes from the engine's core, and what it adds to a lone frame.
    "1/*/throughput ratio>=0.95",
    "1/588 KiB/added p50 ms<=1.2",
    "1/64 KiB/added p50 ms<=0.7",
    # Row 2: two cores against one.
    "2/mobilenetv2/two stages>=1.7",
    "2/squeezenet/two stages>=1.65",
    "2/resnet18/two stages>=1.8",
    "2/vit_tiny/two stages>=1.82",
    "2/*/two copies>=1.9",
    # Row 3.
    "3/200 KiB/cpu ms per frame and stage<=0.5",
    "3/1 MiB/cpu ms per frame and stage<=1.5",
    # Row 4.
    "4/1 MiB/ratio to bare gRPC>=0.85",
    "4/64 B/frames per s>=3000",
    # Row 5: four boards.
    "5/*/ratio to bound>=0.77",
    "5/mobilenetv2 100 Mbit/ratio to one device>=1.8",
    "5/mobilenetv2 1 Gbit/ratio to one device>=2.7",
    "5/vit_tiny 100 Mbit/ratio to one device>=3.2",
    "5/minilm 100 Mbit/ratio to one device>=3.0",
]
"""The first that matches a figure is its target; --target comes before them."""


@dataclass
class Figure:
    name: str
    samples: list[float]
    target: Target | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def holds(self) -> bool | None:
        return None if self.target is None else self.target.holds(self.median)

    def document(self) -> dict[str, Any]:
        target = None if self.target is None else {"comparison": self.target.comparison, "value": self.target.value}
        return {
            "name": self.name,
            "median": self.median,
            "low": min(self.samples),
            "high": max(self.samples),
            "rounds": len(self.samples),
            "target": target,
            "holds": self.holds,
            "samples": self.samples,
        }

    def cells(self) -> tuple[str, ...]:
        target = "" if self.target is None else f"{self.target.comparison} {self.target.value:g}"
        held = {None: "", True: "holds", False: "MISSED"}[self.holds]
        spread = f"{min(self.samples):.3f} .. {max(self.samples):.3f}"
        return (self.name, f"{self.median:.3f}", spread, str(len(self.samples)), target, held)


@dataclass
class Figures:
    targets: Sequence[Target]
    say: Callable[[str], None]
    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, prefix: str, sample: Sample) -> None:
        for name, value in sample.items():
            self.samples[f"{prefix}/{name}"].append(value)
        self.say(f"  {prefix}: " + ", ".join(f"{name} {value:.3f}" for name, value in sample.items()))

    def all(self) -> list[Figure]:
        return [
            Figure(name, samples, next((t for t in self.targets if fnmatch.fnmatchcase(name, t.pattern)), None))
            for name, samples in self.samples.items()
        ]


def interleave(rounds: int, works: Sequence[tuple[str, Callable[[], float]]]) -> list[Sample]:
    """Each round runs every work once, beginning with another one each time."""
    samples: list[Sample] = []
    for number in range(rounds):
        first = number % len(works)
        samples.append({name: work() for name, work in [*works[first:], *works[:first]]})
    return samples
