"""Processes for scripts/bench_dataplane: daemons and peers on cores of their own, and what they cost.

Everything is driven through the `mesh` command. Daemons listen on loopback and are found by their addresses only.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MESH = [sys.executable, "-m", "nodes"]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("MESH_")},
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'scripts'}",
    "PYTHONDONTWRITEBYTECODE": "1",
}
CALL_LIMIT_S = 300
LOAD_S = 0.5
"""How long a stage is loaded to see which thread computes."""

Cores = Sequence[int]


def popen(command: Sequence[str], cores: Cores, **options: Any) -> subprocess.Popen[str]:
    """A process that runs on `cores` only, from its first instruction on."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        **options,
    )


class Peer:
    """A program of bench_peers.py: ready when made, measures when told."""

    def __init__(self, cores: Cores, *arguments: str, prefix: Sequence[str] = ()) -> None:
        command = [*prefix, sys.executable, str(ROOT / "scripts" / "bench_peers.py"), *arguments]
        self._process = popen(command, cores, stdin=subprocess.PIPE)
        self.hello = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"error: {' '.join(map(str, self._process.args))} ended: see above")  # type: ignore[union-attr]
        document: dict[str, Any] = json.loads(line)
        return document

    def measure(self, seconds: float) -> dict[str, Any]:
        self.ask(seconds)
        return self.answer()

    def ask(self, seconds: float) -> None:
        """Begin to measure; several peers may measure at once."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        return self._read()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self._process.communicate(timeout=10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.communicate()


@dataclass
class Daemon:
    name: str
    process: subprocess.Popen[str]
    id: str
    address: str
    fixed: set[int] = field(default_factory=set)
    """Threads and processes that were given cores of their own."""

    def cpu_s(self) -> float:
        """Processor seconds of the daemon and its children so far."""
        ticks = 0
        for pid in process_tree(self.process.pid):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def thread_ticks(self) -> dict[int, int]:
        """Of every thread of the daemon and its children but the daemon's first one."""
        found: dict[int, int] = {}
        for pid in process_tree(self.process.pid):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    fields = (task / "stat").read_text().rpartition(")")[2].split()
                    found[int(task.name)] = int(fields[11]) + int(fields[12])
        found.pop(self.process.pid, None)
        return found

    def pin_engine(self, before: dict[int, int], cores: Cores) -> None:
        """Give the thread that computed most since `before` these cores; in a child, its whole process."""
        busy = {tid: ticks - before.get(tid, 0) for tid, ticks in self.thread_ticks().items()}
        engine = max(busy, key=lambda tid: busy[tid])
        owner = next(p for p in process_tree(self.process.pid) if Path(f"/proc/{p}/task/{engine}").exists())
        tids = [engine] if owner == self.process.pid else [int(t.name) for t in Path(f"/proc/{owner}/task").iterdir()]
        for tid in tids:
            os.sched_setaffinity(tid, cores)
        self.fixed.update(tids)


def process_tree(pid: int) -> list[int]:
    found = [pid]
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in listing.read_text().split():
                found.extend(process_tree(int(child)))
    return found


@dataclass
class Fleet:
    """Daemons that know of each other by what commands tell them."""

    folder: Path
    daemons: list[Daemon]

    @property
    def seeds(self) -> list[str]:
        return ["--no-mdns", *(word for daemon in self.daemons for word in ("--peer", daemon.address))]

    def call(self, *words: str, cores: Cores | None = None) -> Any:
        return finish(self.start(*words, cores=cores))

    def start(self, *words: str, cores: Cores | None = None) -> subprocess.Popen[str]:
        return popen([*MESH, *words, *self.seeds, "--json"], cores or sorted(os.sched_getaffinity(0)))

    def deploy(self, model: Path, name: str, *options: str) -> list[dict[str, Any]]:
        """The stages of the plan that was carried out."""
        stages: list[dict[str, Any]] = self.call("deploy", str(model), "--name", name, "--measure", *options)["plan"][
            "stages"
        ]
        return stages

    def bench(self, name: str, seconds: float, *options: str, cores: Cores | None = None) -> dict[str, Any]:
        document: dict[str, Any] = self.call("bench", name, "--seconds", str(seconds), *options, cores=cores)
        return document

    def frames(self, name: str) -> int:
        """That the last stage has computed."""
        (found,) = self.call("status", name)["deployments"]
        return int(found["stages"][-1]["frames"])


def finish(process: subprocess.Popen[str]) -> Any:
    try:
        said, _ = process.communicate(timeout=CALL_LIMIT_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode:
        sys.exit(f"error: {' '.join(map(str, process.args))}: exit {process.returncode}: {said}")  # type: ignore[union-attr]
    return json.loads(said)


def wait_until_measured(look: Callable[[], list[dict[str, Any]]], count: int) -> None:
    """Until `count` nodes are ready: they measure their hardware first. Each look takes a moment itself."""
    deadline = time.monotonic() + CALL_LIMIT_S
    while [node["state"] for node in look()].count("ready") < count:
        if time.monotonic() > deadline:
            sys.exit(f"error: not all nodes are ready after {CALL_LIMIT_S} s")


def split(model: Path, plan: Path, out: Path) -> None:
    """The parts of a plan as files segment-0.onnx and so on."""
    cores = sorted(os.sched_getaffinity(0))
    finish(popen([*MESH, "split", str(model), "--plan", str(plan), "--out", str(out), "--json"], cores))


@contextlib.contextmanager
def fleet(folder: Path, cores: Sequence[Cores], node_options: Sequence[str]) -> Iterator[Fleet]:
    """A daemon on each of `cores`."""
    daemons: list[Daemon] = []
    folder.mkdir(parents=True)
    try:
        for index, mine in enumerate(cores):
            name = f"node-{index}"
            options = ["--threads", "1", "--listen", "127.0.0.1:0", "--no-mdns", *node_options]
            with (folder / f"{name}.log").open("w") as log:
                line = [*MESH, "node", "--json", "--name", name, "--data-dir", str(folder / name), *options]
                process = popen(line, mine, stdin=subprocess.DEVNULL, stderr=log)
            assert process.stdout is not None
            told = process.stdout.readline()
            if not told:
                sys.exit(f"error: {name} does not start: {(folder / f'{name}.log').read_text()[-2000:]}")
            document = json.loads(told)
            daemons.append(Daemon(name, process, document["id"], document["address"]))
        opened = Fleet(folder, daemons)
        wait_until_measured(lambda: opened.call("nodes")["nodes"], len(cores))
        yield opened
    finally:
        for daemon in daemons:
            daemon.process.terminate()
        for daemon in daemons:
            try:
                daemon.process.wait(20)
            except subprocess.TimeoutExpired:
                daemon.process.kill()
                daemon.process.wait()
