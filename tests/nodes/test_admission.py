"""Variants are judged on devices: what is loaded where, what a failure means, and what is kept for the next time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mesh.core.fleet import Capabilities, NodeState, Provider
from mesh.core.ids import NodeId
from mesh.core.plan import PlanOptions
from mesh.core.report import NodeView
from mesh.errors import MeshError, NodeLost, RunFailed
from mesh.optimize.admission import Admission
from mesh.optimize.golden_set import GoldenSet
from mesh.optimize.turns import LEAST_ROUNDS
from mesh.optimize.verdict import make_golden
from nodes.admission import (
    Candidate,
    Footprint,
    Gate,
    Loaded,
    MeshBench,
    admit_everywhere,
    describe,
    why_refused_together,
)
from nodes.admission_file import MAX_AGE_S, MAX_ENTRIES, AdmissionFile, key_of

A, B = NodeId("a" * 32), NodeId("b" * 32)
COUNT = 10


def answers(right: int) -> list[list[Any]]:
    return [[np.array([[0, 1] if row < right else [1, 0]], np.float32)] for row in range(COUNT)]


GOLDEN_SET = GoldenSet(
    tuple({"x": np.array([row], np.float32)} for row in range(COUNT)),
    make_golden(answers(COUNT), np.ones(COUNT, np.int64), range(COUNT)),
)
GATE = Gate(GOLDEN_SET, "0" * 64, 10.0)
FLOAT, INT8 = Candidate("float", lambda: b"float", 1.0), Candidate("int8", lambda: b"int8", 1.0)


def view(node: NodeId, **changes: Any) -> NodeView:
    told = Capabilities(
        node, f"node-{node[0]}", "x86_64", 1, 1, 1, 1, (Provider("CPU", True, ""),), "1", 1, 1, NodeState.READY, "1"
    )
    return NodeView(replace(told, **changes), "127.0.0.1:1", False)


@dataclass
class PlayedBench:
    """Devices that answer what they are told to, and take as long."""

    right: dict[tuple[NodeId, bytes], int] = field(default_factory=dict)
    ms: dict[bytes, float] = field(default_factory=dict)
    fails: dict[tuple[NodeId, bytes], MeshError] = field(default_factory=dict)
    loaded: list[tuple[str, bytes]] = field(default_factory=list)
    now: set[str] = field(default_factory=set)
    most: int = 0

    @contextlib.asynccontextmanager
    async def load(self, data: bytes, name: str, options: PlanOptions) -> AsyncIterator[Loaded]:
        (device,) = options.limits.only
        assert options.stages == 1
        assert name not in self.now
        if (device, data) in self.fails:
            raise self.fails[device, data]
        self.loaded.append((device, data))
        self.now.add(name)
        self.most = max(self.most, len(self.now))
        try:
            yield PlayedModel(self, device, data)
        finally:
            self.now.remove(name)


@dataclass
class PlayedModel:
    bench: PlayedBench
    device: NodeId
    data: bytes

    async def answers(self, samples: Sequence[dict[str, Any]]) -> list[list[Any]]:
        assert len(samples) == COUNT
        return answers(self.bench.right.get((self.device, self.data), COUNT))

    async def footprint(self) -> Footprint:
        return Footprint(12.5, len(self.data) * 1_000_000)

    async def time_ms(self, feeds: dict[str, Any], runs: int) -> float:
        assert 1 <= runs <= 64
        return self.bench.ms.get(self.data, 10.0)


async def ask(bench: PlayedBench, known: AdmissionFile, nodes: Sequence[NodeView]) -> dict[tuple[str, str], Admission]:
    found = await admit_everywhere(bench, [FLOAT, INT8], GATE, nodes, known, lambda line: None)
    assert not bench.now, "something stayed loaded"
    assert bench.most <= 2, "a small device holds two models, not all of them"
    return {(each.device, each.variant): each for each in found}


async def test_each_variant_is_judged_and_timed_on_each_device() -> None:
    bench = PlayedBench(right={(B, b"int8"): 5}, ms={b"float": 10, b"int8": 4})
    found = await ask(bench, AdmissionFile(None), [view(A), view(B)])
    assert {key: each.is_admitted for key, each in found.items()} == {
        (A, "float"): True,
        (A, "int8"): True,
        (B, "float"): True,
        (B, "int8"): False,
    }
    assert found[A, "int8"].speed_up == 2.5
    assert found[A, "float"].speed_up == 1.0
    assert found[A, "int8"].p50_ms == 4
    refused = found[B, "int8"]
    assert "falls by 50.00 points" in refused.reason
    assert refused.p50_ms is None, "what is refused needs no time"
    assert describe(refused, "top-1").startswith("int8 refused: top-1 falls")
    assert describe(found[A, "int8"], "top-1").endswith("2.50 times the speed of float, loaded in 12.5 ms, 4 MB")
    assert (found[A, "float"].load_ms, found[A, "float"].peak_bytes) == (12.5, 5_000_000)


async def test_the_next_time_nothing_is_asked_again_unless_something_changed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "admissions.json"
    first, again = PlayedBench(right={(A, b"int8"): 5}), PlayedBench()
    known = AdmissionFile(path)
    before = await ask(first, known, [view(A)])
    assert known.save() == ""
    assert await ask(again, AdmissionFile(path), [view(A)]) == before
    assert again.loaded == []
    await ask(again, AdmissionFile(path, is_anew=True), [view(A)])
    assert len(again.loaded) == 2
    for change in (
        {"runtime_version": "2"},
        {"mode": "2x1"},
        {"cores": 2},
        {"hardware": "other"},
        {"governor": "powersave"},
    ):
        changed = PlayedBench()
        await ask(changed, AdmissionFile(path), [view(A, **change)])
        assert len(changed.loaded) == 2, change


async def test_a_device_that_fails_is_refused_for_now_and_asked_again(tmp_path: Path) -> None:
    lost = PlayedBench(fails={(A, b"int8"): NodeLost("gone")})
    known = AdmissionFile(tmp_path / "admissions.json")
    found = await ask(lost, known, [view(A)])
    assert "could not be judged there: gone" in found[A, "int8"].reason
    assert found[A, "float"].is_admitted
    found = await ask(PlayedBench(), known, [view(A)])
    assert found[A, "int8"].is_admitted


async def test_where_float_does_not_run_variants_are_still_judged() -> None:
    bench = PlayedBench(fails={(A, b"float"): RunFailed("too large")})
    found = await ask(bench, AdmissionFile(None), [view(A)])
    assert not found[A, "float"].is_admitted
    assert found[A, "int8"].is_admitted
    assert found[A, "int8"].speed_up is None


async def test_slow_devices_are_timed_in_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodes.admission.BUDGET_S", 0.0)
    asked = list[int]()

    async def time_ms(model: PlayedModel, feeds: dict[str, Any], runs: int) -> float:
        asked.append(runs)
        return 1000.0

    monkeypatch.setattr(PlayedModel, "time_ms", time_ms)
    await ask(PlayedBench(), AdmissionFile(None), [view(A)])
    assert len(asked) == 2 * (2 + 2 * LEAST_ROUNDS)
    assert asked[2] == 1


async def test_a_plan_is_judged_as_a_whole() -> None:
    options = PlanOptions(stages=1)
    bench = PlayedBench(right={(A, b"int8"): 5})
    options = replace(options, limits=replace(options.limits, only=(A,)))
    assert "falls by 50.00" in await why_refused_together(bench, INT8, GATE, options)
    assert await why_refused_together(bench, FLOAT, GATE, options) == ""


# The file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 2, "entries": {}}',
        '{"version": 1}',
        '{"version": 1, "entries": []}',
        '{"version": 1, "entries": {"k": 1}}',
        '{"version": 1, "entries": {"k": {"variant": 1, "device": "a", "at": 1e18}}}',
        '{"version": 1, "entries": {"k": {"variant": "v", "device": "a", "accuracy": NaN}}}',
        '{"version": 1, "entries": {"k": {"variant": "v", "device": "a", "accuracy": "1"}}}',
        '{"version": 1, "entries": {"k": {"variant": "v", "device": "a", "strange": 1}}}',
        "[" * 100_000,
    ],
)
def test_a_file_that_cannot_be_read_is_made_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "admissions.json"
    path.write_text(text)
    known = AdmissionFile(path)
    assert known.get("k") is None
    known.put("k", Admission("v", A, at=1.0))
    assert known.save() == ""
    assert "k" in json.loads(path.read_text())["entries"]


def test_entries_grow_old_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 2 * MAX_AGE_S
    monkeypatch.setattr("time.time", lambda: now)
    known = AdmissionFile(None)
    known.put("old", Admission("v", A, at=now - MAX_AGE_S - 1))
    known.put("young", Admission("v", A, at=now - MAX_AGE_S + 1))
    known.put("of the future", Admission("v", A, at=now + 60))
    assert known.get("old") is None and known.get("of the future") is None
    assert known.get("young") is not None
    for number in range(MAX_ENTRIES):
        known.put(str(number), Admission("v", A, at=now - number / 1e3))
    assert known.get("young") is None, "the oldest go first"
    assert known.get("0") is not None


def test_a_place_that_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    known = AdmissionFile(tmp_path / "file" / "admissions.json")
    known.put("k", Admission("v", A))
    assert "not kept for the next time" in known.save()


def test_keys_tell_variants_limits_and_golden_sets_apart() -> None:
    told = view(A).capabilities
    keys = {
        key_of("a", 1.0, GATE, told),
        key_of("b", 1.0, GATE, told),
        key_of("a", 0.9, GATE, told),
        key_of("a", 1.0, replace(GATE, max_drop_points=1.0), told),
        key_of("a", 1.0, replace(GATE, golden_sha256="1" * 64), told),
        key_of("a", 1.0, GATE, view(B).capabilities),
    }
    assert len(keys) == 6


# On a mesh ----------------------------------------------------------------------------------------


class PlayedMesh:
    """Deploys and forgets as it is told."""

    def __init__(self, deploys: MeshError | None = None, undeploys: BaseException | None = None) -> None:
        self.coordinator = self
        self._errors = deploys, undeploys
        self.deployed = set[str]()

    async def deploy(self, data: bytes, name: str, options: PlanOptions, progress: Any) -> Any:
        self.deployed.add(name)
        if self._errors[0] is not None:
            raise self._errors[0]

    async def undeploy(self, name: str) -> None:
        if self._errors[1] is not None:
            raise self._errors[1]
        self.deployed.remove(name)


async def test_what_is_loaded_is_removed_whatever_happens() -> None:
    for error in (RunFailed("no"), RuntimeError("no"), None):
        mesh = PlayedMesh()
        with contextlib.suppress(RunFailed, RuntimeError):
            async with MeshBench(mesh, print).load(b"", "slot", PlanOptions()):  # type: ignore[arg-type]
                assert mesh.deployed == {"slot"}
                if error is not None:
                    raise error
        assert not mesh.deployed


async def test_what_cannot_be_loaded_may_have_been_in_part() -> None:
    mesh = PlayedMesh(deploys=NodeLost("gone"))
    with pytest.raises(NodeLost):
        async with MeshBench(mesh, print).load(b"", "slot", PlanOptions()):  # type: ignore[arg-type]
            pass
    assert not mesh.deployed


@pytest.mark.parametrize("error", [NodeLost("gone"), TimeoutError()])
async def test_a_node_that_goes_away_before_it_is_tidy_does_not_spoil_the_verdict(error: BaseException) -> None:
    said: list[str] = []
    bench = MeshBench(PlayedMesh(undeploys=error), said.append)  # type: ignore[arg-type]
    async with bench.load(b"", "slot", PlanOptions()):
        pass
    assert "slot may still be loaded" in said[0]
