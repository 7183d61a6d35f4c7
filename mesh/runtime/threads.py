"""An event loop's threads for a process that must be able to end: none of them is waited for without a limit.

A thread that reads a pipe or a device cannot be woken by anybody. asyncio waits for such threads when
the loop closes, and the interpreter when it ends; a command must do neither. Installed by whoever makes
the loop of a command.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Sequence

THREAD_GRACE_S = 1.0
"""For threads to end once their command has. Those that read a file or compute take less."""


class PatientThreads(concurrent.futures.ThreadPoolExecutor):
    """A pool whose `shutdown` waits for `THREAD_GRACE_S` at most; for `loop.set_default_executor`."""

    def __init__(self) -> None:
        self._workers: list[threading.Thread] = []
        super().__init__(
            thread_name_prefix="mesh", initializer=lambda: self._workers.append(threading.current_thread())
        )

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=cancel_futures)
        if wait:
            join_threads(self._workers, THREAD_GRACE_S)


def join_threads(threads: Sequence[threading.Thread], limit_s: float) -> bool:
    """Wait for all of them; whether they ended within the limit."""
    deadline = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def are_threads_left() -> bool:
    """Whether the interpreter would wait for another thread before it ends."""
    return any(thread is not threading.current_thread() and not thread.daemon for thread in threading.enumerate())
