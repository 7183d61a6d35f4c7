"""Where engines run when nobody says it, and what is refused."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest

from mesh.engines import describe_runtime
from mesh.engines.child_process import ChildEngine
from mesh.engines.fallback import FallbackEngine
from mesh.errors import MissingExtra, UsageError
from mesh.runtime.engine_mode import (
    MIN_PROCESS_MEMORY_BYTES,
    EngineMode,
    choose_engine,
    choose_engine_mode,
    make_node_engine,
    parse_engine_mode,
)


@pytest.mark.parametrize(
    ("asked", "available_bytes", "chosen"),
    [
        (None, MIN_PROCESS_MEMORY_BYTES, EngineMode.PROCESS),
        (None, MIN_PROCESS_MEMORY_BYTES - 1, EngineMode.THREAD),
        (EngineMode.PROCESS, 1, EngineMode.PROCESS),
        (EngineMode.THREAD, 1 << 40, EngineMode.THREAD),
    ],
)
def test_mode_follows_memory_unless_asked(asked: EngineMode | None, available_bytes: int, chosen: EngineMode) -> None:
    assert choose_engine_mode(asked, available_bytes) is chosen


def test_words_are_the_values() -> None:
    assert [parse_engine_mode(mode.value) for mode in EngineMode] == list(EngineMode)
    with pytest.raises(UsageError, match=r"unknown engine mode 'fibre'.*process, thread"):
        parse_engine_mode("fibre")


def test_an_engine_for_children_is_checked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_node_engine("onnxruntime", EngineMode.PROCESS, 1 << 30), ChildEngine)
    with pytest.raises(UsageError, match="unknown engine 'abacus'"):
        make_node_engine("abacus", EngineMode.PROCESS, 1 << 30)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="NumPy is not installed"):
        make_node_engine("onnxruntime", EngineMode.PROCESS, 1 << 30)


def without_openvino(name: str) -> object | None:
    return None if name == "openvino" else object()


def test_an_engine_that_is_not_installed_is_refused_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", without_openvino)
    assert [choose_engine("onnxruntime"), choose_engine("auto")] == ["onnxruntime", "onnxruntime"]
    with pytest.raises(MissingExtra, match=r"OpenVINO is not installed.*infermesh\[openvino\]"):
        choose_engine("openvino")
    with pytest.raises(MissingExtra):
        make_node_engine("openvino", EngineMode.THREAD, 1 << 30)


def test_auto_is_openvino_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert [choose_engine("onnxruntime"), choose_engine("auto")] == ["onnxruntime", "openvino"]


@pytest.mark.parametrize("asked", ["fake", "abacus", ""])
def test_unknown_engines_are_refused(asked: str) -> None:
    with pytest.raises(UsageError, match=r"unknown engine.*onnxruntime, openvino, auto"):
        choose_engine(asked)


@pytest.mark.parametrize("mode", list(EngineMode))
def test_onnx_runtime_stands_behind_openvino(mode: EngineMode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    engine = make_node_engine("openvino", mode, 1 << 30)
    assert isinstance(engine, FallbackEngine)
    assert (engine.name, engine.is_remote) == ("openvino", mode is EngineMode.PROCESS)


def test_what_openvino_measured_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "2026.1")
    probed = ["", "1.24.0", "1.25.0"]  # costs may be asked for while the hardware is still probed
    told = [describe_runtime(engine, version) for engine in ("onnxruntime", "openvino") for version in probed]
    assert told[:3] == probed
    assert len(set(told)) == 6
