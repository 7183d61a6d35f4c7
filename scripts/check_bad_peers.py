"""What scripts/check_bad_peers runs: a daemon, an honest stream through it (scripts/soak_client.py), and the offences.

Per offence it prints the error that the offender was told, the daemon's resident memory before, at its highest and
after, and the longest silence between two answers of the honest stream. Exit code 1 where an error is another one than
promised, memory passes what the limits of the data plane allow, or the honest stream is held up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import onnx  # noqa: E402 - after the path to this clone

from mesh.client.mesh_client import Mesh  # noqa: E402
from mesh.control.deployments import key_of  # noqa: E402
from mesh.core.ids import DeploymentName  # noqa: E402
from mesh.core.plan import Deployment, PlanOptions  # noqa: E402
from mesh.errors import MeshError  # noqa: E402
from mesh.runtime.edge_receiver import EDGE_CREDIT_BYTES, MAX_UNREAD_BYTES  # noqa: E402
from mesh.wire.channel import NodeClient  # noqa: E402
from nodes.local_mesh import LocalNode, local_nodes, vanishing_folder  # noqa: E402
from scripts.bad_peers import OFFENCE_LIMIT_S, OFFENCES, HostileNode, Offender  # noqa: E402

DIGITS = ROOT / "nodes" / "demo_data" / "digits.onnx"
RATE_HZ = 50.0
GAP_LIMIT_S = 0.5
"""Of the honest stream: pushing a frame of 1 MiB after the other through one daemon takes a core from it."""
MEMORY_LIMIT_MIB = (MAX_UNREAD_BYTES + 4 * EDGE_CREDIT_BYTES) / (1 << 20)
"""Above what it had before: a consumer's unread answers, and the credit of an edge in the daemon, in its engine (both
are counted) and in the transport's buffers."""


@dataclass(slots=True)
class HonestStream:
    process: asyncio.subprocess.Process
    told: list[dict[str, Any]] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.told.append(json.loads(line))
            self.heard.set()

    async def longest_gap_s(self, since: float) -> float:
        """From `since` (monotonic) to now, and at most a second before."""
        until = time.monotonic()
        while not self.told or self.told[-1]["at"] < until:
            self.heard.clear()
            await self.heard.wait()
        return max(float(each["longest_s"]) for each in self.told if each["at"] >= since)


