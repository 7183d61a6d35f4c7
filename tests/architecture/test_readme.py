"""README.md tells the truth: its commands parse, its scripts exist, its Python runs against a real mesh.

Shell blocks (```bash, sh, console) are read for two things: `mesh ...` commands, which the real command
line must accept (names, options, arguments; nothing is run), and paths into `scripts/`, which must exist.
Python blocks (```python) are run, each as a program of its own, in a folder that holds `digits.onnx` and
`digits_test.npz`, against a coordinator and two nodes on loopback where the model is deployed as `digits`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

from tests.architecture.source_tree import ROOT

README = ROOT / "README.md"
SHELL_LANGUAGES = ("bash", "sh", "shell", "console")
NODES = 2
READY_SECONDS = 30.0
COMMAND = [sys.executable, "-c", "import sys; from nodes.cli import main; sys.exit(main())"]


def find_blocks(text: str, *languages: str) -> list[str]:
    fences = re.findall(r"^```(\w+)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [body for language, body in fences if language in languages]


def find_commands(block: str) -> Iterator[list[str]]:
    """Each simple command of a shell block, as words: prompts, comments and continuations taken off."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in lexer:
            if set(word) <= set("|&;"):
                yield command
                command = []
            else:
                command.append(word)
        if command:
            yield command


def find_mesh_commands(block: str) -> Iterator[list[str]]:
    for words in find_commands(block):
        while words and re.fullmatch(r"[A-Z_]+=.*|sudo", words[0]):
            words = words[1:]
        if words and Path(words[0]).name == "mesh":
            redirected = next((index for index, word in enumerate(words) if set(word) <= set("<>")), len(words))
            yield words[1:redirected]


def judge_command(app: typer.Typer, words: list[str]) -> str:
    """What the command line would say against these words; "" when it takes them. Nothing is run."""
    # Typer brings its own copy of click in newer versions, so nothing of click is imported here.
    current: Any = typer.main.get_command(app)
    context: Any = None
    path = "mesh"
    while True:
        context = type(current).context_class(current, parent=context, info_name=path.split()[-1])
        try:
            values, rest, _order = current.make_parser(context).parse_args(args=list(words))
        except Exception as error:
            return f"{path}: {error}"
        # A lone --help or --version needs nothing else.
        if values.keys() & {"help", "version"}:
            return ""
        missing = [each.name for each in current.params if each.required and not values.get(each.name)]
        if missing:
            return f"{path}: missing {missing}"
        if not hasattr(current, "commands"):
            return f"{path}: unexpected {rest}" if rest else ""
        if not rest:
            return f"{path}: needs a command"
        if rest[0] not in current.commands:
            return f"{path}: no command {rest[0]!r}"
        path += f" {rest[0]}"
        current, words = current.commands[rest[0]], rest[1:]


def test_commands_parse() -> None:
    from nodes.cli import app

    commands = [
        words for block in find_blocks(README.read_text(), *SHELL_LANGUAGES) for words in find_mesh_commands(block)
    ]
    assert commands, "README.md shows no mesh command"
    problems = {shlex.join(["mesh", *words]): judge_command(app, words) for words in commands}
    assert not any(problems.values()), "\n".join(f"{shown}: {said}" for shown, said in problems.items() if said)


def test_scripts_exist() -> None:
    shown = {
        word.removeprefix("./")
        for block in find_blocks(README.read_text(), *SHELL_LANGUAGES)
        for words in find_commands(block)
        for word in words
        if re.match(r"(\./)?scripts/", word)
    }
    assert "scripts/demo" in shown
    missing = [name for name in shown if not os.access(ROOT / name, os.R_OK if name.endswith(".toml") else os.X_OK)]
    assert not missing, f"README.md shows scripts that do not exist or cannot be run: {missing}"


@contextmanager
def running(*arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A `mesh` command in the background, stopped as a person stops it; its exit is waited for."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


def run_mesh(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=30)


def free_ports(count: int) -> list[int]:
    with ExitStack() as sockets:
        bound = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in bound]


@contextmanager
def running_mesh(folder: Path) -> Iterator[str]:
    """A coordinator and nodes on loopback, with `digits` deployed; yields the coordinator's address."""
    coordinator, *nodes = (f"127.0.0.1:{port}" for port in free_ports(1 + NODES))
    with ExitStack() as stack:
        peers = [word for address in nodes for word in ("--peer", address)]
        for name, command in (
            ("coordinator", ["coordinator", "--no-mdns", "--listen", coordinator, *peers]),
            *((f"node{number}", ["node", "--no-mdns", "--listen", address]) for number, address in enumerate(nodes)),
        ):
            options = ("--data-dir", str(folder / name), "--name", name)
            stack.enter_context(running(*command, *options, log=folder / f"{name}.log"))
        deadline = time.monotonic() + READY_SECONDS
        while True:
            listed = run_mesh("nodes", "--coordinator", coordinator, "--json")
            if listed.returncode == 0 and len(json.loads(listed.stdout)["nodes"]) == NODES:
                break
            logs = "\n".join(path.read_text() for path in folder.glob("*.log"))
            assert time.monotonic() < deadline, f"{listed.stdout}{listed.stderr}\n{logs}"
        deployed = run_mesh("deploy", str(folder / "digits.onnx"), "--name", "digits", "--coordinator", coordinator)
        assert deployed.returncode == 0, deployed.stderr
        yield coordinator


@pytest.mark.timeout(170)
def test_python_blocks_run(tmp_path: Path) -> None:
    blocks = find_blocks(README.read_text(), "python")
    assert blocks, "README.md shows no Python"
    for name in ("digits.onnx", "digits_test.npz"):
        shutil.copy(ROOT / "nodes" / "demo_data" / name, tmp_path)
    with running_mesh(tmp_path) as coordinator:
        environment = {
            **os.environ,
            "MESH_COORDINATOR": coordinator,
            "MESH_INTERFACE": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
        }
        for block in blocks:
            done = subprocess.run(
                [sys.executable, "-c", block], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, f"{block}\n{done.stderr}"


def test_blocks_and_commands_are_found() -> None:
    lines = [
        "# x",
        "```bash",
        "$ MESH_X=a:1 mesh plan m.onnx \\",
        "  --explain | less  # why",
        "ls && .venv/bin/mesh nodes > n",
    ]
    text = "\n".join([*lines, "```", ""])
    [block] = find_blocks(text, *SHELL_LANGUAGES)
    assert list(find_mesh_commands(block)) == [["plan", "m.onnx", "--explain"], ["nodes"]]
    assert find_blocks(text, "python") == []


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ("plan m.onnx --stages 2 --explain", ""),
        ("plan --help", ""),
        ("lab exec pi -- uname -a", ""),
        ("plan m.onnx --explian", "--explian"),
        ("plan m.onnx --stages", "--stages"),
        ("plan", "missing ['model']"),
        ("plan m.onnx other.onnx", "unexpected ['other.onnx']"),
        ("plann m.onnx", "no command 'plann'"),
        ("lab", "needs a command"),
    ],
)
def test_commands_are_judged(shown: str, said: str) -> None:
    app, lab = typer.Typer(), typer.Typer()
    app.add_typer(lab, name="lab")

    @app.command()
    def plan(model: Path, stages: int = 1, explain: bool = False) -> None:
        raise AssertionError("nothing is run")

    @lab.command("exec")
    def execute(device: str, command: list[str]) -> None:
        raise AssertionError("nothing is run")

    verdict = judge_command(app, shlex.split(shown))
    assert said in verdict if said else verdict == "", verdict
