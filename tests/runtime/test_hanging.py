"""A daemon hangs on request, and only where it was told to beforehand."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from mesh.errors import UsageError
from mesh.runtime.hanging import VARIABLE, hang_when_asked


def test_nothing_is_taken_over_by_default() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    assert not hang_when_asked({})
    assert signal.getsignal(signal.SIGUSR2) == before


@pytest.mark.parametrize("text", ["soon", "-1", "0", "nan", "3600"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=VARIABLE):
        hang_when_asked({VARIABLE: text})


async def test_the_event_loop_stands_still_for_as_long() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    try:
        assert hang_when_asked({VARIABLE: "0.2"})
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGUSR2)
        await asyncio.sleep(0)
        assert time.monotonic() - began >= 0.2
    finally:
        signal.signal(signal.SIGUSR2, before)
