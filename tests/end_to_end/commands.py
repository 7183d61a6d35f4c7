"""The `mesh` command and its daemons as a user meets them: processes, their output, exit codes and wall times."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh.core.fleet import NodeState
from mesh.core.plan import Fence
from mesh.core.report import DeploymentReport
from mesh.errors import MeshError
from mesh.wire.channel import NodeClient
from mesh.wire.ended_calls import await_ended_calls
from nodes.local_mesh import LOOPBACK

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "nodes" / "demo_data" / "digits.onnx"
MESH = (sys.executable, "-m", "nodes")

ERROR_LIMIT_S = 4.0
"""What is promised: from the fault, or the start of the command, to its exit."""

USUAL_START_S = 0.4
"""Of `mesh --version` on a machine with nothing else to do, generously."""

SHARED_FACTOR = 1.25
"""Where several workers share the machine, a command that is only just in time alone is a little late."""

CORES_USED = 2

START_LIMIT_S = 30.0
COMMAND_LIMIT_S = 45.0
"""For commands that do what they are asked; one that hangs fails its test rather than the run."""


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would steer a command, and with `changes`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MESH_", "GRPC_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "COLUMNS": "100", **changes}


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    arguments: tuple[str, ...]
    code: int
    stdout: str
    stderr: str
    seconds: float

    def document(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.stdout)

    def ok(self) -> Ended:
        assert self.code == 0, self.told()
        self.check_orderly()
        return self

    def fails(self, error: str, exit_code: int, *words: str, within_s: float = ERROR_LIMIT_S) -> Ended:
        """It ended with this error, in time, in words that a person can use and no others.

        With `--json` the error is one document on standard output; without, only on standard error.
        """
        assert self.code == exit_code, self.told()
        self.check_orderly()
        self.check_time(within_s)
        told = self.stderr
        if "--json" in self.arguments:
            problem = self.document()["error"]
            assert set(problem) == {"code", "message", "hint"}, self.told()
            assert problem["code"] == error, self.told()
            told = f"{problem['message']} {problem['hint']}"
        assert "error: " in self.stderr.lower(), self.told()
        for word in words:
            assert word in told, f"{word!r} is not said: {self.told()}"
        return self

    def interrupted(self, within_s: float = ERROR_LIMIT_S) -> Ended:
        assert self.code == 130, self.told()
        self.check_orderly()
        self.check_time(within_s)
        return self

    def check_time(self, within_s: float) -> None:
        """A machine that is busy with other things is excused in proportion to how slow it is right now."""
        if self.seconds > within_s:
            shared = SHARED_FACTOR if "PYTEST_XDIST_WORKER" in os.environ else 1.0
            allowed_s = within_s * shared * max(1.0, measure_start_s() / USUAL_START_S)
            assert self.seconds <= allowed_s, f"took {self.seconds:.2f} s, {allowed_s:.2f} s are allowed: {self.told()}"

    def check_orderly(self) -> None:
        for sign in ("Traceback", "Warning", "never awaited", "never retrieved", "chttp2", "Exception ignored"):
            assert sign not in self.stderr, self.told()

    def told(self) -> str:
        command = " ".join(("mesh", *self.arguments))
        return f"{command}\nexit {self.code} after {self.seconds:.2f} s\n{self.stdout[-2000:]}\n{self.stderr[-4000:]}"


class Running:
    """A command that runs; its clock starts with it, and anew with `mark` and `send`.

    `is_group`: it and its children are a process group, which ends with the test.
    """

    def __init__(
        self,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        stdin: int | None = None,
        is_group: bool = False,
    ) -> None:
        self.arguments = arguments
        self._is_group = is_group
        self._files = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with this
        self.process = subprocess.Popen(
            [*MESH, *arguments],
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=self._files[0],
            stderr=self._files[1],
            env=dict(environ) if environ is not None else environment(),
            process_group=0 if is_group else None,
        )
        self._since = time.monotonic()

    def mark(self) -> None:
        self._since = time.monotonic()

    def read(self, which: int) -> str:
        return os.pread(self._files[which].fileno(), 1 << 22, 0).decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self.read(1)

    def wait_for(self, words: str, limit_s: float = START_LIMIT_S) -> None:
        """Until `words` are on standard error."""
        wait_until(lambda: words in self.stderr or self.process.poll() is not None, limit_s, f"{words!r}")
        assert words in self.stderr, f"it ended without saying {words!r}: {self.stderr}"

    def send(self, number: int) -> None:
        self.mark()
        self.process.send_signal(number)

    def wait(self, limit_s: float = COMMAND_LIMIT_S) -> Ended:
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"mesh {' '.join(self.arguments)} hangs: {self.read(0)}{self.stderr}") from None
        seconds = time.monotonic() - self._since
        ended = Ended(self.arguments, self.process.returncode, self.read(0), self.read(1), seconds)
        for file in self._files:
            file.close()
        return ended

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._is_group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for file in self._files:
            file.close()


def run(*arguments: str, environ: Mapping[str, str] | None = None, stdin: int | None = None) -> Ended:
    """Run `mesh ARGUMENTS` to its end."""
    with Running(*arguments, environ=environ, stdin=stdin) as running:
        return running.wait()


def run_together(*commands: Sequence[str]) -> list[Ended]:
    """Run commands, as many at the same time as there are cores on a small machine."""
    ends: list[Ended] = []
    for first in range(0, len(commands), CORES_USED):
        with contextlib.ExitStack() as stack:
            together = commands[first : first + CORES_USED]
            running = [stack.enter_context(Running(*arguments)) for arguments in together]
            ends.extend(each.wait() for each in running)
    return ends


def measure_start_s() -> float:
    """How long a command takes that does next to nothing."""
    began = time.monotonic()
    subprocess.run([*MESH, "--version"], env=environment(), check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def wait_until(condition: Callable[[], bool], limit_s: float, what: str) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {limit_s:g} s"
        threading.Event().wait(0.02)


@dataclass(slots=True)
class Daemon:
    """A daemon with a folder and, from its first start on, a port of its own; may be killed and started again."""

    name: str
    folder: Path
    kind: str = "node"
    extra: tuple[str, ...] = ("--no-mdns", "--threads", "1")
    address: str = f"{LOOPBACK}:0"
    id: str = ""
    gateway: dict[str, str] = field(default_factory=dict)
    """Where its gateway serves each kind; empty where it has none."""
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def start(self) -> Daemon:
        arguments = (self.kind, "--json", "--name", self.name, "--data-dir", str(self.folder), *self.extra)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*MESH, *arguments, "--listen", self.address],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment(),
            )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_LIMIT_S)
        line = self.process.stdout.readline() if ready else ""
        assert line, f"daemon {self.name} does not listen: {self.log.read_text()}"
        told = json.loads(line)
        self.id, self.address, self.gateway = told["id"], told["address"], told.get("gateway", {})
        return self

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self, number: int = signal.SIGTERM, limit_s: float = 15.0) -> int:
        """Signal it and return its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.send(signal.SIGCONT)
            self.send(number)
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"daemon {self.name} did not stop: {self.log.read_text()}") from None
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def revive(self) -> None:
        """Let it run again if it is frozen, start it again on the same port and folder if it is dead."""
        assert self.process is not None
        if self.process.poll() is None:
            self.send(signal.SIGCONT)
            threading.Event().wait(0.05)  # a signal that kills is on its way for a moment
        if self.process.poll() is not None:
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.start()

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None


