"""A node whose engine does not take every model: what it announces, and what it says of a segment that fell back."""

from __future__ import annotations

import importlib.metadata
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mesh.core.costs import type_of
from mesh.core.plan import Fence
from mesh.engines.contract import LoadOptions
from mesh.engines.fake import FakeEngine, FakeModel, FakeSession
from mesh.engines.fallback import FallbackEngine
from mesh.errors import LoadFailed
from mesh.runtime.node import NodeSettings
from mesh.storage.cost_store import CostStore, ModelCost
from tests.runtime import fake_mesh
from tests.runtime.fake_mesh import FakeMesh, FakeNode, open_mesh
from tests.runtime.fake_models import add_one, digest_of, values_of, vector

MODEL, OTHER = add_one("x", "y"), add_one("y", "z")
REASON = "fake computes it instead of fake: it cannot compile this one"


class Picky(FakeEngine):
    """Takes every model but one."""

    def load(self, model: bytes | Path, options: LoadOptions) -> FakeSession:
        data = model.read_bytes() if isinstance(model, Path) else model
        if FakeModel.from_bytes(data) == MODEL:
            raise LoadFailed("it cannot compile this one")
        return super().load(model, options)


@pytest.fixture
async def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeMesh]:
    async with open_mesh(tmp_path, monkeypatch, 0) as opened:
        yield opened


async def told_of(node: FakeNode, name: str = "chain") -> list[str]:
    reports, _ = await node.client.list_deployments(name)
    return [each.text for each in reports[0].happenings if "computes it" in each.text]


async def test_a_segment_that_fell_back_is_served_and_said_once(mesh: FakeMesh) -> None:
    node = await mesh.start("n0", FallbackEngine(Picky(), FakeEngine()))
    wanted = [f"segment {digest_of(MODEL)[:8]}: {REASON}"]
    for generation in (1, 2, 3):  # each keeps the segment
        deployment = await mesh.deploy([MODEL], [node], fence=Fence(1, generation))
        assert await told_of(node) == wanted
    async with mesh.stream(deployment) as stream:
        await stream.send([vector(4)])
        assert values_of((await anext(stream.answers())).tensors) == [5]


async def test_of_segments_that_did_not_fall_back_nothing_is_said(mesh: FakeMesh) -> None:
    node = await mesh.start("n0", FallbackEngine(Picky(), FakeEngine()))
    await mesh.deploy([OTHER], [node], fence=Fence(1, 1))
    assert await told_of(node) == []


async def announced(mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch, engine: str) -> Any:
    def settings(*given: Any, **more: Any) -> NodeSettings:
        return NodeSettings(*given, **{**more, "engine": engine})

    monkeypatch.setattr(fake_mesh, "NodeSettings", settings)
    node = await mesh.start(engine)
    return (await node.client.describe())[0]


async def test_costs_of_one_engine_are_not_used_for_the_other(
    mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda package: "2026.1" if package == "openvino" else version(package)
    )
    plain = await announced(mesh, monkeypatch, "onnxruntime")
    other = await announced(mesh, monkeypatch, "openvino")
    assert other.runtime_version.startswith("OpenVINO 2026.1, ONNX Runtime ")
    assert type_of(plain) != type_of(other)
    assert type_of(replace(plain, runtime_version=other.runtime_version)) == type_of(other), "nothing else tells them"
    store = CostStore(tmp_path / "costs")
    store.put_model(digest_of(MODEL), type_of(other), ModelCost((0.25,), at=1.0))
    store.save()
    kept = CostStore(tmp_path / "costs")
    assert kept.model(digest_of(MODEL), type_of(plain)) is None
    assert kept.model(digest_of(MODEL), type_of(other)) is not None
