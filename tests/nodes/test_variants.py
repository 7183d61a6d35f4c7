"""A folder of variants to deploy: what its report may say, and which variant is the best on a mesh."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mesh.core.ids import NodeId
from mesh.core.plan import Objective, Plan, PlanOptions, Prediction
from mesh.errors import Infeasible, UsageError
from mesh.optimize.admission import Admission
from nodes.variants import REPORT, ChosenVariant, Variant, rank_variants, read_folder
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


def variants_of(folder: Path) -> tuple[Variant, ...]:
    found = read_folder(folder)
    assert found is not None
    return found.variants


async def rank(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: Objective,
    admissions: Sequence[Admission] = (),
    **plans: Plan,
) -> list[ChosenVariant]:
    monkeypatch.setattr("nodes.variants.read_model_file", lambda path: path.read_bytes())
    planner = Planner({name.encode(): plan for name, plan in plans.items()})
    mesh: Any = SimpleNamespace(coordinator=planner)
    found = await rank_variants(
        mesh, variants_of(folder), lambda data: PlanOptions(objective, measure=True), lambda line: None, admissions
    )
    assert all(each.size_bytes == len(each.variant.name) for each in found)
    assert not any(each.options.measure for each in found), "what was measured just now is measured again"
    assert all(each.options.variant == each.variant.name for each in found)
    return found


async def choose(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    objective: Objective,
    admissions: Sequence[Admission] = (),
    **plans: Plan,
) -> str:
    return (await rank(folder, monkeypatch, objective, admissions, **plans))[0].variant.name


async def test_the_variant_that_the_mesh_runs_best_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path, float=b"float", int8=b"int8", pruned=b"pruned")
    plans = {"float": predicted(10, 0.1), "int8": predicted(30, 0.3)}
    assert await choose(folder, monkeypatch, Objective.THROUGHPUT, **plans) == "int8"
    assert await choose(folder, monkeypatch, Objective.LATENCY, **plans) == "float"
    with pytest.raises(Infeasible, match="fits nowhere"):
        await choose(folder, monkeypatch, Objective.THROUGHPUT)


A, B = NodeId("0" * 32), NodeId("1" * 32)


def admitted(variant: str, device: NodeId, speed_up: float = 1.0) -> Admission:
    return Admission(variant, device, accuracy=0.9, sqnr_db=30, p50_ms=1, p95_ms=1, speed_up=speed_up)


async def test_a_variant_is_planned_on_devices_that_admit_it_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path, float=b"float", int8=b"int8", safe=b"safe", pruned=b"pruned")
    asked = [admitted(name, device) for name in ("float", "safe") for device in (A, B)]
    asked += [admitted("int8", A), Admission("int8", B, "it overflows")]
    asked += [Admission("pruned", A, "bad"), Admission("pruned", B, "bad")]
    plans = {
        name: predicted(speed, 1 / speed) for name, speed in {"float": 1, "int8": 2, "safe": 3, "pruned": 9}.items()
    }
    found = {each.variant.name: each for each in await rank(folder, monkeypatch, Objective.MEMORY, asked, **plans)}
    assert set(found) == {"float", "int8", "safe"}, "nobody admits the pruned one"
    assert found["int8"].options.limits.only == (A,)
    assert found["safe"].options.limits.only == (A, B), "a device that joins later was not asked"
    assert found["float"].options.limits.only == ()


async def test_on_one_device_times_that_were_taken_in_turns_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path, float=b"float", int8=b"int8")
    plans = {"float": predicted(10, 0.1), "int8": predicted(11, 0.09)}
    asked = [admitted("float", A), admitted("int8", A, speed_up=0.9)]
    assert await choose(folder, monkeypatch, Objective.THROUGHPUT, asked, **plans) == "float"
    assert await choose(folder, monkeypatch, Objective.THROUGHPUT, [], **plans) == "int8"
    asked = [admitted("float", A), admitted("int8", A, speed_up=1.1)]
    plans["int8"] = predicted(9, 0.12)
    assert await choose(folder, monkeypatch, Objective.LATENCY, asked, **plans) == "int8"


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
        ('{"offered": [{"variant": "a", "file": "a.onnx", "golden_accuracy": 2}]}', "is not from 0 to 1"),
        ('{"offered": [{"variant": "a", "file": "a.onnx", "golden_accuracy": true}]}', "is not from 0 to 1"),
        (
            '{"offered": [{"variant": "a", "file": "a.onnx"}], "reference": {"max_drop_points": -1}}',
            "is not from 0 to 100",
        ),
        ('{"offered": [{"variant": "a", "file": "a.onnx"}], "reference": 3}', "no report"),
        (" " * (1 << 21), "larger than"),
    ],
)
def test_reports_that_make_no_sense_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / REPORT).write_text(text)
    with pytest.raises(UsageError, match=said):
        read_folder(tmp_path)


def test_a_file_and_a_folder_without_a_report_have_no_variants(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"model")
    assert all(read_folder(tmp_path / name) is None for name in ("", "model.onnx", "none"))
