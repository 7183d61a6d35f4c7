"""The engine on ONNX Runtime.

`onnxruntime` is imported when the first model is loaded, because on some boards the import alone is
what fails. Feeds are used where they are (a tensor's bytes become the memory of an OrtValue) and
answers are views of what the runtime made, which they keep alive; `input_copies` counts the feeds
that had to be copied after all, because they were strings or began at an address that their element
type does not allow.

A session belongs to one thread at a time; only `terminate` may come from another. No custom-op
library is ever loaded. Sources: https://onnxruntime.ai/docs/api/python/api_summary.html,
onnxruntime_session_options_config_keys.h.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mesh.arrays import Array, from_array, to_array
from mesh.core.tensor import DType, Tensor, TensorSpec
from mesh.engines.contract import LoadOptions
from mesh.errors import LoadFailed, MissingExtra, RunFailed, TensorMismatch

_FATAL = 4
"""Log severity: reasons travel in exceptions, so the runtime need not print them as well."""

_ELEMENT_TYPES = {
    "tensor(bfloat16)": DType.BFLOAT16,
    "tensor(bool)": DType.BOOL,
    "tensor(double)": DType.FLOAT64,
    "tensor(float)": DType.FLOAT32,
    "tensor(float16)": DType.FLOAT16,
    "tensor(int16)": DType.INT16,
    "tensor(int32)": DType.INT32,
    "tensor(int64)": DType.INT64,
    "tensor(int8)": DType.INT8,
    "tensor(string)": DType.STRING,
    "tensor(uint16)": DType.UINT16,
    "tensor(uint32)": DType.UINT32,
    "tensor(uint64)": DType.UINT64,
    "tensor(uint8)": DType.UINT8,
}


_PLAIN_TYPES: dict[DType, np.dtype[Any]] = {
    dtype: np.dtype(dtype.label).newbyteorder("<") for dtype in DType if dtype not in (DType.STRING, DType.BFLOAT16)
}


class OnnxRuntimeEngine:
    """Implements `mesh.engines.contract.Engine`."""

    name = "onnxruntime"
    is_remote = False

    def load(self, model: bytes | Path, options: LoadOptions, profile_prefix: str = "") -> OnnxRuntimeSession:
        """Raises `LoadFailed` with the runtime's reason, `MissingExtra` where onnxruntime is not installed.

        With a `profile_prefix`, every run is written down to a file whose path begins so; see `end_profiling`.
        """
        runtime = import_runtime()
        available = runtime.get_available_providers()
        missing = [provider for provider in options.providers if provider not in available]
        if missing or not options.providers:
            raise LoadFailed(
                f"this ONNX Runtime has no execution provider {', '.join(missing) or 'chosen'}",
                hint=f"it has {', '.join(available)}",
            )
        source = str(model) if isinstance(model, Path) else model
        settings = _session_options(runtime, options)
        if profile_prefix:
            settings.enable_profiling = True
            settings.profile_file_prefix = profile_prefix
        try:
            session = runtime.InferenceSession(
                source,
                sess_options=settings,
                providers=list(options.providers),
                enable_fallback=0,  # a provider that fails is a failure, not a reason to compute elsewhere
            )
        except Exception as error:  # the runtime's own classes share no base but this
            raise LoadFailed(f"ONNX Runtime cannot load the model: {_first_line(error)}") from error
        return OnnxRuntimeSession(runtime, session)


def import_runtime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "onnxruntime is not installed, and this device is to run models",
            hint="install the extra infermesh[node]: pip install '.[node]' in a clone",
        ) from error
    except ImportError as error:
        raise LoadFailed(f"onnxruntime is installed, but cannot be imported: {_first_line(error)}") from error
    return onnxruntime


def _session_options(runtime: Any, options: LoadOptions) -> Any:
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    settings.use_deterministic_compute = True
    settings.log_severity_level = _FATAL
    # Waiting threads would spin on cores that the next stage, or the data plane, needs.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return settings


class OnnxRuntimeSession:
    """Implements `mesh.engines.contract.Session`.

    A spec's shape is None for scalars too: the runtime does not tell a scalar from an unknown rank.
    """

    def __init__(self, runtime: Any, session: Any) -> None:
        self.fallback = ""
        self._runtime = runtime
        self._session = session
        self._inputs = tuple(_to_spec(node, "input") for node in session.get_inputs())
        self._outputs = tuple(_to_spec(node, "output") for node in session.get_outputs())
        self._output_names = [spec.name for spec in self._outputs]
        self._has_strings = any(spec.dtype is DType.STRING for spec in self._inputs)
        for spec in self._outputs:
            if self._has_strings and spec.dtype is DType.BFLOAT16:
                raise LoadFailed(
                    f"output {spec.name!r} is bfloat16 in a model with string inputs, which cannot be read"
                )
        self._bare = None if self._has_strings else _find_bare_session(runtime, session)
        self._lock = threading.Lock()
        self._running: Any = None
        self.input_copies = 0
        """Feeds that could not be used in place, since loading."""

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
        arrays = [self._to_array(tensor, spec) for tensor, spec in zip(feeds, self._inputs, strict=True)]
        values = {spec.name: self._to_value(array, spec) for array, spec in zip(arrays, self._inputs, strict=True)}
        options = self._runtime.RunOptions()
        options.log_severity_level = _FATAL
        with self._lock:
            self._running = options
        try:
            answers = self._compute(values, options)
        except Exception as error:  # the runtime's own classes share no base but this
            raise RunFailed(f"ONNX Runtime: {_first_line(error)}") from error
        finally:
            with self._lock:
                self._running = None
        return [_to_tensor(answer, spec) for answer, spec in zip(answers, self._outputs, strict=True)]

    def end_profiling(self) -> Path:
        """The file with what was written down, for a session that was loaded with a `profile_prefix`."""
        return Path(self._session.end_profiling())

    def terminate(self) -> None:
        with self._lock:
            if self._running is not None:
                self._running.terminate = True

    def close(self) -> None:
        self.terminate()

    def _compute(self, values: Mapping[str, Any], options: Any) -> Sequence[Any]:
        if self._has_strings:  # OrtValues cannot be made from strings in Python; only the older call takes both
            answers: Sequence[Any] = self._session.run(self._output_names, values, options)
        elif self._bare is not None:
            vector = self._bare.run_with_ort_values(values, self._output_names, options)
            answers = [vector[index] for index in range(len(vector))]  # to iterate it ends in a costly C++ exception
        else:
            answers = self._session.run_with_ort_values(self._output_names, values, options)
        return answers

    def _to_array(self, tensor: Tensor, spec: TensorSpec) -> Array:
        """What the runtime reads while it computes; whoever calls keeps it for so long."""
        spec.check(tensor.dtype, tensor.shape)
        array = to_array(tensor, spec.name)
        if spec.dtype is DType.STRING:
            self.input_copies += 1
        elif not array.flags.aligned:
            array = array.copy()
            self.input_copies += 1
        return array

    def _to_value(self, array: Array, spec: TensorSpec) -> Any:
        values = self._runtime.OrtValue
        if spec.dtype is DType.STRING:
            return array
        if spec.dtype is DType.BFLOAT16:
            value = values.ortvalue_from_numpy_with_onnx_type(array, spec.dtype.value)
        else:
            value = values.ortvalue_from_numpy(array)
        return value if self._bare is None else value._get_c_value()


def _find_bare_session(runtime: Any, session: Any) -> Any:
    """The session below the public one; None where this version has none.

    The public call iterates the answers, whose end costs ten times as much as a small run (35 against 3 us, measured).
    """
    bare = getattr(session, "_sess", None)
    is_known = hasattr(bare, "run_with_ort_values") and hasattr(runtime.OrtValue, "_get_c_value")
    return bare if is_known else None


def _to_spec(node: Any, role: str) -> TensorSpec:
    """The spec of one `NodeArg`; raises `LoadFailed`, naming it, for what is no tensor that travels."""
    dtype = _ELEMENT_TYPES.get(node.type)
    if dtype is None:
        raise LoadFailed(
            f"{role} {node.name!r} is a {node.type}", hint="inputs and outputs must be tensors of ordinary elements"
        )
    # A symbolic dimension is a name, or None where the model gives none.
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else str(dim or "?") for dim in node.shape)
    return TensorSpec(node.name, dtype, shape or None)


def _to_tensor(answer: Any, spec: TensorSpec) -> Tensor:
    if answer is None or (hasattr(answer, "has_value") and not answer.has_value()):
        raise RunFailed(f"the model gave no value for output {spec.name!r}")
    if spec.dtype is DType.BFLOAT16:
        return from_array(_view_bits(answer, spec), spec.name, dtype=DType.BFLOAT16)
    array = answer if isinstance(answer, np.ndarray) else answer.numpy()
    plain = spec.dtype in _PLAIN_TYPES and array.dtype == _PLAIN_TYPES[spec.dtype]
    if plain and array.size and array.flags.c_contiguous:
        return Tensor(spec.dtype, array.shape, array.reshape(-1).view(np.uint8).data.toreadonly())
    return from_array(array, spec.name, dtype=spec.dtype)


def _view_bits(answer: Any, spec: TensorSpec) -> Array:
    """The memory of a bfloat16 OrtValue as uint16, which keeps the value alive."""
    if answer.device_name().lower() != "cpu":
        raise RunFailed(f"output {spec.name!r} is bfloat16 on {answer.device_name()}, which cannot be read")
    shape = answer.shape()
    if not math.prod(shape):
        return np.empty(shape, np.uint16)
    buffer = (ctypes.c_uint16 * math.prod(shape)).from_address(answer.data_ptr())
    buffer.owner = answer
    return np.ndarray(shape, np.uint16, buffer=buffer)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:1000] if text else type(error).__name__
