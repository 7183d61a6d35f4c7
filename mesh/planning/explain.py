"""Why a plan is as fast as it is and what would help, for `mesh plan --explain`: as values, and in words.

`explain` prices the plan's parts and plans once more for fleets that have something more; `describe` says it all to
people, what was rejected included (`mesh.planning.rejected`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from mesh.core.costs import Costs
from mesh.core.fleet import Link
from mesh.core.ids import NodeId
from mesh.core.plan import RAW, Alternative, Bottleneck, Explanation, Objective, Plan, Prediction, StageBreakdown
from mesh.planning.breakdown import break_down, find_bottleneck
from mesh.planning.exact import plan as solve
from mesh.planning.problem import Infeasible, Problem
from mesh.planning.space import Codec, Space, Variant

NEW_BOARD = NodeId("f" * 32)
"""Of a device that nobody has yet."""

NEW_BOARD_LINK = Link(0.3e-3, 11.75e6, measured=False)
"""Of a lone device to another one like it: 100 Mbit Ethernet less 6 % of headers, and what a switch takes."""

NOTICEABLE = 0.01
"""What helps by less is said not to help."""


@dataclass(frozen=True, slots=True)
class MoreFleet:
    """The problem on a fleet that has something more, and what that is in words."""

    name: str
    problem: Problem


def explain(problem: Problem, plan: Plan, others: Sequence[MoreFleet] = ()) -> Explanation:
    """Figures of `plan`, and what one more board of the fastest kind and each of `others` would give."""
    stages = break_down(problem.graph, plan.stages, problem.costs, problem.space)
    fleets = [*one_more_board(problem), *others]
    return Explanation(stages, find_bottleneck(stages), tuple(_improve(plan, fleet) for fleet in fleets))


def one_more_board(problem: Problem) -> tuple[MoreFleet, ...]:
    """The problem with a twin of its fastest device; empty where a number of stages is forced that cannot use it."""
    known = problem.usable_devices
    if not known or problem.stages == 1:
        return ()
    model = min(known, key=lambda device: problem.costs.device(device).whole_model_seconds)
    links = dict(problem.costs.links)
    for device in problem.devices:
        if device != model:
            links[NEW_BOARD, device] = problem.costs.link(model, device)
            links[device, NEW_BOARD] = problem.costs.link(device, model)
    links[NEW_BOARD, model] = links[model, NEW_BOARD] = _link_to_twin(problem, model)
    more = replace(
        problem,
        costs=Costs(_with_twin(problem.costs.devices, model), links),
        devices=(*problem.devices, NEW_BOARD),
        trusted=None if problem.trusted is None else problem.trusted | {NEW_BOARD},
        space=_space_with_twin(problem.space, model),
        names={**problem.names, NEW_BOARD: f"another {problem.name_of(model)}"},
    )
    return (MoreFleet(f"one more board like {problem.name_of(model)}", more),)


def _link_to_twin(problem: Problem, model: NodeId) -> Link:
    """As to an equal device where there is one, else the fastest link of `model`: its interface is at least so fast."""
    costs = problem.costs
    others = [device for device in problem.devices if device != model]
    equal = [device for device in others if costs.device(device) == costs.device(model)]
    links = [costs.link(model, device) for device in equal or others]
    return max(links, key=lambda link: (link.bytes_per_second, -link.latency_seconds), default=NEW_BOARD_LINK)


Figures = TypeVar("Figures")


def _with_twin(known: Mapping[NodeId, Figures], model: NodeId) -> dict[NodeId, Figures]:
    return {**known, NEW_BOARD: known[model]} if model in known else dict(known)


def _space_with_twin(space: Space, model: NodeId) -> Space:
    def runs(variant: Variant) -> Variant:
        return replace(variant, prefix_seconds=_with_twin(variant.prefix_seconds, model))

    def speaks(codec: Codec) -> Codec:
        return replace(
            codec,
            byte_seconds=_with_twin(codec.byte_seconds, model),
            read_byte_seconds=_with_twin(codec.read_byte_seconds, model),
        )

    return replace(
        space,
        variants=tuple(map(runs, space.variants)),
        codecs=tuple(map(speaks, space.codecs)),
        nics=_with_twin(space.nics, model),
        watts=_with_twin(space.watts, model),
    )


def _improve(plan: Plan, fleet: MoreFleet) -> Alternative:
    found = solve(fleet.problem)
    if isinstance(found, Infeasible):
        return Alternative(fleet.name, None, "; ".join(found.reasons))
    before, after = plan.predicted, found.predicted
    if plan.objective is Objective.LATENCY:
        gain = before.latency_s / after.latency_s
        text = f"{gain:.2f} times as fast per frame"
    else:
        gain = after.throughput_per_s / before.throughput_per_s
        text = f"{gain:.2f} times the throughput"
    if plan.objective in (Objective.THROUGHPUT, Objective.LATENCY) and gain < 1 + NOTICEABLE:
        stages = break_down(fleet.problem.graph, found.stages, fleet.problem.costs, fleet.problem.space)
        pace = describe_bottleneck(found, find_bottleneck(stages), fleet.problem.name_of)
        return Alternative(fleet.name, after, f"would not help: {pace}")
    return Alternative(fleet.name, after, f"{text}, on {_count(len(found.devices), 'device')}")


# In words -----------------------------------------------------------------------------------------


def describe(plan: Plan, name_of: Callable[[NodeId], str]) -> str:
    """Lines of text without markup; `name_of` turns a device's id into what people call it."""
    kind = f"{'forced, ' if plan.forced else ''}for {plan.objective.value}"
    lines = [f"{_count(len(plan.stages), 'stage')}, {kind}: {_prediction(plan.predicted)}"]
    parts: Sequence[StageBreakdown | None] = (
        plan.explanation.stages if plan.explanation is not None else [None] * len(plan.stages)
    )
    for index, (stage, part) in enumerate(zip(plan.stages, parts, strict=True)):
        segment = stage.segment
        source = "measured" if stage.measured else "estimated"
        sent = f", sent as {stage.codec}" if stage.codec != RAW else ""
        lines.append(
            f"  {index}  {', '.join(name_of(device) for device in stage.devices)}: "
            f"groups {segment.start} to {segment.end - 1}, {_ms(stage.compute_seconds)} ({source}), "
            f"{segment.weight_bytes / 1e6:.3g} MB of weights, {plan.variant_of(stage)}{sent}"
        )
        if part is not None:
            lines.extend(_describe_part(part, stage.codec))
    if plan.explanation is not None:
        lines.append(f"bottleneck: {describe_bottleneck(plan, plan.explanation.bottleneck, name_of)}")
    lines.append(f"bound {plan.bound_throughput_per_s:.4g}/s: {plan.certificate}")
    lines.append(f"window {_count(plan.window, 'frame')}")
    lines.extend(_list("not chosen:", plan.alternatives))
    if plan.explanation is not None:
        lines.extend(_list("with something more:", plan.explanation.improvements))
    return "\n".join(lines)


