"""The checks of `scripts/check_lab`: measured on real labs, through the `mesh lab` command alone.

Each check builds the lab it needs, prints its figures, and takes the lab down. All traffic stays in the labs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lab_programs import AVAHI, BUSY, RECEIVE, SEND

ROOT = Path(__file__).resolve().parents[1]
MESH = [sys.executable, "-m", "nodes"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("MESH_")}
ENVIRONMENT["PYTHONPATH"] = str(ROOT)

FOUR_BOARDS = ROOT / "scripts" / "fleets" / "four-boards.toml"
EXPECTED = {"fast-1": (0.5, 512), "fast-2": (0.5, 512), "slow-1": (0.3, 256), "slow-2": (0.3, 256)}
"""Cores and megabytes of each device of that file."""

SEEN_WITHIN_S = 5.0
TOLERANCE = 0.05
ERROR_WITHIN_S = 4.0
BUSY_S = 8.0
BURST_S = 6.0
ROUNDS = 20
MODEL = ROOT / "nodes" / "demo_data" / "digits.onnx"

TRIO = """
[[device]]
name = "board"
count = 3
cpu = 0.4
memory = "400MB"
rate = "100Mbit"

[[device]]
name = "camera"
role = "client"
cpu = 0.4
memory = "400MB"
"""
SMALL = '[[device]]\nname = "a"\nmemory = "300MB"\n[[device]]\nname = "b"\nrole = "client"\nlatency = "1ms"\n'


def call(*words: str, wanted: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run(
        [*MESH, *words],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=180,
    )
    assert done.returncode in wanted, (
        f"mesh {' '.join(words)[:200]}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done.stdout


def on(lab: str, device: str, *program: str) -> str:
    return call("lab", "exec", "--name", lab, device, "--", *program)


def python_on(lab: str, device: str, code: str, *arguments: object) -> str:
    return on(lab, device, sys.executable, "-c", code, *map(str, arguments))


def start_on(lab: str, device: str, *program: str) -> subprocess.Popen[str]:
    line = [*MESH, "lab", "exec", "--name", lab, device, "--", *program]
    return subprocess.Popen(
        line, env=ENVIRONMENT, cwd=ROOT, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


@contextlib.contextmanager
def lab(fleet: str | Path, name: str, *options: str) -> Iterator[str]:
    """A lab that is up; afterwards nothing of it is left, which is checked."""
    links = list_links()
    with tempfile.TemporaryDirectory() as folder:
        file = fleet if isinstance(fleet, Path) else Path(folder) / "fleet.toml"
        if isinstance(fleet, str):
            file.write_text(fleet)
        call("lab", "up", str(file), "--name", name, *options)
        try:
            yield name
        finally:
            call("lab", "down", "--name", name)
    assert not find_traces(name), find_traces(name)
    assert list_links() == links


def find_traces(name: str) -> list[str]:
    folders = [Path("/run/mesh-lab"), Path("/var/lib/mesh-lab"), *Path("/sys/fs/cgroup").glob("**/mesh-lab")]
    found = [str(folder / name) for folder in folders if (folder / name).exists()]
    found += [str(path) for path in Path("/run/netns").glob(f"mesh-lab_{name}_*")]
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdecimal() and f"MESH_LAB={name}".encode() in (folder / "environ").read_bytes().split(
                b"\0"
            ):
                found.append(f"process {folder.name}")
    return found


def list_links() -> str:
    return subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout


def states(name: str) -> dict[str, Any]:
    (found,) = json.loads(call("lab", "status", "--name", name, "--json"))["labs"]
    return {device["name"]: device for device in found["devices"]}


# -- the checks --


def check_nodes() -> None:
    """Inside each device, `mesh nodes` lists all four in time, with their own cores and memory."""
    in_time("nodes")


def check_seeds() -> None:
    """The same without mDNS."""
    in_time("seeds", "--no-mdns")


def in_time(name: str, *options: str) -> None:
    times = []
    for device in ("fast-1", "slow-1", "slow-2"):
        with lab(FOUR_BOARDS, name, *options):
            times.append(see_all(name, device))
    assert statistics.median(times) <= SEEN_WITHIN_S, f"later than {SEEN_WITHIN_S:g} s"


def see_all(name: str, device: str) -> float:
    """Seconds from a lab that is up to a complete answer on the device."""
    began = time.monotonic()
    first: float | None = None
    while first is None and time.monotonic() - began < 4 * SEEN_WITHIN_S:
        found = {each["name"]: each for each in json.loads(on(name, device, "mesh", "nodes", "--json"))["nodes"]}
        if set(found) == set(EXPECTED):
            first = time.monotonic() - began
    assert first is not None, f"on {device} only {sorted(found)} are seen"
    for each, (cores, megabytes) in EXPECTED.items():
        assert found[each]["cores"] == cores, found[each]
        assert abs(found[each]["memory_bytes"] - megabytes * 1_000_000) <= 4096, found[each]
    print(f"{device} lists all four {first:.1f} s after the lab was up")
    return first


def check_avahi() -> None:
    """Another implementation of mDNS sees the same nodes."""
    with lab(FOUR_BOARDS, "avahi"):
        lines = on("avahi", "fast-1", "unshare", "--mount", "sh", "-c", AVAHI).splitlines()
    resolved = [line.split(";") for line in lines if line.startswith("=")]
    seen = {(fields[7], fields[8]) for fields in resolved}
    print(f"avahi-browse resolved {sorted(seen)}")
    assert seen == {(f"10.77.0.{number}", "50071") for number in range(1, 5)}


def check_cpu() -> None:
    """Busy on all devices at once, each gets its share.

    Whatever else this machine does can only take from it: so the best of seven windows says what the lab grants.
    """

    def measure(device: str) -> list[float]:
        return [float(word) for word in python_on(name, device, BUSY, BUSY_S).split()]

    with lab(FOUR_BOARDS, "cpu") as name, ThreadPoolExecutor() as threads:
        wait_until_measured(name)
        shares = dict(zip(EXPECTED, threads.map(measure, EXPECTED), strict=True))
        print("medians:", {device: round(statistics.median(windows), 3) for device, windows in shares.items()})
        compare("cores", {device: (max(windows), EXPECTED[device][0]) for device, windows in shares.items()})


def check_rate() -> None:
    """TCP bursts: what a device sends, and what it receives from two at once, is its rate."""
    with lab(FOUR_BOARDS, "rate") as name:
        for senders in (["fast-2"], ["fast-2", "slow-1"]):
            receiver = start_on(name, "fast-1", sys.executable, "-c", RECEIVE, str(BURST_S), str(len(senders)))
            assert receiver.stdout is not None
            assert receiver.stdout.readline() == "ready\n"
            sending = [
                start_on(name, each, sys.executable, "-c", SEND, "10.77.0.1", str(BURST_S + 4)) for each in senders
            ]
            payload, frames = (float(word) / 1e6 for word in receiver.communicate(timeout=60)[0].split())
            for each in sending:
                each.communicate(timeout=60)
            compare(f"Mbit/s from {' and '.join(senders)}", {"payload": (payload, 100), "frames": (frames, 100)})


def wait_until_measured(name: str) -> None:
    """Daemons measure their boards when they start, which takes a share of them."""

    def states_seen() -> list[str]:
        return [each["state"] for each in json.loads(on(name, "fast-1", "mesh", "nodes", "--json"))["nodes"]]

    wait_for(lambda: states_seen() == ["ready"] * len(EXPECTED), 60, "all boards have measured themselves")


def compare(unit: str, figures: dict[str, tuple[float, float]]) -> None:
    for what, (measured, wanted) in figures.items():
        print(f"{what}: {measured:.3f} {unit}, the file says {wanted:g} ({100 * (measured / wanted - 1):+.1f} %)")
    wrong = [what for what, (measured, wanted) in figures.items() if abs(measured / wanted - 1) > TOLERANCE]
    assert not wrong, f"{wrong} differ by more than {100 * TOLERANCE:g} %"


def check_memory() -> None:
    """A process over the limit dies; its device's daemon and all others live."""
    with lab(FOUR_BOARDS, "memory") as name:
        before = {device: each["process"] for device, each in states(name).items()}
        greedy = start_on(name, "slow-1", sys.executable, "-c", "b = bytearray(300 << 20)")
        greedy.communicate(timeout=60)
        after = states(name)
        assert greedy.returncode == -signal.SIGKILL, greedy.returncode
        assert {device: each["process"] for device, each in after.items()} == before
        assert all(each["state"] == "running" for each in after.values())
        assert [each["memory_kills"] for each in after.values()] == [0, 0, 1, 0]
        print("300 MiB on a board of 256 MB: killed alone")


