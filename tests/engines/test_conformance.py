"""What every engine does alike. One row of `ENGINES` per implementation: a name and how to make its models."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from mesh.core.tensor import DType, Tensor, TensorSpec, pack_strings
from mesh.engines import ENGINES, make_engine
from mesh.engines.child_process import ChildEngine
from mesh.engines.contract import Engine, LoadOptions, Session
from mesh.engines.fake import FakeModel, Operation
from mesh.engines.fallback import FallbackEngine
from mesh.errors import LoadFailed, RunFailed, TensorMismatch, UsageError
from tests.engines.installed import require_openvino

OPTIONS = LoadOptions()
X = TensorSpec("x", DType.FLOAT32, ("n", 2))
Y = TensorSpec("y", DType.FLOAT32, ("n", 2))
WORDS_IN = TensorSpec("words", DType.STRING, (2,))
WORDS_OUT = TensorSpec("same", DType.STRING, (2,))


class FakeModels:
    """The models of the suite, for the fake engine."""

    def add_one(self) -> bytes:
        return FakeModel((X,), (Y,), Operation.ADD).to_bytes()

    def identity(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> bytes:
        return FakeModel(inputs, outputs).to_bytes()

    def endless(self) -> bytes:
        return FakeModel((X,), (Y,), hangs=True).to_bytes()


class OnnxModels:
    """The same models as ONNX."""

    def add_one(self) -> bytes:
        one = helper.make_tensor("one", TensorProto.FLOAT, (), [1.0])
        return _serialise([helper.make_node("Add", ["x", "one"], ["y"])], (X,), (Y,), [one])

    def identity(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> bytes:
        nodes = [
            helper.make_node("Identity", [before.name], [after.name])
            for before, after in zip(inputs, outputs, strict=True)
        ]
        return _serialise(nodes, inputs, outputs)

    def endless(self) -> bytes:
        """A loop of 2**62 turns: only `terminate` ends it."""
        body = helper.make_graph(
            [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["before", "before"], ["after"])],
            "body",
            [
                helper.make_tensor_value_info("turn", TensorProto.INT64, ()),
                helper.make_tensor_value_info("go", TensorProto.BOOL, ()),
                helper.make_tensor_value_info("before", TensorProto.FLOAT, None),
            ],
            [
                helper.make_tensor_value_info("go_on", TensorProto.BOOL, ()),
                helper.make_tensor_value_info("after", TensorProto.FLOAT, None),
            ],
        )
        turns = helper.make_tensor("turns", TensorProto.INT64, (), [1 << 62])
        loop = helper.make_node("Loop", ["turns", "", "x"], ["y"], body=body)
        return _serialise([loop], (X,), (Y,), [turns])


def _serialise(
    nodes: list[onnx.NodeProto],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    weights: list[TensorProto] | None = None,
) -> bytes:
    def info(spec: TensorSpec) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(spec.name, spec.dtype.value, spec.shape)

    graph = helper.make_graph(nodes, "g", [*map(info, inputs)], [*map(info, outputs)], weights or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


Models = FakeModels | OnnxModels
MODELS: dict[str, Callable[[], Models]] = {"fake": FakeModels, "onnxruntime": OnnxModels, "openvino": OnnxModels}


@pytest.fixture(params=sorted(ENGINES))
def engine_name(request: pytest.FixtureRequest) -> Any:
    if request.param == "openvino":
        require_openvino()
    return request.param


@pytest.fixture(params=["in-process", "child"])
def engine(request: pytest.FixtureRequest, engine_name: str) -> Engine:
    def make(name: str) -> Engine:
        return ChildEngine(name) if request.param == "child" else make_engine(name)

    return FallbackEngine(make(engine_name), make("onnxruntime")) if engine_name == "openvino" else make(engine_name)


@pytest.fixture
def models(engine_name: str) -> Models:
    return MODELS[engine_name]()


def floats(*values: float, shape: tuple[int, ...] | None = None) -> Tensor:
    return Tensor.from_bytes(
        DType.FLOAT32, shape or (len(values) // 2, 2), struct.pack(f"<{len(values)}f", *values), "x"
    )


def values_of(tensor: Tensor) -> list[float]:
    return list(struct.unpack(f"<{len(tensor.data) // 4}f", tensor.data))


def test_every_engine_has_models_here() -> None:
    assert sorted(MODELS) == sorted(ENGINES)


def test_engine_says_its_name(engine: Engine, engine_name: str) -> None:
    assert engine.name == engine_name


def test_unknown_engine_is_refused() -> None:
    with pytest.raises(UsageError, match="onnxruntime, openvino, fake"):
        make_engine("abacus")


def test_specs_are_those_of_the_model(engine: Engine, models: Models) -> None:
    session = engine.load(models.add_one(), OPTIONS)
    assert session.inputs == (X,)
    assert session.outputs == (Y,)


def test_computes_what_the_model_says(engine: Engine, models: Models) -> None:
    session = engine.load(models.add_one(), OPTIONS)
    (answer,) = session.run([floats(1, 2, 3, 4)])
    assert (answer.dtype, answer.shape) == (DType.FLOAT32, (2, 2))
    assert values_of(answer) == [2, 3, 4, 5]


def test_symbolic_dimensions_may_change_between_runs(engine: Engine, models: Models) -> None:
    session = engine.load(models.add_one(), OPTIONS)
    for rows in (1, 3, 2):
        (answer,) = session.run([floats(*range(2 * rows))])
        assert answer.shape == (rows, 2)


def test_empty_tensors_are_computed(engine: Engine, models: Models) -> None:
    (answer,) = engine.load(models.add_one(), OPTIONS).run([floats(shape=(0, 2))])
    assert answer.shape == (0, 2)
    assert len(answer.data) == 0


def test_answers_survive_later_runs_and_their_session(engine: Engine, models: Models) -> None:
    session = engine.load(models.add_one(), OPTIONS)
    answers = [session.run([floats(i, i)])[0] for i in range(50)]
    del session
    assert [values_of(answer) for answer in answers] == [[i + 1, i + 1] for i in range(50)]


def test_file_and_bytes_are_the_same_model(engine: Engine, models: Models, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(models.add_one())
    (answer,) = engine.load(path, OPTIONS).run([floats(1, 2)])
    assert values_of(answer) == [2, 3]


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype is not DType.STRING])
def test_every_element_type_passes_unchanged(engine: Engine, models: Models, dtype: DType) -> None:
    before, after = TensorSpec("a", dtype, (2, 3)), TensorSpec("b", dtype, (2, 3))
    session = engine.load(models.identity((before,), (after,)), OPTIONS)
    assert session.inputs == (before,)
    data = bytes([0, 1] * (3 * dtype.item_bytes))
    (answer,) = session.run([Tensor.from_bytes(dtype, (2, 3), data)])
    assert (answer.dtype, answer.shape, bytes(answer.data)) == (dtype, (2, 3), data)


def test_strings_pass_unchanged(engine: Engine, models: Models) -> None:
    session = engine.load(models.identity((WORDS_IN,), (WORDS_OUT,)), OPTIONS)
    data = pack_strings([b"", "grüße".encode()])
    (answer,) = session.run([Tensor.from_bytes(DType.STRING, (2,), data)])
    assert (answer.dtype, bytes(answer.data)) == (DType.STRING, data)


def test_several_tensors_keep_their_order(engine: Engine, models: Models) -> None:
    names = ("z", "a", "m")
    inputs = tuple(TensorSpec(name, DType.FLOAT32, (1, 2)) for name in names)
    outputs = tuple(TensorSpec(name + "_out", DType.FLOAT32, (1, 2)) for name in names)
    session = engine.load(models.identity(inputs, outputs), OPTIONS)
    answers = session.run([floats(i, i) for i in range(3)])
    assert [values_of(answer) for answer in answers] == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ([], "1 inputs, 0 tensors"),
        ([floats(1, 2), floats(1, 2)], "1 inputs, 2 tensors"),
        ([floats(1, 2, shape=(2,))], "'x': rank is 1"),
        ([floats(1, 2, 3, shape=(1, 3))], "'x': dimension 1 is 3"),
        ([Tensor.from_bytes(DType.INT32, (1, 2), bytes(8))], "'x': dtype is int32"),
        ([Tensor(DType.FLOAT32, (1, 2), memoryview(bytes(7)))], "'x': 7 bytes"),
    ],
)
def test_misfitting_feeds_are_named(engine: Engine, models: Models, feeds: list[Tensor], words: str) -> None:
    session = engine.load(models.add_one(), OPTIONS)
    with pytest.raises(TensorMismatch, match=words):
        session.run(feeds)
    assert values_of(session.run([floats(1, 2)])[0]) == [2, 3]


@pytest.mark.parametrize("junk", [b"", b"\x00" * 64, b"{}", b'{"fake": {"inputs": 3}}', bytes(range(256)) * 16])
def test_junk_is_not_loaded(engine: Engine, junk: bytes) -> None:
    with pytest.raises(LoadFailed):
        engine.load(junk, OPTIONS)


def test_cut_model_is_not_loaded(engine: Engine, models: Models) -> None:
    with pytest.raises(LoadFailed):
        engine.load(models.add_one()[:-7], OPTIONS)


def test_missing_file_is_not_loaded(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed):
        engine.load(tmp_path / "nothing.onnx", OPTIONS)


def run_and_terminate(session: Session, feeds: list[Tensor]) -> list[Exception]:
    """Run on a thread and ask for its end until it has ended: asking before it began must do no harm."""
    caught: list[Exception] = []

    def work() -> None:
        try:
            session.run(feeds)
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    for _ in range(1000):
        session.terminate()
        thread.join(0.01)
        if not thread.is_alive():
            break
    assert not thread.is_alive()
    return caught


def test_terminate_ends_a_run_that_would_not_end(engine: Engine, models: Models) -> None:
    session = engine.load(models.endless(), OPTIONS)
    for _ in range(2):
        (error,) = run_and_terminate(session, [floats(1, 2)])
        assert type(error) is RunFailed


def test_terminate_between_runs_does_nothing(engine: Engine, models: Models) -> None:
    session = engine.load(models.add_one(), OPTIONS)
    session.terminate()
    assert values_of(session.run([floats(1, 2)])[0]) == [2, 3]
    session.terminate()
    assert values_of(session.run([floats(1, 2)])[0]) == [2, 3]
