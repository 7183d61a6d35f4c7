"""A daemon whose event loop hangs on request: how checks of a lab make the fault that no signal of the system makes.

Off unless INFERMESH_TEST_HANG_SECONDS is set when the daemon starts. Then each SIGUSR2 blocks the main thread, and so
the event loop, for that long; its other threads and its transport go on. Used by scripts/check_recovery.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping

from mesh.errors import UsageError

VARIABLE = "INFERMESH_TEST_HANG_SECONDS"
"""Not MESH_...: a lab takes those out of its daemons' environment."""
MAX_SECONDS = 60.0


def hang_when_asked(environment: Mapping[str, str] = os.environ) -> bool:
    """Take over SIGUSR2 where the environment says so; main thread only. Raises `UsageError` for nonsense."""
    text = environment.get(VARIABLE, "")
    if not text:
        return False
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_SECONDS:
        raise UsageError(f"{VARIABLE} is {text[:40]!r}, not seconds above 0 and up to {MAX_SECONDS:g}")
    signal.signal(signal.SIGUSR2, lambda number, frame: time.sleep(seconds))
    return True
