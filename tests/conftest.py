"""What every test is held to: no thread, no child process and no asyncio task may outlive it.

A leftover is a shutdown path that does not work; the test that left it fails, not the one that trips over it.
Fixtures of wider scope may keep theirs: only what a test adds is counted.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A suite that is started behind `&` has Ctrl-C ignored, and so would every command that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Speed on a shared machine says nothing about a law; a deadline per example would only be noise.
settings.register_profile("default", deadline=None, max_examples=50, print_blob=True)
settings.load_profile("default")

GRACE_SECONDS = 3.0
"""How long a thread or process that was told to stop may take. It is waited for, so a clean test pays nothing."""

TASK_GRACE_SECONDS = 0.5
"""For tasks that are ending: those of gRPC's server end some turns after the call that they answered."""

# Name or part of it -> why it may stay. gRPC's core keeps one poller per process, whatever is closed.
LASTING_THREADS = {
    "_poll_wrapper": "the poller of grpc.aio, made once per process and never stopped",
    "pytest_timeout": "the watchdog of this very test",
}
LASTING_PROCESSES = {
    "multiprocessing.resource_tracker": "one per process, ends with it",
    "multiprocessing.forkserver": "one per process, ends with it",
}
LASTING_TASKS = {
    "_AioCall._handle_status_once_received": "of grpc.aio: waits for a status that got lost, until its loop ends",
    "_schedule_rpc_coro": "of grpc.aio: only waits for the handler, which is a task of its own and is reported itself",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What `--dist loadfile` would take, but a crashed worker's finished files do not go back into the queue.

    With xdist 3.8 they do, and as nothing is left to run of them, the other workers wait for ever for their next test.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def remove_node(self, node: Any) -> str | None:
            files = self.assigned_work[node]
            self.assigned_work[node] = {name: tests for name, tests in files.items() if not all(tests.values())}
            crashed: str | None = super().remove_node(node)
            return crashed

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Say of what a worker died: neither xdist nor a killed process does."""
    if error:
        print(f"\n{node.gateway.id} ended with status {node.gateway._io.popen.wait(5)} (negative: by that signal)")


@pytest.fixture(scope="session", autouse=True)
def no_test_writes_to_the_users_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands keep measurements where people keep their programs' state; those of tests have a place of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def no_thread_outlives_its_test() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + GRACE_SECONDS
    added = [each for each in threading.enumerate() if each not in before and not _lasts(each.name, LASTING_THREADS)]
    for thread in added:
        thread.join(max(0.0, deadline - time.monotonic()))
    left = [thread.name for thread in added if thread.is_alive()]
    assert not left, f"threads outlived the test: {left}"


@pytest.fixture(autouse=True)
def no_process_outlives_its_test() -> Iterator[None]:
    before = find_children()
    yield
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := _added_children(before)) and time.monotonic() < deadline:
        gc.collect()  # a dropped Popen reaps its child when it is collected
        threading.Event().wait(0.02)
    assert not left, f"child processes outlived the test (a zombie was never waited for): {left}"


def find_children() -> set[int]:
    """The direct children of this process, zombies too (empty where there is no Linux /proc)."""
    children: set[int] = set()
    for listing in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        try:
            children.update(int(word) for word in listing.read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # that thread has just ended; its children hang on another one now
    return children


def _added_children(before: set[int]) -> dict[int, str]:
    described = {pid: _describe_process(pid) for pid in find_children() - before}
    return {pid: said for pid, said in described.items() if not _lasts(said, LASTING_PROCESSES)}


def _describe_process(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    return words or "zombie"


def _lasts(name: str, lasting: dict[str, str]) -> bool:
    return any(part in name for part in lasting)


@pytest.fixture(autouse=True)
def no_task_outlives_its_loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A loop that closes with tasks still in it cancels them quietly; here that is a failure.

    Both asyncio.run and pytest-asyncio's loops close through asyncio.Runner, which asks this one function.
    """
    left: list[str] = []
    cancel_all: Any = asyncio.runners._cancel_all_tasks  # type: ignore[attr-defined]

    def find_left(loop: asyncio.AbstractEventLoop) -> list[str]:
        return [said for task in asyncio.all_tasks(loop) if not _lasts(said := repr(task), LASTING_TASKS)]

    def note_and_cancel(loop: asyncio.AbstractEventLoop) -> None:
        deadline = time.monotonic() + TASK_GRACE_SECONDS
        while find_left(loop) and time.monotonic() < deadline:
            loop.run_until_complete(asyncio.sleep(0.005))
        left.extend(find_left(loop))
        cancel_all(loop)

    monkeypatch.setattr(asyncio.runners, "_cancel_all_tasks", note_and_cancel)
    yield
    assert not left, "asyncio tasks outlived the test:\n" + "\n".join(left)
