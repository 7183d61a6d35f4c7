"""The client of scripts/soak: streams the digits at a steady rate and tells, once a second, how it fares.

`python scripts/soak_client.py RATE_HZ ADDRESS...`: one JSON document a line on standard output, until standard input
ends; then it sends no more, waits for what is owed and tells its totals. Every answer is held against the first one
to the same picture, so that an answer to another frame is noticed.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 - after the path to this clone

from mesh.client.mesh_client import Mesh  # noqa: E402
from mesh.control.answer_queue import Answer  # noqa: E402
from mesh.core.frame import Outcome  # noqa: E402
from mesh.core.tensor import DType, Tensor  # noqa: E402
from mesh.errors import MeshError  # noqa: E402
from mesh.runtime.frame_stream import FrameStream, StreamOptions  # noqa: E402

DIGITS = ROOT / "nodes" / "demo_data" / "digits_test.npz"
PICTURES = 16
TOLD_GAP_S = 0.1
"""Silences from this on are told one by one."""
TOLERANCE = 1e-4
"""Of scores between plans, which add in another order."""
LAST_ANSWERS_LIMIT_S = 20.0


@dataclass(slots=True)
class Account:
    """What came back."""

    expected: dict[int, list[float]] = field(default_factory=dict)
    sent: int = 0
    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    gaps: list[tuple[float, float]] = field(default_factory=list)
    """(begin, end) of silences, monotonic seconds, since they were last told."""
    longest_s: float = 0.0
    heard_at: float = 0.0

    def hear(self, answer: Answer) -> None:
        now = time.monotonic()
        if self.heard_at:
            self.longest_s = max(self.longest_s, now - self.heard_at)
            if now - self.heard_at >= TOLD_GAP_S:
                self.gaps.append((self.heard_at, now))
        self.heard_at = now
        if answer.sequence != self.answered:
            self.complain(f"answer {answer.sequence} came where {self.answered} was due")
        self.answered += 1
        if answer.outcome is not Outcome.OK:
            self.complain(f"frame {answer.sequence} was answered {answer.outcome.name}: {answer.error}")
            return
        data = answer.tensors[0].data
        scores = list(struct.unpack(f"<{len(data) // 4}f", data))
        first = self.expected.setdefault(answer.sequence % PICTURES, scores)
        if any(abs(a - b) > TOLERANCE for a, b in zip(first, scores, strict=True)):
            self.complain(f"frame {answer.sequence} has the scores of another picture")

    def complain(self, text: str) -> None:
        if len(self.wrong) < 20:
            self.wrong.append(text)

    def tell(self, kind: str, **more: Any) -> None:
        document = {
            "kind": kind,
            "at": time.monotonic(),
            "sent": self.sent,
            "answered": self.answered,
            "longest_s": self.longest_s,
            "gaps": self.gaps,
            "tasks": len(asyncio.all_tasks()),
            **more,
        }
        self.gaps, self.longest_s = [], 0.0
        print(json.dumps(document), flush=True)


def load_pictures() -> list[Tensor]:
    images = np.load(DIGITS)["image"][:PICTURES].astype(np.float32)
    return [Tensor.from_bytes(DType.FLOAT32, (1, 1, 8, 8), image.tobytes()) for image in images]


async def feed(stream: FrameStream, account: Account, rate_hz: float, stop: asyncio.Event) -> None:
    pictures, began = load_pictures(), time.monotonic()
    while not stop.is_set():
        await asyncio.sleep(max(0.0, began + account.sent / rate_hz - time.monotonic()))
        await stream.send([pictures[account.sent % PICTURES]])
        account.sent += 1
    stream.finish()


async def take(stream: FrameStream, account: Account) -> None:
    async for answer in stream.answers():
        account.hear(answer)


async def run(rate_hz: float, addresses: list[str]) -> None:
    account, stop, error = Account(), asyncio.Event(), ""
    counters: dict[str, float] = {}
    async with Mesh(mdns=False, peers=addresses) as mesh:
        model = await mesh.model("digits")
        async with mesh.open_stream(model.deployment, StreamOptions()) as stream:
            feeding = asyncio.ensure_future(feed(stream, account, rate_hz, stop))
            taking = asyncio.ensure_future(take(stream, account))
            ending = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
            while not ending.done() and not taking.done():
                await asyncio.wait({ending, taking}, timeout=1.0)
                account.tell("second")
            stop.set()
            try:
                async with asyncio.timeout(LAST_ANSWERS_LIMIT_S):
                    await asyncio.gather(feeding, taking)
            except (MeshError, TimeoutError) as failure:
                error = f"{type(failure).__name__}: {failure}"
            seen = stream.counters
            counters = {
                "duplicates": seen.duplicates,
                "replays": seen.replays,
                "recoveries": seen.recoveries,
                "replacements": seen.replacements,
            }
    account.tell("end", error=error, wrong=account.wrong, counters=counters)


if __name__ == "__main__":
    asyncio.run(run(float(sys.argv[1]), sys.argv[2:]))
