"""The unmodified tritonclient against a gateway: gRPC, asyncio, streams and HTTP, and every error case's status.

usage: triton.py GRPC_ADDRESS HTTP_ADDRESS MODEL.onnx    MODEL is deployed as "digits"; run by scripts/check_gateway.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

MODEL = "digits"
LIMIT_S = 30.0
CLIENTS = 8
REQUESTS = 40
BLOCKED_S = 5.0
"""No request of a small model takes so long unless somebody else's is in its way."""


class Case:
    """One input with the answer of local ONNX Runtime."""

    def __init__(self, model: Path) -> None:
        session = onnxruntime.InferenceSession(model)
        self.image = np.random.default_rng(7).random((1, 1, 8, 8), dtype=np.float32)
        (self.scores,) = session.run(None, {"image": self.image})

    def input(self, library: Any, **options: Any) -> Any:
        tensor = library.InferInput("image", self.image.shape, "FP32")
        tensor.set_data_from_numpy(self.image, **options)
        return tensor

    def check(self, result: Any) -> None:
        np.testing.assert_allclose(result.as_numpy("scores"), self.scores, rtol=1e-4, atol=1e-5)


def status_of(work: Callable[[], Any]) -> str:
    """The status that `work` fails with; it must fail."""
    try:
        work()
    except InferenceServerException as error:
        return str(error.status()).removeprefix("StatusCode.")
    raise AssertionError("it was answered")


def check_grpc(address: str, case: Case, model: bytes) -> None:
    client = triton_grpc.InferenceServerClient(address)
    tensor = case.input(triton_grpc)
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL) and not client.is_model_ready("none")
    assert "statistics" in client.get_server_metadata().extensions
    assert [entry.name for entry in client.get_model_metadata(MODEL).inputs] == ["image"]
    assert client.get_model_config(MODEL).config.input[0].data_type == triton_grpc.model_config_pb2.TYPE_FP32
    result = client.infer(MODEL, [tensor], request_id="seven", client_timeout=LIMIT_S)
    case.check(result)
    assert result.get_response().id == "seven"
    assert client.get_inference_statistics(MODEL).model_stats[0].inference_count >= 1
    client.load_model("again", config="{}", files={"file:1/model.onnx": model})
    states = {entry.name: entry.state for entry in client.get_model_repository_index().models}
    assert states == {MODEL: "READY", "again": "READY"}, states
    case.check(client.infer("again", [tensor]))
    client.unload_model("again")
    assert status_of(lambda: client.infer("again", [tensor])) == "NOT_FOUND"
    client.close()


def check_grpc_errors(address: str, case: Case) -> None:
    client = triton_grpc.InferenceServerClient(address)
    tensor = case.input(triton_grpc)

    def other(name: str, shape: Sequence[int], datatype: str) -> Any:
        made = triton_grpc.InferInput(name, shape, datatype)
        made.set_data_from_numpy(np.zeros(shape, np.float32 if datatype == "FP32" else np.int32))
        return made

    def wanting(**options: Any) -> Any:
        return triton_grpc.InferRequestedOutput("scores", **options)

    cases: dict[str, tuple[Callable[[], Any], str]] = {
        "unknown model": (lambda: client.infer("none", [tensor]), "NOT_FOUND"),
        "unknown version": (lambda: client.infer(MODEL, [tensor], "9"), "NOT_FOUND"),
        "wrong shape": (lambda: client.infer(MODEL, [other("image", (1, 1, 8, 7), "FP32")]), "INVALID_ARGUMENT"),
        "wrong type": (lambda: client.infer(MODEL, [other("image", (1, 1, 8, 8), "INT32")]), "INVALID_ARGUMENT"),
        "wrong input": (lambda: client.infer(MODEL, [other("picture", (1, 1, 8, 8), "FP32")]), "INVALID_ARGUMENT"),
        "wrong output": (
            lambda: client.infer(MODEL, [tensor], outputs=[triton_grpc.InferRequestedOutput("none")]),
            "INVALID_ARGUMENT",
        ),
        "classification": (
            lambda: client.infer(MODEL, [tensor], outputs=[wanting(class_count=3)]),
            "INVALID_ARGUMENT",
        ),
        "too late": (lambda: client.infer(MODEL, [tensor], timeout=1), "DEADLINE_EXCEEDED"),
        "no such model to load": (lambda: client.load_model("none"), "NOT_FOUND"),
        "no model at all": (
            lambda: client.load_model("bad", config="{}", files={"file:1/model.onnx": b"junk"}),
            "INVALID_ARGUMENT",
        ),
        "tracing": (client.get_trace_settings, "UNIMPLEMENTED"),
        "shared memory": (client.get_system_shared_memory_status, "UNIMPLEMENTED"),
    }
    for name, (work, status) in cases.items():
        assert (found := status_of(work)) == status, f"{name}: {found}, not {status}"
    case.check(client.infer(MODEL, [tensor]))
    client.close()


