"""What scripts/check_mutations runs: bugs as exact replacements of text, and the tests that must notice them.

Each of the six kinds of bugs is planted in every place where the promise is kept, one place at a time, so that one
guard does not hide that another has no test. A replacement whose text is not found (exactly once) is an error: the
code has moved on, and the list here has to follow it. First the unchanged copy must pass the same tests.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("mesh", "nodes", "tests", "scripts", "protos", "pyproject.toml")
TEST_LIMIT_S = 20
"""A bug may make a test wait for ever; that is red as well, but not for minutes."""
RUN_LIMIT_S = 300

STREAM_TESTS = ("tests/control/test_client_stream.py", "tests/control/test_answer_queue.py")
FLOW_TESTS = ("tests/control/test_flow.py",)
CLIENT_TESTS = ("tests/runtime/test_frame_stream.py",)
VIOLATION_TESTS = ("tests/runtime/test_edge_violations.py",)
POOL_TESTS = ("tests/runtime/test_engine_pool.py",)


@dataclass(frozen=True, slots=True)
class Edit:
    file: str
    text: str
    instead: str


@dataclass(frozen=True, slots=True)
class Bug:
    name: str
    """kind/place"""
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


def bug(name: str, file: str, text: str, instead: str, tests: tuple[str, ...]) -> Bug:
    return Bug(name, (Edit(file, text, instead),), tests)


BUGS = (
    # An answer that comes twice is handed on twice.
    Bug(
        "no-dedup/stream",
        (
            Edit("mesh/control/client_stream.py", "        if self._is_answered(sequence):", "        if False:"),
            Edit(
                "mesh/control/client_stream.py",
                "latency_s = now - self._unanswered[sequence].offered_at",
                "latency_s = now - held.offered_at if (held := self._unanswered.get(sequence)) else 0.0",
            ),
            Edit("mesh/control/answer_queue.py", "if sequence in self._runs or (", "if False and ("),
        ),
        STREAM_TESTS,
    ),
    bug(
        "no-dedup/queue",
        "mesh/control/answer_queue.py",
        "if sequence in self._runs or (self._is_ordered and sequence < self._next):",
        "if False:",
        STREAM_TESTS,
    ),
    # What is older than the generation in force is taken all the same.
    bug(
        "no-fence/prepare",
        "mesh/control/deployments.py",
        "if highest is not None and key.fence <= highest:",
        "if False:",
        ("tests/control/test_deployments.py::test_an_older_or_equal_fence_is_refused_also_after_removal",),
    ),
    bug(
        "no-fence/disk",
        "mesh/storage/deployments.py",
        "raise StaleGeneration(",
        "StaleGeneration(",
        ("tests/storage/test_deployments.py",),
    ),
    bug(
        "no-fence/frame",
        "mesh/runtime/edge_receiver.py",
        "if (message.term, message.generation) != (fence.term, fence.generation):",
        "if False:",
        VIOLATION_TESTS,
    ),
    bug(
        "no-fence/opening",
        "mesh/runtime/node_service.py",
        "return StaleGeneration(",
        "StaleGeneration(",
        VIOLATION_TESTS,
    ),
    bug("no-fence/path", "mesh/control/client_stream.py", "if fence < before:", "if False:", STREAM_TESTS),
    # A peer that says nothing is waited for.
    bug(
        "no-silence/judge",
        "mesh/control/timing.py",
        "return now - self._heard_at > SILENCE_LIMIT_S",
        "return False",
        ("tests/control/test_timing.py",),
    ),
    bug(
        "no-silence/receiver",
        "mesh/runtime/edge_receiver.py",
        "if liveness.is_lost(now()):",
        "if False:",
        VIOLATION_TESTS,
    ),
    bug(
        "no-silence/sender",
        "mesh/runtime/edge_sender.py",
        "if connection.liveness.is_lost(self._now()):",
        "if False:",
        CLIENT_TESTS,
    ),
    bug(
        "no-silence/client",
        "mesh/runtime/results_link.py",
        "if self._liveness.is_lost(self._now()):",
        "if False:",
        CLIENT_TESTS,
    ),
    bug(
        "no-silence/ping",
        "mesh/wire/options.py",
        '    ("grpc.http2.ping_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1000)),\n',
        "",
        ("tests/runtime/test_node_loss.py::test_a_long_call_to_a_node_that_freezes_ends_with_its_loss",),
    ),
    # Queues take whatever comes.
    bug(
        "unbounded/inbox",
        "mesh/control/flow.py",
        "if len(self._items) - len(superseded) >= self.capacity:",
        "if False:",
        FLOW_TESTS,
    ),
    bug("unbounded/window", "mesh/control/flow.py", "if not self.is_open:", "if False:", FLOW_TESTS),
    bug(
        "unbounded/stage",
        "mesh/runtime/stage.py",
        "if opened.held >= opened.info.window:",
        "if False:",
        VIOLATION_TESTS,
    ),
    bug(
        "unbounded/streams",
        "mesh/runtime/stage.py",
        "if len(self._streams) >= MAX_STREAMS:",
        "if False:",
        ("tests/runtime/test_stage_limits.py",),
    ),
    bug(
        "unbounded/windows",
        "mesh/runtime/stage.py",
        "if sum(opened.info.window for opened in self._streams.values()) + info.window > MAX_QUEUED_FRAMES:",
        "if False:",
        ("tests/runtime/test_stage.py",),
    ),
    bug(
        "unbounded/consumers",
        "mesh/runtime/stage.py",
        "if len(self._sinks) >= MAX_STREAMS:",
        "if False:",
        ("tests/runtime/test_stage.py",),
    ),
    bug(
        "unbounded/unread-bytes",
        "mesh/runtime/edge_receiver.py",
        "min(self._waiting_bytes, size_bytes) > 0 and self._waiting_bytes + size_bytes > MAX_UNREAD_BYTES",
        "False",
        VIOLATION_TESTS,
    ),
    bug(
        "unbounded/unread-messages",
        "mesh/runtime/edge_receiver.py",
        "len(self._messages) >= self._capacity",
        "False",
        ("tests/runtime/test_stage_limits.py",),
    ),
    # A run that hangs is left alone.
    bug("hung-engine/watch", "mesh/runtime/engine_pool.py", "if now < limit_at:", "if True:", POOL_TESTS),
    bug(
        "hung-engine/kill",
        "mesh/runtime/engine_pool.py",
        "if now < max(limit_at, work.started_at) + KILL_GRACE_S:",
        "if True:",
        POOL_TESTS,
    ),
    bug("hung-engine/slot", "mesh/runtime/engine_pool.py", "self.post(self._lend_slot, work)", "pass", POOL_TESTS),
    # Credits are not kept to.
    bug(
        "no-credits/sender",
        "mesh/control/flow.py",
        "return _has_room(self.outstanding_bytes, size_bytes, self.limit_bytes)",
        "return True",
        FLOW_TESTS,
    ),
    bug(
        "no-credits/receiver",
        "mesh/control/flow.py",
        "if not _has_room(outstanding, size_bytes, self.limit_bytes):",
        "if False:",
        FLOW_TESTS,
    ),
    bug(
        "no-credits/given-back",
        "mesh/control/flow.py",
        "if not 0 < size_bytes <= self.outstanding_bytes:",
        "if False:",
        FLOW_TESTS,
    ),
    bug(
        "no-credits/counted",
        "mesh/runtime/edge_receiver.py",
        "self._window.received(message.payload_bytes)",
        "self._window.held_bytes += message.payload_bytes",
        VIOLATION_TESTS,
    ),
    bug(
        "no-credits/waited-for",
        "mesh/runtime/edge_sender.py",
        "if connection.window.may_send(size_bytes):",
        "if True:",
        ("tests/runtime/test_stage.py",),
    ),
)


def copy_clone(folder: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)


def plant(planted: Bug, folder: Path) -> dict[Path, str]:
    """Apply the bug; what the files were before."""
    before: dict[Path, str] = {}
    for edit in planted.edits:
        path = folder / edit.file
        text = path.read_text()
        if text.count(edit.text) != 1:
            sys.exit(f"error: {planted.name}: {edit.file} has {text.count(edit.text)} times, not once: {edit.text!r}")
        before.setdefault(path, text)
        path.write_text(text.replace(edit.text, edit.instead))
    return before


def run_tests(folder: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    """Whether all passed, and the first that did not."""
    # Without caches of byte code: a file that is changed twice within a second may look the same to them.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)}
    command = (sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider")
    options = ("--timeout", str(TEST_LIMIT_S), "--hypothesis-seed=0", *tests)
    try:
        ended = subprocess.run(
            [*command, *options], cwd=folder, env=environment, capture_output=True, text=True, timeout=RUN_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return False, f"nothing: the tests hang for {RUN_LIMIT_S} s"
    if ended.returncode == 0:
        return True, ""
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", ended.stdout, re.MULTILINE)
    if ended.returncode != 1 or found is None:
        sys.exit(f"error: the tests did not run (exit code {ended.returncode}):\n{ended.stdout}{ended.stderr}")
    return False, found[1]


def main() -> int:
    parser = argparse.ArgumentParser(description="Plants bugs in a copy of this clone; the tests must notice each.")
    parser.add_argument("bugs", nargs="*", metavar="BUG", help="a kind or a name from --list; default: all")
    parser.add_argument("--list", action="store_true", help="name the bugs and end")
    options = parser.parse_args()
    if options.list:
        print("\n".join(each.name for each in BUGS))
        return 0
    chosen = [each for each in BUGS if not options.bugs or {each.name, each.name.split("/")[0]} & set(options.bugs)]
    if not chosen:
        parser.error(f"no such bug: {' '.join(options.bugs)}")
    survived = []
    with tempfile.TemporaryDirectory(prefix="mesh-mutations-") as name:
        folder = Path(name)
        copy_clone(folder)
        tests = tuple(dict.fromkeys(test for each in chosen for test in each.tests))
        is_green, red = run_tests(folder, tests)
        if not is_green:
            print(f"FAILED  the unchanged clone is not green: {red}")
            return 1
        print(f"ok      the unchanged clone passes {' '.join(tests)}", flush=True)
        for each in chosen:
            began = time.monotonic()
            before = plant(each, folder)
            is_green, red = run_tests(folder, each.tests)
            for path, text in before.items():
                path.write_text(text)
            if is_green or not red.startswith("tests/"):
                survived.append(each.name)
            told = "no test notices" if is_green else f"noticed by {red}"
            print(f"{'FAILED' if each.name in survived else 'ok    '}  {each.name:26} {told}", end="", flush=True)
            print(f" ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"{len(chosen) - len(survived)} bugs noticed, {len(survived)} survived")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