def process_tree(pid: int) -> list[int]:
    children = [child for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return [pid, *(found for child in children for found in process_tree(int(child)))]


def memory_mib(pid: int, key: str) -> float:
    """Of the daemon and its engines; what they share counts for each."""
    lines = [line for each in process_tree(pid) for line in Path(f"/proc/{each}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def forget_peak(pid: int) -> None:
    for each in process_tree(pid):
        Path(f"/proc/{each}/clear_refs").write_text("5")


def make_copying_model() -> bytes:
    helper = onnx.helper
    floats = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "copies",
        [helper.make_tensor_value_info("x", floats, ["n"])],
        [helper.make_tensor_value_info("y", floats, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


async def deploy_all(mesh: Mesh, nodes: list[LocalNode], client: NodeClient, hostile_address: str) -> list[Deployment]:
    """Copies and digits on the daemon, and digits in two parts whose second one is said to be at the hostile node."""

    async def deploy(data: bytes, name: str, stages: int) -> Deployment:
        plan = await mesh.coordinator.plan(data, PlanOptions(stages=stages), lambda line: None)
        placed = tuple(
            replace(stage, devices=(node.node_id,)) for stage, node in zip(plan.stages, nodes[:stages], strict=True)
        )
        options = PlanOptions(forced=replace(plan, stages=placed))
        return await mesh.coordinator.deploy(data, name, options, lambda line: None)

    copies = await deploy(make_copying_model(), "copies", 1)
    digits = await deploy(DIGITS.read_bytes(), "digits", 1)
    halves = await deploy(DIGITS.read_bytes(), "halves", 2)
    addresses = {nodes[0].node_id: nodes[0].address, nodes[1].node_id: hostile_address}
    hostile = replace(halves, name=DeploymentName("hostile"), addresses=addresses, standbys=())
    await client.prepare(hostile)
    await client.activate(key_of(hostile))
    return [copies, digits, hostile]


async def try_offence(name: str, peer: Offender, pid: int, honest: HonestStream) -> bool:
    offend, expected = OFFENCES[name]
    forget_peak(pid)
    before, began = memory_mib(pid, "VmRSS"), time.monotonic()
    error: BaseException | None
    try:
        async with asyncio.timeout(OFFENCE_LIMIT_S):
            error = await offend(peer)
    except (MeshError, TimeoutError, AssertionError) as failure:
        error = failure
    gap_s = await honest.longest_gap_s(began)
    highest, after = memory_mib(pid, "VmHWM"), memory_mib(pid, "VmRSS")
    is_right = error is None if expected is None else isinstance(error, expected)
    is_good = is_right and gap_s <= GAP_LIMIT_S and highest - before <= MEMORY_LIMIT_MIB
    refusal = "nobody is refused" if error is None else f"{type(error).__name__}: {error}"
    print(f"{'ok    ' if is_good else 'FAILED'}  {name:26} {refusal[:110]}")
    print(
        f"        daemon and engines {before:.0f} MiB before, {highest:.0f} at its highest, {after:.0f} after; "
        f"honest stream: longest silence {gap_s * 1000:.0f} ms",
        flush=True,
    )
    return is_good


async def check(names: Sequence[str]) -> int:
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(vanishing_folder("mesh-bad-peers-"))
        nodes = await stack.enter_async_context(local_nodes(2, folder, "peer", ("--no-mdns", "--threads", "1")))
        next_node = HostileNode()
        server, hostile_address = await next_node.listen()
        stack.push_async_callback(server.stop, None)
        only = frozenset(node.node_id for node in nodes)
        mesh = await stack.enter_async_context(Mesh(mdns=False, peers=[node.address for node in nodes], only=only))
        client = NodeClient(nodes[0].address)
        stack.push_async_callback(client.close)
        peer = Offender(client, *await deploy_all(mesh, nodes, client, hostile_address), next_node)
        honest = HonestStream(
            await asyncio.create_subprocess_exec(
                *(sys.executable, str(ROOT / "scripts" / "soak_client.py"), str(RATE_HZ), nodes[0].address),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        )
        listening = asyncio.ensure_future(honest.listen())
        passed = 0
        try:
            while len(honest.told) < 2:  # the first second is starting
                honest.heard.clear()
                await honest.heard.wait()
            for name in names:
                passed += await try_offence(name, peer, nodes[0].process.pid, honest)
        finally:
            assert honest.process.stdin is not None
            honest.process.stdin.close()
            await honest.process.wait()
            await listening
        last = honest.told[-1]
        is_whole = (
            last["kind"] == "end" and last["sent"] == last["answered"] and not last["wrong"] and not last["error"]
        )
        print(
            f"{'ok    ' if is_whole else 'FAILED'}  honest stream: {last['sent']} sent, {last['answered']} answered",
            end="",
        )
        print(f" once, in order and rightly {last.get('error', '')} {last.get('wrong') or ''}".rstrip())
    print(f"{passed + is_whole} passed, {len(names) + 1 - passed - is_whole} failed")
    return 0 if passed == len(names) and is_whole else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Bad peers against a real daemon, and an honest stream beside them.")
    parser.add_argument("offences", nargs="*", metavar="OFFENCE", help=f"default: all of {', '.join(OFFENCES)}")
    chosen = parser.parse_args().offences or list(OFFENCES)
    if unknown := set(chosen) - set(OFFENCES):
        parser.error(f"no such offence: {', '.join(sorted(unknown))}")
    sys.exit(asyncio.run(check(chosen)))