def check_stream(address: str, case: Case) -> None:
    client = triton_grpc.InferenceServerClient(address)
    tensor = case.input(triton_grpc)
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(20):
        model = "none" if number == 7 else MODEL
        ends = {"sequence_start": number == 0, "sequence_end": number == 19}
        client.async_stream_infer(model, [tensor], request_id=str(number), sequence_id=5, **ends)
    found = [answers.get(timeout=LIMIT_S) for _ in range(20)]
    client.stop_stream()
    client.close()
    assert [number for number, (_, error) in enumerate(found) if error is not None] == [7]
    numbers = [result.get_response().id for result, _ in found if result is not None]
    assert numbers == [str(number) for number in range(20) if number != 7], "a sequence is answered in its order"
    for result, _ in found:
        if result is not None:
            case.check(result)


async def check_aio(address: str, case: Case) -> None:
    tensor = case.input(triton_grpc)

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(5):
            yield {"model_name": MODEL, "inputs": [tensor], "request_id": str(number)}

    async with triton_aio.InferenceServerClient(address) as client:
        for result in await asyncio.gather(*[client.infer(MODEL, [tensor]) for _ in range(50)]):
            case.check(result)
        async for result, error in client.stream_infer(requests()):
            assert error is None
            case.check(result)


def check_http(address: str, case: Case, model: bytes) -> None:
    client = triton_http.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL) and not client.is_model_ready("none")
    assert client.get_model_metadata(MODEL)["inputs"][0]["datatype"] == "FP32"
    assert client.get_model_config(MODEL)["input"][0]["data_type"] == "TYPE_FP32"
    for sends_binary in (True, False):
        tensor = case.input(triton_http, binary_data=sends_binary)
        case.check(client.infer(MODEL, [tensor]))
        for takes_binary in (True, False):
            wanted = [triton_http.InferRequestedOutput("scores", binary_data=takes_binary)]
            case.check(client.infer(MODEL, [tensor], outputs=wanted))
    assert client.get_inference_statistics(MODEL)["model_stats"][0]["inference_count"] >= 1
    client.load_model("again", config="{}", files={"file:1/model.onnx": model})
    case.check(client.infer("again", [case.input(triton_http)]))
    client.unload_model("again")
    assert status_of(lambda: client.infer("again", [tensor])) == "404"
    wrong = triton_http.InferInput("image", (1, 1, 8, 7), "FP32")
    wrong.set_data_from_numpy(case.image[..., :7])
    assert status_of(lambda: client.infer(MODEL, [wrong])) == "400"
    client.close()


def check_many(address: str, case: Case) -> None:
    """Clients at once, beside one that opens a stream, fills it and reads nothing: nobody waits for anybody."""
    lazy = triton_grpc.InferenceServerClient(address)
    blocked = threading.Event()
    lazy.start_stream(lambda result, error: blocked.wait(LIMIT_S))
    for _ in range(500):
        lazy.async_stream_infer(MODEL, [case.input(triton_grpc)])
    worst: list[float] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            client = triton_grpc.InferenceServerClient(address)
            for _ in range(REQUESTS):
                began = time.monotonic()
                case.check(client.infer(MODEL, [case.input(triton_grpc)], client_timeout=LIMIT_S))
                worst.append(time.monotonic() - began)
            client.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    blocked.set()
    lazy.stop_stream(cancel_requests=True)
    lazy.close()
    if failures:
        raise failures[0]
    assert len(worst) == CLIENTS * REQUESTS
    assert max(worst) < BLOCKED_S, f"a request took {max(worst):.1f} s"
    print(f"{CLIENTS} clients at once: {len(worst)} answers, the slowest in {max(worst) * 1e3:.0f} ms")


def main() -> None:
    grpc_address, http_address, path = sys.argv[1:]
    case, model = Case(Path(path)), Path(path).read_bytes()
    check_grpc(grpc_address, case, model)
    print("gRPC: equal to local ONNX Runtime")
    check_grpc_errors(grpc_address, case)
    print("gRPC: every error has its status")
    check_stream(grpc_address, case)
    print("gRPC stream: in order, an error ends its request alone")
    asyncio.run(check_aio(grpc_address, case))
    print("gRPC asyncio: equal")
    check_http(http_address, case, model)
    print("HTTP: equal, JSON and binary")
    check_many(grpc_address, case)


main()