BREAKING = {"kill": ["kill"], "freeze": ["freeze", "8"], "cut": ["cut"], "cut-in": ["cut-in"], "cut-out": ["cut-out"]}
BEARABLE = {"rate": ["rate", "5Mbit"], "loss": ["loss", "2"]}
HEAVY = {"heavy loss": ["loss", "20"]}  # may be borne or not, but may not hang


def check_faults() -> None:
    """Each fault against a running stream over three stages: a typed error in time, or the stream goes on."""
    with lab(TRIO, "faults") as name, tempfile.TemporaryDirectory() as folder:
        on(name, "camera", "mesh", "deploy", str(MODEL), "--name", "digits", "--stages", "3", "--json")
        for what, fault in {**BREAKING, **BEARABLE, **HEAVY}.items():
            afflict(name, fault, Path(folder) / f"{what}.jsonl", may_end=what not in BEARABLE)
            call("lab", "fault", "--name", name, "board-2", "heal")
            wait_until_it_answers(name, what)


def stream_command(sink: str, count: int = 0) -> list[str]:
    source = "synthetic:random" + (f"?count={count}" if count else "")
    return ["mesh", "stream", "digits", "--source", source, "--sink", sink, "--rate", "20", "--json"]


def afflict(name: str, fault: list[str], answers: Path, may_end: bool) -> None:
    stream = start_on(name, "camera", *stream_command(f"jsonl:{answers}"))
    try:
        wait_for(lambda: count_lines(answers) >= 20 or stream.poll() is not None, 30, "the stream's first answers")
        assert stream.poll() is None, f"the stream ended before the fault: {stream.communicate()}"
        call("lab", "fault", "--name", name, "board-2", *fault)
        began, known = time.monotonic(), count_lines(answers)
        # Never longer than this: an error, or answers that go on.
        while stream.poll() is None and time.monotonic() - began < 2 * ERROR_WITHIN_S:
            time.sleep(0.02)
        took, came = time.monotonic() - began, count_lines(answers) - known
        if stream.poll() is None:
            # Still running: then it must have gone on after the time that an error may take.
            later = count_lines(answers)
            time.sleep(2)
            went_on = count_lines(answers) - later
            print(f"{' '.join(fault)}: the stream goes on, {came} answers in {took:.0f} s, then {went_on} in 2 s")
            assert went_on > 0, "the stream hangs"
            return
        error = json.loads(stream.communicate()[0])["error"]
        print(f"{' '.join(fault)}: {error['code']} after {took:.2f} s: {error['message']}")
        assert may_end, "this fault can be borne"
        assert error["code"] == "node-lost", error
        assert took <= ERROR_WITHIN_S, f"later than {ERROR_WITHIN_S:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            stream.kill()
        stream.communicate()


