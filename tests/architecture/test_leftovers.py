"""The guards in tests/conftest.py are themselves tested: a suite that leaves something behind must fail."""

from __future__ import annotations

import pytest

from tests.architecture.source_tree import ROOT

pytest_plugins = ["pytester"]

THREAD = """
import threading
def test_it(request):
    stop = threading.Event()
    request.session.stop = stop  # so that the inner run can end at all
    threading.Thread(target=stop.wait, name="left-behind", daemon=True).start()
"""
PROCESS = """
import subprocess, sys
KEPT = []
def test_it():
    KEPT.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
"""
ZOMBIE = """
import os
def test_it():
    if os.fork() == 0:
        os._exit(0)
"""
TASK = """
import asyncio
KEPT = []
async def test_it():
    KEPT.append(asyncio.get_running_loop().create_task(asyncio.Event().wait(), name="left-behind"))
"""
TASK_IN_RUN = """
import asyncio
KEPT = []  # else the collector may take task and event, which only know each other, before they are looked for
async def leave():
    KEPT.append(asyncio.get_running_loop().create_task(asyncio.Event().wait(), name="left-behind"))
def test_it():
    asyncio.run(leave())
"""
CLEAN = """
import asyncio, subprocess, sys, threading
async def test_it():
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.to_thread(lambda: None))
    thread = threading.Thread(target=lambda: None)
    thread.start()
    subprocess.run([sys.executable, "-c", ""], check=True)
"""


def run_suite(pytester: pytest.Pytester, text: str) -> pytest.RunResult:
    conftest = (
        (ROOT / "tests" / "conftest.py")
        .read_text(encoding="utf-8")
        .replace("GRACE_SECONDS = 3.0", "GRACE_SECONDS = 0.2")
    )
    pytester.makeconftest(conftest)
    pytester.makepyfile(text)
    return pytester.runpytest_subprocess(
        "-o", "asyncio_mode=auto", "-p", "no:randomly", "-p", "no:cacheprovider", timeout=50
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (THREAD, "*threads outlived the test: ?'left-behind'?*"),
        (PROCESS, "*child processes outlived the test*"),
        (ZOMBIE, "*child processes outlived the test*zombie*"),
        (TASK, "*asyncio tasks outlived the test*"),
        (TASK_IN_RUN, "*asyncio tasks outlived the test*"),
    ],
    ids=["thread", "process", "zombie", "task", "task in asyncio.run"],
)
def test_a_leftover_fails_its_test(pytester: pytest.Pytester, text: str, complaint: str) -> None:
    result = run_suite(pytester, text)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines([complaint])


def test_a_clean_test_passes(pytester: pytest.Pytester) -> None:
    run_suite(pytester, CLEAN).assert_outcomes(passed=1)
