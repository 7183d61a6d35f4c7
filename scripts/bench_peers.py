"""What scripts/bench_dataplane compares with: ONNX Runtime in a plain loop, and a bare gRPC stream of bytes.

usage: bench_peers.py plain MODEL | grpc-server | grpc-client ADDRESS BYTES

Each is a process of its own that says `{}` when it is ready, then reads a number of seconds per line, measures
for so long, and prints one JSON document per line. It ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

WARM_UP_SHARE = 0.2
METHOD = "/bench.Bytes/Send"


def tell(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)


def run_plain(path: str) -> None:
    """One thread, whole model, the same made-up inputs as `mesh bench`."""
    from pathlib import Path

    import onnxruntime

    from mesh.arrays import to_array
    from mesh.engines.contract import LoadOptions
    from mesh.engines.onnx_runtime import OnnxRuntimeEngine
    from mesh.runtime.frame_source import made_up_tensor

    specs = OnnxRuntimeEngine().load(Path(path), LoadOptions(threads=1)).inputs
    feeds = {spec.name: to_array(made_up_tensor(spec), spec.name) for spec in specs}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, feeds)
    tell({})
    for line in sys.stdin:
        seconds = float(line)
        loop_plain(session, feeds, seconds * WARM_UP_SHARE)
        cpu = time.process_time()
        began = time.perf_counter()
        runs = loop_plain(session, feeds, seconds)
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        tell(
            {
                "throughput_per_s": len(runs) / took,
                "p50_ms": statistics.median(runs) * 1e3,
                "cpu_ms": cpu / len(runs) * 1e3,
            }
        )


def loop_plain(session: Any, feeds: dict[str, Any], seconds: float) -> list[float]:
    runs: list[float] = []
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until or not runs:
        session.run(None, feeds)
        runs.append(time.perf_counter() - began)
    return runs


async def serve_bytes() -> None:
    import grpc

    from mesh.wire.options import SERVER_OPTIONS

    async def receive(requests: AsyncIterator[bytes], context: Any) -> bytes:
        count = 0
        async for _ in requests:
            count += 1
        return str(count).encode()

    server = grpc.aio.server(options=SERVER_OPTIONS)
    handler = grpc.stream_unary_rpc_method_handler(receive)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench.Bytes", {"Send": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    tell({"address": f"127.0.0.1:{port}"})
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0.1)


async def send_bytes(address: str, size_bytes: int) -> None:
    import grpc

    from mesh.wire.options import CHANNEL_OPTIONS

    payload = bytes(size_bytes)
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        call_method: Any = channel.stream_unary(METHOD)
        tell({})
        while line := await asyncio.to_thread(sys.stdin.readline):
            for seconds in (float(line) * WARM_UP_SHARE, float(line)):
                call = call_method()
                began = time.perf_counter()
                while time.perf_counter() - began < seconds:
                    await call.write(payload)
                await call.done_writing()
                count = int(await call)
                took = time.perf_counter() - began
            tell({"frames_per_s": count / took, "mb_per_s": count * size_bytes / took / 1e6})


def main() -> None:
    kind, *arguments = sys.argv[1:]
    if kind == "plain":
        run_plain(arguments[0])
    elif kind == "grpc-server":
        asyncio.run(serve_bytes())
    else:
        asyncio.run(send_bytes(arguments[0], int(arguments[1])))


if __name__ == "__main__":
    main()
