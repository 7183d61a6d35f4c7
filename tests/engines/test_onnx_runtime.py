"""What is particular to the engine on ONNX Runtime: no copies, its options, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mesh.arrays import from_array, to_array
from mesh.core.frame import Frame
from mesh.core.tensor import DType, Tensor, pack_strings
from mesh.engines.contract import LoadOptions
from mesh.engines.onnx_runtime import OnnxRuntimeEngine, OnnxRuntimeSession
from mesh.errors import LoadFailed, MissingExtra, RunFailed, TensorMismatch
from mesh.wire.frame_codec import FrameAssembler, encode_frame

ENGINE = OnnxRuntimeEngine()


def serialise(graph: onnx.GraphProto, opset: int = 17) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(model.SerializeToString())


def unary(operator: str, element: int = TensorProto.FLOAT, shape: Any = ("n",), opset: int = 17) -> bytes:
    return serialise(
        helper.make_graph(
            [helper.make_node(operator, ["x"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", element, shape)],
            [helper.make_tensor_value_info("y", element, shape)],
        ),
        opset,
    )


def load(model: bytes, options: LoadOptions | None = None) -> OnnxRuntimeSession:
    return ENGINE.load(model, options or LoadOptions())


def floats(data: bytes | memoryview) -> Tensor:
    return Tensor.from_bytes(DType.FLOAT32, (len(data) // 4,), data)


def test_aligned_feeds_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    session = load(unary("Neg"))
    data = np.arange(1024, dtype=np.float32).tobytes()
    address = np.frombuffer(data, np.uint8).ctypes.data
    seen: list[int] = []
    plain = onnxruntime.OrtValue.ortvalue_from_numpy

    def spy(array: Any) -> Any:
        value = plain(array)
        seen.append(value.data_ptr())
        return value

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", spy)
    session.run([floats(data)])
    assert seen == [address]
    assert session.input_copies == 0


def test_unaligned_feeds_are_copied_and_counted() -> None:
    session = load(unary("Neg"))
    data = np.arange(4, dtype=np.float32).tobytes()
    (answer,) = session.run([floats(memoryview(b"x" + data)[1:])])
    assert to_array(answer).tolist() == [0, -1, -2, -3]
    assert session.input_copies == 1


@pytest.mark.parametrize("trace", ["", "0", "00-0af7", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"])
def test_a_received_frame_is_computed_on_where_it_lies(trace: str) -> None:
    session = load(unary("Neg"))
    frame = Frame(7, 300, 1, 1, (floats(np.arange(999, dtype=np.float32).tobytes()),), traceparent=trace)
    (message,) = encode_frame(frame)
    (received,) = FrameAssembler(session.inputs).feed(message)
    (answer,) = session.run(received.tensors)
    assert to_array(answer)[:3].tolist() == [0, -1, -2]
    assert session.input_copies == 0


def test_answers_are_views_of_what_the_runtime_made(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: list[int] = []
    plain = onnxruntime.OrtValue.numpy

    def spy(value: Any) -> Any:
        addresses.append(value.data_ptr())
        return plain(value)

    monkeypatch.setattr(onnxruntime.OrtValue, "numpy", spy)
    session = load(unary("Neg"))
    session._bare = None  # as with a version that has no session below the public one
    (answer,) = session.run([floats(bytes(4096))])
    assert [np.frombuffer(answer.data, np.uint8).ctypes.data] == addresses


def test_answers_of_the_bare_session_are_views_too() -> None:
    session = load(unary("Neg"))
    bare = session._bare
    addresses: list[int] = []

    class Spy:
        def run_with_ort_values(self, *arguments: Any) -> Any:
            made = bare.run_with_ort_values(*arguments)
            addresses.append(made[0].data_ptr())
            return made

    session._bare = Spy()
    (answer,) = session.run([floats(bytes(4096))])
    assert [np.frombuffer(answer.data, np.uint8).ctypes.data] == addresses


def test_feeds_are_left_as_they_were() -> None:
    data = bytearray(np.arange(8, dtype=np.float32).tobytes())
    before = bytes(data)
    load(unary("Neg")).run([floats(memoryview(data))])
    assert data == before


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_threads_are_the_ones_asked_for(threads: int) -> None:
    session = load(unary("Neg"), LoadOptions(threads=threads))
    settings = session._session.get_session_options()
    assert settings.intra_op_num_threads == threads
    assert settings.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert settings.use_deterministic_compute


@pytest.mark.parametrize(
    "providers", [("NoSuchExecutionProvider",), ("NoSuchExecutionProvider", "CPUExecutionProvider"), ()]
)
def test_missing_providers_are_named(providers: tuple[str, ...]) -> None:
    with pytest.raises(LoadFailed, match="no execution provider") as caught:
        load(unary("Neg"), LoadOptions(providers=providers))
    assert "CPUExecutionProvider" in caught.value.hint


def test_unknown_operators_are_refused_with_the_runtimes_reason() -> None:
    with pytest.raises(LoadFailed, match="NoSuchOperator"):
        load(unary("NoSuchOperator"))


def test_reason_is_one_line_without_the_models_bytes() -> None:
    with pytest.raises(LoadFailed) as caught:
        load(b"\x00junk" * 100)
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith("ONNX Runtime cannot load the model: ")


def test_sequence_output_is_refused_by_name() -> None:
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["pieces"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2,))],
        [helper.make_tensor_sequence_value_info("pieces", TensorProto.FLOAT, None)],
    )
    with pytest.raises(LoadFailed, match="output 'pieces' is a seq"):
        load(serialise(graph))


def test_element_types_that_do_not_travel_are_refused_by_name() -> None:
    with pytest.raises(LoadFailed, match=r"input 'x' is a tensor\(float8e4m3fn\)"):
        load(unary("Identity", TensorProto.FLOAT8E4M3FN, opset=19))


def optional_model() -> bytes:
    """Its output is an optional that is always empty."""
    kind = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ("n",)))
    graph = helper.make_graph(
        [helper.make_node("Optional", [], ["maybe"], type=helper.make_tensor_type_proto(TensorProto.FLOAT, ("n",)))],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n",))],
        [helper.make_value_info("maybe", kind)],
    )
    return serialise(graph)


def test_optional_output_is_refused_by_name() -> None:
    with pytest.raises(LoadFailed, match="output 'maybe'"):
        load(optional_model())


def test_output_without_a_value_fails_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime.OrtValue, "has_value", lambda _: False)
    session = load(unary("Neg"))
    session._bare = None
    with pytest.raises(RunFailed, match="output 'y'"):
        session.run([floats(bytes(4))])


def test_failure_within_a_run_tells_why() -> None:
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n",)),
            helper.make_tensor_value_info("shape", TensorProto.INT64, (1,)),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("m",))],
    )
    session = load(serialise(graph))
    wrong = from_array(np.array([5], np.int64))
    with pytest.raises(RunFailed, match="Reshape") as caught:
        session.run([floats(bytes(12)), wrong])
    assert "\n" not in caught.value.message
    (answer,) = session.run([floats(bytes(12)), from_array(np.array([3], np.int64))])
    assert answer.shape == (3,)


def test_scalar_input_takes_a_scalar() -> None:
    session = load(unary("Neg", shape=()))
    (answer,) = session.run([from_array(np.array(3, np.float32))])
    assert answer.shape == ()
    assert to_array(answer) == -3
    assert session.inputs[0].shape is None  # the runtime does not tell a scalar from an unknown rank


def test_strings_and_numbers_mix() -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["s"], ["t"]), helper.make_node("Neg", ["x"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("s", TensorProto.STRING, ("n",)),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n",)),
        ],
        [
            helper.make_tensor_value_info("t", TensorProto.STRING, ("n",)),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n",)),
        ],
    )
    session = load(serialise(graph))
    words = Tensor.from_bytes(DType.STRING, (2,), pack_strings([b"a", b"bc"]))
    text, numbers = session.run([words, floats(np.array([1, 2], np.float32).tobytes())])
    assert to_array(text).tolist() == ["a", "bc"]
    assert to_array(numbers).tolist() == [-1, -2]
    not_utf8 = Tensor.from_bytes(DType.STRING, (1,), pack_strings([b"\xff"]))
    with pytest.raises(TensorMismatch, match=r"'s'.*UTF-8"):
        session.run([not_utf8, floats(bytes(4))])


def test_bfloat16_answers_keep_their_memory() -> None:
    session = load(unary("Identity", TensorProto.BFLOAT16, ("n",)))
    bits = np.arange(1000, dtype=np.uint16)
    answers = [session.run([from_array(bits + i, dtype=DType.BFLOAT16)])[0] for i in range(20)]
    del session
    for i, answer in enumerate(answers):
        assert answer.dtype is DType.BFLOAT16
        assert np.array_equal(to_array(answer), bits + i)
    (empty,) = load(unary("Identity", TensorProto.BFLOAT16)).run([from_array(bits[:0], dtype=DType.BFLOAT16)])
    assert empty.shape == (0,)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra) as caught:
        load(unary("Neg"))
    assert "infermesh[node]" in caught.value.hint


def test_importing_engines_imports_no_runtime() -> None:
    code = (
        "import sys, mesh.engines, mesh.engines.fake; mesh.engines.make_engine('fake')\n"
        "assert not {'numpy', 'onnxruntime'} & set(sys.modules), sorted(sys.modules)\n"
        "mesh.engines.make_engine()\n"
        "assert 'onnxruntime' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)
