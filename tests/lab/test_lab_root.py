"""Real labs, built by the real command. Where there can be none (no root, no namespaces) this skips, saying why.

What takes minutes or needs other programs (twenty times up and down, Avahi, shares and rates, faults against
a stream) is in scripts/check_lab.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.lab_commands import (
    device_of,
    document,
    find_traces,
    good,
    list_host_links,
    mesh,
    need_lab,
    start_mesh,
)

FLEET = """
[[device]]
name = "pi"
cpu = 0.7
memory = "300MB"
rate = "100Mbit"

[[device]]
name = "camera"
role = "client"
cpu = 0.5
memory = "200MB"
latency = "1ms"
"""
LAB = f"test-{os.getpid()}"
NODE = "10.77.0.1"

# Says whether a UDP datagram to a device came back, or what a plain TCP connection to its daemon said.
ASK = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 50071), timeout=float(sys.argv[2])).close()
    print("answers")
except TimeoutError:
    print("silence")
except ConnectionRefusedError:
    print("refused")
"""

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    need_lab()
    file = tmp_path_factory.mktemp("fleet") / "two.toml"
    file.write_text(FLEET)
    links = list_host_links()
    up = document("lab", "up", str(file), "--name", LAB)
    assert [(each["name"], each["state"]) for each in up["devices"]] == [("pi", "running"), ("camera", "idle")]
    yield LAB
    good("lab", "down", "--name", LAB)
    assert find_traces(LAB) == []
    assert list_host_links() == links


