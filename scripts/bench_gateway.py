"""What `scripts/bench_gateway` measures: one request at a time to one node, by the Python client and through gateways.

One gateway is in the node's own process (`mesh node --gateway`), the other is a process of its own (`mesh gateway`).
All processes share this machine's cores, as they do where a device runs both. The callers take turns, round by round,
in an order that changes; figures are medians over the rounds of the median latency in each, with lowest and highest.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import numpy as np
from onnx import TensorProto, helper

import mesh
from mesh.gateways.public_messages import SERVICE, message_class
from nodes.local_mesh import local_nodes, vanishing_folder

ELEMENTS = 16384
"""Of float32: 64 KiB."""

TARGET_MS = 1.0
ANYWHERE = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--metrics", "off"]
MESH = [sys.executable, "-m", "nodes"]
JSON_LENGTH = "Inference-Header-Content-Length"


def make_model() -> bytes:
    """64 KiB in, their largest value out: next to no computing, so that the way is what is measured."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMax", ["x"], ["y"], axes=[1], keepdims=1)],
        "largest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, ELEMENTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def call_grpc(address: str, values: Any) -> Callable[[], float]:
    """As a client of the protocol does: a blocking call, raw contents."""
    request_class, response_class = message_class("ModelInferRequest"), message_class("ModelInferResponse")
    channel = grpc.insecure_channel(address)
    method = channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        request_serializer=request_class.SerializeToString,
        response_deserializer=response_class.FromString,
    )

    def call() -> float:
        entry = {"name": "x", "datatype": "FP32", "shape": values.shape}
        request = request_class(model_name="bench", inputs=[entry], raw_input_contents=[values.tobytes()])
        response = method(request, timeout=30)
        return float(np.frombuffer(response.raw_output_contents[0], np.float32)[0])

    return call


def call_refused(address: str, values: Any) -> Callable[[], float]:
    """The same bytes to a model whose name cannot be: what gRPC alone takes on this machine."""
    request_class = message_class("ModelInferRequest")
    channel = grpc.insecure_channel(address)
    method = channel.unary_unary(
        f"/{SERVICE}/ModelInfer", request_serializer=request_class.SerializeToString, response_deserializer=bytes
    )

    def call() -> float:
        entry = {"name": "x", "datatype": "FP32", "shape": values.shape}
        request = request_class(model_name="No Name", inputs=[entry], raw_input_contents=[values.tobytes()])
        try:
            method(request, timeout=30)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND
        return float(values.max())

    return call


def call_http(address: str, values: Any) -> Callable[[], float]:
    """Binary both ways, over one connection."""
    connection = http.client.HTTPConnection(address, timeout=30)
    size = {"binary_data_size": values.nbytes}
    document = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": values.shape, "parameters": size}],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(document).encode()

    def call() -> float:
        connection.request("POST", "/v2/models/bench/infer", head + values.tobytes(), {JSON_LENGTH: str(len(head))})
        response = connection.getresponse()
        body = response.read()
        return float(np.frombuffer(body[int(response.headers[JSON_LENGTH]) :], np.float32)[0])

    return call


async def measure(rounds: int, requests: int) -> dict[str, list[float]]:
    """Milliseconds per request, by caller: the median of each round."""
    values = np.random.default_rng(7).random((1, ELEMENTS), dtype=np.float32)
    largest = float(values.max())
    with vanishing_folder("bench-gateway-") as folder:
        model_file = folder.path / "bench.onnx"
        model_file.write_bytes(make_model())
        async with (
            local_nodes(1, folder, "bench", ("--gateway", *ANYWHERE)) as daemons,
            mesh.connect(peers=[daemons[0].address], mdns=False) as connection,
        ):
            model = await connection.deploy(model_file, name="bench")
            line = [*MESH, "gateway", "--no-mdns", "--peer", daemons[0].address, "--json", *ANYWHERE]
            gateway = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220 - once
            try:
                assert gateway.stdout is not None
                addresses = json.loads(await asyncio.to_thread(gateway.stdout.readline))
                inside = daemons[0].gateway
                calls = {
                    "gRPC, in the node": call_grpc(inside["grpc"], values),
                    "HTTP, in the node": call_http(inside["http"], values),
                    "gRPC, by itself": call_grpc(addresses["grpc"], values),
                    "HTTP, by itself": call_http(addresses["http"], values),
                    "gRPC alone": call_refused(addresses["grpc"], values),
                }

                async def by_client() -> float:
                    return float((await model.run({"x": values}))["y"][0, 0])

                async def in_turn(call: Callable[[], float]) -> list[float]:
                    def work() -> list[float]:
                        return [_timed(call, largest) for _ in range(requests)]

                    return await asyncio.to_thread(work)

                async def client_turn() -> list[float]:
                    taken = []
                    for _ in range(requests):
                        began = time.perf_counter()
                        assert await by_client() == largest
                        taken.append(time.perf_counter() - began)
                    return taken

                turns: dict[str, Callable[[], Any]] = {name: partial(in_turn, call) for name, call in calls.items()}
                turns["Python client"] = client_turn
                figures: dict[str, list[float]] = {name: [] for name in turns}
                order, chance = list(turns), random.Random(7)
                for number in range(rounds + 1):
                    chance.shuffle(order)
                    for name in order:
                        median_ms = statistics.median(await turns[name]()) * 1e3
                        if number:  # the first round warms up
                            figures[name].append(median_ms)
                return figures
            finally:
                gateway.terminate()
                gateway.wait()


def _timed(call: Callable[[], float], wanted: float) -> float:
    began = time.perf_counter()
    found = call()
    taken = time.perf_counter() - began
    assert found == wanted
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--requests", type=int, default=100, help="by each caller in each round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.rounds, options.requests))
    client = figures["Python client"]
    for name in [name for name in figures if "," in name]:
        figures[f"{name}: added"] = [ours - plain for ours, plain in zip(figures[name], client, strict=True)]
    medians = {name: statistics.median(samples) for name, samples in figures.items()}
    if options.json:
        print(json.dumps({name: {"median_ms": medians[name], "ms": figures[name]} for name in figures}))
    for name, samples in figures.items():
        said = f"{name:<25} {medians[name]:6.3f} ms ({min(samples):.3f} .. {max(samples):.3f})"
        if name == "gRPC, in the node: added":
            said += f"  target <= {TARGET_MS:g}: {'holds' if medians[name] <= TARGET_MS else 'MISSED'}"
        print(said, file=sys.stderr if options.json else sys.stdout)


main()
