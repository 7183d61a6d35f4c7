"""What is particular to an engine in a child process: its deaths, its limit, and whose memory answers are."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mesh.arrays import from_array, to_array
from mesh.core.tensor import DType, Tensor, TensorSpec
from mesh.engines.child_process import ChildEngine, ChildSession
from mesh.engines.contract import LoadOptions
from mesh.engines.fake import FakeModel, Operation
from mesh.errors import EngineDied, LoadFailed, RunFailed

ROOT = Path(__file__).parents[2]
OPTIONS = LoadOptions()
X = TensorSpec("x", DType.FLOAT32, ("n",))
Y = TensorSpec("y", DType.FLOAT32, ("n",))


def load_fake(model: FakeModel) -> ChildSession:
    return ChildEngine("fake").load(model.to_bytes(), OPTIONS)


def serialise(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())


def floats(*values: float) -> Tensor:
    return from_array(np.array(values, np.float32))


def filled() -> bytes:
    """Ones in as large a tensor as is asked for."""
    one = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0])
    return serialise(
        helper.make_graph(
            [helper.make_node("ConstantOfShape", ["shape"], ["y"], value=one)],
            "filled",
            [helper.make_tensor_value_info("shape", TensorProto.INT64, [1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        )
    )


def split_without_first_output() -> bytes:
    """Valid as ONNX sees it; ONNX Runtime 1.32 dies of it."""
    return serialise(
        helper.make_graph(
            [helper.make_node("Split", ["x"], ["", "y"], num_outputs=2)],
            "split",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        )
    )


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def wait_dead(pid: int, limit_s: float = 5.0) -> None:
    deadline = time.monotonic() + limit_s
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} still lives"
        time.sleep(0.005)


def test_a_native_crash_takes_the_child_only() -> None:
    model = split_without_first_output()
    with pytest.raises((EngineDied, LoadFailed), match=r"SIGSEGV|SIGABRT"):
        ChildEngine().load(model, OPTIONS).run([floats(1, 2, 3, 4)])


def test_a_crash_in_a_run_is_named_and_final() -> None:
    session = load_fake(FakeModel((X,), (Y,), crashes_at=13.0))
    assert bytes(session.run([floats(1)])[0].data) == bytes(floats(1).data)
    with pytest.raises(EngineDied, match="SIGABRT"):
        session.run([floats(13)])
    with pytest.raises(EngineDied):
        session.run([floats(1)])


def test_a_killed_child_is_noticed_in_the_middle_of_a_run() -> None:
    session = load_fake(FakeModel((X,), (Y,), hangs=True))
    threading.Timer(0.1, os.kill, (session.pid, signal.SIGKILL)).start()
    with pytest.raises(EngineDied, match="SIGKILL"):
        session.run([floats(1)])


def test_the_reason_of_a_failed_load_comes_from_the_child() -> None:
    with pytest.raises(LoadFailed, match="broken by design"):
        load_fake(FakeModel((X,), (Y,), load_failure="broken by design"))


def test_an_allocation_beyond_the_limit_fails_alone() -> None:
    session = ChildEngine(memory_limit_bytes=300 << 20).load(filled(), OPTIONS)
    few, many = (from_array(np.array([count], np.int64)) for count in (10, 200 << 20))
    for _ in range(2):
        with pytest.raises(RunFailed):
            session.run([many])  # 800 MiB
        assert to_array(session.run([few])[0]).tolist() == [1.0] * 10


def test_a_limit_below_what_loading_needs_is_a_failed_load() -> None:
    with pytest.raises(LoadFailed):
        ChildEngine(memory_limit_bytes=8 << 20).load(filled(), OPTIONS)


def test_close_ends_a_run_that_hears_nothing() -> None:
    product = serialise(
        helper.make_graph(
            [
                helper.make_node("Expand", ["x", "shape"], ["large"]),
                helper.make_node("MatMul", ["large", "large"], ["product"]),
                helper.make_node("ReduceMax", ["product"], ["y"], keepdims=0),
            ],
            "long operator",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1]),
                helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        )
    )
    session = ChildEngine().load(product, OPTIONS)
    one, shape = from_array(np.ones((1, 1), np.float32)), from_array(np.array([5000, 5000]))
    caught: list[Exception] = []

    def work() -> None:
        try:
            session.run([one, shape])
        except EngineDied as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.3)
    session.terminate()  # heard after the operator, if at all
    began = time.monotonic()
    session.close()
    thread.join(5)
    assert time.monotonic() - began < 1.0
    assert len(caught) == 1


def test_answers_stay_as_they_are_until_nobody_looks() -> None:
    session = load_fake(FakeModel((X,), (Y,), Operation.ADD))
    kept = [session.run([floats(i, i)])[0] for i in range(6)]
    for i in range(100):
        session.run([floats(i)])
    assert [to_array(answer).tolist() for answer in kept] == [[i + 1, i + 1] for i in range(6)]
    assert all(answer.data.readonly for answer in kept)
    assert len(session._held.regions) == 7, "six that are kept and one that went around"


def test_regions_grow_with_what_they_hold_and_small_ones_go() -> None:
    session = load_fake(FakeModel((X,), (Y,)))
    for size in (1, 10_000, 100_000, 1_000_000, 10):
        values = np.arange(size, dtype=np.float32)
        (answer,) = session.run([from_array(values)])
        assert np.array_equal(to_array(answer), values)
        del answer
    assert len(session._held.regions) == 1
    assert (session.input_copies, session.output_copies) == (5, 5)


def test_nothing_is_left_of_a_session() -> None:
    gc.collect()
    before = open_descriptors()
    session = load_fake(FakeModel((X,), (Y,)))
    answers = session.run([floats(1, 2)])
    pid = session.pid
    del session
    assert not Path(f"/proc/{pid}").exists()
    assert to_array(answers[0]).tolist() == [1, 2], "an answer outlives its engine"
    del answers
    assert not open_descriptors() - before, "earlier tests may let go of theirs meanwhile"


def test_the_kernel_takes_the_child_first() -> None:
    session = load_fake(FakeModel((X,), (Y,)))
    assert int(Path(f"/proc/{session.pid}/oom_score_adj").read_text()) == 800


def test_a_child_does_not_outlive_a_parent_that_is_killed_while_it_computes() -> None:
    program = (
        "from mesh.engines.child_process import ChildEngine\n"
        "from mesh.engines.contract import LoadOptions\n"
        "from mesh.core.tensor import DType, Tensor\n"
        "import sys\n"
        "session = ChildEngine('fake').load(sys.stdin.buffer.read(), LoadOptions())\n"
        "print(session.pid, flush=True)\n"
        "session.run([Tensor.from_bytes(DType.FLOAT32, (1,), bytes(4))])\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=-1, stdout=-1) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(FakeModel((X,), (Y,), hangs=True).to_bytes())
        parent.stdin.close()
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
        wait_dead(pid)
