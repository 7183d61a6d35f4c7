"""What a test can ask of the fake engine beyond what every engine does."""

from __future__ import annotations

import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.core.tensor import DType, Tensor, TensorSpec
from mesh.engines.contract import LoadOptions
from mesh.engines.fake import MAX_MODEL_BYTES, FakeEngine, FakeModel, FakeSession, Operation
from mesh.errors import LoadFailed, RunFailed

X = TensorSpec("x", DType.INT32, ("n",))
Y = TensorSpec("y", DType.INT32, ("n",))
Z = TensorSpec("z", DType.INT32, ("n",))
BYTES_IN, BYTES_OUT = TensorSpec("b", DType.UINT8, ("n",)), TensorSpec("c", DType.UINT8, ("n",))


def load(model: FakeModel) -> FakeSession:
    return FakeEngine().load(model.to_bytes(), LoadOptions())


def integers(*values: int) -> Tensor:
    return Tensor.from_bytes(DType.INT32, (len(values),), struct.pack(f"<{len(values)}i", *values))


@settings(max_examples=30, deadline=None)
@given(
    st.builds(
        FakeModel,
        inputs=st.just((X, TensorSpec("any", DType.FLOAT16, None))),
        outputs=st.just((Y,)),
        operation=st.sampled_from(Operation),
        addend=st.floats(allow_nan=False),
        delay_seconds=st.floats(0, 1),
        hangs=st.booleans(),
        load_failure=st.text(),
        failing_runs=st.lists(st.integers(0, 9)).map(tuple),
    )
)
def test_model_becomes_itself_again(model: FakeModel) -> None:
    assert FakeModel.from_bytes(model.to_bytes()) == model


def test_sum_adds_all_inputs() -> None:
    session = load(FakeModel((X, Y), (Z,), Operation.SUM))
    (answer,) = session.run([integers(1, 2), integers(10, 20)])
    assert bytes(answer.data) == bytes(integers(11, 22).data)
    with pytest.raises(RunFailed, match="differ"):
        session.run([integers(1, 2), integers(1)])


def test_add_takes_its_addend() -> None:
    (answer,) = load(FakeModel((X,), (Y,), Operation.ADD, addend=5)).run([integers(1, 2)])
    assert bytes(answer.data) == bytes(integers(6, 7).data)


def test_overflow_is_a_failed_run() -> None:
    session = load(FakeModel((BYTES_IN,), (BYTES_OUT,), Operation.ADD))
    with pytest.raises(RunFailed, match="uint8"):
        session.run([Tensor.from_bytes(DType.UINT8, (1,), b"\xff")])


def test_runs_fail_where_the_model_says() -> None:
    session = load(FakeModel((X,), (Y,), failing_runs=(1,)))
    session.run([integers(1)])
    with pytest.raises(RunFailed, match="run 1"):
        session.run([integers(1)])
    session.run([integers(1)])
    assert session.runs == 3


def test_load_fails_where_the_model_says() -> None:
    with pytest.raises(LoadFailed, match="out of memory"):
        load(FakeModel((X,), (Y,), load_failure="out of memory"))


@pytest.mark.parametrize(
    "model",
    [
        FakeModel((X,), (Y, Z)),
        FakeModel((X,), (Y, Z), Operation.SUM),
        FakeModel((TensorSpec("h", DType.FLOAT16, ()),), (TensorSpec("i", DType.FLOAT16, ()),), Operation.ADD),
    ],
)
def test_models_that_make_no_sense_are_not_loaded(model: FakeModel) -> None:
    with pytest.raises(LoadFailed):
        load(model)


def test_large_files_are_not_parsed() -> None:
    with pytest.raises(LoadFailed, match="limit"):
        FakeModel.from_bytes(b" " * (MAX_MODEL_BYTES + 1))


def test_deeply_nested_text_is_not_loaded() -> None:
    with pytest.raises(LoadFailed):
        FakeModel.from_bytes(b"[" * 100_000)


def test_engine_remembers_its_sessions() -> None:
    engine = FakeEngine()
    options = LoadOptions(threads=3)
    sessions = [engine.load(FakeModel((X,), (Y,)).to_bytes(), options) for _ in range(2)]
    assert engine.sessions == sessions
    assert sessions[0].options is options


def test_a_delay_ends_early_when_terminated() -> None:
    session = load(FakeModel((X,), (Y,), delay_seconds=3600))
    caught: list[BaseException] = []

    def work() -> None:
        try:
            session.run([integers(1)])
        except RunFailed as error:
            caught.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert session.started.wait(10)
    session.terminate()
    thread.join(10)
    assert not thread.is_alive()
    assert len(caught) == 1
