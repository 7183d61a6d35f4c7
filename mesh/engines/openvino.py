"""The engine on OpenVINO's processor plug-in: the optional extra `infermesh[openvino]`.

It takes the ONNX model that every engine takes. What it would compute otherwise than the model says, it refuses
(`LoadFailed`), and `mesh.engines.fallback` then gives the model to ONNX Runtime:

    integers of 64 bits, unsigned ones of 32    as inputs or outputs: it computes with 32 bits, silently
    doubles, also inside                        it computes with float32, silently
    strings and other types that it rewrites    as inputs or outputs
    loops and branches                          it looks for `terminate` between operators of the outer graph only
    what it cannot read or compile              its reason is passed on

By default the plug-in computes float32 in bfloat16 on processors that can, quantises activations of its own accord,
and binds its threads to cores: all three are switched off, the first two because answers must be those of the model,
the last because every engine of a node would be bound to the same cores.

`openvino` is imported when the first model is loaded, without the reporter that its package would start on import.
A session belongs to one thread at a time; only `terminate` may come from another. Feeds are copied once (the runtime
takes no memory that may not be written to), answers once, because the runtime writes the next ones over them.
Sources: https://docs.openvino.ai/2026/openvino-workflow/running-inference/inference-devices-and-modes/cpu-device.html.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mesh.arrays import from_array, to_array
from mesh.core.tensor import DType, Tensor, TensorSpec
from mesh.engines.contract import LoadOptions
from mesh.engines.onnx_ends import read_ends
from mesh.errors import LoadFailed, MissingExtra, RunFailed, TensorMismatch

MAX_REASON_CHARACTERS = 300
"""A compile error quotes the sources of the runtime; what matters comes first."""

_REPORTER = "openvino_telemetry"
"""Importing `openvino` sends an event over the network where this package can be imported. What runs stays here."""

_KEPT_TYPES = {
    DType.FLOAT32: "f32",
    DType.FLOAT16: "f16",
    DType.INT8: "i8",
    DType.UINT8: "u8",
    DType.INT32: "i32",
    DType.BOOL: "boolean",
}
"""Element types that pass through the plug-in unchanged, and what it calls them."""

_BRANCHES = frozenset({"If", "Loop", "TensorIterator"})


class OpenVinoEngine:
    """Implements `mesh.engines.contract.Engine`. Execution providers in the options are ONNX Runtime's affair."""

    name = "openvino"
    is_remote = False

    def load(self, model: bytes | Path, options: LoadOptions) -> OpenVinoSession:
        """Raises `LoadFailed` with the reason, `MissingExtra` where OpenVINO is not installed."""
        runtime = import_runtime()
        try:
            inputs, outputs = read_ends(model.read_bytes() if isinstance(model, Path) else model)
        except OSError as error:
            raise LoadFailed(f"the model cannot be read: {error.strerror}") from error
        _check_types((*inputs, *outputs))
        try:
            core = runtime.Core()
            graph = core.read_model(str(model) if isinstance(model, Path) else model)
            _check_graph(graph, inputs, outputs)
            compiled = core.compile_model(graph, "CPU", _settings(options))
            return OpenVinoSession(runtime, compiled, inputs, outputs)
        except LoadFailed:
            raise
        except Exception as error:  # the runtime's own classes share no base but this
            raise LoadFailed(f"OpenVINO cannot load the model: {_reason(error)}") from error


def import_runtime() -> Any:
    if "openvino" not in sys.modules:
        sys.modules.setdefault(_REPORTER, None)  # type: ignore[arg-type] # documented: its import then fails
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"OpenVINO is not installed ({error.name} is missing), and this device is to run models with it",
            hint="install the extra infermesh[openvino]: pip install '.[openvino]' in a clone",
        ) from error
    except ImportError as error:
        raise LoadFailed(f"OpenVINO is installed, but cannot be imported: {_reason(error)}") from error
    return openvino


def _settings(options: LoadOptions) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    if options.threads:
        settings["INFERENCE_NUM_THREADS"] = options.threads
    return settings


def _check_types(specs: Sequence[TensorSpec]) -> None:
    for spec in specs:
        if spec.dtype not in _KEPT_TYPES:
            raise LoadFailed(f"OpenVINO would change {spec.dtype.label} of {spec.name!r}")


def _check_graph(graph: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """That the ends are the model's, in its order and with its types, and that nothing inside is narrowed."""
    for role, specs, ports in (("inputs", inputs, graph.inputs), ("outputs", outputs, graph.outputs)):
        if len(specs) != len(ports):
            raise LoadFailed(f"OpenVINO makes {len(ports)} {role} of the model's {len(specs)}")
        for spec, port in zip(specs, ports, strict=True):
            made = port.get_element_type().get_type_name()
            if spec.name not in port.get_names() or made != _KEPT_TYPES[spec.dtype]:
                raise LoadFailed(f"OpenVINO makes {sorted(port.get_names())} {made} of {spec}")
    for operator in graph.get_ops():
        if operator.get_type_name() in _BRANCHES:
            raise LoadFailed(f"OpenVINO does not end a {operator.get_type_name()} when it is asked to")
        if any(port.get_element_type().get_type_name() == "f64" for port in operator.outputs()):
            raise LoadFailed(f"OpenVINO would compute {operator.get_type_name()} in float32 instead of float64")


class OpenVinoSession:
    """Implements `mesh.engines.contract.Session`."""

    def __init__(
        self, runtime: Any, compiled: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        self.fallback = ""
        self._runtime = runtime
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._inputs = inputs
        self._outputs = outputs
        self._lock = threading.Lock()
        self._is_running = False

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._outputs

    def run(self, feeds: Sequence[Tensor]) -> list[Tensor]:
        """Raises `TensorMismatch` for feeds that do not fit `inputs`, `RunFailed` when the runtime refuses."""
        if len(feeds) != len(self._inputs):
            raise TensorMismatch(f"the model has {len(self._inputs)} inputs, {len(feeds)} tensors were given")
        for tensor, spec in zip(feeds, self._inputs, strict=True):
            spec.check(tensor.dtype, tensor.shape)
        arrays = [to_array(tensor, spec.name) for tensor, spec in zip(feeds, self._inputs, strict=True)]
        try:
            for index, array in enumerate(arrays):
                self._request.set_input_tensor(index, self._runtime.Tensor(array, shared_memory=False))
            with self._lock:
                self._request.start_async()
                self._is_running = True
            try:
                self._request.wait()
            finally:
                with self._lock:
                    self._is_running = False
            answers = [np.array(self._request.get_output_tensor(index).data) for index in range(len(self._outputs))]
        except Exception as error:  # the runtime's own classes share no base but this
            raise RunFailed(f"OpenVINO: {_reason(error)}") from error
        made = zip(answers, self._outputs, strict=True)
        return [from_array(array, spec.name, dtype=spec.dtype) for array, spec in made]

    def terminate(self) -> None:
        with self._lock:
            if self._is_running:
                self._request.cancel()

    def close(self) -> None:
        self.terminate()


def _reason(error: Exception) -> str:
    """What the runtime says, in one line and without the places in its own sources."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith("Exception from ")]
    return " ".join(" ".join(told).split())[:MAX_REASON_CHARACTERS] or type(error).__name__
