"""One mesh of four daemons for all tests of this folder; what a test breaks it mends."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import GRACE_SECONDS, find_children
from tests.end_to_end.commands import Daemon, LocalFleet, local_fleet


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    with local_fleet(tmp_path_factory.mktemp("fleet"), 4) as running:
        yield running


@pytest.fixture(scope="session")
def digits(fleet: LocalFleet) -> str:
    """The name of a deployment of the digits model on two of the nodes: input image float32[1,1,8,8]."""
    fleet.deploy("digits", 2)
    return "digits"


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames for `digits`."""
    path = tmp_path_factory.mktemp("images") / "images.npz"
    values = np.random.default_rng(1).random((12, 1, 1, 8, 8)).astype(np.float32)
    np.savez(path, image=values)
    return path


@pytest.fixture(autouse=True)
def no_process_outlives_its_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """As for all tests, but for daemons of the shared fleet, which tests of faults kill and start again."""
    shared: tuple[Daemon, ...] = ()
    if "fleet" in request.fixturenames:
        running: LocalFleet = request.getfixturevalue("fleet")
        shared = running.daemons
    before = find_children()
    yield
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := find_children() - before - {each.pid for each in shared}) and time.monotonic() < deadline:
        gc.collect()
        threading.Event().wait(0.02)
    assert not left, f"child processes outlived the test: {left}"
    for daemon in shared:
        assert daemon.is_running, f"the test left daemon {daemon.name} dead"
