"""Do answers stay what they are when tensors are rounded between stages? The plan's segments are run on this machine,
what leaves each of them coded and decoded as on the wire, and the answers are held against those of the whole model.

Called by whoever plans or deploys; blocks, for a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mesh.arrays import Array, from_array, to_array
from mesh.codecs import decode_tensor, encode_tensor
from mesh.core.coding import CODECS, RAW, CodedTensor, is_lossy, loss_of
from mesh.core.graph import Graph
from mesh.core.plan import Plan, Stage
from mesh.engines import make_engine
from mesh.engines.contract import Engine
from mesh.errors import ModelInvalid, VerificationFailed
from mesh.model.change import Change, largest_change
from mesh.model.compare import run_chained
from mesh.model.read import SourceModel
from mesh.planning.coding import spare_codecs
from mesh.planning.exact import plan as solve
from mesh.planning.problem import Infeasible, Problem
from mesh.runtime.coordinator import Progress
from mesh.runtime.proving import make_up_inputs, remembering

SAMPLES = 4
"""Made-up inputs: one alone may happen to be kind."""


def loses(plan: Plan) -> bool:
    """Whether some tensor between its stages is rounded."""
    return any(is_lossy(stage.codec) for stage in plan.stages[:-1])


def measure_change(
    engine: Engine, model: SourceModel, graph: Graph, stages: Sequence[Stage], feeds: Mapping[str, Array] | None = None
) -> Change:
    """By how much the codecs of `stages` change the answers to `feeds`, made up where None. Blocks; for a thread.

    Raises `ModelInvalid` where the model refuses made-up inputs.
    """
    run = remembering(engine)
    samples = [dict(feeds)] if feeds is not None else make_up_inputs(run, model, SAMPLES)

    def cross(index: int, frame: Mapping[str, Array]) -> dict[str, Array]:
        return {name: _there_and_back(value, stages[index].codec) for name, value in frame.items()}

    names = [spec.name for spec in graph.outputs]
    segments = [stage.segment for stage in stages]
    pairs = [
        (run(model.data, sample, names), run_chained(run, model, graph, segments, sample, cross)) for sample in samples
    ]
    return largest_change(pairs)


def require_small(change: Change, allowed: float) -> None:
    if not change.relative <= allowed:
        raise VerificationFailed(
            f"codecs between the stages change output {change.output!r} by {_percent(change.relative)}, "
            f"{_percent(allowed)} are allowed",
            hint="allow less lossy codecs, or none",
        )


async def hold_to_answers(
    model: SourceModel, graph: Graph, problem: Problem, found: Plan, progress: Progress
) -> tuple[Plan, Problem]:
    """As `search_within_answers`, in a thread, with this machine's engine."""
    told: list[str] = []
    held = await asyncio.to_thread(search_within_answers, make_engine(), model, graph, problem, found, told.append)
    for line in told:
        progress(line)
    return held


def search_within_answers(
    engine: Engine, model: SourceModel, graph: Graph, problem: Problem, found: Plan, progress: Progress
) -> tuple[Plan, Problem]:
    """`found`, or where its codecs change answers more than `problem` allows, the best plan with codecs that do not.

    Of the kinds that lose, the worst of the plan is given up first. Returns with it the problem that it answers.
    Blocks; for a thread.
    """
    while loses(found):
        try:
            change = measure_change(engine, model, graph, found.stages)
            told = f"change the answer by {_percent(change.relative)}, {_percent(problem.answer_change)} are allowed"
            if change.relative <= problem.answer_change:
                used = dict.fromkeys(stage.codec for stage in found.stages[:-1])
                progress(f"codecs ({', '.join(used)}) {told}")
                return found, problem
            told = f"would {told}"
        except ModelInvalid as error:
            told = f"cannot be judged: {error.message}"
        loss = loss_of(_worst_codec(found))
        progress(f"planned again without {loss}: codecs {told}")
        problem = without(problem, loss)
        again = solve(problem)
        if isinstance(again, Infeasible):
            raise again.as_error()
        found = spare_codecs(again, problem)
    return found, problem


def _worst_codec(plan: Plan) -> str:
    return max((stage.codec for stage in plan.stages[:-1]), key=CODECS.index)


def without(problem: Problem, loss: str) -> Problem:
    """`problem` without the codecs that lose like this."""
    left = tuple(codec for codec in problem.space.codecs if loss_of(codec.name) != loss)
    allowed = tuple(codec for codec in problem.codecs if loss_of(codec) != loss)
    return replace(problem, space=replace(problem.space, codecs=left), codecs=allowed)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _there_and_back(value: Array, codec: str) -> Array:
    if value.dtype.kind != "f":
        return value
    coded = encode_tensor(from_array(value), loss_of(codec) or RAW)  # packing loses nothing
    return to_array(decode_tensor(coded)) if isinstance(coded, CodedTensor) else value
