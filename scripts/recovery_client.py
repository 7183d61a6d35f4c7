"""The client of scripts/check_recovery: one lossless and one live stream through the digits, audited.

`python scripts/recovery_client.py RATE_HZ LIVE_HZ DEADLINE_S ADDRESS...`: JSON documents, one a line, on standard
output, until standard input ends; then nothing more is sent, what is owed is waited for, and the totals are told.
Every second tells what each board says of the deployment.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from soak_client import PICTURES, TOLERANCE, load_pictures

from mesh.client.mesh_client import Mesh
from mesh.control.answer_queue import Answer
from mesh.core.frame import Outcome, StreamClass
from mesh.errors import MeshError
from mesh.runtime.frame_stream import FrameStream, StreamOptions

TOLD_GAP_S = 0.1
ASK_TIMEOUT_S = 0.7
LAST_ANSWERS_LIMIT_S = 30.0


@dataclass(slots=True)
class Account:
    """What went out and what came back of one stream."""

    kind: str
    sent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    due: int = 0
    """The sequence that comes next."""
    duplicated: int = 0
    out_of_order: int = 0
    wrong: int = 0
    heard_at: float = field(default_factory=time.monotonic)
    told: bool = False
    expected: dict[int, list[float]] = field(default_factory=dict)
    error: str = ""
    first_failures: list[str] = field(default_factory=list)

    def hear(self, answer: Answer) -> None:
        self.duplicated += answer.sequence < self.due
        self.out_of_order += answer.sequence > self.due
        self.due = max(self.due, answer.sequence + 1)
        self.outcomes[answer.outcome.name] += 1
        if answer.outcome is not Outcome.OK:
            if self.kind == "lossless" and len(self.first_failures) < 5:
                self.first_failures.append(f"{answer.sequence} {answer.outcome.name}: {answer.error}")
            return
        now = time.monotonic()
        if now - self.heard_at >= TOLD_GAP_S:
            tell("gap", stream=self.kind, begin=self.heard_at, end=now)
        self.heard_at = now
        data = answer.tensors[0].data
        scores = list(struct.unpack(f"<{len(data) // 4}f", data))
        first = self.expected.setdefault(answer.sequence % PICTURES, scores)
        self.wrong += any(abs(a - b) > TOLERANCE for a, b in zip(first, scores, strict=True))

    def totals(self) -> dict[str, Any]:
        return {
            "sent": self.sent,
            "outcomes": dict(self.outcomes),
            "duplicated": self.duplicated,
            "out_of_order": self.out_of_order,
            "wrong": self.wrong,
            "error": self.error,
            "failures": self.first_failures,
        }


def tell(kind: str, **more: Any) -> None:
    print(json.dumps({"kind": kind, "at": time.monotonic(), **more}), flush=True)


async def feed(stream: FrameStream, account: Account, rate_hz: float, stop: asyncio.Event) -> None:
    """At a steady rate; what the stream holds up is not caught up with."""
    pictures, due_at = load_pictures(), time.monotonic()
    while not stop.is_set():
        due_at = max(due_at + 1 / rate_hz, time.monotonic())
        await asyncio.sleep(due_at - time.monotonic())
        await stream.send([pictures[account.sent % PICTURES]])
        account.sent += 1
    stream.finish()


async def take(stream: FrameStream, account: Account) -> None:
    async for answer in stream.answers():
        account.hear(answer)


async def audit(stream: FrameStream, account: Account, rate_hz: float, stop: asyncio.Event) -> None:
    feeding = asyncio.ensure_future(feed(stream, account, rate_hz, stop))
    try:
        await take(stream, account)
        await feeding
    except MeshError as error:
        account.error = f"{type(error).__name__}: {error}"
        tell("broken", stream=account.kind, error=account.error)
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


async def look(mesh: Mesh, name: str, boards: dict[str, str]) -> dict[str, list[dict[str, Any]] | None]:
    """Of each board, by name: what it holds of the deployment; None where it does not answer."""

    async def ask(address: str) -> list[dict[str, Any]] | None:
        try:
            reports, _ = await mesh.client(address).list_deployments(name, ASK_TIMEOUT_S)
        except MeshError:
            return None
        names = {known: board for board, known in boards.items()}
        return [
            {
                "generation": [r.deployment.fence.term, r.deployment.fence.generation],
                "state": r.state,
                "cause": r.deployment.cause,
                "devices": [
                    [names[r.deployment.addresses[node]] for node in stage.devices]
                    for stage in r.deployment.plan.stages
                ],
            }
            for r in reports
        ]

    said = await asyncio.gather(*(ask(address) for address in boards.values()))
    return dict(zip(boards, said, strict=True))


async def watch(mesh: Mesh, name: str, boards: dict[str, str], stop: asyncio.Event, streams: list[FrameStream]) -> None:
    while not stop.is_set():
        fences = [[s.deployment.fence.term, s.deployment.fence.generation] for s in streams]
        tell("look", boards=await look(mesh, name, boards), used=fences)
        await asyncio.sleep(0.5)


async def run(rate_hz: float, live_hz: float, deadline_s: float, addresses: list[str]) -> None:
    stop = asyncio.Event()
    accounts = [Account("lossless"), Account("live")]
    async with Mesh(mdns=False, peers=addresses) as mesh:
        boards = {node.capabilities.name: node.address for node in await mesh.nodes()}
        deployment = (await mesh.model("digits")).deployment
        live = StreamOptions(stream_class=StreamClass.LIVE, deadline_s=deadline_s)
        async with (
            mesh.open_stream(deployment, StreamOptions()) as lossless_stream,
            mesh.open_stream(deployment, live) as live_stream,
        ):
            streams = [lossless_stream, live_stream]
            work = [
                asyncio.ensure_future(audit(stream, account, rate, stop))
                for stream, account, rate in zip(streams, accounts, (rate_hz, live_hz), strict=True)
            ]
            watching = asyncio.ensure_future(watch(mesh, deployment.name, boards, stop, streams))
            await asyncio.to_thread(sys.stdin.read)
            stop.set()
            await asyncio.wait(work, timeout=LAST_ANSWERS_LIMIT_S)
            await watching
            counters = [
                {"replays": s.counters.replays, "recoveries": s.counters.recoveries, "losses": s.counters.losses,
                 "dropped duplicates": s.counters.duplicates}
                for s in streams
            ]  # fmt: skip
            for each in work:
                each.cancel()
            await asyncio.gather(*work, return_exceptions=True)
    for account, counted in zip(accounts, counters, strict=True):
        tell("end", stream=account.kind, **account.totals(), counters=counted)


if __name__ == "__main__":
    asyncio.run(run(float(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]))
