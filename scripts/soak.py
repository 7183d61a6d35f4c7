"""What scripts/soak runs: daemons, a client (scripts/soak_client.py), swaps, samples, and a verdict.

Every second: resident memory of each daemon with and without the engines that are its children, descriptors, threads
and children, and the same of the client with its asyncio tasks. The verdict is about the second half: a quantity is
flat where a straight line through its lowest values, one per round of plans, rises by no more than a tolerance.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mesh.client.mesh_client import Mesh  # noqa: E402 - after the path to this clone
from mesh.core.ids import NodeId  # noqa: E402
from mesh.core.plan import Plan, PlanOptions  # noqa: E402
from nodes.local_mesh import LocalNode, local_nodes, vanishing_folder  # noqa: E402

MODEL = ROOT / "nodes" / "demo_data" / "digits.onnx"
NODES = 4
STAGES = 2
RATE_HZ = 50.0
SWAP_EVERY_S = 20.0
LAYOUTS = ((0, 1), (2, 3), (1, 0), (3, 2))
"""Devices of the stages, one plan after the other: every swap moves every stage, and each device rests between two."""
ROUND_S = 2 * SWAP_EVERY_S
"""Until each device has worked and rested."""
SWAP_AFTERMATH_S = 6.0
"""The old generation drains for as long as this after a deploy has returned; silences until then are the swap's."""

GAP_LIMIT_S = 0.3
GAPS_TOLD = 8
TOLERANCES = {"rss_mib": 4.0, "tree_rss_mib": 8.0, "descriptors": 3.0, "threads": 2.0, "children": 1.0, "tasks": 2.0}
"""By which a quantity may rise over the second half: what an allocator's arenas and the phase of a swap make of it."""


@dataclass(slots=True)
class Sampled:
    """One process, second by second."""

    name: str
    pid: int
    rows: list[dict[str, float]] = field(default_factory=list)

    def column(self, quantity: str) -> list[float]:
        return [row[quantity] for row in self.rows]


