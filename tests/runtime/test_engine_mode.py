"""Where engines run when nobody says it, and what is refused."""

from __future__ import annotations

import importlib.util

import pytest

from mesh.engines.child_process import ChildEngine
from mesh.errors import MissingExtra, UsageError
from mesh.runtime.engine_mode import (
    MIN_PROCESS_MEMORY_BYTES,
    EngineMode,
    choose_engine_mode,
    make_child_engine,
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
    assert isinstance(make_child_engine("onnxruntime", 1 << 30), ChildEngine)
    with pytest.raises(UsageError, match="unknown engine 'abacus'"):
        make_child_engine("abacus", 1 << 30)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="NumPy is not installed"):
        make_child_engine("onnxruntime", 1 << 30)
