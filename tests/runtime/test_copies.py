"""How often the bytes of a frame are copied on the real path: once out per hop, never in, never at the engine."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from mesh.core.tensor import TensorSpec
from mesh.engines.contract import LoadOptions
from mesh.engines.onnx_runtime import OnnxRuntimeEngine, OnnxRuntimeSession
from mesh.wire.frame_codec import CHUNK_BYTES, MAX_WHOLE_BYTES, payload_copies
from tests.runtime.fake_mesh import open_mesh
from tests.runtime.fake_models import spec, zeros

FRAMES = 10
STAGES = 3
HOPS = STAGES + 1


@dataclass
class AddOne:
    """An ONNX model that adds one to a vector of any length."""

    source: str
    target: str

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (spec(self.source),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (spec(self.target),)

    def to_bytes(self) -> bytes:
        one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
        graph = helper.make_graph(
            [helper.make_node("Add", [self.source, "one"], [self.target])],
            "add",
            [helper.make_tensor_value_info(self.source, TensorProto.FLOAT, ["n"])],
            [helper.make_tensor_value_info(self.target, TensorProto.FLOAT, ["n"])],
            [one],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        data: bytes = model.SerializeToString()
        return data


@dataclass
class RecordingEngine(OnnxRuntimeEngine):
    sessions: list[OnnxRuntimeSession] = field(default_factory=list)

    def load(self, model: bytes | Path, options: LoadOptions) -> OnnxRuntimeSession:
        self.sessions.append(super().load(model, options))
        return self.sessions[-1]


@pytest.mark.parametrize(
    ("size_bytes", "sent", "received"),
    [(64 << 10, 1, 0), (CHUNK_BYTES, 1, 0), (MAX_WHOLE_BYTES + CHUNK_BYTES // 2, 3, 1)],
    ids=["small", "one chunk", "three chunks"],
)
async def test_copies_of_a_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int, sent: int, received: int
) -> None:
    engine = RecordingEngine()
    models = [AddOne("x", "a"), AddOne("a", "b"), AddOne("b", "y")]
    async with open_mesh(tmp_path, monkeypatch) as mesh:
        for index in range(STAGES):
            await mesh.start(f"n{index}", engine)
        deployment = await mesh.deploy(models, mesh.nodes)
        async with mesh.stream(deployment) as stream:
            before = (payload_copies.sent, payload_copies.received)

            async def feed() -> None:
                for _ in range(FRAMES):
                    await stream.send([zeros(size_bytes)])
                stream.finish()

            feeding = asyncio.ensure_future(feed())
            answers = [answer async for answer in stream.answers()]
            await feeding
        assert all(bytes(answer.tensors[0].data[:4]) == b"\x00\x00\x40\x40" for answer in answers)
        assert payload_copies.sent - before[0] == sent * HOPS * FRAMES
        assert payload_copies.received - before[1] == received * HOPS * FRAMES
        assert [session.input_copies for session in engine.sessions] == [0] * STAGES
