"""The layers of the product: who may import whom, where each library lives, who owns tasks and clocks.

ARCHITECTURE.md shows the same floors. Each rule is a function from a module to its violations, and each
is tested on a module that breaks it, so that a rule which no longer sees anything fails here.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import pytest

from tests.architecture.source_tree import GENERATED, Import, Module, all_modules, parse_module

# From the ground up. A module may import its own package and every package on a lower floor.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("mesh.errors",),
    ("mesh.core",),
    ("mesh.arrays",),  # Tensor to NumPy and back, for everything above that may use NumPy
    ("mesh.packing",),  # Zstandard
    ("mesh.codecs",),  # tensors smaller for the wire, and back
    ("mesh.planning", "mesh.control", "mesh.doctor", "mesh.model"),
    ("mesh.simulate", "mesh.optimize"),
    ("mesh.wire", "mesh.discovery", "mesh.engines", "mesh.hardware", "mesh.storage"),
    ("mesh.runtime",),
    ("mesh.gateways", "mesh.client", "mesh.lab"),
    ("mesh.pipelines",),
    ("nodes",),
)
FLOOR_OF = {package: number for number, packages in enumerate(FLOORS) for package in packages}

# The generated messages are an encoding: whoever is not at the edge uses the types of mesh.core.
MAY_IMPORT_GENERATED = ("mesh.wire", "mesh.gateways")

# Which part of the product may import which library. "lazily" marks places that are on the sensor client's
# import path, or that must give a good error without the extra: there only inside functions.
ANYWHERE = "anywhere"
LAZILY = "lazily"
QUARANTINE: dict[str, dict[str, str]] = {
    "aiomqtt": {
        "mesh.gateways": ANYWHERE,
        "mesh.discovery.mqtt": LAZILY,
        "mesh.client.sources": LAZILY,
        "mesh.client.sinks": LAZILY,
    },
    "amqtt": {"mesh.gateways.embedded_broker": ANYWHERE},
    "cryptography": {"mesh.storage.identity": ANYWHERE},
    "google": {
        "mesh.wire": ANYWHERE,
        "mesh.gateways": ANYWHERE,
        "mesh.model.read": ANYWHERE,  # a model file that is no ONNX fails with protobuf's DecodeError
    },
    "grpc": {"mesh.wire": ANYWHERE, "mesh.gateways": ANYWHERE},
    "grpc_health": {"mesh.gateways": ANYWHERE},
    "grpc_reflection": {"mesh.gateways": ANYWHERE},
    "ifaddr": {"mesh.discovery.interfaces": ANYWHERE},
    "ml_dtypes": {"mesh.arrays": LAZILY, "mesh.model": LAZILY},  # bfloat16 and the 8-bit floats
    "numpy": {
        "mesh.arrays": ANYWHERE,
        "mesh.codecs": ANYWHERE,
        "mesh.planning": ANYWHERE,
        "mesh.model": ANYWHERE,
        "mesh.simulate": ANYWHERE,
        "mesh.optimize": ANYWHERE,
        "mesh.engines": ANYWHERE,
        "mesh.hardware": LAZILY,  # in the child process that measures
        "mesh.lab": ANYWHERE,
        "mesh.gateways": ANYWHERE,
        "mesh.pipelines": ANYWHERE,
        "mesh.client": LAZILY,
        "nodes": LAZILY,
    },
    "onnx": {"mesh.model": ANYWHERE, "mesh.optimize": ANYWHERE},
    "onnxruntime": {
        "mesh.engines": ANYWHERE,
        "mesh.optimize": ANYWHERE,
        "mesh.hardware": LAZILY,  # in a child process: on some boards the import alone kills the process
    },
    "openvino": {"mesh.engines.openvino": LAZILY},  # importing it takes a second, and it may not be installed
    "paho": {"mesh.gateways.mqtt_connection": ANYWHERE},  # properties of MQTT 5, which aiomqtt takes as they are
    "PIL": {"mesh.client": LAZILY, "mesh.optimize.plot": LAZILY},
    "platformdirs": {"mesh.storage": LAZILY, "nodes": LAZILY},
    "rich": {"nodes.demo": ANYWHERE, "nodes": LAZILY},  # the demo has all extras; the command line imports it on use
    "prometheus_client": {"mesh.gateways": ANYWHERE},
    "starlette": {"mesh.gateways": ANYWHERE},
    "typer": {"nodes": ANYWHERE},
    "uvicorn": {"mesh.gateways": ANYWHERE},
    "zstandard": {"mesh.packing": LAZILY},
    "zeroconf": {"mesh.discovery.mdns": ANYWHERE},
}

# Pure code gets `now` and random numbers from its caller and does no input or output.
PURE = ("mesh.errors", "mesh.core", "mesh.planning", "mesh.control", "mesh.doctor")
CLOCKS_AND_CHANCE = frozenset({"datetime", "random", "secrets", "time", "uuid"})
CONCURRENCY = frozenset({"asyncio", "concurrent", "multiprocessing", "queue", "signal", "subprocess", "threading"})
NETWORK = frozenset({"http", "select", "selectors", "socket", "ssl", "urllib"})
FILES = frozenset({"io", "logging", "os", "pathlib", "shutil", "sys", "tempfile"})
IMPURE_LIBRARIES = CLOCKS_AND_CHANCE | CONCURRENCY | NETWORK | FILES
# mesh.model reads model files; everything else that is impure is refused there too.
NOT_IN_MODEL = IMPURE_LIBRARIES - FILES

STARTS_TASKS = frozenset({"TaskGroup", "create_task", "ensure_future", "run_in_executor", "to_thread"})
STARTS_THREADS = frozenset({"Thread", "Timer", "ThreadPoolExecutor", "ProcessPoolExecutor", "Process"})
# Modules outside mesh.runtime that start tasks or threads after all. Each says why it cannot be otherwise.
OWNS_TASKS: dict[str, str] = {
    "mesh.client.blocking": "the blocking twin keeps the event loop of its mesh in a thread that close() joins",
    "mesh.discovery.combined": "one follower per member, in a TaskGroup that lives as long as the entered context",
    "mesh.engines.child": "its main thread computes; another one hears `terminate`, and ends with the process",
    "mesh.discovery.mqtt": "one connection, held in a TaskGroup that lives as long as the entered context",
    "mesh.discovery.mdns": "resolving takes round trips; the TaskGroup lives as long as the entered context",
}


def find_package(name: str) -> str | None:
    return next((package for package in FLOOR_OF if name == package or name.startswith(package + ".")), None)


def find_wrong_floors(module: Module) -> Iterator[str]:
    package = find_package(module.name)
    if package is None:
        if module.name == "mesh":
            return  # the front door; what it may import is the affair of test_light_client.py
        yield f"{module.place(1)}: {module.name} stands on no floor; give its package a place in FLOORS"
        return
    for each in module.imports:
        target = find_package(each.target)
        if each.target == "mesh":
            continue  # for mesh.__version__; importing any module below imports the front door anyway
        if each.top in ("mesh", "nodes") and not _is_generated(each.target) and target is None:
            yield f"{module.place(each.line)}: imports {each.target}, which stands on no floor"
        elif target is not None and target != package and FLOOR_OF[target] >= FLOOR_OF[package]:
            yield f"{module.place(each.line)}: {package} must not import {target} (its floor is not below)"


def _is_generated(target: str) -> bool:
    return target == GENERATED or target.startswith(GENERATED + ".")


def find_generated_imports(module: Module) -> Iterator[str]:
    for each in module.imports:
        if _is_generated(each.target) and not module.is_in(*MAY_IMPORT_GENERATED):
            yield f"{module.place(each.line)}: only {' and '.join(MAY_IMPORT_GENERATED)} may import {GENERATED}"


def find_escaped_libraries(module: Module) -> Iterator[str]:
    for each in module.third_party_imports:
        if each.top not in QUARANTINE:
            yield f"{module.place(each.line)}: {each.top} has no place in QUARANTINE"
            continue
        problem = _judge_place(module, each, QUARANTINE[each.top])
        if problem:
            yield f"{module.place(each.line)}: {problem}"


def _judge_place(module: Module, each: Import, places: dict[str, str]) -> str:
    allowed = [how for package, how in places.items() if module.is_in(package)]
    if not allowed:
        return f"{each.top} may be imported in {', '.join(places)} only"
    if ANYWHERE not in allowed and not each.lazy:
        return f"{each.top} may be imported only inside a function here"
    return ""


def find_impurity(module: Module) -> Iterator[str]:
    refused = IMPURE_LIBRARIES if module.is_in(*PURE) else NOT_IN_MODEL if module.is_in("mesh.model") else frozenset()
    for each in module.imports:
        if each.top in refused:
            yield f"{module.place(each.line)}: pure code must not import {each.top}; let the caller hand it in"
    if not refused:
        return
    seeded = _seeded_generators(module.tree)
    for node in ast.walk(module.tree):
        if _draws_unseeded(node, seeded):
            yield f"{module.place(node.lineno)}: {ast.unparse(node)} in pure code; pass a seed or a Generator"
        elif (
            isinstance(node, ast.Call) and ast.unparse(node.func) in ("open", "input", "print") and module.is_in(*PURE)
        ):
            yield f"{module.place(node.lineno)}: {ast.unparse(node.func)}() in pure code"


def _seeded_generators(tree: ast.Module) -> set[ast.expr]:
    """Each `np.random.default_rng` that is called with a seed: the same numbers every time, so as pure as a table."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {call.func for call in calls if call.args and ast.unparse(call.func).endswith("random.default_rng")}


