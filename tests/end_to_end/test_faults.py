"""Nodes that die or freeze under a deployment: every command that needs them ends in time, the rest goes on."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from scripts.make_models import make_mobilenetv2
from tests.end_to_end.commands import Daemon, Ended, LocalFleet, Running, local_fleet, wait_until

ENDLESS = ("--source", "synthetic:random", "--sink", "null:", "--rate", "100")
SHORT_FRAMES = 600
SHORT = ("--source", f"synthetic:random?count={SHORT_FRAMES}", "--rate", "100")
"""Six seconds: longer than any loss takes to be noticed and mended."""

SIGNALS = {"killed": signal.SIGKILL, "frozen": signal.SIGSTOP}
RECOVERY_S = 25.0


@dataclass(frozen=True, slots=True)
class Scene:
    """`chain`: three stages on four daemons. `other`: one stage, streamed to all the time."""

    fleet: LocalFleet
    images: Path

    def infer(self, name: str) -> Running:
        return self.fleet.start("infer", name, "--input", str(self.images), "--json")

    def stages(self, name: str = "chain") -> list[Daemon]:
        """Whom the newest generation runs on now, head first."""
        newest = max(self.fleet.reports(name), key=lambda report: report.deployment.fence).deployment
        by_id = {daemon.id: daemon for daemon in self.fleet.daemons}
        return [by_id[device] for stage in newest.plan.stages for device in stage.devices]

    def restore(self, daemon: Daemon) -> None:
        """As its owner would: start it again on the same port and folder, or let it run on."""
        daemon.revive()
        wait_until(self.is_whole, RECOVERY_S, "every stage of the chain active, and nothing that was replaced")
        self.infer("chain").wait().ok()

    def is_whole(self) -> bool:
        reports = self.fleet.reports("chain")
        newest = max(report.deployment.fence for report in reports)
        is_current = {(report.state, report.deployment.fence) for report in reports} == {("active", newest)}
        return is_current and {stage.stage for report in reports for stage in report.stages} == {0, 1, 2}

    @contextlib.contextmanager
    def without(self, daemon: Daemon) -> Iterator[Daemon]:
        """Whatever happens to it in this block, the chain answers afterwards."""
        try:
            yield daemon
        finally:
            self.restore(daemon)


@pytest.fixture(scope="module")
def scene(fleet: LocalFleet, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("plans")
    fleet.deploy_on("chain", fleet.daemons[:3], folder)
    fleet.deploy_on("other", fleet.daemons[3:], folder)
    with fleet.start("stream", "other", *ENDLESS) as streaming:
        fleet.wait_for_frames("other")
        yield Scene(fleet, images)
        streaming.send(signal.SIGINT)
        ended = streaming.wait().interrupted()
        assert "error" not in ended.stderr, ended.told()
    for name in ("chain", "other"):
        fleet.run("undeploy", name).ok()


def names_the_node(end: Ended, lost: Daemon) -> None:
    """By what people know it by: its name, its address or its id."""
    problem = end.document()["error"]
    told = f"{problem['message']} {problem['hint']}"
    assert any(known in told for known in (lost.name, lost.address, lost.id[:8])), end.told()


@pytest.mark.parametrize("stage", [0, 1, 2], ids=["head", "middle", "tail"])
@pytest.mark.parametrize("how", SIGNALS)
def test_a_stream_outlives_a_node(scene: Scene, how: str, stage: int, tmp_path: Path) -> None:
    """Nothing is lost, nothing comes twice, and who asks meanwhile is answered too."""
    sink = ("--sink", f"jsonl:{tmp_path / 'answers.jsonl'}?values=none")
    before = scene.fleet.generation("chain")
    with (
        scene.without(scene.stages()[stage]) as lost,
        scene.fleet.start("stream", "chain", *SHORT, *sink, "--json") as streaming,
    ):
        scene.fleet.wait_for_frames("chain", 20)
        lost.send(SIGNALS[how])
        with scene.infer("chain") as asking:
            asking.wait().ok()
        if lost not in scene.stages("other"):
            scene.infer("other").wait().ok()
        document = streaming.wait().ok().document()
        assert document["outcomes"] == {"ok": SHORT_FRAMES}
        assert lost not in scene.stages()
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [answer["sequence"] for answer in answers] == list(range(SHORT_FRAMES))
    assert scene.fleet.generation("chain") > before


def test_where_nobody_is_left_a_stream_ends_with_the_reason(tmp_path: Path) -> None:
    with local_fleet(tmp_path, 2) as fleet:
        fleet.deploy_on("pair", fleet.daemons, tmp_path)
        with fleet.start("stream", "pair", *ENDLESS, "--json") as streaming:
            fleet.wait_for_frames("pair", 20)
            streaming.mark()
            for daemon in fleet.daemons:
                daemon.stop(signal.SIGKILL)
            streaming.wait().fails("node-lost", 1)


def test_status_says_who_is_missing(scene: Scene) -> None:
    with scene.without(scene.stages()[1]) as lost:
        lost.send(signal.SIGKILL)
        told = scene.fleet.run("status", "chain", "--json").ok().document()["deployments"][0]
        assert told["state"] == "failed" and lost.id[:8] in told["reason"], told
        nodes = scene.fleet.run("nodes", "--json").ok().document()["nodes"]
        assert [node["state"] for node in nodes if node["address"] == lost.address] == ["lost"]


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that takes long enough to deploy for things to happen meanwhile."""
    path = tmp_path_factory.mktemp("large") / "mobilenet.onnx"
    onnx.save(make_mobilenetv2(96), path)
    return path