def describe_bottleneck(plan: Plan, bottleneck: Bottleneck, name_of: Callable[[NodeId], str]) -> str:
    stages = plan.stages
    devices = " and ".join(name_of(device) for device in stages[bottleneck.stage].devices)
    per_frame = f"{_ms(bottleneck.period_seconds)} per frame"
    if bottleneck.is_link:
        target = " and ".join(name_of(device) for device in stages[bottleneck.stage + 1].devices)
        return f"the link from {devices} to {target} sets the pace, {per_frame}"
    return f"stage {bottleneck.stage} on {devices} sets the pace, {per_frame}"


def _describe_part(part: StageBreakdown, codec: str) -> list[str]:
    room = part.memory_available_bytes / 1e6
    taken = "measured" if part.memory_measured else "estimated"
    memory = f"memory {part.memory_bytes / 1e6:.0f} of {room:.0f} MB ({taken})"
    moved = f"{_size(part.bytes_in)} in, {_size(part.bytes_out)} out, {_ms(part.handling_seconds)} to handle them"
    lines = [f"       {moved}; {_ms(part.period_seconds)} per frame in all; {memory}"]
    if part.link is not None:
        link = part.link
        source = "measured" if link.measured else "estimated"
        lines.append(
            f"     > {link.bytes_per_second / 1e6:.3g} MB/s, {_ms(link.latency_seconds)} away ({source}), {codec}: "
            f"{_ms(link.transfer_seconds)} for a frame, one every {_ms(link.period_seconds)}"
        )
    return lines


def _list(title: str, alternatives: Sequence[Alternative]) -> list[str]:
    lines = [title] if alternatives else []
    for alternative in alternatives:
        figures = _prediction(alternative.prediction) if alternative.prediction else "not possible"
        lines.append(f"  {alternative.name}: {figures}; {alternative.reason}")
    return lines


def _prediction(prediction: Prediction) -> str:
    return f"{prediction.throughput_per_s:.4g}/s, {prediction.latency_s * 1e3:.3g} ms"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:.3g} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:.3g} KB"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
