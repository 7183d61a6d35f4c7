"""What the door lets in, in which form, and what it refuses with which error."""

from __future__ import annotations

import hashlib
import os
import random
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mesh.core.tensor import DType
from mesh.errors import ExternalDataRefused, MeshError, ModelError, ModelUnreadable, ModelUnsupported, NotFound
from mesh.model import external
from mesh.model.compare import generate_inputs, verify
from mesh.model.read import read_model, read_model_bytes
from mesh.model.summarise import summarise
from scripts.make_models import Builder, tensor
from tests.model.bad_models import BAD_MODELS, chain
from tests.model.odd_models import ODD_MODELS, make_old
from tests.model.running import check_split, inner_positions, load, run, segments_at

MAX_SECONDS = 4.0


@pytest.mark.parametrize("name", BAD_MODELS)
def test_bad_bytes_are_refused_by_their_error(name: str, tmp_path: Path) -> None:
    make, error, part = BAD_MODELS[name]
    data = make()
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    begun = time.monotonic()
    with pytest.raises(error) as from_bytes:
        read_model_bytes(data)
    with pytest.raises(MeshError):
        read_model(path)
    assert part in str(from_bytes.value)
    assert len(str(from_bytes.value)) < 1000
    assert time.monotonic() - begun < MAX_SECONDS


def test_paths_that_are_no_model_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_model(tmp_path / "missing.onnx")
    with pytest.raises(ModelUnreadable, match="folder"):
        read_model(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelUnreadable, match="regular"):
        read_model(tmp_path / "pipe")
    with pytest.raises(ModelUnreadable, match="regular"):
        read_model(Path("/dev/zero"))
    with pytest.raises(MeshError):
        read_model(tmp_path / "x\0y")
    with pytest.raises(MeshError):
        read_model(tmp_path / ("n" * 5000))


def test_sparse_file_over_two_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    path.touch()
    os.truncate(path, 3 << 30)
    with pytest.raises(ModelUnsupported, match="over 2 GB"):
        read_model(path)


def test_a_model_in_normal_form_keeps_its_bytes(tmp_path: Path) -> None:
    data = chain().SerializeToString()
    (tmp_path / "model.onnx").write_bytes(data)
    source = read_model(tmp_path / "model.onnx")
    assert source.data == data
    assert source.sha256 == hashlib.sha256(data).hexdigest()
    assert [str(spec) for spec in source.inputs] == ["x float32[1,4]"]


@pytest.mark.parametrize("name", ODD_MODELS)
def test_reading_is_idempotent(name: str) -> None:
    source = load(ODD_MODELS[name]())
    again = read_model_bytes(source.data)
    assert again.data == source.data
    assert again.sha256 == source.sha256


def test_initialisers_are_no_inputs_before_ir_4() -> None:
    source = load(make_old(7, 3))
    assert [spec.name for spec in source.inputs] == ["image"]
    assert source.proto.ir_version == 4


def test_nodes_are_named_and_sorted() -> None:
    model = chain()
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    for node in nodes:
        node.name = "same"
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    source = load(model)
    assert [node.op_type for node in source.proto.graph.node] == ["MatMul", "Add", "Relu"]
    names = [node.name for node in source.proto.graph.node]
    assert len(set(names)) == 3
    assert all(names)


def test_minus_one_means_any_size() -> None:
    model = chain()
    model.graph.input[0].CopyFrom(tensor("x", [-1, 4]))
    assert load(model).inputs[0].shape == ("?", 4)


def test_runtime_operators_pass() -> None:
    build = Builder()
    x = build.add("Gelu", build.linear("x", 4, 4), domain="com.microsoft")
    x = build.add("LayerNormalization", x, build.draw(4), build.draw(4))
    x = build.linear(x, 4, 4)
    opsets = [("", 13), ("com.microsoft", 1)]
    source = load(build.model("optimised", [tensor("x", [2, 4])], [tensor(x, [2, 4])], opsets=opsets))
    graph = summarise(source)
    assert len(inner_positions(graph)) >= 2, graph.notes
    # The segments are run only: ONNX's checker does not know the runtime's LayerNormalization before 17.
    segments = segments_at(graph, inner_positions(graph))
    verify(run, source, graph, segments, generate_inputs(source.inputs, 0)).require()


def test_reading_takes_time_in_proportion_to_the_model() -> None:
    def read_chain(length: int) -> float:
        build, x = Builder(), "x"
        for _ in range(length):
            x = build.add("Relu", x)
        model = build.model("long", [tensor("x", [1])], [tensor(x, [1])])
        begun = time.process_time()
        graph = summarise(load(model))
        assert len(graph.groups) == length
        return time.process_time() - begun

    short, long = min(read_chain(2_500) for _ in range(2)), read_chain(20_000)
    assert long < 32 * short, "8 times the nodes: linear is 8, quadratic 64"


# External data


def make_external(folder: Path, location: str = "weights.bin", **entries: str) -> Path:
    """A model in `folder` whose first weight is in `location`; the file itself is written by the test."""
    model = chain()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=value)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


WEIGHTS = np.arange(16, dtype=np.float32).tobytes()


