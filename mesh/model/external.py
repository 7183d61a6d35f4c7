"""Weights in files beside the model: found, refused or read into the model.

A model file is untrusted, and so are the paths in it. Every component of a path is opened relative
to the folder that holds it without following links, only regular files with a single name (link
count 1) are read, and all sizes are known before the first byte is read.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx
from onnx import TensorProto

from mesh.errors import ExternalDataRefused, ModelInvalid, ModelUnsupported
from mesh.model.tensors import packed_bytes

MAX_MODEL_BYTES = (1 << 31) - (1 << 20)
"""A model is handled as one protobuf message, which ends at 2 GiB; 1 MiB is left for the message around the data."""

KNOWN_KEYS = frozenset({"location", "offset", "length", "checksum"})


@dataclass(frozen=True, slots=True)
class Extent:
    """Where one tensor's data lies."""

    tensor: onnx.TensorProto
    location: str
    offset: int
    length: int


def external_tensors(tensors: Iterator[onnx.TensorProto]) -> list[onnx.TensorProto]:
    return [tensor for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL]


def inline_external(tensors: Sequence[onnx.TensorProto], folder: Path, file_bytes: int) -> None:
    """Read the data of `tensors` from files below `folder` into them.

    Args:
        tensors: Tensors whose data location is EXTERNAL, dimensions already checked. Modified.
        folder: The folder that holds the model file.
        file_bytes: Size of the model file, which counts towards the limit.

    Raises:
        ExternalDataRefused: A path leaves the folder, or is a link, device or pipe, or an extent is not in its file.
        ModelUnsupported: All of it together is above `MAX_MODEL_BYTES`.
    """
    extents = [_parse_extent(tensor) for tensor in tensors]
    total = file_bytes + sum(extent.length for extent in extents)
    if total > MAX_MODEL_BYTES:
        raise ModelUnsupported(
            f"the model with its external data is over 2 GB ({total} bytes), which is not supported for now"
        )
    by_location: dict[str, list[Extent]] = {}
    for extent in extents:
        by_location.setdefault(extent.location, []).append(extent)
    for location, group in by_location.items():
        with _open_below(folder, location) as descriptor:
            size = os.fstat(descriptor).st_size
            for extent in group:
                _check_inside(extent, size)
            for extent in group:
                _fill(extent, descriptor)


def _parse_extent(tensor: onnx.TensorProto) -> Extent:
    name = tensor.name[:80]
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in entries:
            raise ExternalDataRefused(f"tensor {name!r}: external data key {entry.key[:40]!r} is given twice")
        if entry.key not in KNOWN_KEYS:
            raise ExternalDataRefused(f"tensor {name!r}: unknown external data key {entry.key[:40]!r}")
        entries[entry.key] = entry.value
    want = packed_bytes(tensor.data_type, math.prod(tensor.dims))
    offset = _parse_count(entries.get("offset", "0"), "offset", name)
    length = _parse_count(entries["length"], "length", name) if "length" in entries else want
    if length != want:
        raise ExternalDataRefused(f"tensor {name!r}: external data has {length} bytes, its dimensions need {want}")
    return Extent(tensor, _check_location(entries.get("location", ""), name), offset, length)


def _parse_count(text: str, what: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise ExternalDataRefused(f"tensor {name!r}: external data {what} {text[:40]!r} is not a count of bytes")
    return int(text)


def _check_location(location: str, name: str) -> str:
    parts = PurePosixPath(location).parts
    outside = PurePosixPath(location).is_absolute() or ".." in parts or (len(location) > 1 and location[1] == ":")
    if not parts or outside or "\\" in location or "\0" in location:
        raise ExternalDataRefused(
            f"tensor {name!r}: external data at {location[:120]!r} is not inside the model's folder",
            hint="external data is read only from the folder of the model and below",
        )
    return location


@contextmanager
def _open_below(folder: Path, location: str) -> Iterator[int]:
    """Open `location` below `folder` for reading, refusing links and whatever is not a plain file."""
    parts = PurePosixPath(location).parts
    shown = repr(location[:120])
    held = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY)]
    try:
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            # O_NONBLOCK: opening a pipe without a writer would wait for ever.
            flags = os.O_RDONLY | os.O_NOFOLLOW | (os.O_NONBLOCK if last else os.O_DIRECTORY)
            try:
                held.append(os.open(part, flags, dir_fd=held[-1]))
            except OSError as error:
                raise _explain_open(error, shown) from error
        status = os.fstat(held[-1])
        if not stat.S_ISREG(status.st_mode):
            raise ExternalDataRefused(f"external data {shown} is not a regular file")
        if status.st_nlink > 1:
            raise ExternalDataRefused(
                f"external data {shown} is a hard link", hint="copy the file into the model's folder"
            )
        yield held[-1]
    finally:
        for descriptor in reversed(held):
            os.close(descriptor)


def _explain_open(error: OSError, shown: str) -> ExternalDataRefused:
    if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENOTDIR):
        return ExternalDataRefused(
            f"external data {shown} is or passes through a link", hint="copy the file into the model's folder"
        )
    return ExternalDataRefused(f"external data {shown} cannot be opened: {error.strerror}")


def _check_inside(extent: Extent, size: int) -> None:
    if extent.offset + extent.length > size:
        raise ExternalDataRefused(
            f"tensor {extent.tensor.name[:80]!r}: external data {extent.location[:120]!r} has {size} bytes, "
            f"but {extent.length} at offset {extent.offset} are claimed"
        )


def _fill(extent: Extent, descriptor: int) -> None:
    tensor = extent.tensor
    pieces: list[bytes] = []
    offset, left = extent.offset, extent.length
    while left:
        piece = os.pread(descriptor, left, offset)
        if not piece:
            raise ModelInvalid(f"tensor {tensor.name[:80]!r}: its external data shrank while it was read")
        pieces.append(piece)
        offset += len(piece)
        left -= len(piece)
    tensor.raw_data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
