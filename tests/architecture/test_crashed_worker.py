"""A worker of the suite that dies takes one test with it, and never the suite: all others still run, and it ends."""

from __future__ import annotations

import pytest

from tests.architecture.source_tree import ROOT

pytest_plugins = ["pytester"]

FILES = 12
"""Enough that the worker that dies has finished several."""

TESTS = """
import os, pathlib, pytest
@pytest.mark.parametrize("number", range(3))
def test_it(number):
    crashed = pathlib.Path("crashed")
    if {last} and number == 1 and not crashed.exists():
        crashed.touch()
        os.kill(os.getpid(), 9)
"""


def test_a_crashed_worker_is_one_failure_and_the_rest_is_run(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile(**{f"test_{number:02}": TESTS.format(last=number == FILES - 1) for number in range(FILES)})
    result = pytester.runpytest_subprocess(
        *("-o", "asyncio_mode=auto", "-p", "no:randomly", "-p", "no:cacheprovider"),
        *("--numprocesses", "2", "--dist", "loadfile"),
        timeout=50,
    )
    # The one that crashed is told as failed, then run once more by the worker that takes over.
    result.assert_outcomes(failed=1, passed=3 * FILES)
    result.stdout.fnmatch_lines(["gw? ended with status -9*", "*crashed while running*test_it?1?*"])