def test_external_data_is_read_into_the_model(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "weights.bin").write_bytes(b"head" + WEIGHTS + b"tail")
    source = read_model(make_external(tmp_path, "deep/weights.bin", offset="4", length="64"))
    assert source.proto.graph.initializer[0].raw_data == WEIGHTS
    assert read_model_bytes(source.data).sha256 == source.sha256
    check_split(source, summarise(source), [])


def test_external_data_inside_bodies_is_read(tmp_path: Path) -> None:
    values = helper.make_tensor("v", TensorProto.FLOAT, [4, 4], WEIGHTS, raw=True)
    values.ClearField("raw_data")
    values.data_location = TensorProto.EXTERNAL
    values.external_data.add(key="location", value="w")
    made = [helper.make_node("Constant", [], ["k"], value=values), helper.make_node("MatMul", ["x", "k"], ["o"])]
    body = helper.make_graph(made, "b", [], [tensor("o", [1, 4])])
    build = Builder()
    chosen = build.add("If", build.store(True, np.bool_), then_branch=body, else_branch=body)
    model = build.model("if", [tensor("x", [1, 4])], [tensor(chosen, [1, 4])])
    (tmp_path / "w").write_bytes(WEIGHTS)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    source = read_model(tmp_path / "model.onnx")
    assert WEIGHTS in source.data


@pytest.mark.parametrize(
    "location", ["../weights.bin", "a/../../weights.bin", "/etc/hostname", "", "..", "C:\\weights", "a\\..\\b", "."]
)
def test_external_locations_outside_the_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHTS)
    (tmp_path / "models").mkdir()
    with pytest.raises(ExternalDataRefused, match="not inside"):
        read_model(make_external(tmp_path / "models", location))


def test_external_links_pipes_and_devices(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "models"
    outside.mkdir()
    folder.mkdir()
    (outside / "weights.bin").write_bytes(WEIGHTS)
    (folder / "symbolic").symlink_to(outside / "weights.bin")
    (folder / "folder").symlink_to(outside)
    (folder / "hard").hardlink_to(outside / "weights.bin")
    os.mkfifo(folder / "pipe")
    (folder / "inner").mkdir()
    for location, reason in (
        ("symbolic", "link"),
        ("folder/weights.bin", "link"),
        ("hard", "hard link"),
        ("pipe", "regular"),
        ("inner", "regular"),
        ("missing", "cannot be opened"),
    ):
        with pytest.raises(ExternalDataRefused, match=reason):
            read_model(make_external(folder, location))


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "-4"},
        {"offset": "1", "length": "64"},
        {"length": str(1 << 62)},
        {"length": "63"},
        {"offset": "9" * 30},
        {"offset": "four"},
        {"colour": "red"},
    ],
)
def test_external_extents_that_are_wrong(tmp_path: Path, entries: dict[str, str]) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHTS)
    with pytest.raises((ExternalDataRefused, ModelUnsupported)):
        read_model(make_external(tmp_path, **entries))


def test_external_key_given_twice(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHTS)
    path = make_external(tmp_path)
    model = onnx.ModelProto.FromString(path.read_bytes())
    model.graph.initializer[0].external_data.add(key="location", value="other.bin")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ExternalDataRefused, match="twice"):
        read_model(path)


def test_model_and_external_data_over_two_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHTS)
    path = make_external(tmp_path)
    monkeypatch.setattr(external, "MAX_MODEL_BYTES", path.stat().st_size + 63)
    with pytest.raises(ModelUnsupported, match="over 2 GB"):
        read_model(path)


def test_every_carried_element_type_passes() -> None:
    for dtype in DType:
        build = Builder()
        y = build.add("Identity", "x")
        values = [tensor("x", ["n"], dtype.value)], [tensor(y, ["n"], dtype.value)]
        assert load(build.model("identity", *values)).inputs[0].dtype is dtype


def test_errors_are_model_errors() -> None:
    assert all(issubclass(error, ModelError) for _, error, _ in BAD_MODELS.values())


def test_damaged_bytes_never_escape_the_error_tree() -> None:
    """Flipped, removed and inserted bytes: either a model that can be cut, or an error of ours."""
    rng = random.Random(11)
    seeds = [make().SerializeToString() for make in ODD_MODELS.values()]
    outcomes = {True: 0, False: 0}
    for _ in range(600):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 2, 4))):
            place = rng.randrange(len(data))
            if rng.random() < 0.6:
                data[place] ^= 1 << rng.randrange(8)
            elif rng.random() < 0.5:
                del data[place : place + rng.randrange(1, 9)]
            else:
                data[place:place] = data[rng.randrange(len(data)) :][: rng.randrange(1, 9)]
        try:
            summarise(read_model_bytes(bytes(data)))
            outcomes[True] += 1
        except ModelError:
            outcomes[False] += 1
    assert min(outcomes.values()) > 50, outcomes


def test_names_that_are_no_text_are_refused() -> None:
    data = chain().SerializeToString().replace(b"matmul_0", b"matm\xff\xfe_0")
    with pytest.raises(ModelUnreadable, match="UTF-8"):
        read_model_bytes(data)
