"""What a coordinator accepts as a model on its way: raw calls that no client of ours would make."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core.plan import NO_LIMITS, Limits, Objective, PlanOptions
from mesh.errors import MeshError, ModelUnsupported, ProtocolViolation, Timeout, UsageError
from mesh.v1 import coordinator_pb2, coordinator_pb2_grpc, plan_pb2
from mesh.wire import model_upload
from mesh.wire.channel import CHUNK_BYTES, open_channel
from mesh.wire.convert_coordinator import options_from_proto, options_to_proto
from mesh.wire.model_upload import MAX_MODEL_BYTES, collect_upload, cut_upload
from mesh.wire.status import translate_rpc_errors
from tests.wire.coordinator_material import DEPLOYMENT, NODE, PLAN, FakeHandlers, serving

OPTIONS = options_to_proto(PlanOptions())


@contextlib.asynccontextmanager
async def stub_of(handlers: FakeHandlers) -> AsyncIterator[Any]:
    async with serving(handlers) as address, open_channel(address, None) as channel:
        yield coordinator_pb2_grpc.CoordinatorServiceStub(channel)  # type: ignore[no-untyped-call]


async def send(stub: Any, messages: Sequence[coordinator_pb2.DeployRequest], *, leave_open: bool = False) -> Any:
    """The last answer to `messages`; raises the error that the call ended with."""
    left = asyncio.Event()

    async def requests() -> AsyncIterator[coordinator_pb2.DeployRequest]:
        for message in messages:
            yield message
        if leave_open:
            await left.wait()

    answers = list[Any]()
    try:
        with translate_rpc_errors("the coordinator"):
            async for answer in stub.Deploy(requests(), timeout=20):
                answers.append(answer)
    finally:
        left.set()
    return answers[-1]


def request(**fields: Any) -> coordinator_pb2.DeployRequest:
    return coordinator_pb2.DeployRequest(**{"options": OPTIONS, "name": "kws", "model_bytes": 4, **fields})


def rest(chunk: bytes) -> coordinator_pb2.DeployRequest:
    return coordinator_pb2.DeployRequest(chunk=chunk)


async def test_any_cut_of_the_model_will_do() -> None:
    handlers = FakeHandlers()
    async with stub_of(handlers) as stub:
        answer = await send(stub, [request(chunk=b"a"), rest(b"bc"), rest(b"d")])
    assert answer.deployment.generation == DEPLOYMENT.fence.generation
    assert handlers.asked == [("deploy", (b"abcd", "kws", PlanOptions()))]


def limited(**limits: Any) -> coordinator_pb2.PlanOptions:
    return coordinator_pb2.PlanOptions(objective="OBJECTIVE_LATENCY", limits=plan_pb2.Limits(**limits))


BAD_UPLOADS = {
    "nothing at all": ([], ProtocolViolation, "before a model was announced"),
    "no bytes announced": ([request(model_bytes=0, chunk=b"a")], ProtocolViolation, "0 bytes was announced"),
    "no chunk": ([request()], ProtocolViolation, "empty chunk"),
    "fewer bytes": ([request(chunk=b"a"), rest(b"b")], ProtocolViolation, "only 2 came"),
    "more bytes at once": ([request(chunk=b"abcde")], ProtocolViolation, "more came"),
    "more bytes later": ([request(chunk=b"abcd"), rest(b"e")], ProtocolViolation, "more came"),
    "an empty chunk": ([request(chunk=b"abc"), rest(b""), rest(b"d")], ProtocolViolation, "empty chunk"),
    "too large": ([request(model_bytes=MAX_MODEL_BYTES + 1, chunk=b"a")], ModelUnsupported, "above the limit"),
    "no name": ([request(name="", chunk=b"abcd")], UsageError, "not a valid name"),
    "a path as name": ([request(name="../kws", chunk=b"abcd")], UsageError, "not a valid name"),
    "no options": ([request(options=None, chunk=b"abcd")], ProtocolViolation, "objective"),
    "too many stages": (
        [request(options=coordinator_pb2.PlanOptions(objective="OBJECTIVE_LATENCY", stages=1000), chunk=b"abcd")],
        ProtocolViolation,
        "options.stages",
    ),
    "a device that is none": (
        [request(options=limited(only=["pi"]), chunk=b"abcd")],
        ProtocolViolation,
        r"options\.limits\.only",
    ),
    "a pin on nobody": (
        [request(options=limited(head="pi"), chunk=b"abcd")],
        ProtocolViolation,
        r"options\.limits\.head",
    ),
    "a thousand replicas": (
        [request(options=limited(replicas=1000), chunk=b"abcd")],
        ProtocolViolation,
        r"options\.limits\.replicas",
    ),
}


@pytest.mark.parametrize("case", BAD_UPLOADS)
async def test_bad_uploads_are_refused_and_nothing_begins(case: str) -> None:
    messages, kind, said = BAD_UPLOADS[case]
    handlers = FakeHandlers()
    async with stub_of(handlers) as stub:
        with pytest.raises(kind, match=said):
            await send(stub, messages)
        assert handlers.asked == []
        await send(stub, [request(chunk=b"abcd")])  # the place of the refused one is free
    assert len(handlers.asked) == 1


async def test_refusals_need_not_wait_for_the_end_of_the_upload() -> None:
    async with stub_of(FakeHandlers()) as stub:
        with pytest.raises(UsageError):
            await send(stub, [request(name="Bad Name", chunk=b"a")], leave_open=True)


async def test_a_caller_that_falls_silent_gives_up_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_upload, "UPLOAD_SILENCE_S", 0.2)
    handlers = FakeHandlers()
    async with stub_of(handlers) as stub:
        with pytest.raises(Timeout, match="nothing of the model came"):
            await send(stub, [request(chunk=b"a")], leave_open=True)
        await send(stub, [request(chunk=b"abcd")])
    assert len(handlers.asked) == 1


@given(st.integers(1, 5 * CHUNK_BYTES).map(lambda size: bytes(size)))
def test_what_is_cut_is_collected(model: bytes) -> None:
    async def go() -> bytes:
        messages = cut_upload(coordinator_pb2.PlanModelRequest(), model)
        return await collect_upload(await anext(messages), messages)

    assert asyncio.run(go()) == model


@given(
    st.builds(
        PlanOptions,
        st.sampled_from(Objective),
        st.none() | st.integers(1, 256),
        st.none() | st.just(PLAN),
        st.sampled_from([NO_LIMITS, Limits((NODE,), (), NODE, 3), Limits(excluded=(NODE,))]),
        st.booleans(),
    )
)
def test_options_come_back_as_they_were(options: PlanOptions) -> None:
    assert options_from_proto(options_to_proto(options)) == options


def test_every_case_raises_an_error_of_the_mesh() -> None:
    assert all(issubclass(kind, MeshError) for _, kind, _ in BAD_UPLOADS.values())
