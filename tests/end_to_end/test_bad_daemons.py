"""Daemons that cannot start say why and leave; one whose disk is full goes on; coordinators that are dead or none."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mesh.storage.content import DISK_RESERVE_BYTES
from nodes.cli import app
from tests.end_to_end.commands import (
    DIGITS,
    MESH,
    Daemon,
    LocalFleet,
    Running,
    environment,
    run,
    run_together,
    wait_until,
)

QUIET = ("--no-mdns", "--json")


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


@pytest.mark.parametrize("kind", ["node", "coordinator"])
def test_busy_port(tmp_path: Path, taken_port: int, kind: str) -> None:
    arguments = ("--data-dir", str(tmp_path), "--listen", f"127.0.0.1:{taken_port}", "--peer", "127.0.0.1:9")
    run(kind, *arguments, *QUIET).fails("listen", 1, str(taken_port), "--listen")


WRONG_ARGUMENTS = {
    ("--listen", "127.0.0.1"): "HOST:PORT",
    ("--listen", "127.0.0.1:70000"): "HOST:PORT",
    ("--listen", "0.0.0.0:0"): "--insecure",
    ("--listen", "[::]:0"): "--insecure",
    ("--listen", "nowhere.invalid:0"): "--insecure",
    ("--name", "Kitchen Pi"): "a-z, 0-9",
    ("--peer", "somewhere"): "host:port",
    ("--peer", "127.0.0.1:0"): "port",
    ("--interface", "nosuch0"): "nosuch0",
}


def test_arguments_that_make_no_sense(tmp_path: Path) -> None:
    commands = []
    for number, arguments in enumerate(WRONG_ARGUMENTS):
        listen = ("--listen", "127.0.0.1:0") if "--listen" not in arguments else ()
        mdns = ("--json",) if "--interface" in arguments else QUIET
        kind = "coordinator" if number % 4 == 2 else "node"
        commands.append((kind, "--data-dir", str(tmp_path / str(number)), *listen, *arguments, *mdns))
    for end, words in zip(run_together(*commands), WRONG_ARGUMENTS.values(), strict=True):
        end.fails("usage", 2, words)


def test_an_address_that_is_not_ours(tmp_path: Path) -> None:
    arguments = ("--data-dir", str(tmp_path), "--listen", "192.0.2.77:0", "--insecure")
    run("node", *arguments, *QUIET).fails("listen", 1, "192.0.2.77")


# Data folders ---------------------------------------------------------------------------------------


def make_file(folder: Path) -> str:
    (folder / "data").touch()
    return "storage"


def make_public(folder: Path) -> str:
    (folder / "data").mkdir()
    (folder / "data").chmod(0o777)
    return "storage"


def make_newer(folder: Path) -> str:
    (folder / "data").mkdir()
    (folder / "data" / "format").write_text("99\n")
    return "storage"


def make_damaged_key(folder: Path) -> str:
    (folder / "data").mkdir()
    (folder / "data" / "identity.pem").write_text("-----BEGIN NOTHING-----")
    (folder / "data" / "identity.pem").chmod(0o600)
    return "storage"


@pytest.mark.parametrize("make", [make_file, make_public, make_newer, make_damaged_key])
def test_data_folders_that_cannot_be_used(tmp_path: Path, make: object) -> None:
    assert callable(make)
    error = make(tmp_path)
    arguments = ("node", "--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", *QUIET)
    run(*arguments).fails(error, 1, str(tmp_path / "data"))


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own on `folder`: only root can make one."""
    command = ["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_second_daemon_on_one_folder(fleet: LocalFleet) -> None:
    first = fleet.daemons[0]
    arguments = ("node", "--data-dir", str(first.folder), "--listen", "127.0.0.1:0", *QUIET)
    run(*arguments).fails("folder-in-use", 1, str(first.folder), str(first.pid))
    assert first.is_running and fleet.run("nodes", "--json").ok()


def test_read_only_folder(tmp_path: Path) -> None:
    with mounted(tmp_path, "size=1m,ro"):
        arguments = ("--listen", "127.0.0.1:0", *QUIET)
        run("node", "--data-dir", str(tmp_path), *arguments).fails("storage-read-only", 1, str(tmp_path), "--data-dir")
        run("node", "--data-dir", str(tmp_path / "new"), *arguments).fails("storage-read-only", 1, "new")


def test_full_folder_at_the_start(tmp_path: Path) -> None:
    with mounted(tmp_path, "size=64k"):
        with contextlib.suppress(OSError):
            (tmp_path / "filler").write_bytes(bytes(1 << 20))
        arguments = ("--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", *QUIET)
        run("node", *arguments).fails("storage-full", 1, str(tmp_path))


def make_heavy_model(path: Path, megabytes: int) -> Path:
    """One matrix of that size."""
    width = 512
    weights = numpy_helper.from_array(np.ones((width, megabytes * 512), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "heavy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, megabytes * 512])],
        [weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_disk_that_fills_up_while_deploying(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    model = make_heavy_model(tmp_path / "heavy.onnx", 8)
    with mounted(disk, f"size={(DISK_RESERVE_BYTES >> 20) + 3}m"):
        daemon = Daemon("small", disk / "data").start()
        try:
            alone = ("--no-mdns", "--peer", daemon.address, "--json")
            run("deploy", str(DIGITS), "--name", "fits", *alone).ok()
            run("deploy", str(model), "--name", "heavy", *alone).fails("storage-full", 1, "small")
            (fits,) = run("status", *alone).ok().document()["deployments"]
            assert (fits["name"], fits["state"]) == ("fits", "active")
        finally:
            assert daemon.stop() == 0
            assert "Traceback" not in daemon.log.read_text()


# Ending ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "number"), [("node", signal.SIGINT), ("coordinator", signal.SIGTERM)])
def test_daemons_end_orderly(tmp_path: Path, kind: str, number: signal.Signals) -> None:
    daemon = Daemon("leaving", tmp_path / "data", kind, ("--no-mdns",)).start()
    assert daemon.stop(number, limit_s=8) == 0
    assert "Traceback" not in daemon.log.read_text()


# Coordinators ---------------------------------------------------------------------------------------


@pytest.fixture
def coordinator(fleet: LocalFleet, tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon("hall", tmp_path / "coordinator", "coordinator", fleet.seeds).start()
    yield daemon
    if daemon.is_running:
        assert daemon.stop() == 0
    assert "Traceback" not in daemon.log.read_text()


def test_a_coordinator_that_is_named(fleet: LocalFleet, coordinator: Daemon, images: Path) -> None:
    named = ("--no-mdns", "--coordinator", coordinator.address)
    deployed = run("deploy", str(DIGITS), "--name", "asked", "--stages", "2", *named, "--json").ok()
    assert deployed.document()["name"] == "asked" and "runs the whole model" in deployed.stderr
    run("infer", "asked", "--input", str(images), *named).ok()
    run("deploy", str(images), "--name", "bad", *named, "--json").fails("model-unreadable", 1)
    run("status", "nothing", *named, "--json").fails("deployment-not-found", 3)
    by_environment = environment(MESH_COORDINATOR=coordinator.address)
    run("undeploy", "asked", "--no-mdns", environ=by_environment).ok()
    assert "asked" not in fleet.names()


def test_a_coordinator_among_the_seeds_is_asked(fleet: LocalFleet, coordinator: Daemon) -> None:
    end = run("nodes", "--no-mdns", "--peer", coordinator.address, "--json").ok()
    assert len(end.document()["nodes"]) == len(fleet.daemons)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_coordinator_that_does_not_answer(coordinator: Daemon, number: signal.Signals) -> None:
    coordinator.send(number)
    named = ("--no-mdns", "--coordinator", coordinator.address, "--json")
    run("status", *named).fails("node-lost", 1, coordinator.address, "--coordinator")
    if number is signal.SIGSTOP:
        coordinator.send(signal.SIGCONT)
        wait_until(lambda: run("status", *named).code == 0, 10, "an answer of the coordinator")
    else:
        coordinator.stop()


def test_a_coordinator_that_freezes_while_it_deploys(fleet: LocalFleet, coordinator: Daemon) -> None:
    named = ("--no-mdns", "--coordinator", coordinator.address, "--json")
    with Running("deploy", str(DIGITS), "--name", "frozen", *named) as deploying:
        deploying.wait_for("places to cut")
        coordinator.send(signal.SIGSTOP)
        deploying.mark()
        ended = deploying.wait()
    coordinator.send(signal.SIGCONT)
    if ended.code:  # it may have been done by then
        ended.fails("node-lost", 1, coordinator.address)
    wait_until(lambda: run("status", *named).code == 0, 10, "an answer of the coordinator")
    wait_until(lambda: "frozen" not in fleet.names() or ended.code == 0, 15, "the deployment taken back")
    if ended.code == 0:
        run("undeploy", "frozen", *named).ok()


def test_what_is_no_coordinator(fleet: LocalFleet) -> None:
    end = run("status", "--no-mdns", "--coordinator", fleet.daemons[0].address, "--json")
    end.fails("usage", 2, "is no coordinator")
    run("status", "--no-mdns", "--coordinator", "hall", "--json").fails("usage", 2, "HOST:PORT")


# As a person meets it -------------------------------------------------------------------------------


def test_mesh_alone_and_every_help() -> None:
    alone = run()
    assert alone.code == 2 and "Usage" in alone.stderr
    names = [str(each.name or getattr(each.callback, "__name__", "")) for each in app.registered_commands]
    for end in run_together(*((name, "--help") for name in names)):
        assert f"mesh {end.arguments[0]}" in end.ok().stdout
        assert f"  {end.arguments[0]} " in alone.stderr


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "<&- >&- 2>&-", "| head -1", ">/dev/full"])
def test_shells(fleet: LocalFleet, digits: str, redirection: str) -> None:
    """Closed, cut off and full standard streams: never a traceback, and the exit code says what happened."""
    script = f'"$@" {redirection}; echo "${{PIPESTATUS[0]}}" >&3'
    reader, writer = os.pipe()
    words = ["bash", "-c", f"exec 3>&{writer}; {script}", "bash", *MESH, "stream", digits, "--sink", "-"]
    words += ["--source", "synthetic:random?count=500", *fleet.seeds]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, pass_fds=[writer], timeout=30)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        code = int(pipe.read())
    assert code == (1 if redirection in ("| head -1", ">/dev/full") else 0), (code, done.stderr)
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr, done.stderr
