"""`npz:PATH`: the answers as arrays, one per output, for numpy. Needs `infermesh[numpy]`.

Each output becomes an array with one row per record on a new leading axis; beside them stand `sequence` (int64),
`outcome` (text) and `valid` (bool, whether the record is an answer). Rows without an answer are NaN in float arrays and
mean nothing elsewhere: `valid` tells. An output that is called like one of those three pushes it aside as `mesh_NAME`.
bfloat16, which numpy lacks, is widened to float32.

Rows are spooled beside the target (in memory while small) and the file is made at `close`, under a temporary name, then
renamed: the target is either the old file or the complete new one. Memory does not grow with the stream.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import struct
import tempfile
import uuid
import zipfile
from array import array
from pathlib import Path
from typing import IO, Any

from mesh.client.sinks.contract import Sink, SinkRecord, SinkRequest, check_record
from mesh.client.sinks.storage import storage_error
from mesh.client.values import pack_values, unpack_values
from mesh.core.frame import Outcome
from mesh.core.tensor import DType, Tensor, TensorSpec
from mesh.errors import MissingExtra, StorageError, TensorMismatch

OPTIONS: tuple[str, ...] = ()
HELP = "npz:PATH  (or a path that ends in .npz)\n    all answers as arrays, one per output, written at the end"

SPOOL_BYTES = 8 << 20
"""Rows of one output held in memory before they move to disk: short streams never touch it, long ones fit any board."""

_COPY_BYTES = 1 << 20


class _Column:
    """The rows of one output, in a spool."""

    def __init__(self, spec: TensorSpec, folder: Path) -> None:
        self.spec = spec
        self.dtype = DType.FLOAT32 if spec.dtype is DType.BFLOAT16 else spec.dtype
        self.shape: tuple[int, ...] | None = None
        self.rows = 0
        self._pending = 0
        self.texts: list[str] = []
        # SIM115: the column owns the spool beyond this method and closes it in `close`.
        self._spool: IO[bytes] = tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=str(folder))  # noqa: SIM115
        if spec.is_fixed and spec.shape is not None:
            self._fix(tuple(dim for dim in spec.shape if isinstance(dim, int)))

    def check(self, tensor: Tensor) -> None:
        """Raise `TensorMismatch` where `tensor` cannot stand under the rows before it."""
        if self.shape is not None and tensor.shape != self.shape:
            raise TensorMismatch(
                f"output {self.spec.name!r}: an answer of shape {list(tensor.shape)} after ones of {list(self.shape)} "
                "cannot be one array",
                hint="use a jsonl: sink for answers of changing shape",
            )

    def append(self, tensor: Tensor) -> None:
        if self.shape is None:
            self._fix(tensor.shape)
        self.rows += 1
        if self.dtype is DType.STRING:
            self.texts.extend(str(value) for value in unpack_values(tensor))
        elif tensor.dtype is DType.BFLOAT16:
            self._spool.write(pack_values([float(value) for value in unpack_values(tensor)], DType.FLOAT32))
        else:
            self._spool.write(tensor.data)

    def append_missing(self) -> None:
        if self.shape is None:
            self._pending += 1
            return
        self.rows += 1
        if self.dtype is DType.STRING:
            self.texts.extend([""] * math.prod(self.shape))
        else:
            self._spool.write(missing_row(self.dtype, math.prod(self.shape)))

    def finish(self) -> None:
        """Settle the shape if no answer ever did: open dimensions are 0."""
        if self.shape is None:
            dims = self.spec.shape or ()
            self._fix(tuple(dim if isinstance(dim, int) else 0 for dim in dims) if self.spec.shape else (0,))

    def _fix(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        pending, self._pending = self._pending, 0
        for _ in range(pending):
            self.append_missing()

    def copy_to(self, file: IO[bytes]) -> None:
        self._spool.seek(0)
        shutil.copyfileobj(self._spool, file, _COPY_BYTES)

    def close(self) -> None:
        self._spool.close()


def missing_row(dtype: DType, count: int) -> bytes:
    """`count` elements that stand for no answer: NaN, or 0 where the type has none."""
    if dtype is DType.FLOAT16:
        return struct.pack("<e", math.nan) * count
    return pack_values([math.nan] if dtype.is_float else [0], dtype) * count


class NpzSink:
    """Collects until `close`; `_columns` own their spools."""

    def __init__(self, path: Path, outputs: tuple[TensorSpec, ...]) -> None:
        self._path = path
        self._outputs = outputs
        self._sequences = array("q")
        self._outcomes = array("B")
        self._ended = False
        self._partial = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            self._partial.open("xb").close()
        except OSError as error:
            raise storage_error(error, str(path)) from error
        self._columns = [_Column(spec, path.parent) for spec in outputs]

    def write(self, record: SinkRecord) -> None:
        if self._ended:
            raise StorageError(f"{self._path}: is closed already")
        check_record(record, self._outputs)
        answered = record.outcome is Outcome.OK
        if answered:
            # All are checked before any is written, so that a refused record leaves no half row behind.
            for column, tensor in zip(self._columns, record.tensors, strict=True):
                tensor.check_bytes(column.spec.name)
                column.check(tensor)
        try:
            for index, column in enumerate(self._columns):
                if answered:
                    column.append(record.tensors[index])
                else:
                    column.append_missing()
        except OSError as error:
            self.discard()
            raise storage_error(error, str(self._path)) from error
        self._sequences.append(record.sequence)
        self._outcomes.append(record.outcome.value)

    def close(self) -> None:
        if self._ended:
            return
        try:
            self._save()
        except OSError as error:
            raise storage_error(error, str(self._path)) from error
        finally:
            self.discard()

    def discard(self) -> None:
        if self._ended:
            return
        self._ended = True
        for column in self._columns:
            column.close()
        with contextlib.suppress(FileNotFoundError):  # `close` has renamed it
            self._partial.unlink()

    def _save(self) -> None:
        import numpy

        taken = {spec.name for spec in self._outputs}
        outcomes = [Outcome(value) for value in self._outcomes]
        with zipfile.ZipFile(self._partial, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for column in self._columns:
                _write_column(archive, column)
            extra: dict[str, Any] = {
                "sequence": numpy.array(self._sequences, dtype="<i8"),
                "outcome": numpy.array([outcome.name.lower() for outcome in outcomes], dtype="<U8"),
                "valid": numpy.array([outcome is Outcome.OK for outcome in outcomes], dtype=bool),
            }
            for name, values in extra.items():
                free = f"mesh_{name}" if name in taken else name
                with archive.open(f"{free}.npy", "w", force_zip64=True) as member:
                    numpy.lib.format.write_array(member, values, allow_pickle=False)
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        self._partial.replace(self._path)


def _write_column(archive: zipfile.ZipFile, column: _Column) -> None:
    import numpy

    column.finish()
    shape = (column.rows, *(column.shape or ()))
    with archive.open(f"{column.spec.name}.npy", "w", force_zip64=True) as member:
        if column.dtype is DType.STRING:
            texts = numpy.array(column.texts, dtype=numpy.str_).reshape(shape)
            numpy.lib.format.write_array(member, texts, allow_pickle=False)
            return
        dtype = numpy.dtype(column.dtype.label).newbyteorder("<")
        header = {"descr": numpy.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        numpy.lib.format.write_array_header_2_0(member, header)
        column.copy_to(member)


def open_npz(request: SinkRequest) -> Sink:
    """A sink that makes PATH at its close; raises `MissingExtra`, `UsageError` or `StorageError`s."""
    try:
        import numpy  # noqa: F401 - needed at close; found missing now
    except ImportError as error:
        raise MissingExtra(
            "writing .npz files needs numpy",
            hint="install the extra infermesh[numpy]: pip install '.[numpy]' in a clone",
        ) from error
    path = request.url.file
    try:
        replaceable = path.is_file() or not path.exists()
    except OSError as error:
        raise storage_error(error, str(path)) from error
    if not replaceable:  # renaming onto /dev/null would take it away from everybody
        raise StorageError(f"{path}: is no ordinary file", hint="name a file; null: keeps nothing")
    return NpzSink(path, request.outputs)