def _draws_unseeded(node: ast.AST, seeded: set[ast.expr]) -> TypeGuard[ast.Attribute]:
    of_random = isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("np.random", "numpy.random")
    return of_random and isinstance(node, ast.Attribute) and node.attr != "Generator" and node not in seeded


def find_loose_tasks(module: Module) -> Iterator[str]:
    package = find_package(module.name)
    above_runtime = package is not None and FLOOR_OF[package] > FLOOR_OF["mesh.runtime"]
    awaited = {id(each.value.func) for each in ast.walk(module.tree) if _awaits_call(each)}
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Attribute | ast.Name):
            continue
        name = node.attr if isinstance(node, ast.Attribute) else node.id
        owner = ast.unparse(node.value) if isinstance(node, ast.Attribute) else ""
        # A bare task (of asyncio or of the loop) belongs to nobody: nothing waits for it, nothing sees it fail.
        if name == "ensure_future" or (name == "create_task" and owner in ("", "asyncio", "loop", "self._loop")):
            yield f"{module.place(node.lineno)}: bare {name}; start it in a TaskGroup of mesh.runtime"
        elif name not in STARTS_TASKS | STARTS_THREADS or owner == "asyncio.subprocess":
            continue
        elif name == "to_thread" and above_runtime and id(node) in awaited:
            continue  # what blocks (a file, a terminal) waits elsewhere, and whoever asked waits for it
        elif not module.is_in("mesh.runtime") and module.name not in OWNS_TASKS:
            yield f"{module.place(node.lineno)}: {name} outside mesh.runtime"


