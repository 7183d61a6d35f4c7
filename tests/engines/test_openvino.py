"""What is particular to the engine on OpenVINO: its settings, what it leaves to ONNX Runtime, and equal answers."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mesh.arrays import from_array, to_array
from mesh.core.tensor import DType, Tensor
from mesh.engines import make_engine
from mesh.engines.child_process import ChildEngine
from mesh.engines.contract import LoadOptions
from mesh.engines.openvino import OpenVinoEngine, OpenVinoSession, _settings
from mesh.errors import LoadFailed, MissingExtra, RunFailed
from tests.engines.installed import require_openvino
from tests.engines.test_conformance import run_and_terminate

ENGINE = OpenVinoEngine()
SEED = 11


@pytest.fixture(autouse=True)
def installed() -> None:
    require_openvino()


def serialise(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[TensorProto] | None = None,
) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights or [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def unary(operator: str, source: int = TensorProto.FLOAT, target: int | None = None, **attributes: Any) -> bytes:
    return serialise(
        [helper.make_node(operator, ["x"], ["y"], **attributes)],
        [helper.make_tensor_value_info("x", source, ("n", 4))],
        [helper.make_tensor_value_info("y", target or source, ("n", 4))],
    )


def convolutions() -> bytes:
    """Two convolutions with a residual sum, and a dense layer over a batch that is open."""
    random = np.random.default_rng(SEED)

    def weight(name: str, *shape: int) -> TensorProto:
        return onnx.numpy_helper.from_array(random.standard_normal(shape).astype(np.float32) / 8, name)

    nodes = [
        helper.make_node("Conv", ["x", "a"], ["one"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["one"], ["two"]),
        helper.make_node("Conv", ["two", "b"], ["three"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["two", "three"], ["four"]),
        helper.make_node("GlobalAveragePool", ["four"], ["five"]),
        helper.make_node("Flatten", ["five"], ["six"]),
        helper.make_node("Gemm", ["six", "c"], ["y"]),
    ]
    weights = [weight("a", 16, 3, 3, 3), weight("b", 16, 16, 3, 3), weight("c", 16, 10)]
    return serialise(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, 12, 12))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 10))],
        weights,
    )


def load(model: bytes | Path, threads: int = 1) -> OpenVinoSession:
    return ENGINE.load(model, LoadOptions(threads=threads))


def images(count: int) -> Tensor:
    return from_array(np.random.default_rng(SEED).standard_normal((count, 3, 12, 12)).astype(np.float32))


def test_answers_are_those_of_onnx_runtime() -> None:
    ours, theirs = load(convolutions()), make_engine().load(convolutions(), LoadOptions())
    for count in (1, 5, 2):
        (answer,), (wanted,) = ours.run([images(count)]), theirs.run([images(count)])
        np.testing.assert_allclose(to_array(answer), to_array(wanted), rtol=1e-4, atol=1e-5)


def test_asks_for_float32_for_one_stream_and_for_no_binding_to_cores() -> None:
    asked = _settings(LoadOptions(threads=2))  # a processor without bfloat16 computes in float32 whatever is asked
    assert asked["INFERENCE_PRECISION_HINT"] == "f32"
    assert (asked["EXECUTION_MODE_HINT"], asked["DYNAMIC_QUANTIZATION_GROUP_SIZE"]) == ("ACCURACY", 0)
    assert asked["NUM_STREAMS"] == 1
    compiled = load(convolutions(), threads=2)._compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_the_ones_asked_for(threads: int) -> None:
    assert load(unary("Neg"), threads)._compiled.get_property("INFERENCE_NUM_THREADS") == threads


def test_unaligned_feeds_are_computed() -> None:
    data = memoryview(b"x" + np.arange(4, dtype=np.float32).tobytes())[1:]
    (answer,) = load(unary("Neg")).run([Tensor.from_bytes(DType.FLOAT32, (1, 4), data)])
    assert to_array(answer).tolist() == [[0, -1, -2, -3]]


def test_a_file_needs_no_suffix(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 64)
    path.write_bytes(unary("Neg"))
    (answer,) = load(path).run([from_array(np.ones((1, 4), np.float32))])
    assert to_array(answer).tolist() == [[-1] * 4]


@pytest.mark.parametrize("element", ["DOUBLE", "INT64", "UINT64", "UINT32", "INT16", "UINT16", "BFLOAT16", "STRING"])
def test_types_that_it_would_change_are_refused(element: str) -> None:
    with pytest.raises(LoadFailed, match=r"would change .* of 'x'"):
        load(unary("Identity", getattr(TensorProto, element)))


def test_doubles_inside_are_refused() -> None:
    model = serialise(
        [
            helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE),
            helper.make_node("Exp", ["wide"], ["power"]),
            helper.make_node("Cast", ["power"], ["y"], to=TensorProto.FLOAT),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n",))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n",))],
    )
    with pytest.raises(LoadFailed, match="in float32 instead of float64"):
        load(model)


def test_unknown_operators_are_refused_with_their_name() -> None:
    with pytest.raises(LoadFailed, match=r"OpenVINO cannot load the model: .*NoSuchOperator") as caught:
        load(unary("NoSuchOperator"))
    assert "\n" not in caught.value.message


def test_a_run_that_cannot_be_computed_fails_and_the_next_one_runs() -> None:
    model = serialise(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", "k")),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, ("l", 2)),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 2))],
    )
    session = load(model)
    ones = [from_array(np.ones(shape, np.float32)) for shape in ((1, 3), (3, 2), (4, 2))]
    with pytest.raises(RunFailed, match="OpenVINO"):
        session.run([ones[0], ones[2]])
    assert to_array(session.run([ones[0], ones[1]])[0]).tolist() == [[3, 3]]


def test_terminate_ends_a_run_between_operators() -> None:
    """The run would take seconds: 400 products of 2 GFLOP."""
    weight = onnx.numpy_helper.from_array(np.eye(1024, dtype=np.float32), "w")
    names = ["x", *(f"t{index}" for index in range(1, 400)), "y"]
    nodes = [helper.make_node("MatMul", [before, "w"], [after]) for before, after in pairwise(names)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1024, 1024)) for name in ("x", "y")]
    session = load(serialise(nodes, ends[:1], ends[1:], [weight]))
    feeds = [from_array(np.ones((1024, 1024), np.float32))]
    (error,) = run_and_terminate(session, feeds)
    assert type(error) is RunFailed


def test_a_child_computes_under_a_limit_of_memory() -> None:
    session = ChildEngine("openvino", 1 << 30).load(convolutions(), LoadOptions(threads=2))
    try:
        (answer,) = session.run([images(3)])
        assert answer.shape == (3, 10)
    finally:
        session.close()


def test_nothing_is_imported_early_and_the_reporter_never() -> None:
    program = (
        "import sys\n"
        "from mesh.engines import make_engine\n"
        "from mesh.engines.contract import LoadOptions\n"
        "engine = make_engine('openvino')\n"
        "assert 'openvino' not in sys.modules\n"
        "try:\n    engine.load(b'', LoadOptions())\nexcept Exception as error:\n    print(type(error).__name__)\n"
        "assert 'openvino' in sys.modules\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry.')], 'it would report'\n"
        "assert sys.modules['openvino_telemetry'] is None\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "LoadFailed\n", "")


def test_an_environment_without_it_is_told_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtra, match=r"infermesh\[openvino\]"):
        load(unary("Neg"))
