"""What an engine in a child process costs per item against one on a thread, by the size of its tensors.

usage: scripts/bench_engines [--rounds N] [--items N] [--json]

Each round asks both engines, in turn, for the same items through the node's `EnginePool`: one at a time (latency),
then two under way as a stage keeps them (throughput). The model adds one to a vector, so nearly all of the time is
the way there and back. Printed are medians over the rounds with their quartiles, in microseconds per item. Also:
seconds to load, and private memory of a child. Run it on a machine that does nothing else. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from onnx import TensorProto, helper

from mesh.arrays import from_array
from mesh.core.ids import Sha256
from mesh.engines import make_engine
from mesh.engines.child_process import ChildEngine, ChildSession
from mesh.engines.contract import Engine, LoadOptions
from mesh.runtime.engine_pool import Completion, EngineLease, EnginePool

SIZES_BYTES = {"64 KB": 64 << 10, "600 KB": 600 << 10, "4 MB": 4 << 20}
DEPTHS = {"one at a time": 1, "two under way": 2}
WARM_UP_ITEMS = 20


def make_model() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["y"])],
        "add one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


async def time_items(engine: EngineLease, size_bytes: int, items: int, depth: int) -> float:
    """Seconds per item with `depth` of them under way."""
    feeds = [from_array(np.zeros(size_bytes // 4, np.float32))]
    room = asyncio.Semaphore(depth)

    def done(completion: Completion) -> None:
        if completion.error is not None:
            raise completion.error
        room.release()

    began = time.perf_counter()
    for _ in range(items):
        await room.acquire()
        engine.submit(None, feeds, done)
    for _ in range(depth):
        await room.acquire()
    return (time.perf_counter() - began) / items


def read_private_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


async def measure(rounds: int, items: int) -> dict[str, Any]:
    engines: dict[str, Engine] = {"thread": make_engine(), "child": ChildEngine()}
    pools = {name: EnginePool(engine) for name, engine in engines.items()}
    leases: dict[str, EngineLease] = {}
    report: dict[str, Any] = {"load_seconds": {}, "microseconds_per_item": []}
    try:
        for name, pool in pools.items():
            began = time.perf_counter()
            leases[name] = await pool.acquire(make_model(), Sha256("0" * 64), LoadOptions())
            report["load_seconds"][name] = round(time.perf_counter() - began, 3)
        for label, size in SIZES_BYTES.items():
            for way, depth in DEPTHS.items():
                taken: dict[str, list[float]] = {name: [] for name in leases}
                for lease in leases.values():
                    await time_items(lease, size, WARM_UP_ITEMS, depth)
                for _ in range(rounds):
                    for name, lease in leases.items():
                        taken[name].append(1e6 * await time_items(lease, size, items, depth))
                row: dict[str, Any] = {"tensors": label, "how": way}
                for name, values in taken.items():
                    low, middle, high = statistics.quantiles(values, n=4)
                    row[name] = {"median": round(middle), "quartiles": [round(low), round(high)]}
                row["overhead"] = row["child"]["median"] - row["thread"]["median"]
                report["microseconds_per_item"].append(row)
        session = leases["child"].engine.lanes[0].session
        if isinstance(session, ChildSession):
            report["child_private_kib"] = read_private_kib(session.pid)
    finally:
        for pool in pools.values():
            await pool.close()
    return report


def show(report: dict[str, Any]) -> None:
    print("microseconds per item: median (quartiles)")
    for row in report["microseconds_per_item"]:
        cells = (
            f"{name} {row[name]['median']:>6} ({row[name]['quartiles'][0]}..{row[name]['quartiles'][1]})"
            for name in ("thread", "child")
        )
        print(f"{row['tensors']:>7}, {row['how']}: {'   '.join(cells)}   child costs {row['overhead']:+}")
    loads = ", ".join(f"{name} {seconds} s" for name, seconds in report["load_seconds"].items())
    print(f"loading: {loads}; private memory of the child: {report.get('child_private_kib', 0) >> 10} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--items", type=int, default=200, help="per round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = asyncio.run(measure(options.rounds, options.items))
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)


if __name__ == "__main__":
    main()