@pytest.fixture(scope="module")
def large_plan(scene: Scene, large_model: Path) -> Path:
    return scene.fleet.plan_on(large_model, scene.fleet.daemons[:3], large_model.parent)


@pytest.mark.parametrize(
    ("how", "step"),
    [("killed", "loading"), ("frozen", "runs the whole model"), ("frozen", "proving")],
)
def test_a_node_is_lost_while_deploying(scene: Scene, large_model: Path, large_plan: Path, how: str, step: str) -> None:
    arguments = ("deploy", str(large_model), "--plan", str(large_plan), "--name", "large", "--measure", "--json")
    with scene.without(scene.fleet.daemons[1]) as lost, scene.fleet.start(*arguments) as deploying:
        deploying.wait_for(step)
        deploying.mark()
        lost.send(SIGNALS[how])
        ended = deploying.wait()
    ended.fails("node-lost", 1)
    names_the_node(ended, lost)
    if "large" in scene.fleet.names():  # the lost node could not be told to take it back
        scene.fleet.run("undeploy", "large").ok()


def test_a_node_that_nobody_needs_is_left_out(scene: Scene, large_model: Path) -> None:
    arguments = ("deploy", str(large_model), "--name", "large", "--stages", "2", "--measure", "--json")
    with scene.without(scene.stages()[1]) as lost, scene.fleet.start(*arguments) as deploying:
        deploying.wait_for("places to cut")
        lost.send(signal.SIGKILL)
        ended = deploying.wait().ok()
    stages = ended.document()["plan"]["stages"]
    assert lost.id not in {device for stage in stages for device in stage["devices"]}
    assert f"{lost.name} is left out" in ended.stderr
    scene.fleet.run("undeploy", "large").ok()


def test_a_node_that_is_stopped_hands_its_streams_over(scene: Scene) -> None:
    with (
        scene.without(scene.stages()[1]) as leaving,
        scene.fleet.start("stream", "chain", *SHORT, "--sink", "null:", "--json") as streaming,
    ):
        scene.fleet.wait_for_frames("chain", 20)
        assert leaving.stop(signal.SIGTERM) == 0
        assert streaming.process.poll() is None, "it was to outlive the node"
        document = streaming.wait().ok().document()
    assert document["outcomes"] == {"ok": SHORT_FRAMES}


def test_a_new_generation_takes_over_under_a_stream(scene: Scene, tmp_path: Path) -> None:
    before = scene.fleet.generation("chain")
    frames = ("--source", "synthetic:random?count=2000", "--rate", "100", "--sink", "null:")
    with scene.fleet.start("stream", "chain", *frames, "--json") as streaming:
        scene.fleet.wait_for_frames("chain", 20)
        scene.fleet.deploy_on("chain", scene.fleet.daemons[1:], tmp_path)
        wait_until(scene.is_whole, RECOVERY_S, "only the new generation")
        scene.fleet.wait_for_frames("chain", 20)
        document = streaming.wait().ok().document()
    assert document["outcomes"] == {"ok": 2000}, document
    assert scene.fleet.generation("chain") > before


def test_two_streams_at_once_answer_all_frames_in_order(scene: Scene, tmp_path: Path) -> None:
    frames = ("--source", "synthetic:random?count=1000", "--json")
    sinks = {name: tmp_path / f"{name}.jsonl" for name in ("chain", "other")}
    running = [
        scene.fleet.start("stream", name, *frames, "--sink", f"jsonl:{path}?values=none")
        for name, path in sinks.items()
    ]
    for each in running:
        assert each.wait().ok().document()["outcomes"] == {"ok": 1000}
    for path in sinks.values():
        answers = [json.loads(line) for line in path.read_text().splitlines()]
        assert [answer["sequence"] for answer in answers] == list(range(1000))
        assert [answer["origin"] for answer in answers] == [f"random[{number}]" for number in range(1000)]