def wait_for(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def ask(lab: str, patience_s: float = 1.0) -> str:
    return good("lab", "exec", "--name", lab, "camera", "--", sys.executable, "-c", ASK, NODE, str(patience_s)).strip()


def test_a_device_sees_the_mesh_and_has_its_limits(lab: str) -> None:
    for device in ("pi", "camera"):
        found = json.loads(good("lab", "exec", "--name", lab, device, "--", "mesh", "nodes", "--json"))
        (node,) = found["nodes"]
        assert (node["name"], node["address"], node["cores"]) == ("pi", f"{NODE}:50071", 0.7)
        assert node["memory_bytes"] == 300_000_000 // 4096 * 4096


def test_exit_codes_and_arguments_pass(lab: str) -> None:
    done = mesh("lab", "exec", "--name", lab, "camera", "--", "sh", "-c", 'echo "$MESH_LAB_DEVICE $0"; exit 7', "a b")
    assert (done.returncode, done.stdout) == (7, "camera a b\n")
    assert mesh("lab", "exec", "--name", lab, "camera", "--", "no-such-program").returncode == 127


def test_the_hosts_network_is_not_the_labs(lab: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(OSError, match=r"refused|unreachable"):
        assert server is not None
        socket.create_connection((NODE, 50071), timeout=0.5)
    links = good("lab", "exec", "--name", lab, "pi", "--", "cat", "/proc/net/dev")
    assert [line.split(":")[0].strip() for line in links.splitlines()[2:]] == ["lo", "eth0"]


def test_unknown_names_are_not_found(lab: str) -> None:
    assert mesh("lab", "exec", "--name", lab, "nobody", "--", "true").returncode == 3
    assert mesh("lab", "exec", "--name", "nowhere", "pi", "--", "true").returncode == 3
    assert mesh("lab", "fault", "--name", lab, "pi", "burn").returncode == 2
    assert mesh("lab", "status", "--name", "nowhere").returncode == 3
    assert mesh("lab", "down", "--name", "nowhere").returncode == 3


def test_a_second_lab_of_the_name_is_refused(lab: str, tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text(FLEET)
    done = mesh("lab", "up", str(tmp_path / "f.toml"), "--name", lab)
    assert (done.returncode, "is up" in done.stderr) == (1, True)
    assert device_of(lab, "pi")["state"] == "running"


def test_latency_is_on_the_line(lab: str) -> None:
    code = (
        "import socket, time; t = time.monotonic(); "
        f"socket.create_connection(('{NODE}', 50071)).close(); print(time.monotonic() - t)"
    )
    seconds = float(good("lab", "exec", "--name", lab, "camera", "--", sys.executable, "-c", code))
    assert 0.002 <= seconds < 0.2, "a millisecond there, a millisecond back, and what a busy machine adds"


@pytest.mark.parametrize("cut", ["cut", "cut-in", "cut-out"])
def test_cuts(lab: str, cut: str) -> None:
    assert ask(lab) == "answers"
    good("lab", "fault", "--name", lab, "pi", cut)
    assert device_of(lab, "pi")["faults"] == [cut]
    assert ask(lab) == "silence"
    good("lab", "fault", "--name", lab, "pi", "heal")
    assert ask(lab, 5) == "answers"


def test_total_loss_is_a_cut(lab: str) -> None:
    good("lab", "fault", "--name", lab, "pi", "loss", "100")
    assert ask(lab) == "silence"
    good("lab", "fault", "--name", lab, "pi", "heal")
    assert ask(lab, 5) == "answers"


def test_a_kill_is_seen_and_healed_on_the_same_folder(lab: str) -> None:
    (before,) = json.loads(good("lab", "exec", "--name", lab, "camera", "--", "mesh", "nodes", "--json"))["nodes"]
    good("lab", "fault", "--name", lab, "pi", "kill")
    assert device_of(lab, "pi")["state"] == "dead"
    assert ask(lab) == "refused"
    good("lab", "fault", "--name", lab, "pi", "heal")
    assert device_of(lab, "pi")["state"] == "running"
    (after,) = json.loads(good("lab", "exec", "--name", lab, "camera", "--", "mesh", "nodes", "--json"))["nodes"]
    assert after["id"] == before["id"]


def test_a_freeze_ends_by_itself(lab: str) -> None:
    good("lab", "fault", "--name", lab, "pi", "freeze", "10")
    frozen = device_of(lab, "pi")
    assert (frozen["state"], frozen["faults"]) == ("frozen", ["freeze"])
    assert 0 < frozen["frozen_seconds_left"] <= 10
    assert mesh("lab", "exec", "--name", lab, "pi", "--", "true").returncode == 1
    wait_for(lambda: device_of(lab, "pi")["state"] == "running")
    assert device_of(lab, "pi")["faults"] == []


def test_a_freeze_can_be_healed(lab: str) -> None:
    good("lab", "fault", "--name", lab, "pi", "freeze", "600")
    process = device_of(lab, "pi")["process"]
    good("lab", "fault", "--name", lab, "pi", "heal")
    healed = device_of(lab, "pi")
    assert (healed["state"], healed["process"]) == ("running", process)


def test_a_process_over_its_memory_limit_dies_alone(lab: str) -> None:
    process = device_of(lab, "pi")["process"]
    done = mesh("lab", "exec", "--name", lab, "pi", "--", sys.executable, "-c", "b = bytearray(400 << 20)")
    assert done.returncode == -signal.SIGKILL
    after = device_of(lab, "pi")
    assert (after["state"], after["process"], after["memory_kills"]) == ("running", process, 1)
    assert ask(lab) == "answers"


def make_fleet(tmp_path: Path) -> str:
    (tmp_path / "f.toml").write_text(FLEET)
    return str(tmp_path / "f.toml")


ATTEMPTS = 10
"""To signal a build before it is done: on a busy machine the test may look too late."""


def make_large_fleet(tmp_path: Path) -> str:
    """Takes so long to build that whoever sees the beginning of it can still interrupt it, on a busy machine too."""
    (tmp_path / "f.toml").write_text(f'{FLEET}\n[[device]]\nname = "more"\ncount = 40\nrole = "client"\n')
    return str(tmp_path / "f.toml")


def is_half_built(lab: str) -> bool:
    return len(find_traces(lab)) > 5


INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def heard_signals() -> Iterator[None]:
    """Whoever runs the tests with nohup, or a shell behind `&`, has the builder inherit that it is to ignore some."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in INTERRUPTIONS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heard_signals")
@pytest.mark.parametrize("number", INTERRUPTIONS)
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    need_lab()
    name = f"{LAB}-interrupted"
    for _attempt in range(ATTEMPTS):
        with start_mesh("lab", "up", make_large_fleet(tmp_path), "--name", name) as builder:
            wait_for(lambda: is_half_built(name))
            os.killpg(builder.pid, number)
            code = builder.wait(20)
        if code not in (0, -number):
            break
        mesh("lab", "down", "--name", name)  # it was built before the signal came
    assert code == 130
    assert find_traces(name) == []


@pytest.mark.parametrize("next_command", ["up", "down"])
def test_a_killed_build_is_swept_by_the_next_command(tmp_path: Path, next_command: str) -> None:
    need_lab()
    name = f"{LAB}-killed"
    with start_mesh("lab", "up", make_large_fleet(tmp_path), "--name", name) as builder:
        wait_for(lambda: is_half_built(name))
        builder.kill()
        builder.wait()
    (left,) = document("lab", "status", "--name", name)["labs"]
    assert left["phase"] == "unfinished"
    if next_command == "up":
        other = f"{LAB}-next"
        good("lab", "up", make_fleet(tmp_path), "--name", other)
        assert find_traces(name) == []
        good("lab", "down", "--name", other)
    else:
        good("lab", "down", "--name", name)
    assert find_traces(name) == []


def test_a_daemon_without_enough_memory_is_the_reason(tmp_path: Path) -> None:
    need_lab()
    name = f"{LAB}-small"
    (tmp_path / "f.toml").write_text('[[device]]\nname = "tiny"\nmemory = "20MB"\n')
    done = mesh("lab", "up", str(tmp_path / "f.toml"), "--name", name)
    assert done.returncode == 1
    assert "tiny ended before it listened: it needs more than its 20 MB of memory" in done.stderr
    assert find_traces(name) == []


def test_without_the_right_to_make_namespaces_it_says_so(tmp_path: Path) -> None:
    need_lab()
    name = f"{LAB}-powerless"
    prefix = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]
    done = mesh("lab", "up", make_fleet(tmp_path), "--name", name, prefix=prefix)
    assert done.returncode == 1
    assert "network namespaces, which cannot be made here" in done.stderr
    assert find_traces(name) == []
