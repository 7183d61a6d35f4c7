"""An engine without a runtime: computes little, but on demand slowly, wrongly or not at all.

For tests of everything around an engine, on any device. Its "models" are small JSON texts, made from
a `FakeModel`, so that they can lie in files, content stores and other processes as real ones do.
Everything is deterministic; a delay is waited for, not computed, and ends early on `terminate`.
"""

from __future__ import annotations

import enum
import json
import os
import threading
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mesh.core.tensor import DType, Tensor, TensorSpec
from mesh.engines.contract import LoadOptions
from mesh.errors import LoadFailed, RunFailed, TensorMismatch

MAX_MODEL_BYTES = 1 << 20
"""A fake model is a few lines."""

_ARRAY_CODES = {
    DType.FLOAT32: "f",
    DType.FLOAT64: "d",
    DType.INT8: "b",
    DType.UINT8: "B",
    DType.INT16: "h",
    DType.UINT16: "H",
    DType.INT32: "i",
    DType.UINT32: "I",
    DType.INT64: "q",
    DType.UINT64: "Q",
}


class Operation(enum.Enum):
    IDENTITY = "identity"
    """Output i is input i."""
    ADD = "add"
    """Output i is input i plus `addend`, element by element."""
    SUM = "sum"
    """The one output is the sum of all inputs, element by element; all have one shape."""


