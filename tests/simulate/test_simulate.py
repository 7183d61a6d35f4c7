"""The simulator: two hundred histories keep every promise, each can be repeated, and a planted fault is seen."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable

import pytest

from mesh.control import client_stream, deployments, flow
from mesh.control.client_stream import ClientStream
from mesh.control.deployments import Deployments, Event, PrepareAsked, Step
from mesh.control.timing import Liveness
from mesh.core.frame import Frame
from mesh.core.ids import DeploymentName
from mesh.core.plan import Fence
from mesh.errors import MeshError
from mesh.simulate.node import Disk
from mesh.simulate.scenario import Outcome, simulate
from mesh.simulate.world import Violation

SEEDS = range(200)


def test_every_seed_keeps_every_promise() -> None:
    outcomes = [simulate(seed) for seed in SEEDS]
    # And they are worth something: each way of getting a frame answered is taken in many of them.
    for name, at_least in (("duplicates", 3), ("replays", 30), ("recoveries", 40), ("replacements", 6)):
        assert sum(1 for outcome in outcomes if getattr(outcome, name)) >= at_least, name


def test_a_seed_is_a_history() -> None:
    def trace(seed: int) -> tuple[list[str], Outcome]:
        lines: list[str] = []
        return lines, simulate(seed, lines.append)

    assert trace(6) == trace(6)
    assert trace(6) != trace(7)
    assert simulate(6) == trace(6)[1], "being watched changes nothing"


# --- the checker, checked -------------------------------------------------------------------------


def plant_no_replay(patch: pytest.MonkeyPatch) -> None:
    """What was on a lost path is forgotten."""
    lose = ClientStream.lose_path

    def lose_path(self: ClientStream, path: int, error: MeshError) -> None:
        waiting = list(self._queue)
        lose(self, path, error)
        self._queue = type(self._queue)(waiting)

    patch.setattr(ClientStream, "lose_path", lose_path)


def plant_no_dedup(patch: pytest.MonkeyPatch) -> None:
    """Every answer is taken for the first."""
    answer = ClientStream.answer

    def answer_again(self: ClientStream, path: int, frame: Frame, now: float) -> None:
        self._unanswered.setdefault(frame.sequence, client_stream._Held((), now, None))
        answer(self, path, frame, now)

    patch.setattr(ClientStream, "answer", answer_again)


def plant_no_fence(patch: pytest.MonkeyPatch) -> None:
    """A node takes any plan that it does not hold already."""

    def step(state: Deployments, event: Event) -> Step:
        if isinstance(event, PrepareAsked):
            state = dataclasses.replace(state, fences={})
        return original(state, event)

    original = deployments.step
    patch.setattr(deployments, "step", step)


def plant_a_fence_that_is_not_on_disk(patch: pytest.MonkeyPatch) -> None:
    """The fence is forgotten over a crash."""

    class Forgetful(dict[DeploymentName, Fence]):
        def __setitem__(self, name: DeploymentName, fence: Fence) -> None:
            """Not written."""

    make = Disk.__init__

    def forget(self: Disk) -> None:
        make(self)
        self.fences = Forgetful()

    patch.setattr(Disk, "__init__", forget)


def plant_no_credit(patch: pytest.MonkeyPatch) -> None:
    """A sender goes on although it has no credit left."""
    patch.setattr(flow.SendWindow, "may_send", lambda self, size_bytes: True)


def plant_no_window(patch: pytest.MonkeyPatch) -> None:
    """A client sends as much as it has."""
    patch.setattr(flow.FrameWindow, "is_open", property(lambda self: True))


def plant_no_heartbeat(patch: pytest.MonkeyPatch) -> None:
    """Silence means nothing."""
    patch.setattr(Liveness, "is_lost", lambda self, now: False)


PLANTED: tuple[Callable[[pytest.MonkeyPatch], None], ...] = (
    plant_no_replay,
    plant_no_dedup,
    plant_no_fence,
    plant_a_fence_that_is_not_on_disk,
    plant_no_credit,
    plant_no_window,
    plant_no_heartbeat,
)


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_seen(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(Violation) as raised:
        for seed in SEEDS:
            simulate(seed)
    told = str(raised.value)
    seed = told.split()[1].rstrip(":")
    assert f"python -m mesh.simulate --seed {seed} --trace" in told
    with pytest.raises(Violation) as again:
        simulate(int(seed))
    assert str(again.value) == told


def test_the_command_replays_a_seed() -> None:
    command = [sys.executable, "-m", "mesh.simulate", "--seed", "6", "--trace"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    lines: list[str] = []
    simulate(6, lines.append)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:-2] == lines
