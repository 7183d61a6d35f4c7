"""A message through a whole pipeline before a played model: what is asked of it, and what is told."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest
from PIL import Image

from mesh.arrays import from_array, to_array
from mesh.core.tensor import DType, Tensor, TensorSpec
from mesh.errors import DeploymentNotFound, MeshError, RunFailed, SourceUnreadable, TensorMismatch, UsageError
from mesh.gateways.inference import InferenceGateway
from mesh.gateways.repository import ModelRepository
from mesh.pipelines import runner as runner_module
from mesh.pipelines.pipeline_file import Pipeline, parse_pipelines
from mesh.pipelines.preparing import Preparer, fit_shape, window_rule
from mesh.pipelines.runner import PipelineRunner, write_result
from mesh.runtime.supervise import Supervisor
from tests.gateways.played_mesh import PlayedMesh

PICTURE = TensorSpec("image", DType.FLOAT32, ("n", 1, 2, 4))
SIGNAL = TensorSpec("x", DType.FLOAT32, (1, 4, 2))
OUT = TensorSpec("y", DType.FLOAT32, (1, "k"))


def pipeline(source: str, *tables: str) -> Pipeline:
    text = "\n".join(["[[pipeline]]", 'name = "p"', "[pipeline.source]", source, *tables])
    return parse_pipelines(text).pipelines[0]


def echo_sum(tensors: Sequence[Tensor]) -> list[Tensor]:
    """One score: the sum of the input."""
    return [from_array(np.array([[to_array(tensors[0]).sum()]], np.float32))]


@pytest.fixture
async def mesh() -> AsyncIterator[PlayedMesh]:
    async with Supervisor() as tasks:
        yield PlayedMesh(tasks, echo_sum)


def runner_for(mesh: PlayedMesh, described: Pipeline, spec: TensorSpec) -> PipelineRunner:
    mesh.put("p", [spec], [OUT])
    return PipelineRunner(described, InferenceGateway(mesh, ModelRepository(None, False)), lambda: 100.0)


async def test_a_picture_is_a_frame(mesh: PlayedMesh) -> None:
    runner = runner_for(mesh, pipeline('kind = "image"', "[pipeline.output]", 'kind = "score"'), PICTURE)
    pixels = np.arange(8, dtype=np.uint8).reshape(2, 4) * 30
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    (told,) = await runner.process("cam", file.getvalue(), "7")
    assert told["score"] == pytest.approx(pixels.sum() / 255)
    assert (told["id"], told["pipeline"], told["source"], told["model"]) == ("7", "p", "cam", "p")
    assert set(told["latency_ms"]) == {"queue", "compute", "transfer", "total"}
    assert json.loads(write_result(told)) == told
    for broken in (b"", b"junk", file.getvalue()[:40]):
        with pytest.raises(SourceUnreadable):
            await runner.process("cam", broken, "8")


async def test_samples_of_each_source_fill_windows_of_their_own(mesh: PlayedMesh) -> None:
    described = pipeline('kind = "float32"', "channels = 2", "[pipeline.output]", 'kind = "score"')
    runner = runner_for(mesh, described, SIGNAL)
    ones = np.ones((3, 2), "<f4").tobytes()
    assert await runner.process("a", ones, "1") == []
    assert await runner.process("b", ones, "2") == []
    (told,) = await runner.process("a", ones, "3")
    assert (told["score"], told["id"]) == (8.0, "3")
    both = await runner.process("a", np.ones((6, 2), "<f4").tobytes(), "4")
    assert [each["id"] for each in both] == ["4.0", "4.1"]


async def test_a_message_is_held_until_all_its_samples_were_in_a_window(mesh: PlayedMesh) -> None:
    described = pipeline('kind = "float32"', "channels = 2", "[pipeline.output]", 'kind = "score"')
    runner = runner_for(mesh, described, SIGNAL)

    async def push(count: int, identifier: str) -> list[str]:
        await runner.process("a", np.ones((count, 2), "<f4").tobytes(), identifier)
        return [each for each in "12345678" if runner.holds("a", each)]

    assert await push(1, "1") == ["1"]
    assert await push(2, "2") == ["1", "2"]
    assert await push(2, "3") == ["3"], "one of its samples is in the first window, one is not"
    with pytest.raises(SourceUnreadable):
        await runner.process("a", b"xyz", "5")
    assert not runner.holds("a", "5")
    assert await push(9, "6") == ["6"], "two windows, and two samples more"
    assert await push(2, "7") == []
    assert not runner.holds("b", "1")


async def test_the_results_before_a_window_that_failed_are_told(mesh: PlayedMesh) -> None:
    described = pipeline('kind = "float32"', "channels = 2", "[pipeline.output]", 'kind = "score"')
    runner = runner_for(mesh, described, SIGNAL)
    mesh.compute = lambda tensors: RunFailed("too hot") if to_array(tensors[0]).max() > 1 else echo_sum(tensors)
    values = np.repeat([1, 1, 9, 1], 8).astype("<f4")  # four windows, of which the third fails
    first, second, error = await runner.process("a", values.tobytes(), "1")
    assert [told["id"] for told in (first, second) if not isinstance(told, MeshError)] == ["1.0", "1.1"]
    assert isinstance(error, RunFailed)
    assert "2 of the message's 4 windows have no result: " in error.message
    with pytest.raises(RunFailed, match="too hot"):
        await runner.process("a", values[16:].tobytes(), "2")


async def test_a_silent_source_is_forgotten_first(mesh: PlayedMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "MAX_SOURCES", 2)
    runner = runner_for(mesh, pipeline('kind = "float32"', "channels = 2"), SIGNAL)
    half = np.ones((2, 2), "<f4").tobytes()
    for source in ("a", "b", "a", "c"):
        found = await runner.process(source, half, "1")
    assert found == []
    assert len(await runner.process("c", half, "1")) == 1
    assert await runner.process("b", half, "1") == [], "it had begun anew"


async def test_a_model_that_now_takes_something_else_begins_anew(mesh: PlayedMesh) -> None:
    runner = runner_for(mesh, pipeline('kind = "float32"', "channels = 2"), SIGNAL)
    await runner.process("a", np.ones((2, 2), "<f4").tobytes(), "1")
    mesh.put("p", [TensorSpec("x", DType.FLOAT32, (1, 2, 2))], [OUT])
    mesh.streams[0].break_off(TensorMismatch("takes other tensors"))
    from tests.runtime.fake_models import until

    await until(lambda: mesh.open_streams == 0)
    assert len(await runner.process("a", np.ones((2, 2), "<f4").tobytes(), "2")) == 1


async def test_a_pipeline_is_checked_against_its_model(mesh: PlayedMesh) -> None:
    runner = runner_for(mesh, pipeline('kind = "float32"', "channels = 2"), SIGNAL)
    assert (await runner.check()).name == "p"
    del mesh.deployments["p"]
    mesh.streams[0].break_off(DeploymentNotFound("it is gone"))
    with pytest.raises(DeploymentNotFound):
        await PipelineRunner(runner.pipeline, InferenceGateway(mesh, ModelRepository(None, False))).check()


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        (("[pipeline.window]", "size = 3"), "a window makes"),
        (("[pipeline.output]", 'kind = "labels"', 'labels = ["a", "b"]'), "3 scores for 2 labels"),
        (("[pipeline.output]", 'kind = "labels"', 'tensor = "z"'), "names 'z'"),
        (("[pipeline.output]", 'kind = "boxes"'), "rows of x1"),
    ],
)
async def test_what_a_pipeline_would_say_of_every_message_is_said_by_its_check(
    mesh: PlayedMesh, tables: tuple[str, ...], said: str
) -> None:
    runner = runner_for(mesh, pipeline('kind = "float32"', "channels = 2", *tables), SIGNAL)
    mesh.put("p", [SIGNAL], [TensorSpec("y", DType.FLOAT32, ("batch", 3))])
    with pytest.raises(TensorMismatch, match=said):
        await runner.check()


async def test_long_windows_are_held_for_fewer_sources(mesh: PlayedMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "MAX_HELD_BYTES", 2 * 4 * 8 + 1)
    runner = runner_for(mesh, pipeline('kind = "float32"', "channels = 2"), SIGNAL)
    half = np.ones((2, 2), "<f4").tobytes()
    for source in ("a", "b", "c"):
        assert await runner.process(source, half, "1") == []
    assert len(await runner.process("c", half, "1")) == 1
    assert await runner.process("a", half, "1") == [], "it had begun anew"


@pytest.mark.parametrize(
    ("described", "specs", "said"),
    [
        (pipeline('kind = "image"'), [SIGNAL, SIGNAL], "a pipeline fills one"),
        (pipeline('kind = "image"'), [TensorSpec("x", DType.FLOAT32, (4,))], "no picture"),
        (pipeline('kind = "float32"', "channels = 3"), [SIGNAL], "does not say how long a window is"),
        (pipeline('kind = "float32"'), [TensorSpec("x", DType.FLOAT32, (1, "n"))], "does not say how long"),
    ],
)
def test_pipelines_that_do_not_fit_their_model_are_refused(
    described: Pipeline, specs: list[TensorSpec], said: str
) -> None:
    with pytest.raises((TensorMismatch, UsageError), match=said):
        Preparer(described, specs)


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 4, 2), 4), (("batch", 4, 2), 4), ((8,), 4), ((1, "n", 2), None), (("n",), None)]
)
def test_a_model_may_say_how_long_a_window_is(shape: tuple[int | str, ...], size: int | None) -> None:
    spec = TensorSpec("x", DType.FLOAT32, shape)
    described = pipeline('kind = "float32"', "channels = 2")
    if size is not None:
        assert window_rule(described, spec).size == size
        return
    with pytest.raises(UsageError, match="does not say how long"):
        window_rule(described, spec)


def test_features_take_the_models_shape() -> None:
    spec = TensorSpec("x", DType.FLOAT32, ("n", 1, 49, 10))
    described = pipeline(
        'kind = "audio"', "rate_hz = 8000", "[pipeline.window]", "size_s = 1.0",
        "[pipeline.input]", 'features = "mfcc"',
    )  # fmt: skip
    preparer = Preparer(described, [spec])
    (window,) = preparer.push(np.zeros(8000, "<i2").tobytes(), 0.0)
    tensor = preparer.frame(window)
    assert tensor.shape == (1, 1, 49, 10)


@pytest.mark.parametrize(
    ("shape", "found", "wanted"),
    [
        ((1, 4, 2), (4, 2), (1, 4, 2)),
        (("n", 8), (4, 2), (1, 8)),
        ((1, "n", 2), (4, 2), (1, 4, 2)),
        (("b", "n", 2), (4, 2), (1, 4, 2)),
        (None, (4, 2), (4, 2)),
    ],
)
def test_windows_take_the_models_shape(
    shape: tuple[int | str, ...] | None, found: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    assert fit_shape(TensorSpec("x", DType.FLOAT32, shape), found, "p") == wanted


@pytest.mark.parametrize("shape", [(1, 3), ("n", 3), (1, 16)])
def test_windows_that_do_not_fit_are_told(shape: tuple[int | str, ...]) -> None:
    with pytest.raises(TensorMismatch, match="the model wants"):
        fit_shape(TensorSpec("x", DType.FLOAT32, shape), (4, 2), "p")