@dataclass(frozen=True, slots=True)
class FakeModel:
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operation: Operation = Operation.IDENTITY
    addend: float = 1
    delay_seconds: float = 0
    """Waited for in each run."""
    hangs: bool = False
    """Each run waits until it is terminated."""
    load_failure: str = ""
    """If given, loading fails with this reason."""
    failing_runs: tuple[int, ...] = field(default=())
    """Which runs of a session fail, counted from 0."""
    crashes_at: float | None = None
    """The first element of an input that kills the process; for sessions in child processes only."""

    def to_bytes(self) -> bytes:
        fields = asdict(self) | {
            "operation": self.operation.value,
            "inputs": [_spec_to_json(spec) for spec in self.inputs],
            "outputs": [_spec_to_json(spec) for spec in self.outputs],
        }
        return json.dumps({"fake": fields}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> FakeModel:
        """Raises `LoadFailed` for anything but what `to_bytes` makes."""
        try:
            if len(data) > MAX_MODEL_BYTES:
                raise ValueError(f"{len(data)} bytes, the limit is {MAX_MODEL_BYTES}")
            fields = dict(json.loads(data)["fake"])
            fields["operation"] = Operation(fields["operation"])
            fields["inputs"] = tuple(map(_spec_from_json, fields["inputs"]))
            fields["outputs"] = tuple(map(_spec_from_json, fields["outputs"]))
            fields["failing_runs"] = tuple(fields["failing_runs"])
            return cls(**fields)
        except (ValueError, TypeError, LookupError, RecursionError, TensorMismatch) as error:
            raise LoadFailed(f"not a model of the fake engine: {error}") from error


class FakeEngine:
    """Implements `mesh.engines.contract.Engine`; `sessions` are those it has loaded, oldest first."""

    name = "fake"
    is_remote = False

    def __init__(self) -> None:
        self.sessions: list[FakeSession] = []

    def load(self, model: bytes | Path, options: LoadOptions) -> FakeSession:
        try:
            data = model.read_bytes() if isinstance(model, Path) else model
        except OSError as error:
            raise LoadFailed(f"the model cannot be read: {error.strerror}") from error
        script = FakeModel.from_bytes(data)
        if script.load_failure:
            raise LoadFailed(script.load_failure)
        _check_operation(script)
        session = FakeSession(script, options)
        self.sessions.append(session)
        return session


class FakeSession:
    """Implements `mesh.engines.contract.Session`. `started` and `runs` let a test follow it without sleeping."""

    def __init__(self, model: FakeModel, options: LoadOptions) -> None:
        self.fallback = ""
        self.model = model
        self.options = options
        self.runs = 0
        """Runs begun."""
        self.started = threading.Event()
        """Set when a run begins; a test may clear it."""
        self._lock = threading.Lock()
        self._running: threading.Event | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.model.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.model.outputs

    def run(self, feeds: Sequence[Tensor]) -> list[Tensor]:
        if len(feeds) != len(self.inputs):
            raise TensorMismatch(f"the model has {len(self.inputs)} inputs, {len(feeds)} tensors were given")
        for tensor, spec in zip(feeds, self.inputs, strict=True):
            spec.check(tensor.dtype, tensor.shape)
            tensor.check_bytes(spec.name)
        number, self.runs = self.runs, self.runs + 1
        self._wait()
        if self.model.crashes_at is not None and self.model.crashes_at in _elements(feeds[0])[:1]:
            os.abort()
        if number in self.model.failing_runs:
            raise RunFailed(f"run {number} fails, as the model says")
        return _compute(self.model, feeds)

    def terminate(self) -> None:
        with self._lock:
            if self._running is not None:
                self._running.set()

    def close(self) -> None:
        self.terminate()

    def _wait(self) -> None:
        terminated = threading.Event()
        with self._lock:
            self._running = terminated
        self.started.set()
        try:
            if self.model.hangs:
                terminated.wait()
            elif self.model.delay_seconds:
                terminated.wait(self.model.delay_seconds)
        finally:
            with self._lock:
                self._running = None
        if terminated.is_set():
            raise RunFailed("the run was terminated")


def _check_operation(model: FakeModel) -> None:
    expected = 1 if model.operation is Operation.SUM else len(model.inputs)
    if len(model.outputs) != expected:
        raise LoadFailed(f"{model.operation.value} has {expected} outputs here, the model names {len(model.outputs)}")
    unsupported = [spec for spec in model.inputs if spec.dtype not in _ARRAY_CODES]
    if unsupported and model.operation is not Operation.IDENTITY:
        raise LoadFailed(f"the fake engine cannot compute with {unsupported[0]}")


def _compute(model: FakeModel, feeds: Sequence[Tensor]) -> list[Tensor]:
    match model.operation:
        case Operation.IDENTITY:
            return list(feeds)
        case Operation.ADD:
            return [_add(tensor, model.addend) for tensor in feeds]
        case Operation.SUM:
            return [_sum(feeds)]


def _add(tensor: Tensor, addend: float) -> Tensor:
    elements = _elements(tensor)
    typed = addend if isinstance(elements[0] if elements else 0.0, float) else int(addend)
    return _to_tensor(tensor, [element + typed for element in elements])


def _sum(feeds: Sequence[Tensor]) -> Tensor:
    first = feeds[0]
    if any((tensor.dtype, tensor.shape) != (first.dtype, first.shape) for tensor in feeds):
        raise RunFailed("the tensors to add differ in type or shape")
    return _to_tensor(first, [sum(values) for values in zip(*map(_elements, feeds), strict=True)])


def _elements(tensor: Tensor) -> list[Any]:
    # Tensors are little-endian, as are all machines that this is for.
    values = array(_ARRAY_CODES[tensor.dtype])
    values.frombytes(tensor.data)
    return values.tolist()


def _to_tensor(like: Tensor, elements: Sequence[Any]) -> Tensor:
    try:
        values = array(_ARRAY_CODES[like.dtype], elements)
    except OverflowError as error:
        raise RunFailed(f"the result does not fit {like.dtype.label}: {error}") from error
    return Tensor.from_bytes(like.dtype, like.shape, values.tobytes())


def _spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype.label, "shape": None if spec.shape is None else list(spec.shape)}


def _spec_from_json(fields: dict[str, Any]) -> TensorSpec:
    shape = fields["shape"]
    return TensorSpec(fields["name"], DType.from_label(fields["dtype"]), None if shape is None else tuple(shape))