@dataclass(slots=True)
class Client:
    process: asyncio.subprocess.Process
    sampled: Sampled
    gaps: list[tuple[float, float]] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)

    async def listen(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.last = json.loads(line)
            self.gaps.extend((begin, end) for begin, end in self.last["gaps"])


def say(line: str) -> None:
    print(line, flush=True)


# Sampling -----------------------------------------------------------------------------------------


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in listing.read_text().split():
            found += [int(child), *children_of(int(child))]
    return found


def rss_mib(pid: int) -> float:
    """Resident, without the pages of files: those the kernel takes and brings back as it likes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0  # an engine that has just ended
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def look_at(pid: int) -> dict[str, float]:
    children, own = children_of(pid), rss_mib(pid)
    return {
        "rss_mib": own,
        "tree_rss_mib": own + sum(rss_mib(child) for child in children),
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
        "children": len(children),
    }


async def sample(daemons: Sequence[Sampled], client: Client, began: float, ends_at: float) -> None:
    while time.monotonic() < ends_at and client.process.returncode is None:
        now = time.monotonic()
        for each in daemons:
            each.rows.append({"second": now - began, **look_at(each.pid)})
        row = {"second": now - began, **look_at(client.sampled.pid), "tasks": client.last.get("tasks", 0)}
        client.sampled.rows.append(row)
        await asyncio.sleep(max(0.0, now + 1.0 - time.monotonic()))


# Swapping -----------------------------------------------------------------------------------------


def on_devices(plan: Plan, devices: Sequence[NodeId]) -> Plan:
    stages = tuple(replace(stage, devices=(device,)) for stage, device in zip(plan.stages, devices, strict=True))
    return replace(plan, stages=stages)


async def swap(
    mesh: Mesh, plan: Plan, nodes: Sequence[LocalNode], began: float, ends_at: float, swaps: list[tuple[float, float]]
) -> None:
    number = 0
    while time.monotonic() + SWAP_EVERY_S + SWAP_AFTERMATH_S < ends_at:
        await asyncio.sleep(max(0.0, began + (number + 1) * SWAP_EVERY_S - time.monotonic()))
        number += 1
        devices = [nodes[at].node_id for at in LAYOUTS[number % len(LAYOUTS)]]
        begin = time.monotonic()
        options = PlanOptions(forced=on_devices(plan, devices))
        deployment = await mesh.coordinator.deploy(MODEL.read_bytes(), "digits", options, lambda line: None)
        swaps.append((begin, time.monotonic()))
        took = swaps[-1][1] - begin
        say(f"{begin - began:6.0f} s  swap {number}: generation {deployment.fence} in force after {took:.1f} s")


# Judging ------------------------------------------------------------------------------------------


def rise(seconds: Sequence[float], values: Sequence[float]) -> float:
    """By how much the lowest values of each round of plans rise over the second half (least squares)."""
    half = seconds[-1] / 2
    lowest: dict[int, tuple[float, float]] = {}
    for second, value in zip(seconds, values, strict=True):
        if second >= half:
            index = int((second - half) / ROUND_S)
            if index not in lowest or value < lowest[index][1]:
                lowest[index] = (second, value)
    rounds = [point for index, point in lowest.items() if half + (index + 1) * ROUND_S <= seconds[-1] + ROUND_S / 4]
    if len(rounds) < 2:
        return 0.0
    middle_x = sum(x for x, _ in rounds) / len(rounds)
    middle_y = sum(y for _, y in rounds) / len(rounds)
    slope = sum((x - middle_x) * (y - middle_y) for x, y in rounds) / sum((x - middle_x) ** 2 for x, _ in rounds)
    return slope * (seconds[-1] - half)


def judge_growth(sampled: Sequence[Sampled]) -> list[str]:
    failures = []
    for each in sampled:
        seconds, told = each.column("second"), []
        for quantity, tolerance in TOLERANCES.items():
            if quantity not in each.rows[0]:
                continue
            values = each.column(quantity)
            risen = rise(seconds, values)
            told.append(f"{quantity} {min(values[len(values) // 2 :]):.0f}..{max(values):.0f} ({risen:+.1f})")
            if risen > tolerance:
                failures.append(f"{each.name}: {quantity} rises by {risen:.1f}, more than {tolerance:g}")
        say(f"  {each.name:8} {', '.join(told)}")
    return failures


def judge_answers(client: Client, swaps: Sequence[tuple[float, float]], run_began: float) -> list[str]:
    last, failures = client.last, []
    if last.get("kind") != "end":
        return ["the client did not tell how it ended"]
    say(f"frames: {last['sent']} sent, {last['answered']} answered; {last['counters']}")
    if last["error"] or last["sent"] != last["answered"] or last["wrong"]:
        failures.append(f"not every frame was answered once, in order and rightly: {last['error']} {last['wrong']}")
    near, far = 0.0, 0.0
    for begin, end in client.gaps:
        is_near = any(begin < ended + SWAP_AFTERMATH_S and end > began for began, ended in swaps)
        near, far = max(near, (end - begin) * is_near), max(far, (end - begin) * (not is_near))
    say(f"longest silence of the answers: {near:.3f} s around {len(swaps)} swaps, {far:.3f} s apart from them")
    longest = sorted(client.gaps, key=lambda gap: gap[0] - gap[1])[:GAPS_TOLD]
    told = ", ".join(f"{end - begin:.3f} s at {begin - run_began:.0f} s" for begin, end in longest)
    say(f"  {told or 'none of 0.1 s or more'}")
    if near > GAP_LIMIT_S:
        failures.append(f"a silence of {near:.3f} s around a swap, more than {GAP_LIMIT_S:g} s")
    return failures


# Telling ------------------------------------------------------------------------------------------


def write_csv(path: Path, sampled: Sequence[Sampled]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        keys = [(each, key) for each in sampled for key in each.rows[0] if key != "second"]
        writer.writerow(["second", *(f"{each.name} {key}" for each, key in keys)])
        for number, second in enumerate(sampled[0].column("second")):
            row = (each.rows[number][key] if number < len(each.rows) else "" for each, key in keys)
            writer.writerow([f"{second:.1f}", *(f"{value:.1f}" if value != "" else "" for value in row)])


def draw(folder: Path, sampled: Sequence[Sampled]) -> None:
    """A PNG where matplotlib is installed, else lines of characters."""
    try:
        from matplotlib import pyplot
    except ImportError:
        for each in sampled:
            say(f"  {each.name:8} {sketch(each.column('tree_rss_mib'))} MiB with engines")
        return
    quantities = ("rss_mib", "tree_rss_mib", "descriptors", "threads")
    figure, axes = pyplot.subplots(len(quantities), 1, sharex=True, figsize=(10, 12))
    for axis, quantity in zip(axes, quantities, strict=True):
        for each in sampled:
            axis.plot(each.column("second"), each.column(quantity), label=each.name)
        axis.set_ylabel(quantity)
    axes[0].legend()
    axes[-1].set_xlabel("seconds")
    figure.savefig(folder / "soak.png")
    say(f"plot: {folder / 'soak.png'}")


def sketch(values: Sequence[float], width: int = 64) -> str:
    low, high = min(values), max(values)
    columns = [values[len(values) * at // width] for at in range(width)]
    marks = "▁▂▃▄▅▆▇█"
    drawn = "".join(marks[int((value - low) / (high - low or 1) * (len(marks) - 1))] for value in columns)
    return f"{low:6.0f} {drawn} {high:.0f}"


# Running ------------------------------------------------------------------------------------------


async def start_client(addresses: Sequence[str]) -> Client:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "scripts" / "soak_client.py"), str(RATE_HZ), *addresses),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    return Client(process, Sampled("client", process.pid))


async def end_client(client: Client) -> None:
    assert client.process.stdin is not None
    client.process.stdin.close()
    try:
        await asyncio.wait_for(client.process.wait(), 30.0)
    except TimeoutError:
        client.process.kill()
        await client.process.wait()


async def soak(minutes: float, out: Path) -> int:
    swaps: list[tuple[float, float]] = []
    with vanishing_folder("mesh-soak-") as folder:
        async with local_nodes(NODES, folder, "soak", ("--no-mdns", "--threads", "1")) as nodes:
            addresses = [node.address for node in nodes]
            async with Mesh(mdns=False, peers=addresses, only=frozenset(node.node_id for node in nodes)) as mesh:
                data = MODEL.read_bytes()
                plan = await mesh.coordinator.plan(data, PlanOptions(stages=STAGES), lambda line: None)
                first = PlanOptions(forced=on_devices(plan, [nodes[at].node_id for at in LAYOUTS[0]]))
                await mesh.coordinator.deploy(data, "digits", first, lambda line: None)
                client = await start_client(addresses)
                daemons = [Sampled(node.name, node.process.pid) for node in nodes]
                began = time.monotonic()
                ends_at = began + minutes * 60
                listening = asyncio.ensure_future(client.listen())
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(sample(daemons, client, began, ends_at))
                        group.create_task(swap(mesh, plan, nodes, began, ends_at, swaps))
                finally:
                    await end_client(client)
                    await listening
            logs = {node.name: (folder.path / f"{node.name}.log").read_text(errors="replace") for node in nodes}
    sampled = [*daemons, client.sampled]
    write_csv(out / "soak.csv", sampled)
    say(f"second by second: {out / 'soak.csv'}")
    say("lowest of the second half..highest of all, and the rise over the second half:")
    failures = judge_growth(sampled)
    draw(out, sampled)
    failures += judge_answers(client, swaps, began)
    failures += [f"{name} told of a bug:\n{log}" for name, log in logs.items() if "Traceback" in log]
    for failure in failures:
        say(f"FAILED  {failure}")
    say(f"{'FAILED' if failures else 'ok'}: {minutes:g} minutes, {len(swaps)} swaps")
    return 1 if failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="A long stream through local daemons whose plan is swapped.")
    parser.add_argument("--minutes", type=float, default=30.0, metavar="M", help="how long; growth shows from three on")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "soak", metavar="FOLDER", help="for CSV and plot")
    options = parser.parse_args()
    return asyncio.run(soak(options.minutes, options.out))


if __name__ == "__main__":
    sys.exit(main())
