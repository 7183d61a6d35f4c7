"""A coordinator that freezes in the middle of a deployment: noticed by keepalive, long before any deadline."""

from __future__ import annotations

import asyncio
import signal
import sys
import time

import pytest

from mesh.core.plan import PlanOptions
from mesh.errors import NodeLost
from tests.architecture.source_tree import ROOT
from tests.wire.coordinator_material import asking

NOTICED_WITHIN_S = 6.0
"""Keepalive notices after 2.5 s; the rest is for a busy machine."""

CHILD = """
import asyncio
from tests.wire.coordinator_material import FakeHandlers, serving

async def main():
    async with serving(FakeHandlers(hangs=True)) as address:
        print(address, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_frozen_coordinator_is_lost_within_seconds() -> None:
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    assert child.stdout is not None
    try:
        address = (await asyncio.wait_for(child.stdout.readline(), 20)).decode().strip()
        lines = 0
        began = 0.0

        def freeze_after_progress(line: str) -> None:
            nonlocal lines, began
            lines += 1
            if lines == 2:
                child.send_signal(signal.SIGSTOP)
                began = time.monotonic()

        async with asking(address) as client:
            with pytest.raises(NodeLost, match=address):
                await client.deploy(b"model", "kws", PlanOptions(), freeze_after_progress)
        assert time.monotonic() - began < NOTICED_WITHIN_S
    finally:
        child.kill()
        await child.wait()
