"""Each module imports on its own: no order of imports is needed, nothing is printed, nothing is started.

One process that has imported only the libraries (so that they are paid for once) forks a child per module.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.architecture.source_tree import ROOT, all_modules

LIMIT_S = 150
"""Some 250 processes: half a minute alone, and more beside other tests."""

RUNNER = """
import json, os, sys, tempfile, threading, traceback, warnings

for library in (
    *("aiomqtt", "amqtt.broker", "google.protobuf.message", "grpc", "grpc_health.v1.health", "grpc_reflection.v1alpha"),
    *("numpy", "onnx", "onnxruntime", "prometheus_client", "starlette.applications", "typer", "uvicorn", "zeroconf"),
):
    __import__(library)
assert not any(name.split(".")[0] in ("mesh", "nodes") for name in sys.modules)


def judge(name):
    warnings.simplefilter("error")
    threads = set(threading.enumerate())
    try:
        __import__(name)
    except BaseException:
        return traceback.format_exc()
    started = set(threading.enumerate()) - threads
    return f"starts threads: {started}" if started else ""


failures = {}
for name in json.load(sys.stdin):
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            print(judge(name), end="", flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        said = output.read().decode()
        if status or said:
            failures[name] = said or f"died with wait status {status}"
json.dump(failures, sys.stdout)
"""


def import_each_alone(names: list[str]) -> dict[str, str]:
    """Module name -> what went wrong, for those where something did."""
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(names),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    failures: dict[str, str] = json.loads(done.stdout)
    return failures


@pytest.mark.timeout(LIMIT_S + 10)
def test_each_module_imports_alone() -> None:
    # A __main__ module is a command, not a library: importing it runs it.
    names = [module.name for module in all_modules() if not module.name.endswith(".__main__")]
    failures = import_each_alone(names)
    assert not failures, "\n".join(f"--- import {name}\n{said}" for name, said in failures.items())


def test_a_failing_import_is_seen() -> None:
    failures = import_each_alone(["mesh.core.no_such_module", "this", "mesh.errors"])
    assert "ModuleNotFoundError" in failures["mesh.core.no_such_module"]
    assert "Beautiful is better" in failures["this"]  # prints as it is imported
    assert "mesh.errors" not in failures
