"""What the first engine cannot load, the second does, and the session says so. No runtime is needed for this."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mesh.core.tensor import DType, TensorSpec
from mesh.engines import child_process
from mesh.engines.child_process import ChildEngine
from mesh.engines.contract import LoadOptions
from mesh.engines.fake import FakeEngine, FakeModel, FakeSession
from mesh.engines.fallback import FallbackEngine
from mesh.errors import LoadFailed, MissingExtra

OPTIONS = LoadOptions(threads=3)
X = TensorSpec("x", DType.FLOAT32, ("n",))
Y = TensorSpec("y", DType.FLOAT32, ("n",))
MODEL = FakeModel((X,), (Y,)).to_bytes()


class Picky(FakeEngine):
    """Takes no model."""

    name = "picky"

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self._error = error or LoadFailed("it has an operator that is not known here")

    def load(self, model: bytes | Path, options: LoadOptions) -> FakeSession:
        raise self._error


def test_what_the_first_takes_it_computes() -> None:
    first, second = FakeEngine(), FakeEngine()
    session = FallbackEngine(first, second).load(MODEL, OPTIONS)
    assert (len(first.sessions), len(second.sessions), session.fallback) == (1, 0, "")


def test_what_it_refuses_the_second_computes_and_the_session_says_why() -> None:
    second = FakeEngine()
    engine = FallbackEngine(Picky(), second)
    session = engine.load(MODEL, OPTIONS)
    assert engine.name == "picky"
    assert second.sessions == [session]
    assert second.sessions[0].options == OPTIONS
    assert session.fallback == "fake computes it instead of picky: it has an operator that is not known here"


def test_what_neither_takes_has_the_seconds_reason() -> None:
    with pytest.raises(LoadFailed, match="not a model of the fake engine") as caught:
        FallbackEngine(Picky(), FakeEngine()).load(b"junk", OPTIONS)
    assert "operator that is not known" in str(caught.value.__cause__)


def test_an_engine_that_is_not_installed_is_no_reason_to_compute_elsewhere() -> None:
    second = FakeEngine()
    with pytest.raises(MissingExtra):
        FallbackEngine(Picky(MissingExtra("not installed")), second).load(MODEL, OPTIONS)
    assert second.sessions == []


def test_a_child_that_dies_of_a_model_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = child_process._start, []

    def start_and_kill_the_first() -> Any:
        begun = start()
        if not started:
            begun[0].kill()
        started.append(begun[0].pid)
        return begun

    monkeypatch.setattr(child_process, "_start", start_and_kill_the_first)
    engine = FallbackEngine(ChildEngine("openvino"), ChildEngine("fake"))
    session = engine.load(MODEL, OPTIONS)
    try:
        assert engine.is_remote
        assert len(started) == 2
        assert session.fallback.startswith("fake computes it instead of openvino: the engine's process ended")
        assert session.inputs == (X,)
    finally:
        session.close()
