"""Proof that segments in a row compute what the whole model does, on this machine's engine.

Used when a plan is deployed and by `mesh verify`. `mesh.model.compare` holds the rule; this lends it
an engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from mesh.arrays import Array, from_array, to_array
from mesh.core.graph import Graph
from mesh.core.plan import Segment
from mesh.engines.contract import Engine, LoadOptions, Session
from mesh.errors import MeshError, ModelInvalid, TensorMismatch
from mesh.model.compare import Comparison, RunFunction, generate_inputs, verify
from mesh.model.read import SourceModel

PROOF_SEED = 20_240_501
"""Any number will do; a fixed one makes a failed proof repeatable."""


LEAST_INTEGERS = (0, 1)
"""Integers are 0 and 1, which suits indices; a model that refuses them gets 1 throughout, which suits sizes."""


def run_model(engine: Engine, data: bytes, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
    """Load `data`, run it once on the feeds that it takes, and return the named outputs."""
    return _run(engine.load(data, LoadOptions()), feeds, outputs)


def remembering(engine: Engine) -> RunFunction:
    """As `run_model`, for whoever runs the same few models again and again: each is loaded once."""
    sessions: dict[bytes, Session] = {}

    def run(data: bytes, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        digest = hashlib.sha256(data).digest()
        if digest not in sessions:
            sessions[digest] = engine.load(data, LoadOptions())
        return _run(sessions[digest], feeds, outputs)

    return run


def _run(session: Session, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
    missing = [spec.name for spec in session.inputs if spec.name not in feeds]
    if missing:
        raise TensorMismatch(f"there are no values for the inputs {missing}")
    made = session.run([from_array(feeds[spec.name], spec.name, dtype=spec.dtype) for spec in session.inputs])
    by_name = {spec.name: to_array(tensor) for spec, tensor in zip(session.outputs, made, strict=True)}
    return {name: by_name[name] for name in outputs}


def prove(
    engine: Engine,
    model: SourceModel,
    graph: Graph,
    segments: Sequence[Segment],
    feeds: Mapping[str, Array] | None = None,
) -> Comparison:
    """Compare whole and chained segments on `feeds`, made up where None.

    Raises `ModelInvalid` where the whole model itself refuses made-up inputs: then the proof needs real ones.
    """

    def run(data: bytes, given: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        return run_model(engine, data, given, outputs)

    if feeds is None:
        (feeds,) = make_up_inputs(run, model)
    return verify(run, model, graph, segments, feeds)


def make_up_inputs(run: RunFunction, model: SourceModel, count: int = 1) -> list[dict[str, Array]]:
    """Inputs that the whole model takes; whatever is no number (sizes, indices) is drawn in more than one way.

    Raises `ModelInvalid` where it takes none of them.
    """
    for least_integer in LEAST_INTEGERS:
        inputs = [generate_inputs(model.inputs, PROOF_SEED + n, least_integer=least_integer) for n in range(count)]
        try:
            run(model.data, inputs[0], [spec.name for spec in model.outputs])
        except MeshError as error:
            reason = error
        else:
            return inputs
    raise ModelInvalid(
        f"the model does not run on made-up inputs: {reason}", hint="`mesh verify --input X.npz` takes real ones"
    )
