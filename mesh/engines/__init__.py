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


def _make_openvino() -> Engine:
    try:
        from mesh.engines.openvino import OpenVinoEngine
    except ModuleNotFoundError as error:
        if error.name != "numpy":
            raise
        raise _without_numpy() from error
    return OpenVinoEngine()


def _make_fake() -> Engine:
    from mesh.engines.fake import FakeEngine

    return FakeEngine()


DEFAULT_ENGINE = "onnxruntime"
OPENVINO = "openvino"

ENGINES: Mapping[str, Callable[[], Engine]] = {
    DEFAULT_ENGINE: _make_onnx_runtime,
    OPENVINO: _make_openvino,
    "fake": _make_fake,
}


def check_engine(name: str) -> None:
    """For those who leave making it to a child process; raises what `make_engine` would, and imports nothing."""
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}", hint=f"one of {', '.join(ENGINES)}")
    if name in (DEFAULT_ENGINE, OPENVINO) and importlib.util.find_spec("numpy") is None:
        raise _without_numpy()
    if name == OPENVINO and not has_openvino():
        raise MissingExtra(
            "OpenVINO is not installed, and this device is to run models with it",
            hint="install the extra infermesh[openvino]: pip install '.[openvino]' in a clone",
        )


def has_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None


def describe_runtime(engine: str, onnx_runtime_version: str) -> str:
    """What a node with this engine announces as its runtime. Costs and admissions are kept by it, so that what was
    measured with one engine is never used for the other: it is told in full also before ONNX Runtime is probed."""
    if engine != OPENVINO:
        return onnx_runtime_version
    import importlib.metadata  # brings a mail parser with it, which children need not load

    return f"OpenVINO {importlib.metadata.version('openvino')}, ONNX Runtime {onnx_runtime_version or 'not probed'}"


def make_engine(name: str = DEFAULT_ENGINE) -> Engine:
    """Raises `UsageError` for an unknown name, `MissingExtra` where a package is missing."""
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}", hint=f"one of {', '.join(ENGINES)}")
    return ENGINES[name]()


def import_runtime(name: str) -> None:
    """What the engine would import as it loads its first model. Raises `LoadFailed`, `MissingExtra`."""
    if name == DEFAULT_ENGINE:
        from mesh.engines.onnx_runtime import import_runtime as import_onnx_runtime

        import_onnx_runtime()
    elif name == OPENVINO:
        from mesh.engines.openvino import import_runtime as import_openvino

        import_openvino()
