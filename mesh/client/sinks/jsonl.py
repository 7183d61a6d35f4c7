"""`jsonl:PATH` (or `-` for standard output): one JSON object per answer and line, written out at once.

    {"sequence": 0, "outcome": "ok", "origin": "x.npz[0]", "latency_ms": 4.2,
     "outputs": {"scores": {"dtype": "float32", "shape": [1, 3], "data": [0.1, 0.7, 0.2]}}}

`data` is flat in row-major order. Options: `values=auto|all|none|top`. `auto` (the default) gives the data of tensors
of up to `INLINE_ELEMENTS` elements; `all` of every tensor; `none` of none; `top` gives `{"index", "score"}` of the
highest of class scores (one axis longer than 1, numbers) in its place. JSON has no NaN and no infinity: such elements
are null and counted in `non_finite`. An answer that is missing has its outcome, `error` with code, message and hint,
and no `outputs`. `append=1` adds to an existing file, which is overwritten otherwise.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from typing import Any, TextIO

from mesh.client.sinks.contract import Sink, SinkRecord, SinkRequest, check_record
from mesh.client.sinks.storage import storage_error
from mesh.client.values import Value, unpack_values
from mesh.core.frame import Outcome
from mesh.core.tensor import DType, Tensor, TensorSpec
from mesh.errors import StorageError, UsageError

OPTIONS = ("values", "append")
HELP = "jsonl:PATH or -  [?values=auto|all|none|top&append=1]\n    one JSON object per answer and line"

INLINE_ELEMENTS = 1024
"""Class scores (1000 is usual) are printed, feature maps are not, unless `values=all` says so."""

VALUES = ("auto", "all", "none", "top")

_DIGITS: dict[DType, tuple[struct.Struct, str, str]] = {
    DType.FLOAT32: (struct.Struct("<f"), "%.7g", "%.9g"),
    DType.FLOAT16: (struct.Struct("<e"), "%.4g", "%.5g"),
}
"""How a type is packed, the digits that are enough for tidy numbers, and those that give every value back."""

_BFLOAT16_DIGITS = "%.4g"


class JsonLinesSink:
    """Owns `stream` if `owned`; standard output is only flushed."""

    def __init__(
        self, stream: TextIO, place: str, outputs: tuple[TensorSpec, ...], *, values: str, owned: bool
    ) -> None:
        self._stream = stream
        self._place = place
        self._outputs = outputs
        self._values = values
        self._owned = owned
        self._closed = False

    def write(self, record: SinkRecord) -> None:
        if self._closed:
            raise StorageError(f"{self._place}: is closed already")
        check_record(record, self._outputs)
        line = json.dumps(render_record(record, self._outputs, self._values), allow_nan=False) + "\n"
        try:
            # One call and a flush, so that a reader sees whole lines as soon as they are there.
            self._stream.write(line)
            self._stream.flush()
        except OSError as error:
            raise storage_error(error, self._place) from error

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            if self._owned:
                self._stream.close()
            else:
                self._stream.flush()
        except OSError as error:
            raise storage_error(error, self._place) from error

    def discard(self) -> None:
        """Whole lines stand; there is nothing else."""
        self.close()


def open_jsonl(request: SinkRequest) -> Sink:
    """A sink over a file or standard output; raises `UsageError` or `StorageError`s."""
    url = request.url
    values = url.choice("values", VALUES, "auto")
    append = url.flag("append")
    if url.path == "-":
        if append:
            raise UsageError(f"{url.text!r}: append is for files", hint="leave ?append= away")
        stream = request.stdout if request.stdout is not None else sys.stdout
        return JsonLinesSink(stream, "standard output", request.outputs, values=values, owned=False)
    path = url.file
    try:
        file = path.open("a" if append else "w", encoding="utf-8", newline="\n")
    except OSError as error:
        raise storage_error(error, str(path)) from error
    return JsonLinesSink(file, str(path), request.outputs, values=values, owned=True)


def render_record(record: SinkRecord, outputs: tuple[TensorSpec, ...], values: str = "auto") -> dict[str, Any]:
    """The JSON document of one record."""
    document: dict[str, Any] = {
        "sequence": record.sequence,
        "outcome": record.outcome.name.lower(),
        "origin": record.origin,
        "latency_ms": None if record.latency_s is None else round(record.latency_s * 1e3, 3),
    }
    if record.outcome is Outcome.OK:
        document["outputs"] = {
            spec.name: render_tensor(tensor, values) for spec, tensor in zip(outputs, record.tensors, strict=True)
        }
    if record.error is not None:
        document["error"] = {
            "code": record.error.code,
            "message": record.error.message,
            "hint": record.error.hint,
        }
    return document


def render_tensor(tensor: Tensor, values: str = "auto") -> dict[str, Any]:
    """dtype, shape and, as `values` says, the data or the highest score."""
    document: dict[str, Any] = {"dtype": tensor.dtype.label, "shape": list(tensor.shape)}
    if values == "top" and _is_scores(tensor):
        document["top"] = find_top(tensor)
    elif values == "all" or (values == "auto" and tensor.element_count <= INLINE_ELEMENTS):
        elements = [_printable(value, tensor.dtype) for value in unpack_values(tensor)]
        document["data"] = elements
        missing = sum(element is None for element in elements)
        if missing:
            document["non_finite"] = missing
    return document


def find_top(tensor: Tensor) -> dict[str, Any] | None:
    """Index and value of the highest score, the first of equal ones; None where every element is NaN or infinite."""
    best: tuple[int, Value] | None = None
    for index, value in enumerate(unpack_values(tensor)):
        if isinstance(value, str) or not math.isfinite(value):
            continue
        if best is None or value > best[1]:  # type: ignore[operator]
            best = index, value
    return None if best is None else {"index": best[0], "score": _printable(best[1], tensor.dtype)}


def _is_scores(tensor: Tensor) -> bool:
    """One axis of classes; the others, such as a batch of one, are 1."""
    numbers = tensor.dtype is not DType.STRING and tensor.dtype is not DType.BOOL
    return numbers and tensor.element_count > 0 and sum(dim != 1 for dim in tensor.shape) <= 1 and bool(tensor.shape)


def _printable(value: Value, dtype: DType) -> Value | None:
    """`value` for JSON: null where it is not finite, else as few digits as give the same element back."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    if dtype is DType.BFLOAT16:
        return float(_BFLOAT16_DIGITS % value)
    return _shorten(value, *_DIGITS[dtype]) if dtype in _DIGITS else value


def _shorten(value: float, packing: struct.Struct, tidy: str, exact: str) -> float:
    """A short decimal that rounds to `value` in the type of `packing`."""
    short = float(tidy % value)
    try:
        if packing.unpack(packing.pack(short))[0] == value:
            return short
    except OverflowError:
        pass  # rounded up beyond the type's largest number; more digits stay below it
    return float(exact % value)
