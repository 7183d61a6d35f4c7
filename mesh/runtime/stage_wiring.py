"""Which tensors of a frame a stage's engine is fed, and which it sends on: names resolved once, at loading."""

from __future__ import annotations

from mesh.core.plan import Deployment
from mesh.errors import ModelInvalid
from mesh.runtime.engine_pool import EngineLease


def wire_tensors(
    deployment: Deployment, index: int, engine: EngineLease
) -> tuple[tuple[int, ...], tuple[tuple[bool, int], ...]]:
    """(positions of the entering tensors to feed, for each leaving tensor: is it an output, and which one).

    A leaving tensor that the engine does not make is relayed. Raises `ModelInvalid` for one that neither enters
    nor is made, and for an input that no edge carries.
    """
    entering = [spec.name for spec in deployment.boundaries[index]]
    made = [spec.name for spec in engine.outputs]
    missing = [spec.name for spec in engine.inputs if spec.name not in entering]
    if missing:
        raise ModelInvalid(f"stage {index} needs {missing}, which no edge carries to it")
    feeds = tuple(entering.index(spec.name) for spec in engine.inputs)
    leaving: list[tuple[bool, int]] = []
    for spec in deployment.boundaries[index + 1]:
        if spec.name in made:
            leaving.append((True, made.index(spec.name)))
        elif spec.name in entering:
            leaving.append((False, entering.index(spec.name)))
        else:
            raise ModelInvalid(f"stage {index} neither makes nor receives {spec.name!r}, which must leave it")
    return feeds, tuple(leaving)
