"""A folder of variants to deploy: what its report may say, and which variant is the best on a mesh."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mesh.core.plan import Objective, Plan, PlanOptions, Prediction
from mesh.errors import Infeasible, UsageError
from nodes.variants import REPORT, choose_variant, list_variants
from tests.runtime.fake_models import chain, make_deployment

PLAN = make_deployment(chain(1), {"0" * 32: "127.0.0.1:1"}).plan  # type: ignore[dict-item]


def write_folder(folder: Path, **variants: bytes) -> Path:
    entries = [{"variant": name, "file": f"{name}.onnx"} for name in variants]
    (folder / REPORT).write_text(json.dumps({"offered": entries}))
    for name, data in variants.items():
        (folder / f"{name}.onnx").write_bytes(data)
    return folder


class Planner:
    """Predicts by the model's bytes."""

    def __init__(self, plans: dict[bytes, Plan]) -> None:
        self.plans = plans

    async def plan(self, data: bytes, options: PlanOptions, progress: Any) -> Plan:
        if data not in self.plans:
            raise Infeasible("it fits nowhere")
        return self.plans[data]


def predicted(throughput_per_s: float, latency_s: float) -> Plan:
    return replace(PLAN, predicted=Prediction(throughput_per_s, latency_s))


async def choose(folder: Path, monkeypatch: pytest.MonkeyPatch, objective: Objective, **plans: Plan) -> str:
    monkeypatch.setattr("nodes.variants.read_model_file", lambda path: path.read_bytes())
    planner = Planner({name.encode(): plan for name, plan in plans.items()})
    mesh: Any = SimpleNamespace(coordinator=planner)
    found = await choose_variant(mesh, list_variants(folder), lambda data: PlanOptions(objective), lambda line: None)
    assert found.data == found.variant.name.encode()
    return found.variant.name


async def test_the_variant_that_the_mesh_runs_best_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path, float=b"float", int8=b"int8", pruned=b"pruned")
    plans = {"float": predicted(10, 0.1), "int8": predicted(30, 0.3)}
    assert await choose(folder, monkeypatch, Objective.THROUGHPUT, **plans) == "int8"
    assert await choose(folder, monkeypatch, Objective.LATENCY, **plans) == "float"
    with pytest.raises(Infeasible, match="fits nowhere"):
        await choose(folder, monkeypatch, Objective.THROUGHPUT)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no report"),
        ("[]", "no report"),
        ("{}", "no report"),
        ('{"offered": []}', "offers 0 variants"),
        ('{"offered": [{"variant": "a"}]}', "no report"),
        ('{"offered": [{"variant": "a", "file": "../a.onnx"}]}', "no file of the folder"),
        ('{"offered": [{"variant": "a", "file": "/etc/passwd"}]}', "no file of the folder"),
        ('{"offered": [{"variant": "a", "file": 3}]}', "no file of the folder"),
        (" " * (1 << 21), "larger than"),
    ],
)
def test_reports_that_make_no_sense_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / REPORT).write_text(text)
    with pytest.raises(UsageError, match=said):
        list_variants(tmp_path)


def test_a_file_and_a_folder_without_a_report_have_no_variants(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"model")
    assert list_variants(tmp_path) == list_variants(tmp_path / "model.onnx") == list_variants(tmp_path / "none") == []
