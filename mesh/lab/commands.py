"""Runs the system's network tools: `ip`, `tc` and `nsenter`. The one place of the lab that starts them.

Each is one short child in a process group of its own, so that Ctrl-C reaches the lab, which then decides,
and not a tool in the middle of its work.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mesh.errors import LabError
from mesh.lab.topology import Batch

TOOLS = ("ip", "tc", "nsenter", "sh")
NAMESPACE_FOLDER = Path("/run/netns")
"""Where `ip netns` keeps names of namespaces."""

TOOL_TIMEOUT_S = 30.0
"""Each takes milliseconds; a kernel that makes them wait this long is not going to answer."""

SHOWN_CHARACTERS = 400


def find_missing_tools() -> list[str]:
    return [tool for tool in TOOLS if shutil.which(tool, path=_search_path()) is None]


def run(batch: Batch) -> None:
    """Run a batch; raises `LabError` with the line that failed and what the tool said."""
    text = "".join(f"{line}\n" for line in batch.lines)
    program = [_find(batch.tool), *(["-n", batch.namespace] if batch.namespace else []), "-batch", "-"]
    done = _call(program, text)
    if done.returncode:
        raise LabError(f"{batch.tool} in {batch.namespace} failed: {_shorten(done.stderr)}")


def add_namespaces(names: Sequence[str]) -> None:
    run(Batch("ip", "", tuple(f"netns add {name}" for name in names)))


def delete_namespace(name: str) -> None:
    """Take the name away; the namespace goes with the last process in it. Fine if there is none of the name."""
    if not (NAMESPACE_FOLDER / name).exists():
        return
    done = _call([_find("ip"), "netns", "delete", name])
    if done.returncode and (NAMESPACE_FOLDER / name).exists():
        raise LabError(f"the network namespace {name} cannot be removed: {_shorten(done.stderr)}")


def list_namespaces(prefix: str) -> list[str]:
    if not NAMESPACE_FOLDER.is_dir():
        return []
    return sorted(path.name for path in NAMESPACE_FOLDER.iterdir() if path.name.startswith(prefix))


def find_processes(namespace: str) -> list[int]:
    """Every process whose network is this namespace, however it got there."""
    done = _call([_find("ip"), "netns", "pids", namespace])
    return [int(word) for word in done.stdout.split() if word.isdecimal()] if done.returncode == 0 else []


def why_no_namespaces() -> str:
    """Why the kernel makes no network namespaces for us; empty where it does. Leaves nothing behind."""
    unshare = shutil.which("unshare", path=_search_path())
    if unshare is None:
        return "the program unshare is missing"
    done = _call([unshare, "--net", "true"])
    return _shorten(done.stderr) or "unshare --net failed" if done.returncode else ""


def enter_namespace(namespace: str, command: Sequence[str]) -> list[str]:
    """`command` as a program line that runs it in the namespace, replacing itself (same process id)."""
    return [_find("nsenter"), f"--net={NAMESPACE_FOLDER / namespace}", "--", *command]


def _find(tool: str) -> str:
    found = shutil.which(tool, path=_search_path())
    if found is None:
        raise LabError(f"the program {tool} is missing", hint="Debian, Ubuntu: apt install iproute2 util-linux")
    return found


def _search_path() -> str:
    # Root's tools are not on everyone's path, even where root runs the command.
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _call(program: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603 - program lines of our own making
            program,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TOOL_TIMEOUT_S,
            process_group=0,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{program[0]} did not answer within {TOOL_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise LabError(f"{program[0]} cannot be run: {error}") from None


def _shorten(text: str) -> str:
    return " / ".join(line.strip() for line in text.splitlines() if line.strip())[:SHOWN_CHARACTERS]
