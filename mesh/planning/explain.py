"""A plan in words, for `mesh plan --explain`: what runs where, what to expect, and what else was weighed."""

from __future__ import annotations

from collections.abc import Callable

from mesh.core.ids import NodeId
from mesh.core.plan import Plan, Prediction


def explain(plan: Plan, name_of: Callable[[NodeId], str]) -> str:
    """Lines of text without markup; `name_of` turns a device's id into what people call it."""
    kind = f"{'forced, ' if plan.forced else ''}for {plan.objective.value}"
    lines = [f"{len(plan.stages)} {'stage' if len(plan.stages) == 1 else 'stages'}, {kind}: {_figures(plan.predicted)}"]
    for index, stage in enumerate(plan.stages):
        segment = stage.segment
        source = "measured" if stage.measured else "estimated"
        lines.append(
            f"  {index}  {', '.join(name_of(device) for device in stage.devices)}: "
            f"groups {segment.start} to {segment.end - 1}, {stage.compute_seconds * 1e3:.3g} ms ({source}), "
            f"{segment.weight_bytes / 1e6:.3g} MB of weights, {stage.variant}"
        )
    lines.append(f"bound {plan.bound_throughput_per_s:.4g}/s: {plan.certificate}")
    lines.append(f"window {plan.window} frames")
    if plan.alternatives:
        lines.append("not chosen:")
    for alternative in plan.alternatives:
        figures = _figures(alternative.prediction) if alternative.prediction else "not possible"
        lines.append(f"  {alternative.name}: {figures}; {alternative.reason}")
    return "\n".join(lines)


def _figures(prediction: Prediction) -> str:
    return f"{prediction.throughput_per_s:.4g}/s, {prediction.latency_s * 1e3:.3g} ms"