def wait_until_it_answers(name: str, after: str) -> None:
    began = time.monotonic()

    def answers() -> bool:
        stream = start_on(name, "camera", *stream_command("null:", count=5))
        said = stream.communicate(timeout=60)[0]
        return stream.returncode == 0 and json.loads(said)["outcomes"] == {"ok": 5}

    wait_for(answers, 60, f"answers again after {after}")
    print(f"  healed: answers again {time.monotonic() - began:.1f} s later")


def count_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait_for(is_so: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)


def check_repeated() -> None:
    """Two labs, up and down many times at once: nothing is left."""

    def cycle(name: str) -> None:
        for _ in range(ROUNDS):
            call("lab", "up", str(file), "--name", name)
            call("lab", "down", "--name", name)
            assert not find_traces(name), find_traces(name)

    links = list_links()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as threads:
        file = Path(folder) / "small.toml"
        file.write_text(SMALL)
        began = time.monotonic()
        list(threads.map(cycle, ["one", "other"]))
        print(f"two labs, {ROUNDS} times up and down: {time.monotonic() - began:.0f} s")
    assert list_links() == links
    folders = [Path("/run/mesh-lab"), Path("/var/lib/mesh-lab"), *Path("/sys/fs/cgroup").glob("**/mesh-lab")]
    assert not any(folder.exists() for folder in folders), folders


CHECKS = {
    "nodes": check_nodes,
    "seeds": check_seeds,
    "avahi": check_avahi,
    "cpu": check_cpu,
    "rate": check_rate,
    "memory": check_memory,
    "faults": check_faults,
    "repeated": check_repeated,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/check_lab", description=__doc__)
    parser.add_argument("checks", nargs="*", metavar="CHECK", choices=[*CHECKS, []], help=", ".join(CHECKS))
    names = parser.parse_args().checks or list(CHECKS)
    failed = 0
    for name in names:
        began = time.monotonic()
        print(f"-- {name}")
        try:
            CHECKS[name]()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            failed += 1
            print(f"FAILED  {name}: {error}")
        else:
            print(f"ok      {name} ({time.monotonic() - began:.0f} s)", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
