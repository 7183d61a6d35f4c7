"""What computes: the engine port (`contract`) and its implementations by name.

Importing this imports no runtime and no NumPy; a factory does, when its engine is made.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping

from mesh.engines.contract import Engine
from mesh.errors import MissingExtra, UsageError

# Some builds of ONNX Runtime report over the network what they load and leave files in the folder for temporary
# ones. What runs on the mesh stays there. The runtime reads this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def _make_onnx_runtime() -> Engine:
    try:
        from mesh.engines.onnx_runtime import OnnxRuntimeEngine
    except ModuleNotFoundError as error:
        if error.name != "numpy":
            raise
        raise _without_numpy() from error
    return OnnxRuntimeEngine()


def _without_numpy() -> MissingExtra:
    return MissingExtra(
        "NumPy is not installed, and this device is to run models",
        hint="install the extra infermesh[node]: pip install '.[node]' in a clone",
    )


def _make_fake() -> Engine:
    from mesh.engines.fake import FakeEngine

    return FakeEngine()


DEFAULT_ENGINE = "onnxruntime"

ENGINES: Mapping[str, Callable[[], Engine]] = {
    "onnxruntime": _make_onnx_runtime,
    "fake": _make_fake,
}


def check_engine(name: str) -> None:
    """For those who leave making it to a child process; raises what `make_engine` would, and imports nothing."""
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}", hint=f"one of {', '.join(ENGINES)}")
    if name == "onnxruntime" and importlib.util.find_spec("numpy") is None:
        raise _without_numpy()


def make_engine(name: str = DEFAULT_ENGINE) -> Engine:
    """Raises `UsageError` for an unknown name, `MissingExtra` where a package is missing."""
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}", hint=f"one of {', '.join(ENGINES)}")
    return ENGINES[name]()
