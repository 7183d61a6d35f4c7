"""The gateway's meaning: independent requests, limits, deadlines, what is forgotten and looked up again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.core.frame import Hop
from mesh.core.tensor import DType, Tensor, TensorSpec
from mesh.errors import (
    DeploymentNotFound,
    NodeLost,
    NotFound,
    Overloaded,
    Refused,
    RunFailed,
    TensorMismatch,
    Timeout,
    UsageError,
)
from mesh.gateways import inference, model_calls
from mesh.gateways.contract import InferenceRequest
from mesh.gateways.inference import InferenceGateway
from mesh.gateways.repository import ModelRepository
from mesh.gateways.statistics import ModelStatistics
from mesh.model.read import read_model
from mesh.runtime.supervise import Supervisor
from tests.gateways.played_mesh import PlayedMesh
from tests.runtime.fake_models import spec, until, vector
from tests.runtime.mesh_on_loopback import make_model

CLOSED = ModelRepository(None, False)
OPEN = ModelRepository(None, True)


@pytest.fixture
async def mesh() -> AsyncIterator[PlayedMesh]:
    async with Supervisor() as tasks:
        played = PlayedMesh(tasks, lambda tensors: tensors)
        played.put("echo", [spec("x")], [spec("y")])
        yield played


def ask(model: str = "echo", tensor: Tensor | None = None, **more: object) -> InferenceRequest:
    fields: dict[str, object] = {"version": "", "inputs": {"x": tensor or vector(1, 2)}, **more}
    return InferenceRequest(model, **fields)  # type: ignore[arg-type]


async def test_many_callers_share_one_stream_and_get_their_own_answers(mesh: PlayedMesh) -> None:
    gateway = InferenceGateway(mesh, CLOSED)
    answers = await asyncio.gather(*[gateway.infer(ask(tensor=vector(value))) for value in range(20)])
    assert [bytes(answer.outputs[0][1].data) for answer in answers] == [bytes(vector(v).data) for v in range(20)]
    assert len(mesh.streams) == 1
    assert [output.name for output, _ in answers[0].outputs] == ["y"]


async def test_outputs_come_in_the_order_asked(mesh: PlayedMesh) -> None:
    mesh.put("two", [spec("x")], [spec("a"), spec("b")])
    mesh.compute = lambda tensors: (vector(1), vector(2))
    gateway = InferenceGateway(mesh, CLOSED)
    answer = await gateway.infer(ask("two", outputs=("b", "a")))
    assert [(output.name, tensor) for output, tensor in answer.outputs] == [("b", vector(2)), ("a", vector(1))]
    assert [output.name for output, _ in (await gateway.infer(ask("two"))).outputs] == ["a", "b"]


@pytest.mark.parametrize(
    ("request_", "error", "said"),
    [
        (ask("none"), DeploymentNotFound, "'none'"),
        (ask("No/Such Name"), DeploymentNotFound, "No/Such Name"),
        (ask(version="2"), DeploymentNotFound, "version '2'"),
        (ask(inputs={}), TensorMismatch, "missing inputs"),
        (ask(inputs={"x": vector(1), "z": vector(1)}), TensorMismatch, "unknown inputs"),
        (ask(outputs=("q",)), TensorMismatch, "unknown outputs"),
        (ask(tensor=Tensor.from_bytes(DType.INT32, (1,), bytes(4))), TensorMismatch, "dtype is int32"),
        (ask(tensor=Tensor.from_bytes(DType.FLOAT32, (1, 1), bytes(4))), TensorMismatch, "rank is 2"),
    ],
)
async def test_what_does_not_fit_is_refused_before_it_is_sent(
    mesh: PlayedMesh, request_: InferenceRequest, error: type[Exception], said: str
) -> None:
    gateway = InferenceGateway(mesh, CLOSED)
    with pytest.raises(error, match=said):
        await gateway.infer(request_)
    assert sum(stream.sent for stream in mesh.streams) == 0


async def test_too_many_at_once_are_refused_and_the_others_answered(
    mesh: PlayedMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "MAX_REQUESTS_AT_ONCE", 3)
    gateway = InferenceGateway(mesh, CLOSED)
    mesh.gate.clear()
    waiting = [asyncio.ensure_future(gateway.infer(ask())) for _ in range(3)]
    await until(lambda: bool(mesh.streams) and mesh.streams[0].sent == 3)
    with pytest.raises(Overloaded, match="3 requests"):
        await gateway.infer(ask())
    mesh.gate.set()
    assert len(await asyncio.gather(*waiting)) == 3
    await gateway.infer(ask())  # there is room again


async def test_too_many_bytes_at_once_are_refused_but_one_large_request_is_not(
    mesh: PlayedMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "MAX_BYTES_AT_ONCE", 8)
    gateway = InferenceGateway(mesh, CLOSED)
    mesh.gate.clear()
    large = asyncio.ensure_future(gateway.infer(ask(tensor=vector(1, 2, 3))))
    await until(lambda: bool(mesh.streams) and mesh.streams[0].sent == 1)
    with pytest.raises(Overloaded, match="MiB"):
        await gateway.infer(ask(tensor=vector(1)))
    mesh.gate.set()
    await large


async def test_a_deadline_ends_the_request_alone(mesh: PlayedMesh) -> None:
    gateway = InferenceGateway(mesh, CLOSED)
    mesh.gate.clear()
    patient = asyncio.ensure_future(gateway.infer(ask()))
    with pytest.raises(Timeout, match=r"within 0\.01 s"):
        await gateway.infer(ask(timeout_s=0.01))
    mesh.gate.set()
    await patient
    assert (await gateway.statistics("echo", ""))["echo"].fail.count == 1


async def test_a_broken_stream_is_told_and_the_next_request_opens_another(mesh: PlayedMesh) -> None:
    gateway = InferenceGateway(mesh, CLOSED)
    mesh.compute = lambda tensors: None
    waiting = asyncio.ensure_future(gateway.infer(ask()))
    await until(lambda: bool(mesh.streams) and mesh.streams[0].sent == 1)
    mesh.streams[0].break_off(NodeLost("the node is gone"))
    with pytest.raises(NodeLost, match="the node is gone"):
        await waiting
    mesh.compute = lambda tensors: tensors
    await gateway.infer(ask())
    assert len(mesh.streams) == 2


async def test_what_was_undeployed_and_deployed_with_other_tensors_is_looked_up_again(mesh: PlayedMesh) -> None:
    gateway = InferenceGateway(mesh, CLOSED)
    await gateway.infer(ask())
    mesh.put("echo", [TensorSpec("x", DType.INT32, ("n",))], [spec("y")])
    mesh.streams[0].break_off(TensorMismatch("takes or gives other tensors"))
    await until(lambda: mesh.open_streams == 0, "the stream is closed")
    await gateway.infer(ask(tensor=Tensor.from_bytes(DType.INT32, (1,), bytes(4))))
    assert len(mesh.streams) == 2


async def test_what_was_loaded_or_unloaded_here_is_looked_up_at_once(mesh: PlayedMesh) -> None:
    gateway = InferenceGateway(mesh, OPEN)
    await gateway.infer(ask())
    await gateway.load("echo", {"1/model.onnx": b"new"})
    assert (await gateway.describe("echo", "")).inputs == (), "the stream to the old one is open still"
    await gateway.unload("echo")
    with pytest.raises(DeploymentNotFound):
        await gateway.describe("echo", "")


async def test_a_stream_that_nobody_uses_is_closed(mesh: PlayedMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_calls, "IDLE_CHECK_S", 0.001)
    clock = [0.0]

    gateway = InferenceGateway(mesh, CLOSED, lambda: clock[0])
    mesh.gate.clear()
    waiting = asyncio.ensure_future(gateway.infer(ask()))
    await until(lambda: bool(mesh.streams) and mesh.streams[0].sent == 1)
    clock[0] = model_calls.IDLE_LIMIT_S * 2
    await asyncio.wait({waiting}, timeout=10 * model_calls.IDLE_CHECK_S)
    assert mesh.open_streams == 1, "a request waits for its answer"
    mesh.gate.set()
    await waiting
    clock[0] *= 2
    await until(lambda: mesh.open_streams == 0, "the idle stream is closed")
    await gateway.infer(ask())
    assert len(mesh.streams) == 2


async def test_an_error_of_the_model_is_told_and_counted(mesh: PlayedMesh) -> None:
    mesh.compute = lambda tensors: RunFailed("divided by nothing")
    gateway = InferenceGateway(mesh, CLOSED)
    with pytest.raises(RunFailed, match="divided by nothing"):
        await gateway.infer(ask())
    counted = (await gateway.statistics("echo", ""))["echo"]
    assert (counted.success.count, counted.fail.count) == (0, 1)


def test_durations_add_up_to_the_request() -> None:
    counted = ModelStatistics()
    counted.count_success(0.010, (Hop(0, 1000, 2000), Hop(1, 500, 1500)), 7.5)
    parts = (counted.queue, counted.compute_infer, counted.compute_input, counted.compute_output)
    assert [part.nanoseconds for part in parts] == [1_500_000, 3_500_000, 2_500_000, 2_500_000]
    assert sum(part.nanoseconds for part in parts) == counted.success.nanoseconds == 10_000_000
    assert counted.last_inference_ms == 7500
    counted.count_success(0.001, (Hop(0, 0, 2000),), 8)  # clocks of other machines: never below nothing
    assert counted.compute_input.nanoseconds == 2_500_000


# The repository -----------------------------------------------------------------------------------


async def test_models_are_neither_loaded_nor_unloaded_unless_that_was_asked_for(mesh: PlayedMesh) -> None:
    gateway = InferenceGateway(mesh, CLOSED)
    for work in (gateway.load("new", {"1/model.onnx": b"m"}), gateway.unload("echo")):
        with pytest.raises(Refused, match="neither loads nor unloads"):
            await work
    assert "echo" in mesh.deployments
    assert not mesh.uploads


async def test_loading_shows_in_the_index_and_happens_once_at_a_time(mesh: PlayedMesh) -> None:
    gateway = InferenceGateway(mesh, OPEN)
    mesh.gate.clear()
    loading = asyncio.ensure_future(gateway.load("new", {"1/model.onnx": b"m"}))
    await until(lambda: bool(mesh.uploads))
    with pytest.raises(Refused, match="already"):
        await gateway.load("new", {"1/model.onnx": b"m"})
    assert [(entry.name, entry.state) for entry in await gateway.index()] == [("echo", "READY"), ("new", "LOADING")]
    mesh.gate.set()
    await loading
    mesh.states["echo"] = "failed"
    assert [entry.state for entry in await gateway.index()] == ["UNAVAILABLE", "READY"]
    await gateway.unload("new")
    await gateway.unload("new")
    assert [entry.name for entry in await gateway.index()] == ["echo"]


async def test_names_that_cannot_be_are_refused(mesh: PlayedMesh) -> None:
    with pytest.raises(UsageError, match="cannot name a model"):
        await InferenceGateway(mesh, OPEN).load("../x", {"1/model.onnx": b"m"})


@pytest.mark.parametrize(
    "files",
    [
        {"1/model.onnx": b"", "2/model.onnx": b""},
        {"1/model.onnx": b"", "1/weights.bin": b""},
        {"model.onnx": b""},
        {"x/model.onnx": b""},
        {"1/../model.onnx": b""},
    ],
)
def test_uploads_that_are_not_one_model_are_refused(files: dict[str, bytes]) -> None:
    with pytest.raises(UsageError, match="must be one model"):
        OPEN.read("new", files)


def test_the_folder_gives_its_highest_version(tmp_path: Path) -> None:
    models = {version: make_model(layers) for layers, version in enumerate(("2", "10", "9"), 1)}
    for version, data in models.items():
        path = tmp_path / "chain" / version / "model.onnx"
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    (tmp_path / "empty").mkdir()
    (tmp_path / "Not A Name").mkdir()
    repository = ModelRepository(tmp_path, True)
    assert repository.names() == ["chain"]
    assert repository.read("chain", {}) == read_model(tmp_path / "chain" / "10" / "model.onnx").data
    assert repository.read("chain", {"1/model.onnx": models["2"]}) == models["2"], "what is uploaded goes first"
    with pytest.raises(NotFound, match="'empty'"):
        repository.read("empty", {})
    with pytest.raises(UsageError, match="no folder"):
        ModelRepository(tmp_path / "nowhere", True)