def _awaits_call(node: ast.AST) -> TypeGuard[Any]:
    return isinstance(node, ast.Await) and isinstance(node.value, ast.Call)


def find_dynamic_imports(module: Module) -> Iterator[str]:
    if module.name == "mesh":
        return  # its public names are resolved on first use; test_light_client.py resolves each of them
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "__import__",
            "importlib.import_module",
            "import_module",
        ):
            yield f"{module.place(node.lineno)}: an import by string hides from these tests; import inside the function"


Rule = Callable[[Module], Iterator[str]]
RULES: tuple[Rule, ...] = (
    find_wrong_floors,
    find_generated_imports,
    find_escaped_libraries,
    find_impurity,
    find_loose_tasks,
    find_dynamic_imports,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_module_keeps_the_rule(rule: Rule) -> None:
    violations = [violation for module in all_modules() for violation in rule(module)]
    assert not violations, "\n" + "\n".join(violations)


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (find_wrong_floors, "mesh.core.frame", "from mesh.planning import search"),
        (find_wrong_floors, "mesh.errors", "import mesh.core.ids"),
        (find_wrong_floors, "mesh.wire.edges", "def late():\n    from mesh.discovery.contract import Discovery"),
        (find_wrong_floors, "mesh.planning.exact", "if TYPE_CHECKING:\n    from mesh.model.read import Model"),
        (find_wrong_floors, "mesh.utils", ""),
        (find_wrong_floors, "mesh.runtime.node", "import nodes.cli"),
        (find_generated_imports, "mesh.runtime.node", "from mesh.v1 import stream_pb2"),
        (find_generated_imports, "mesh.core.frame", "from mesh.v1.stream_pb2 import Frame"),
        (find_escaped_libraries, "mesh.runtime.node", "import grpc.aio"),
        (find_escaped_libraries, "mesh.discovery.seeds", "from zeroconf import Zeroconf"),
        (find_escaped_libraries, "mesh.client.sources.images", "import numpy"),
        (find_escaped_libraries, "nodes.cli", "import rich.table"),
        (find_escaped_libraries, "mesh.wire.edges", "import leftpad"),
        (find_impurity, "mesh.planning.exact", "import time"),
        (find_impurity, "mesh.control.node", "def now():\n    from datetime import datetime"),
        (find_impurity, "mesh.model.read", "import random"),
        (find_impurity, "mesh.planning.beam", "import numpy as np\nnp.random.default_rng()"),
        (find_impurity, "mesh.model.compare", "import numpy as np\nnp.random.seed(1)"),
        (find_impurity, "mesh.core.plan", "open('plan.json')"),
        (find_loose_tasks, "mesh.wire.edges", "import asyncio\nasyncio.create_task(work())"),
        (find_loose_tasks, "mesh.wire.edges", "from asyncio import TaskGroup\nTaskGroup()"),
        (find_loose_tasks, "mesh.runtime.node", "import asyncio\nasyncio.create_task(work())"),
        (find_loose_tasks, "mesh.runtime.node", "loop.create_task(work())"),
        (find_loose_tasks, "mesh.hardware.probe", "import threading\nthreading.Thread(target=work)"),
        (find_loose_tasks, "nodes.sensor", "import asyncio\nwaiting = asyncio.to_thread(work)"),
        (find_loose_tasks, "mesh.wire.edges", "import asyncio\nasync def f(): await asyncio.to_thread(work)"),
        (find_dynamic_imports, "mesh.engines.table", "import importlib\nimportlib.import_module('mesh.nodes')"),
    ],
)
def test_the_rule_sees_a_violation(rule: Rule, name: str, text: str) -> None:
    assert list(rule(parse_module(name, text)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "mesh.runtime.node",
            "import asyncio\nfrom mesh.wire.edges import Edge\nasync def run(group):\n    group.create_task(f())",
        ),
        ("nodes.sensor", "import asyncio\nasync def f(p: asyncio.subprocess.Process): await asyncio.to_thread(work)"),
        ("mesh.client.sources.images", "def read():\n    import numpy\n    from PIL import Image"),
        ("mesh.planning.exact", "import numpy as np\nfrom mesh.core.graph import Graph\nfrom mesh import errors"),
        (
            "mesh.model.compare",
            "import numpy as np\ndef f(seed, r: np.random.Generator):\n    np.random.default_rng(seed)",
        ),
        ("mesh.wire.calls", "import grpc\nfrom mesh.v1 import node_pb2"),
    ],
)
def test_the_rules_let_good_code_be(name: str, text: str) -> None:
    module = parse_module(name, text)
    assert [violation for rule in RULES for violation in rule(module)] == []


def test_exceptions_are_still_needed() -> None:
    names = {module.name for module in all_modules()}
    stale = [name for name in OWNS_TASKS if name not in names]
    assert not stale, f"OWNS_TASKS lists modules that are gone: {stale}"
