"""What every pass of the table holds to, on every kind of model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from mesh.model.read import SourceModel, read_model_bytes
from mesh.optimize.contract import Material, Pass
from mesh.optimize.operators import quantised_count, weighted_operators
from mesh.optimize.quantiser import MeasuredRanges
from mesh.optimize.running import answers_of
from mesh.optimize.samples import Samples, read_samples
from mesh.optimize.table import PASSES, PREPARATION, VARIANTS
from tests.optimize.tiny_models import MODELS, conv_net, draw

SAMPLES = 12


def prepare(name: str) -> tuple[onnx.ModelProto, Samples, SourceModel]:
    source = read_model_bytes(MODELS[name]().SerializeToString())
    samples = read_samples(draw(source.proto, SAMPLES), source.inputs)
    prepared = PASSES[PREPARATION]().apply(source.proto, Material((), MeasuredRanges(())))
    return prepared, samples, source


def material(samples: Samples, *keep_float: str) -> Material:
    return Material(samples, MeasuredRanges(samples), frozenset(keep_float))


@pytest.mark.parametrize("name", PASSES)
def test_the_name_is_that_of_the_table(name: str) -> None:
    assert PASSES[name]().name == name


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", PASSES)
def test_what_is_accepted_is_done(name: str, model_name: str) -> None:
    prepared, samples, source = prepare(model_name)
    step: Pass = PASSES[name]()
    model = source.proto if name == PREPARATION else prepared
    if step.requires(model):
        assert name in VARIANTS
        return
    before = model.SerializeToString(deterministic=True)
    made = step.apply(model, material(samples))
    assert model.SerializeToString(deterministic=True) == before, "the model was changed"
    assert step.ensures(model, made) == ""
    door = read_model_bytes(made.SerializeToString())
    assert [spec.name for spec in door.inputs] == [spec.name for spec in source.inputs]
    assert [spec.name for spec in door.outputs] == [spec.name for spec in source.outputs]
    wanted = np.concatenate([each[0] for each in answers_of(source.data, samples, optimised=False)])
    found = np.concatenate([each[0] for each in answers_of(door.data, samples, optimised=True)])
    error = np.sqrt(np.mean((wanted - found) ** 2)) / np.sqrt(np.mean(wanted**2))
    assert error < (1e-5 if name == PREPARATION else 0.1)


@pytest.mark.parametrize(
    ("model_name", "accepted"),
    [
        ("conv", {"int8", "int8-safe", "fp16"}),
        ("conv-opset-7", {"int8", "int8-safe", "fp16"}),
        ("conv-opset-11", {"int8", "int8-safe", "fp16"}),
        ("conv-batch-1", {"int8", "int8-safe", "fp16"}),
        ("conv-open-sides", {"int8", "int8-safe", "fp16"}),
        ("products", {"int8", "int8-safe", "int8-dynamic", "fp16", "pruned", "pruned-int8"}),
        ("attention", {"int8-dynamic", "fp16"}),
        ("weightless", set()),
    ],
)
def test_each_model_gets_the_passes_that_serve_it(model_name: str, accepted: set[str]) -> None:
    prepared, _samples, _source = prepare(model_name)
    assert {name for name in VARIANTS if not PASSES[name]().requires(prepared)} == accepted


@pytest.mark.parametrize("name", PASSES)
def test_nothing_is_quantised_twice(name: str) -> None:
    prepared, samples, _source = prepare("conv")
    quantised = PASSES["int8"]().apply(prepared, material(samples))
    assert "already" in PASSES[name]().requires(quantised)


@pytest.mark.parametrize("name", [name for name in VARIANTS if "int8" in name and "pruned" not in name])
def test_operators_stay_in_float_where_asked(name: str) -> None:
    prepared, samples, _source = prepare("products")
    step = PASSES[name]()
    first, last = weighted_operators(prepared)
    made = step.apply(prepared, material(samples, first.name))
    assert quantised_count(made)
    assert [node.input[1] for node in weighted_operators(made)] == [first.input[1]]
    assert last.name not in [node.name for node in weighted_operators(made)]


def test_float16_halves_the_weights_and_keeps_the_ends() -> None:
    prepared, samples, source = prepare("products")
    made = PASSES["fp16"]().apply(prepared, material(samples))
    assert {each.data_type for each in made.graph.initializer} == {onnx.TensorProto.FLOAT16}
    door = read_model_bytes(made.SerializeToString())
    assert (door.inputs, door.outputs) == (source.inputs, source.outputs)
    first, _last = weighted_operators(prepared)
    mixed = PASSES["fp16"]().apply(prepared, material(samples, first.name))
    kinds = {each.name: each.data_type for each in mixed.graph.initializer}
    assert kinds[first.input[1]] == onnx.TensorProto.FLOAT


def test_seven_bit_weights_leave_a_bit_free() -> None:
    prepared, samples, _source = prepare("conv")
    largest = {}
    for name in ("int8", "int8-safe"):
        made = PASSES[name]().apply(prepared, material(samples))
        weights = [each for each in made.graph.initializer if each.data_type == onnx.TensorProto.INT8]
        largest[name] = max(int(np.abs(onnx.numpy_helper.to_array(each).astype(int)).max()) for each in weights)
    assert largest["int8"] > 120
    assert largest["int8-safe"] <= 64


@pytest.mark.parametrize("count", [7, 8, 16, 17])
def test_ranges_are_those_of_all_samples(count: int) -> None:
    model = read_model_bytes(conv_net().SerializeToString())
    arrays = draw(model.proto, 20)
    arrays["x"][2, 0, 0, 0], arrays["x"][5, 0, 0, 0] = 50.0, -60.0
    samples = read_samples(arrays, model.inputs)[:count]
    least, most = MeasuredRanges(samples).of(model.proto)["x"].range_value
    assert (float(np.min(least)), float(np.max(most))) == (-60.0, 50.0)
