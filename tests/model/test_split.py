"""Chained segments equal the whole model, for every kind of model, through ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest

from mesh.errors import UsageError
from mesh.model.compare import generate_inputs, run_chained, verify
from mesh.model.extract import extract, segment_between
from mesh.model.read import read_model
from mesh.model.summarise import summarise
from scripts import make_models
from tests.model.odd_models import ODD_MODELS
from tests.model.running import best_split, check_split, even_splits, inner_positions, load_graph, run, segments_at

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
LIGHT_MODELS = ("squeezenet", "shufflenet", "inception_v2", "resnet50")
"""Published networks with their weights computed from constants: grouped convolutions, concats, residuals."""

SMALL_MODELS = {
    "yolo": lambda: make_models.make_yolo(pixels=64, width=8),
    "unet": lambda: make_models.make_unet(pixels=32, width=4),
    "transformer": lambda: make_models.make_transformer(width=32, layers=2, tokens=8),
    "mobilenetv2": lambda: make_models.make_mobilenetv2(pixels=32),
    "squeezenet": lambda: make_models.make_squeezenet(pixels=64),
    "resnet18": lambda: make_models.make_resnet18(pixels=32),
    "vit_tiny": lambda: make_models.make_vit_tiny(pixels=32, width=48, layers=2),
    "if_bodies": make_models.make_if_bodies,
    "local_function": make_models.make_local_function,
}

SEGMENT_OVERHEAD_BYTES = 64 * 1024


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("name", SMALL_MODELS)
def test_balanced_split_equals_the_whole(name: str, stages: int) -> None:
    source, graph = load_graph(SMALL_MODELS[name]())
    inner, _ = best_split(graph, stages)
    assert len(inner) >= stages - 2, graph.notes
    check_split(source, graph, inner)
    size = sum(len(extract(source, graph, segment)) for segment in segments_at(graph, inner))
    assert size <= 1.02 * len(source.data) + SEGMENT_OVERHEAD_BYTES * stages


@pytest.mark.parametrize("name", LIGHT_MODELS)
def test_published_network_split_in_four_equals_the_whole(name: str) -> None:
    source = read_model(LIGHT / f"light_{name}.onnx")
    graph = summarise(source)
    inner, speedup = best_split(graph, 4)
    assert speedup > 3
    check_split(source, graph, inner)


@pytest.mark.parametrize("name", ODD_MODELS)
def test_every_legal_cut_of_an_odd_model(name: str) -> None:
    source, graph = load_graph(ODD_MODELS[name]())
    for position in inner_positions(graph):
        check_split(source, graph, [position])
    check_split(source, graph, inner_positions(graph))


@pytest.mark.parametrize("name", ["many_inputs", "shared_weight", "shape_arithmetic"])
def test_symbolic_batch_survives_the_cuts(name: str) -> None:
    source, graph = load_graph(ODD_MODELS[name]())
    check_split(source, graph, even_splits(graph, 3), batch=5)


def test_bodies_take_what_they_read_into_their_segment() -> None:
    source, graph = load_graph(make_models.make_if_bodies())
    for position in inner_positions(graph):
        check_split(source, graph, [position])


def test_whole_model_is_its_own_segment() -> None:
    source, graph = load_graph(ODD_MODELS["many_inputs"]())
    whole = segment_between(graph, 0, len(graph.groups))
    assert extract(source, graph, whole) == source.data
    assert whole.consumes == ("first", "second", "unread")
    assert whole.relays == ()


def test_extraction_is_deterministic_and_keeps_names() -> None:
    source, graph = load_graph(SMALL_MODELS["resnet18"]())
    segment = segments_at(graph, best_split(graph, 3)[0])[1]
    part = extract(source, graph, segment)
    assert part == extract(source, graph, segment)
    names = {node.name for node in onnx.ModelProto.FromString(part).graph.node}
    assert names < {node.name for node in source.proto.graph.node}
    notes = {entry.key: entry.value for entry in onnx.ModelProto.FromString(part).metadata_props}
    assert notes["infermesh.model"] == source.sha256
    assert notes["infermesh.segment"] == f"{segment.start}-{segment.end}"


def test_segment_carries_only_the_functions_it_calls() -> None:
    model = make_models.make_local_function()
    plain = onnx.helper.make_node("Relu", [model.graph.node[2].output[0]], ["plain"], name="plain")
    model.graph.node.insert(3, plain)
    model.graph.node[4].input[0] = "plain"
    source, graph = load_graph(model)
    position = next(group.index for group in graph.groups if group.kinds == ("Relu",))
    part = onnx.ModelProto.FromString(extract(source, graph, segment_between(graph, position, position + 1)))
    assert not part.functions
    part = onnx.ModelProto.FromString(extract(source, graph, segment_between(graph, 0, position)))
    assert {function.name for function in part.functions} == {"Block", "Swish"}


def test_positions_that_are_no_cut_are_refused() -> None:
    _, graph = load_graph(ODD_MODELS["sequence"]())
    illegal = sorted(set(range(len(graph.groups))) - {cut.position for cut in graph.cuts})
    assert illegal
    with pytest.raises(UsageError, match="not a legal cut"):
        segment_between(graph, 0, illegal[0])
    with pytest.raises(UsageError):
        segment_between(graph, len(graph.groups), 0)


def test_graph_of_another_model_is_refused() -> None:
    source, _ = load_graph(ODD_MODELS["loop"]())
    _, other = load_graph(ODD_MODELS["half"]())
    with pytest.raises(UsageError, match="of model"):
        extract(source, other, segment_between(other, 0, len(other.groups)))


def test_segments_that_leave_a_gap_are_refused() -> None:
    source, graph = load_graph(ODD_MODELS["many_inputs"]())
    first, *_, last = segments_at(graph, inner_positions(graph)[:2])
    with pytest.raises(UsageError, match="do not cover"):
        run_chained(run, source, graph, [first, last], generate_inputs(source.inputs, 0))


@pytest.mark.parametrize("name", ["resnet18", "transformer", "quantised"])
def test_models_that_the_runtime_optimised_can_be_cut(name: str, tmp_path: Path) -> None:
    """Fused operators are outside ONNX, so parts are run and not checked."""
    make = SMALL_MODELS.get(name) or ODD_MODELS["quantised_unsigned"]
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(make().SerializeToString(), options, providers=["CPUExecutionProvider"])
    source = read_model(tmp_path / "optimised.onnx")
    assert any(node.domain == "com.microsoft" for node in source.proto.graph.node)
    graph = summarise(source)
    positions = inner_positions(graph)
    assert len(positions) >= len(graph.groups) - 3, graph.notes
    inputs = generate_inputs(source.inputs, 0)
    for inner in (even_splits(graph, 2), even_splits(graph, 4), positions):
        verify(run, source, graph, segments_at(graph, inner), inputs).require()
