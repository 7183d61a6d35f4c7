"""The parts of scripts/bench_dataplane that measure nothing: targets, medians, turns, and models."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import onnx
import pytest

from mesh.model.read import read_model
from mesh.model.summarise import summarise
from mesh.planning.document import plan_from_json
from scripts.bench_figures import DEFAULT_TARGETS, Figures, Target, interleave

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """As the script finds it: beside make_models."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module("bench_models")


def test_the_first_target_that_matches_counts() -> None:
    said: list[str] = []
    targets = [Target.parse("2/slow/ratio>=1"), Target.parse("2/*/ratio >= 1.5"), Target.parse("*/ms<=2")]
    figures = Figures(targets, said.append)
    for ratio, ms in ((1.2, 1.0), (1.4, 3.0), (1.0, 1.5)):
        figures.add("2/slow", {"ratio": ratio, "ms": ms, "other": 0.0})
        figures.add("2/fast", {"ratio": ratio})
    found = {figure.name: figure for figure in figures.all()}
    assert {name: figure.holds for name, figure in found.items()} == {
        "2/slow/ratio": True,
        "2/slow/ms": True,
        "2/slow/other": None,
        "2/fast/ratio": False,
    }
    document = found["2/slow/ms"].document()
    assert (document["median"], document["low"], document["high"], document["rounds"]) == (1.5, 1.0, 3.0, 3)
    assert found["2/fast/ratio"].cells()[-2:] == (">= 1.5", "MISSED")
    assert len(said) == 6


def test_targets() -> None:
    assert all(Target.parse(text) for text in DEFAULT_TARGETS)
    with pytest.raises(ValueError, match="not of the form"):
        Target.parse("1/x=3")


def test_everything_takes_turns() -> None:
    order: list[str] = []

    def work(name: str) -> float:
        order.append(name)
        return float(len(order))

    samples = interleave(3, [("a", lambda: work("a")), ("b", lambda: work("b"))])
    assert "".join(order) == "abbaab"
    assert samples == [{"a": 1, "b": 2}, {"b": 3, "a": 4}, {"a": 5, "b": 6}]


@pytest.mark.parametrize(
    ("name", "size"), [("relay_64b", 64), ("relay_1mib", 1 << 20), ("carry_200kb", 200 << 10), ("carry_1mb", 1 << 20)]
)
def test_models_carry_what_they_say(models: ModuleType, tmp_path: Path, name: str, size: int) -> None:
    path = models.model_file(tmp_path, name)
    onnx.checker.check_model(path)
    file = models.write_plan(path, ["a" * 32, "b" * 32], tmp_path / "plan.json", size)
    plan = plan_from_json(json.loads(file.read_text()), summarise(read_model(path)))
    assert [stage.devices for stage in plan.stages] == [("a" * 32,), ("b" * 32,)]
    (crossing,) = models.cut_bytes(path, json.loads(file.read_text())["stages"])
    assert size <= crossing <= size + 8


def test_a_whole_model_on_one_device(models: ModuleType, tmp_path: Path) -> None:
    path = models.model_file(tmp_path, "carry_200kb")
    document = json.loads(models.write_plan(path, ["a" * 32], tmp_path / "plan.json").read_text())
    assert [(stage["start"], stage["end"]) for stage in document["stages"]] == [(0, 2)]
    assert models.cut_bytes(path, document["stages"]) == []
