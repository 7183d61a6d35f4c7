"""What the tests of models share: ONNX Runtime as a `RunFunction`, and splits at chosen places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime

from mesh.arrays import Array
from mesh.core.graph import Graph
from mesh.core.plan import Segment
from mesh.model.compare import Comparison, generate_inputs, verify
from mesh.model.extract import extract, segment_between
from mesh.model.read import SourceModel, read_model_bytes
from mesh.model.summarise import summarise

onnxruntime.set_default_logger_severity(3)


def run(data: bytes, feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    """Run a serialised model once on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    made = session.run(list(names), dict(feeds))
    return {name: np.asarray(value) for name, value in zip(names, made, strict=True)}


def load(model: onnx.ModelProto) -> SourceModel:
    return read_model_bytes(model.SerializeToString(deterministic=True))


def load_graph(model: onnx.ModelProto) -> tuple[SourceModel, Graph]:
    source = load(model)
    return source, summarise(source)


def segments_at(graph: Graph, inner: Sequence[int]) -> list[Segment]:
    """The segments of a split at inner positions."""
    positions = [0, *inner, len(graph.groups)]
    return [segment_between(graph, start, end) for start, end in pairwise(positions)]


def inner_positions(graph: Graph, max_tensors: int | None = None) -> list[int]:
    """Legal cuts between the ends, through at most `max_tensors`."""
    return [
        cut.position
        for cut in graph.cuts
        if 0 < cut.position < len(graph.groups) and (max_tensors is None or len(cut.tensors) <= max_tensors)
    ]


def best_split(graph: Graph, stages: int, max_tensors: int | None = None) -> tuple[list[int], float]:
    """The split into at most `stages` with the least work in its largest segment, and its speedup.

    An oracle by dynamic programming over all pairs of positions; quadratic, for tests only.
    """
    places = [0, *inner_positions(graph, max_tensors), len(graph.groups)]
    best: dict[int, tuple[int, list[int]]] = {0: (0, [])}
    for stage in range(stages):
        reached: dict[int, tuple[int, list[int]]] = {}
        for start, (largest, path) in best.items():
            for place in places:
                if place <= start or (stage == stages - 1 and place != places[-1]):
                    continue
                worst = max(largest, graph.segment_flops(start, place))
                if place not in reached or worst < reached[place][0]:
                    reached[place] = (worst, [*path, place])
        if places[-1] in best and (places[-1] not in reached or best[places[-1]][0] <= reached[places[-1]][0]):
            reached[places[-1]] = best[places[-1]]
        best = reached
    largest, path = best[places[-1]]
    return path[:-1], graph.flops / max(1, largest)


def even_splits(graph: Graph, stages: int) -> list[int]:
    """Inner positions nearest to equal numbers of groups."""
    inner = inner_positions(graph)
    wanted = [len(graph.groups) * index / stages for index in range(1, stages)]
    return sorted({min(inner, key=lambda position: abs(position - want)) for want in wanted}) if inner else []


def check_split(
    source: SourceModel, graph: Graph, inner: Sequence[int], *, batch: int = 1, seed: int = 0
) -> Comparison:
    """Assert that the parts of a split are valid models and that chained they equal the whole."""
    segments = segments_at(graph, inner)
    for segment in segments:
        part = extract(source, graph, segment)
        if part == source.data:
            continue  # the model itself; what the checker says of it is not ours
        proto = onnx.ModelProto.FromString(part)
        # ONNX's own shape inference, which the full check runs, does not know sparse initialisers.
        onnx.checker.check_model(part, full_check=not proto.graph.sparse_initializer)
        assert tuple(value.name for value in proto.graph.input) == segment.consumes
        assert tuple(value.name for value in proto.graph.output) == segment.produces
    comparison = verify(run, source, graph, segments, generate_inputs(source.inputs, seed, batch))
    comparison.require()
    return comparison
