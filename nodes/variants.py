"""A folder of `mesh optimize` as something to deploy: its variants, and the one that this mesh runs best.

The folder's own times and verdicts are of the machine that made it; so every variant is judged and timed on the devices
(`nodes.admission`), planned on those that admit it, and the plans are compared. `mesh deploy` asks for it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh.client.mesh_client import Mesh, read_model_file
from mesh.core.plan import FLOAT, Objective, Plan, PlanOptions
from mesh.errors import Infeasible, MeshError, ModelError, UsageError
from mesh.optimize.choosing import choose

if TYPE_CHECKING:
    from mesh.optimize.admission import Admission

REPORT = "report.json"

MAX_REPORT_BYTES = 1 << 20

MAX_VARIANTS = 32
"""The optimizer makes fewer than ten."""


@dataclass(frozen=True, slots=True)
class Variant:
    name: str
    path: Path
    golden_accuracy: float | None = None
    """On the golden set, where it was made."""


@dataclass(frozen=True, slots=True)
class VariantFolder:
    path: Path
    variants: tuple[Variant, ...]
    max_drop_points: float | None
    """Accuracy that a variant may lose; None where the report does not say."""


@dataclass(frozen=True, slots=True)
class ChosenVariant:
    variant: Variant
    size_bytes: int
    options: PlanOptions
    plan: Plan


def read_folder(folder: Path) -> VariantFolder | None:
    """What a folder's report offers; None where there is no report. Raises `UsageError` for a broken one."""
    report = folder / REPORT
    if not report.is_file():
        return None
    hint = "make one with `mesh optimize MODEL --out FOLDER`, or name a model file"
    try:
        if report.stat().st_size > MAX_REPORT_BYTES:
            raise UsageError(f"{report} is larger than {MAX_REPORT_BYTES >> 10} KiB", hint=hint)
        document: Any = json.loads(report.read_text(encoding="utf-8"))
        variants = tuple(
            Variant(str(entry["variant"]), folder / _plain(entry["file"]), _number(entry.get("golden_accuracy"), 1))
            for entry in document["offered"]
        )
        max_drop_points = _number(document.get("reference", {}).get("max_drop_points"), 100)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{report} is no report of `mesh optimize`: {str(error)[:200]}", hint=hint) from None
    if not 0 < len(variants) <= MAX_VARIANTS:
        raise UsageError(f"{report} offers {len(variants)} variants", hint=hint)
    return VariantFolder(folder, variants, max_drop_points)


def _plain(name: object) -> str:
    """A file's name, and no way out of the folder."""
    if not isinstance(name, str) or not name or Path(name).name != name or name in (".", ".."):
        raise ValueError(f"{str(name)[:80]!r} is no file of the folder")
    return name


def _number(value: Any, most: float) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"{str(value)[:80]!r} is not from 0 to {most}")
    return float(value)


async def rank_variants(
    mesh: Mesh,
    variants: Sequence[Variant],
    options_for: Callable[[bytes], PlanOptions],
    say: Callable[[str], None],
    admissions: Sequence[Admission] = (),
) -> list[ChosenVariant]:
    """Variants with their plans on this mesh, best for the objective first; the last refusal is raised where none is.

    What `admissions` say was judged is planned on the devices that admitted it only. Without any, no device was asked.
    """
    ranked: list[tuple[float, ChosenVariant]] = []
    refusal: MeshError | None = None
    for variant in variants:
        data = await asyncio.to_thread(read_model_file, variant.path)
        try:
            options = _on_admitted(variant, replace(options_for(data), variant=variant.name), admissions)
            plan = await mesh.coordinator.plan(data, options, say)
        except (Infeasible, ModelError) as error:
            say(f"variant {variant.name}: {error}")
            refusal = error
            continue
        told = f"{plan.predicted.throughput_per_s:.4g}/s, {plan.predicted.latency_s * 1e3:.4g} ms"
        say(f"variant {variant.name}: {told} expected on {len(plan.devices)} of the nodes")
        planned = replace(options, measure=False)  # it was measured just now
        ranked.append((_rank(plan, options.objective), ChosenVariant(variant, len(data), planned, plan)))
    if not ranked:
        raise refusal or UsageError("there is no variant to deploy")
    ranked.sort(key=lambda entry: -entry[0])
    return _prefer_timed_in_turns([found for _, found in ranked], admissions, say)


def _on_admitted(variant: Variant, options: PlanOptions, admissions: Sequence[Admission]) -> PlanOptions:
    """`options` on the devices that admitted the variant; raises `Infeasible` where none did.

    Also later: a device that joins was not asked. Float runs anywhere unless a device was found to fail with it.
    """
    judged = [each for each in admissions if each.variant == variant.name]
    if not judged or (variant.name == FLOAT and all(each.is_admitted for each in judged)):
        return options
    admitted = tuple(each.device for each in judged if each.is_admitted)
    if not admitted:
        raise Infeasible("no device admits it", hint="; ".join(dict.fromkeys(each.reason for each in judged)))
    return replace(options, limits=replace(options.limits, only=admitted))


def _prefer_timed_in_turns(
    ranked: list[ChosenVariant], admissions: Sequence[Admission], say: Callable[[str], None]
) -> list[ChosenVariant]:
    """Where all plans are the same one device, times that were taken there in turns tell better than predictions."""
    devices = {tuple(found.plan.devices) for found in ranked}
    if len(devices) != 1 or len(next(iter(devices))) != 1 or ranked[0].options.objective is Objective.MEMORY:
        return ranked
    (device,) = next(iter(devices))
    timed = {each.variant: each.speed_up for each in admissions if each.device == device}
    rest = [found for found in ranked if found.variant.name != FLOAT]
    if FLOAT not in timed or any(timed.get(found.variant.name) is None for found in rest):
        return ranked
    best, why = choose({found.variant.name: (timed[found.variant.name] or 0.0, found.size_bytes) for found in rest})
    say(f"{best}: {why}")
    return sorted(ranked, key=lambda found: found.variant.name != best)


def _rank(plan: Plan, objective: Objective) -> float:
    """Higher is better."""
    if objective is Objective.LATENCY:
        return -plan.predicted.latency_s
    if objective is Objective.MEMORY:
        return -float(sum(stage.segment.weight_bytes * len(stage.devices) for stage in plan.stages))
    return plan.predicted.throughput_per_s
