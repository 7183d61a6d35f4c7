"""A folder of `mesh optimize` as something to deploy: its variants, and the one that this mesh runs best.

The folder's own times are of the machine that made it; so every variant is planned on the mesh, whose devices time it,
and the plans are compared. `mesh deploy` asks for it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.client.mesh_client import Mesh, read_model_file
from mesh.core.plan import Objective, Plan, PlanOptions
from mesh.errors import Infeasible, MeshError, ModelError, UsageError

REPORT = "report.json"

MAX_REPORT_BYTES = 1 << 20

MAX_VARIANTS = 32
"""The optimizer makes fewer than ten."""


@dataclass(frozen=True, slots=True)
class Variant:
    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class ChosenVariant:
    variant: Variant
    data: bytes
    options: PlanOptions


def list_variants(folder: Path) -> list[Variant]:
    """The variants that a folder's report offers, none where there is none; raises `UsageError` for a broken one."""
    report = folder / REPORT
    if not report.is_file():
        return []
    hint = "make one with `mesh optimize MODEL --out FOLDER`, or name a model file"
    try:
        if report.stat().st_size > MAX_REPORT_BYTES:
            raise UsageError(f"{report} is larger than {MAX_REPORT_BYTES >> 10} KiB", hint=hint)
        entries: Any = json.loads(report.read_text(encoding="utf-8"))["offered"]
        variants = [Variant(str(entry["variant"]), folder / _plain(entry["file"])) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{report} is no report of `mesh optimize`: {str(error)[:200]}", hint=hint) from None
    if not 0 < len(variants) <= MAX_VARIANTS:
        raise UsageError(f"{report} offers {len(variants)} variants", hint=hint)
    return variants


def _plain(name: object) -> str:
    """A file's name, and no way out of the folder."""
    if not isinstance(name, str) or not name or Path(name).name != name or name in (".", ".."):
        raise ValueError(f"{str(name)[:80]!r} is no file of the folder")
    return name


async def choose_variant(
    mesh: Mesh,
    variants: Sequence[Variant],
    options_for: Callable[[bytes], PlanOptions],
    say: Callable[[str], None],
) -> ChosenVariant:
    """The variant whose plan on this mesh is best for the objective; raises the last refusal where there is none."""
    best: tuple[float, ChosenVariant] | None = None
    refusal: MeshError | None = None
    for variant in variants:
        data = await asyncio.to_thread(read_model_file, variant.path)
        options = options_for(data)
        try:
            plan = await mesh.coordinator.plan(data, options, say)
        except (Infeasible, ModelError) as error:
            say(f"variant {variant.name}: {error}")
            refusal = error
            continue
        told = f"{plan.predicted.throughput_per_s:.4g}/s, {plan.predicted.latency_s * 1e3:.4g} ms"
        say(f"variant {variant.name}: {told} expected on {len(plan.devices)} of the nodes")
        rank = _rank(plan, options.objective)
        if best is None or rank > best[0]:
            best = rank, ChosenVariant(variant, data, options)
    if best is None:
        raise refusal or UsageError("there is no variant to deploy")
    say(f"variant {best[1].variant.name} is the best here")
    return best[1]


def _rank(plan: Plan, objective: Objective) -> float:
    """Higher is better."""
    if objective is Objective.LATENCY:
        return -plan.predicted.latency_s
    if objective is Objective.MEMORY:
        return -float(sum(stage.segment.weight_bytes * len(stage.devices) for stage in plan.stages))
    return plan.predicted.throughput_per_s
