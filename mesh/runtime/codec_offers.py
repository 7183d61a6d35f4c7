"""The codecs that a planner may choose for a model on given nodes, with what they make of every cut and what they cost.

Bytes are measured: the model runs once on made-up inputs, and what crosses each cut is coded. Time is what the nodes
measured of themselves, one figure per device type, because equal devices keep the planner exact. Called by whoever
plans; needs NumPy and an engine.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterable, Mapping, Sequence

from mesh.arrays import Array, from_array
from mesh.codecs import encode_tensor, spoken_codecs
from mesh.core.coding import CODECS, FLOAT16, INT8, RAW, is_lossy, loss_of
from mesh.core.costs import DeviceType, type_of
from mesh.core.fleet import Capabilities
from mesh.core.graph import Cut, Graph
from mesh.core.ids import NodeId
from mesh.core.plan import Plan
from mesh.core.tensor import DType
from mesh.engines import make_engine
from mesh.engines.contract import Engine
from mesh.errors import MeshError
from mesh.model.read import SourceModel
from mesh.model.tap import tap
from mesh.planning.space import Codec
from mesh.runtime.coordinator import Progress
from mesh.runtime.proving import make_up_inputs, remembering

MAX_TAPPED_BYTES = 512 << 20
"""Of all tensors that cross any cut, which are in memory at once; a larger model's bytes are estimated."""

NOMINAL_FACTORS = {FLOAT16: 0.5, INT8: 0.25}
"""Of float32 where nothing was measured; Zstandard is taken to gain nothing then."""


Speeds = tuple[Mapping[NodeId, float], Mapping[NodeId, float]]
"""Seconds per byte of tensors for writing and for reading, of the devices that speak a codec."""


async def find_codecs(
    nodes: Iterable[Capabilities],
    model: SourceModel,
    graph: Graph,
    allowed: Iterable[str],
    progress: Progress,
    *,
    needed: Iterable[str] = (),
) -> tuple[Codec, ...]:
    """Those of `allowed` that two nodes speak and that save something somewhere, and all that are `needed`."""
    devices = {can.node_id: can for can in nodes}
    speeds = {codec: _speeds(codec, devices) for codec in {*allowed, *needed} - {RAW}}
    return await price_codecs(model, graph, speeds, progress, needed=needed)


async def price_codecs(
    model: SourceModel,
    graph: Graph,
    speeds: Mapping[str, Speeds],
    progress: Progress,
    *,
    needed: Iterable[str] = (),
) -> tuple[Codec, ...]:
    """The codecs of `speeds` that two devices speak and that save something, and all that are `needed`."""
    needed = {codec for codec in needed if codec != RAW}
    names = [codec for codec in CODECS if codec in speeds and (len(speeds[codec][0]) > 1 or codec in needed)]
    inner = [cut for cut in graph.cuts[1:-1] if cut.bytes]
    if not names or not inner:
        return ()
    told: list[str] = []
    factors = await asyncio.to_thread(_measure_factors, make_engine(), model, graph, inner, names, told.append)
    for line in told:
        progress(line)
    codecs = []
    for codec in names:
        writing, reading = speeds[codec]
        worth = {p: factor for p, factor in factors[codec].items() if factor < 1 or codec in needed}
        codecs.append(Codec(codec, max(worth.values(), default=1.0), writing, worth, reading))
    return tuple(codec for codec in codecs if codec.factors)


def codecs_of(plan: Plan | None) -> tuple[str, ...]:
    return () if plan is None else tuple(stage.codec for stage in plan.stages[:-1])


def _speeds(codec: str, devices: Mapping[NodeId, Capabilities]) -> Speeds:
    """The same for devices of one type, whose own figures differ by what measuring adds."""
    told = {node: speed for node, can in devices.items() for speed in can.codecs if speed.name == codec}
    by_type: dict[DeviceType, list[NodeId]] = {}
    for node in told:
        by_type.setdefault(type_of(devices[node]), []).append(node)
    writing, reading = dict[NodeId, float](), dict[NodeId, float]()
    for members in by_type.values():
        encoding = statistics.median(told[node].encode_byte_seconds for node in members)
        decoding = statistics.median(told[node].decode_byte_seconds for node in members)
        writing.update(dict.fromkeys(members, encoding))
        reading.update(dict.fromkeys(members, decoding))
    return writing, reading


def _measure_factors(
    engine: Engine, model: SourceModel, graph: Graph, cuts: Sequence[Cut], codecs: Sequence[str], progress: Progress
) -> dict[str, dict[int, float]]:
    """Bytes on the wire over bytes of the tensors, for each codec and cut."""
    names = dict.fromkeys(name for cut in cuts for name in cut.tensors)
    try:
        values = _run_tapped(engine, model, graph, list(names))
    except MeshError as error:
        progress(f"what codecs save is estimated: {error.message}")
        values = {}
    speaks = spoken_codecs()
    found = {}
    for codec in codecs:
        sizes = {
            name: _sizes(graph, name, values.get(name), codec if codec in speaks else loss_of(codec)) for name in names
        }
        found[codec] = {
            cut.position: sum(sizes[name][1] for name in cut.tensors)
            / max(1, sum(sizes[name][0] for name in cut.tensors))
            for cut in cuts
        }
    return found


def _run_tapped(engine: Engine, model: SourceModel, graph: Graph, names: Sequence[str]) -> dict[str, Array]:
    if sum(graph.specs[name].nominal_bytes() or 0 for name in names) > MAX_TAPPED_BYTES:
        return {}
    run = remembering(engine)
    (inputs,) = make_up_inputs(run, model)
    made = [name for name in names if name not in inputs]
    return {**inputs, **run(tap(model, made), inputs, made)}


def _sizes(graph: Graph, name: str, value: Array | None, codec: str) -> tuple[int, float]:
    """Bytes of a tensor, and of what `codec` makes of it; nominal where it is not known."""
    spec = graph.specs[name]
    if value is None or spec.dtype is DType.STRING:
        nbytes = spec.nominal_bytes() or 0
        lossy = is_lossy(codec) and spec.dtype is DType.FLOAT32
        return nbytes, nbytes * NOMINAL_FACTORS[loss_of(codec)] if lossy else nbytes
    tensor = from_array(value, name)
    return len(tensor.data), len(encode_tensor(tensor, codec or RAW).data)
