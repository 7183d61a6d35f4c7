"""Holds the mesh to the cases: each runs whole through a daemon, and cut wherever a cut is legal.

A case counts where plain ONNX Runtime passes it here. The mesh may refuse one only by name, and only for an
input or output that no frame carries. `check` is called from several threads; nothing is shared but the mesh.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import onnx

from mesh.core.graph import Graph
from mesh.core.tensor import DType
from mesh.errors import MeshError, ModelUnsupported
from mesh.model.read import SourceModel, read_model_bytes
from mesh.model.summarise import summarise
from tests.conformance import reference
from tests.conformance.loopback_backend import LoopbackMesh
from tests.conformance.onnx_cases import Case, DataSet

MAX_CUTS = 3
"""Positions tried per case: the first, one in the middle and the last."""

WORKERS = 4
"""Cases under way at once: most of a case is waiting for a daemon."""


@dataclass
class Outcome:
    case: Case
    verdict: str
    """"passed", "refused", "reference fails" or "failed"."""
    reason: str = ""
    cuts: int = 0
    """Positions at which the case ran cut, and passed."""


@dataclass
class Tally:
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.verdict == "failed"]

    @property
    def cut(self) -> int:
        return sum(1 for outcome in self.outcomes if outcome.verdict == "passed" and outcome.cuts)

    def __str__(self) -> str:
        counts = Counter(outcome.verdict for outcome in self.outcomes)
        return (
            f"whole {counts['passed']} passed, cut {self.cut} passed, refused-by-name {counts['refused']}, "
            f"ONNX Runtime itself fails {counts['reference fails']}, {counts['failed']} failed"
        )


def check_all(mesh: LoopbackMesh, cases: Iterable[Case], tell: Callable[[Outcome], None]) -> Tally:
    """Check `cases`, several at a time; `tell` hears of each as it ends, in their order."""
    tally = Tally()
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="worker") as pool:
        for outcome in pool.map(lambda case: check(mesh, case), cases):
            tally.outcomes.append(outcome)
            tell(outcome)
    return tally


def check(mesh: LoopbackMesh, case: Case) -> Outcome:
    data, sets = case.load()
    try:
        session = reference.load(data)
    except Exception as error:  # whatever it is: this case says nothing about the mesh
        return Outcome(case, "reference fails", f"loading: {_first_line(error)}")
    try:
        model = read_model_bytes(data)
    except ModelUnsupported as error:
        if any(f"{name!r}" in str(error) for name in _uncarried(onnx.ModelProto.FromString(data))):
            return Outcome(case, "refused", str(error))
        refusal: MeshError | None = error
    except MeshError as error:
        refusal = error
    else:
        refusal = None
    for each in sets:
        try:
            reason = case.compare(each.outputs, reference.run(session, each.inputs))
        except Exception as error:  # as above
            reason = _first_line(error)
        if reason:
            return Outcome(case, "reference fails", reason)
    if refusal is not None:
        return Outcome(case, "failed", f"refused: {type(refusal).__name__}: {refusal}")
    return _check_on_mesh(mesh, case, model, sets)


def _check_on_mesh(mesh: LoopbackMesh, case: Case, model: SourceModel, sets: list[DataSet]) -> Outcome:
    graph = summarise(model)
    cuts = _choose_cuts(graph)
    for positions in [(), *((cut,) for cut in cuts)]:
        reason = _run(mesh, case, model, graph, positions, sets)
        if reason:
            where = f"cut at {positions[0]} of {len(graph.groups)}" if positions else "whole"
            return Outcome(case, "failed", f"{where}: {reason}")
    return Outcome(case, "passed", cuts=len(cuts))


def _run(
    mesh: LoopbackMesh, case: Case, model: SourceModel, graph: Graph, cuts: tuple[int, ...], sets: list[DataSet]
) -> str:
    """Why the case does not pass; empty if it does."""
    try:
        with mesh.prepare(model, graph, cuts, sets[0].inputs) as prepared:
            for each in sets:
                reason = case.compare(each.outputs, prepared.run(each.inputs))
                if reason:
                    return reason
    except Exception as error:  # a failure of the mesh, or of this test: either is to be seen
        return f"{type(error).__name__}: {_first_line(error)}"
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def _choose_cuts(graph: Graph) -> list[int]:
    inner = [cut.position for cut in graph.cuts if 0 < cut.position < len(graph.groups)]
    if len(inner) <= MAX_CUTS:
        return inner
    return [inner[0], inner[len(inner) // 2], inner[-1]]


def _uncarried(model: onnx.ModelProto) -> list[str]:
    """Inputs and outputs that no frame carries: no dense tensors, or of an element type that does not travel."""
    carried = {dtype.value for dtype in DType}
    return [
        value.name
        for value in (*model.graph.input, *model.graph.output)
        if value.type.WhichOneof("value") != "tensor_type" or value.type.tensor_type.elem_type not in carried
    ]
