"""Ctrl-C, SIGTERM and SIGKILL at any moment: exit code 130, no traceback, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from scripts.make_models import make_mobilenetv2
from tests.end_to_end.commands import LocalFleet, Running, environment, wait_until

GONE_LIMIT_S = 15.0
"""For daemons of a demo that was killed to notice, drain and leave."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("interrupted") / "mobilenet.onnx"
    onnx.save(make_mobilenetv2(96), path)
    return path


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("places to cut", signal.SIGINT),
        ("runs the whole model", signal.SIGTERM),
        ("proving", signal.SIGINT),
        ("loading", signal.SIGINT),
    ],
)
def test_deploying(fleet: LocalFleet, model: Path, words: str, number: signal.Signals) -> None:
    before = fleet.names()
    with fleet.start(
        "deploy", str(model), "--name", "interrupted", "--stages", "2", "--measure", "--json"
    ) as deploying:
        deploying.wait_for(words)
        deploying.send(number)
        ended = deploying.wait()
    if ended.code == 0:  # it had just been done
        fleet.run("undeploy", "interrupted").ok()
    else:
        ended.interrupted()
        assert ended.stdout == ""
    assert fleet.names() == before, [(str(r.deployment.fence), r.state) for r in fleet.reports("interrupted")]


def test_streaming_keeps_what_was_answered(fleet: LocalFleet, digits: str, tmp_path: Path) -> None:
    source = ("--source", "synthetic:random", "--rate", "200")
    with fleet.start("stream", digits, *source, "--sink", str(tmp_path / "answers.jsonl")) as streaming:
        fleet.wait_for_frames(digits, 20)
        streaming.send(signal.SIGINT)
        streaming.wait().interrupted()
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert len(lines) >= 15 and all(line.endswith("}") for line in lines)


@pytest.mark.parametrize("delay_s", [0.05, 0.2, 0.4])
def test_at_any_moment_of_the_start(fleet: LocalFleet, digits: str, delay_s: float) -> None:
    """While Python starts and imports, before and after the loop runs. Python itself is deaf for its first moments."""
    with fleet.start("stream", digits, "--source", "synthetic:random", "--sink", "null:") as streaming:
        wait_until(lambda: is_python_up(streaming.process.pid), 10, "the interpreter")
        with pytest.raises(subprocess.TimeoutExpired):
            streaming.process.wait(delay_s)
        streaming.send(signal.SIGINT)
        streaming.wait().interrupted()


def is_python_up(pid: int) -> bool:
    """It has taken over SIGINT, which it does in its first milliseconds."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & 1 << signal.SIGINT - 1)


def test_looking_for_nodes(tmp_path: Path) -> None:
    with Running("status", "--interface", "127.0.0.1", environ=environment(HOME=str(tmp_path))) as asking:
        wait_until(lambda: is_python_up(asking.process.pid), 10, "the interpreter")
        with pytest.raises(subprocess.TimeoutExpired):
            asking.process.wait(0.7)  # it listens for at least 1.2 s
        asking.send(signal.SIGINT)
        asking.wait().interrupted()


# The demo -------------------------------------------------------------------------------------------


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files that nobody else uses."""
    with tempfile.TemporaryDirectory(prefix="demo-test-") as folder:
        yield Path(folder)


def start_demo(temporary: Path) -> Running:
    return Running("demo", environ=environment(TMPDIR=str(temporary)), is_group=True)


def group_members(group: int) -> list[str]:
    """What is left of a process group, zombies apart (they wait for whoever adopted them)."""
    told = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = (line.split(None, 2) for line in told.splitlines())
    return [row[2] for row in rows if int(row[0]) == group and not row[1].startswith("Z")]


@pytest.mark.network
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("to the demo", "deploying"),
        ("to all, as a terminal does", "listens on"),
        ("killed", "starting 3 node daemons"),
        ("killed", "streaming"),
    ],
)
def test_demo_leaves_nothing(temporary: Path, how: str, words: str) -> None:
    with start_demo(temporary) as demo:
        group = demo.process.pid
        demo.wait_for(words)
        if how == "killed":
            demo.send(signal.SIGKILL)
            assert demo.wait().code == -signal.SIGKILL
        else:
            demo.mark()
            os.killpg(group, signal.SIGINT) if how.startswith("to all") else demo.send(signal.SIGINT)
            ended = demo.wait()
            if ended.code != 0 or words != "streaming":  # it may have been done by then
                ended.interrupted(within_s=6)
        wait_until(lambda: not group_members(group), GONE_LIMIT_S, f"the end of {group_members(group)}")
    assert list(temporary.iterdir()) == []
