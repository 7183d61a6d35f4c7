"""`mesh deploy FOLDER`: every variant is judged on every device, planned, and the best that holds together is taken."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from mesh.client.mesh_client import Mesh, read_model_file
from mesh.core.plan import FLOAT, PlanOptions
from mesh.errors import MeshError, UsageError, VerificationFailed
from mesh.optimize.admission import Admission
from mesh.optimize.golden_set import GOLDEN_FILE, decode_golden_set
from nodes.admission import Candidate, Gate, MeshBench, admit_everywhere, why_refused_together
from nodes.admission_file import FILE_NAME, AdmissionFile
from nodes.options import cost_file
from nodes.variants import ChosenVariant, Variant, VariantFolder, rank_variants

MAX_FILE_BYTES = 256 << 20
"""Of a golden set's file, packed: above what the optimizer writes."""

Say = Callable[[str], None]


async def choose_variant(
    mesh: Mesh,
    folder: VariantFolder,
    options_for: Callable[[bytes], PlanOptions],
    is_anew: bool,
    say: Say,
) -> tuple[ChosenVariant, list[Admission]]:
    """The variant to deploy, and what the devices were found to do; `is_anew`: ask them again.

    Raises what planning the last variant raised, and `VerificationFailed` where none holds together.
    """
    variants = folder.variants
    gate = await asyncio.to_thread(read_gate, folder)
    if gate is None or FLOAT not in {variant.name for variant in variants}:
        say(f"warning: {folder.path} has no golden set: variants are not judged on the devices; make it again")
        return (await rank_variants(mesh, variants, options_for, say))[0], []
    bench = MeshBench(mesh, say)
    admissions = await _ask_devices(bench, mesh, variants, options_for, gate, is_anew, say)
    ranked = await rank_variants(mesh, variants, options_for, say, admissions)
    for found in ranked:
        reason = await _why_not_together(bench, found, gate)
        if not reason:
            say(f"variant {found.variant.name} is the best here")
            return found, admissions
        say(f"variant {found.variant.name} refused as it is planned: {reason}")
    raise VerificationFailed(
        "no variant gives the float model's answers as it is planned here", hint="deploy the float model's file"
    )


async def _ask_devices(
    bench: MeshBench,
    mesh: Mesh,
    variants: Sequence[Variant],
    options_for: Callable[[bytes], PlanOptions],
    gate: Gate,
    is_anew: bool,
    say: Say,
) -> list[Admission]:
    candidates = [make_candidate(each) for each in variants]
    limits = options_for(await asyncio.to_thread(candidates[0].read)).limits
    views = [view for view in await mesh.nodes() if not view.is_lost and limits.allows(view.capabilities.node_id)]
    known = AdmissionFile(cost_file().with_name(FILE_NAME), is_anew=is_anew)
    try:
        return await admit_everywhere(bench, candidates, gate, views, known, say)
    finally:
        told = known.save()
        if told:
            say(told)


def make_candidate(variant: Variant) -> Candidate:
    return Candidate(variant.name, partial(read_model_file, variant.path), variant.golden_accuracy)


async def _why_not_together(bench: MeshBench, found: ChosenVariant, gate: Gate) -> str:
    if len(found.plan.stages) == 1:
        return ""  # each of its devices was asked about just this
    try:
        return await why_refused_together(bench, make_candidate(found.variant), gate, found.options)
    except MeshError as error:
        return f"it could not be judged: {error.message}"


def read_gate(folder: VariantFolder) -> Gate | None:
    """None where the folder has no golden set; raises `UsageError` for a broken one."""
    path = folder.path / GOLDEN_FILE
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB")
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    if folder.max_drop_points is None:
        raise UsageError(f"the report of {folder.path} does not say what a variant may lose", hint="make it again")
    return Gate(decode_golden_set(data), hashlib.sha256(data).hexdigest(), folder.max_drop_points)


def admission_document(admissions: Sequence[Admission]) -> list[dict[str, Any]]:
    return [{**asdict(each), "admitted": each.is_admitted} for each in admissions]