@dataclass(frozen=True, slots=True)
class LocalFleet:
    """Node daemons on loopback, found by seeds only, so that other daemons of this machine play no part."""

    daemons: tuple[Daemon, ...]

    @property
    def seeds(self) -> tuple[str, ...]:
        return ("--no-mdns", *(word for daemon in self.daemons for word in ("--peer", daemon.address)))

    def run(self, *arguments: str) -> Ended:
        return run(*arguments, *self.seeds)

    def start(self, *arguments: str) -> Running:
        return Running(*arguments, *self.seeds)

    def deploy(self, name: str, stages: int, model: Path = DIGITS) -> list[Daemon]:
        """Deploy and return the daemons of its stages, head first."""
        document = self.run("deploy", str(model), "--name", name, "--stages", str(stages), "--json").ok().document()
        by_id = {daemon.id: daemon for daemon in self.daemons}
        return [by_id[device] for stage in document["plan"]["stages"] for device in stage["devices"]]

    def plan_on(self, model: Path, daemons: Sequence[Daemon], folder: Path) -> Path:
        """A plan file for `model` with one stage on each of `daemons`, in that order."""
        document = self.run("plan", str(model), "--stages", str(len(daemons)), "--json").ok().document()
        for stage, daemon in zip(document["stages"], daemons, strict=True):
            stage["devices"] = [daemon.id]
        path = folder / f"{model.stem}-{len(daemons)}.json"
        path.write_text(json.dumps(document))
        return path

    def deploy_on(self, name: str, daemons: Sequence[Daemon], folder: Path, model: Path = DIGITS) -> None:
        plan = self.plan_on(model, daemons, folder)
        self.run("deploy", str(model), "--name", name, "--plan", str(plan), "--json").ok()

    # Seen by asking the daemons directly, which takes milliseconds ----------------------------------

    def reports(self, name: str = "") -> list[DeploymentReport]:
        """What every daemon that answers tells of every generation of `name`."""

        async def ask(address: str) -> list[DeploymentReport]:
            client = NodeClient(address)
            try:
                return (await client.list_deployments(name))[0]
            except MeshError:
                return []
            finally:
                await client.close()

        async def ask_all() -> list[DeploymentReport]:
            answers = await asyncio.gather(*(ask(daemon.address) for daemon in self.daemons))
            await await_ended_calls()
            return [report for answer in answers for report in answer]

        return asyncio.run(ask_all())

    def names(self) -> set[str]:
        return {str(report.deployment.name) for report in self.reports()}

    def generation(self, name: str) -> Fence:
        return max(report.deployment.fence for report in self.reports(name))

    def is_active(self, name: str, stages: int) -> bool:
        return [report.state for report in self.reports(name)] == ["active"] * stages

    def frames(self, name: str) -> int:
        """That the last stage has computed."""
        return max((each.stage, each.frames) for report in self.reports(name) for each in report.stages)[1]

    def wait_for_frames(self, name: str, count: int = 1) -> None:
        """Until the last stage of a deployment has computed `count` frames more than now."""
        before = self.frames(name)
        wait_until(lambda: self.frames(name) >= before + count, START_LIMIT_S, f"{count} frames through {name}")

    def wait_until_measured(self) -> None:
        """The first measurement of the hardware takes a moment, during which nodes are busy."""

        async def ask() -> list[NodeState]:
            clients = [NodeClient(daemon.address) for daemon in self.daemons]
            try:
                return [(await client.get_capabilities()).state for client in clients]
            finally:
                for client in clients:
                    await client.close()
                await await_ended_calls()

        def are_ready() -> bool:
            return set(asyncio.run(ask())) == {NodeState.READY}

        wait_until(are_ready, START_LIMIT_S, "every node ready")


@contextlib.contextmanager
def local_fleet(folder: Path, count: int = 3) -> Iterator[LocalFleet]:
    daemons = [Daemon(f"node-{number}", folder / f"node-{number}") for number in range(1, count + 1)]
    try:
        fleet = LocalFleet(tuple(daemon.start() for daemon in daemons))
        fleet.wait_until_measured()
        yield fleet
    finally:
        for daemon in daemons:
            if daemon.is_running:
                daemon.stop()
    logs = "\n".join(daemon.log.read_text() for daemon in daemons)
    for sign in ("Traceback", "never awaited", "never retrieved"):
        assert sign not in logs, logs
