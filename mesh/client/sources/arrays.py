"""`npz:FILE.npz` and `npy:FILE.npy`: recorded arrays, frame by frame. Needs `infermesh[numpy]`.

Arrays are named as the model's inputs. An array of one axis more than the input has its frames on the leading axis; one
of equal rank too, where the input's first dimension is 1 or symbolic (then each frame is a batch of 1; `whole=1` makes
such an array one frame). A model with one input also takes the file's only array that is not called like labels.

Options: `key` (the array to use) and `input` (the input that it feeds), `start` and `count` of frames, `cast=DTYPE` to
convert on purpose: nothing is converted silently. Object arrays and pickles are refused. An `.npz` is read whole, so it
is bounded; an `.npy` is mapped, so it may be larger than memory.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.client.resource_url import ResourceUrl
from mesh.client.sources.contract import IteratorSource, Source, SourceFrame, SourceRequest, single_input
from mesh.client.sources.files import check_file
from mesh.client.values import pack_values
from mesh.core.tensor import DType, Tensor, TensorSpec
from mesh.errors import MissingExtra, SourceUnreadable, TensorMismatch, UsageError

Array = Any
"""A numpy.ndarray. numpy is optional here, so its types are not named at module level."""

NPZ_OPTIONS = ("key", "input", "start", "count", "cast", "whole")
NPZ_HELP = (
    "FILE.npz[?key=ARRAY&input=NAME&start=N&count=N&cast=DTYPE&whole=1]\n"
    "    arrays named as the model's inputs, one frame per step of the leading axis"
)
NPY_OPTIONS = ("start", "count", "cast", "whole")
NPY_HELP = "FILE.npy[?start=N&count=N&cast=DTYPE&whole=1]\n    one array for a model with one input"

LABEL_NAMES = frozenset({"y", "label", "labels", "target", "targets", "y_true", "y_test", "y_train", "classes"})
"""What arrays of right answers are called; they are never taken for an input unless named by `key`."""

MAX_NPZ_BYTES = 1 << 30
"""Unpacked bytes of the arrays that are used. They are held in memory while streaming; an .npy file is not."""

_READ_ERRORS = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, RuntimeError)
"""What numpy and zipfile raise for damaged files, object arrays, encryption and unknown compression."""


def import_numpy(what: str) -> Any:
    """numpy, or `MissingExtra` saying that `what` needs it."""
    try:
        import numpy
    except ImportError as error:
        raise MissingExtra(
            f"{what} needs numpy", hint="install the extra infermesh[numpy]: pip install '.[numpy]' in a clone"
        ) from error
    return numpy


@dataclass(frozen=True, slots=True)
class _Feed:
    """One input and the array that feeds it: `array[i]` reshaped to `shape` is frame i."""

    spec: TensorSpec
    array: Array
    shape: tuple[int, ...]

    def tensor(self, index: int) -> Tensor:
        return encode_array(self.array[index].reshape(self.shape), self.spec)


def open_npz(request: SourceRequest) -> Source:
    """A source over the arrays of an .npz file; raises `MissingExtra`, `NotFound` and what `open_npy` raises."""
    url = request.url
    numpy = import_numpy("reading .npz files")
    path = check_file(url.file)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {
                info.filename.removesuffix(".npy"): info.file_size
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
    except _READ_ERRORS as error:
        raise SourceUnreadable(f"{path}: not an .npz file, or damaged: {error}") from error
    chosen = _choose(url, path, request.inputs, list(members))
    total = sum(members[key] for key in set(chosen.values()))
    if total > MAX_NPZ_BYTES:
        raise SourceUnreadable(
            f"{path}: unpacks to {total} bytes, the limit is {MAX_NPZ_BYTES}",
            hint="save it in parts, or as .npy, which is read from disk as it goes",
        )
    arrays: dict[str, Array] = {}
    try:
        with numpy.load(path, allow_pickle=False) as loaded:
            for spec in request.inputs:
                arrays[spec.name] = loaded[chosen[spec.name]]
    except (*_READ_ERRORS, MemoryError) as error:
        raise _unreadable(path, error) from error
    return _open_arrays(request, path, arrays)


def open_npy(request: SourceRequest) -> Source:
    """A source over an array; raises `MissingExtra`, `NotFound`, `UsageError`, `TensorMismatch`, `SourceUnreadable`."""
    numpy = import_numpy("reading .npy files")
    path = check_file(request.url.file)
    spec = single_input(request, "an .npy file")
    try:
        array = numpy.load(path, mmap_mode="r", allow_pickle=False)
    except (*_READ_ERRORS, MemoryError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(array, numpy.ndarray):
        array.close()
        raise SourceUnreadable(f"{path}: holds several arrays", hint=f"open it as npz:{path}")
    return _open_arrays(request, path, {spec.name: array})


def _unreadable(path: Path, error: BaseException) -> SourceUnreadable:
    if "allow_pickle" in str(error) or "pickle" in str(error):
        return SourceUnreadable(
            f"{path}: holds Python objects, which can run code when loaded, or is no array file",
            hint="save plain numeric arrays: np.savez(file, name=array.astype('float32'))",
        )
    return SourceUnreadable(f"{path}: damaged or not an array file: {error}")


def _choose(url: ResourceUrl, path: Path, inputs: tuple[TensorSpec, ...], keys: list[str]) -> dict[str, str]:
    """The array of the file for each input."""
    names = [spec.name for spec in inputs]
    listed = ", ".join(keys) or "none"
    key, target = url.options.get("key"), url.options.get("input")
    if target is not None and target not in names:
        raise UsageError(f"{url.text!r}: the model has no input {target!r}", hint="its inputs: " + ", ".join(names))
    if key is not None and key not in keys:
        raise TensorMismatch(f"{path}: holds no array {key!r}", hint=f"its arrays: {listed}")
    if len(names) == 1 and key is None and names[0] not in keys:
        candidates = [name for name in keys if name.lower() not in LABEL_NAMES]
        if len(candidates) != 1:
            raise TensorMismatch(
                f"{path}: holds no array {names[0]!r}, and no other one stands out",
                hint=f"say which with ?key=NAME; its arrays: {listed}",
            )
        key = candidates[0]
    chosen = {name: name for name in names}
    if key is not None:
        if target is None and len(names) > 1:
            raise UsageError(f"{url.text!r}: key={key} feeds which input?", hint="add input=NAME: " + ", ".join(names))
        chosen[target or names[0]] = key
    missing = [name for name in names if chosen[name] not in keys]
    if missing:
        raise TensorMismatch(
            f"{path}: holds no array for the inputs {', '.join(missing)}",
            hint=f"name the arrays as the inputs; the file's arrays: {listed}",
        )
    return chosen


def _open_arrays(request: SourceRequest, path: Path, arrays: Mapping[str, Array]) -> Source:
    url = request.url
    wanted = url.options.get("cast")
    if wanted is not None and wanted not in {spec.dtype.label for spec in request.inputs}:
        types = ", ".join(sorted({spec.dtype.label for spec in request.inputs}))
        raise UsageError(f"{url.text!r}: cast={wanted} is no type that the model takes", hint=f"it takes: {types}")
    feeds = [_plan_feed(url, path, spec, arrays[spec.name]) for spec in request.inputs]
    counts = {feed.spec.name: len(feed.array) for feed in feeds}
    total = counts[feeds[0].spec.name]
    if any(count != total for count in counts.values()):
        listed = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise TensorMismatch(f"{path}: the arrays hold different numbers of frames ({listed})")
    if total == 0:
        raise TensorMismatch(f"{path}: holds no frames")
    start = url.integer("start", 0) or 0
    if start >= total:
        raise url.wrong("start", f"below {total}, the number of frames in {path.name}")
    count = url.integer("count", total - start, minimum=1) or 0
    if start + count > total:
        raise url.wrong("count", f"at most {total - start}: {path.name} holds {total} frames")

    def produce() -> Generator[SourceFrame, None, None]:
        for index in range(start, start + count):
            yield SourceFrame(tuple(feed.tensor(index) for feed in feeds), f"{path.name}[{index}]")

    return IteratorSource(produce, frame_count=count)


def _plan_feed(url: ResourceUrl, path: Path, spec: TensorSpec, array: Array) -> _Feed:
    frame_shape, has_frame_axis = split_frames(spec, array.shape, whole=url.flag("whole"))
    spec.check(spec.dtype, frame_shape)
    found = _dtype_of(path, spec, array.dtype)
    if found is not spec.dtype and url.options.get("cast") != spec.dtype.label:
        hint = f"add ?cast={spec.dtype.label} to convert it"
        if found is DType.UINT8 and spec.dtype.is_float:
            hint += ", which keeps 0..255; if the model was trained on 0..1, save the array divided by 255"
        raise TensorMismatch(
            f"{path}: tensor {spec.name!r}: dtype is {found.label}, the model wants {spec.dtype.label}", hint=hint
        )
    return _Feed(spec, array if has_frame_axis else array[None, ...], frame_shape)


def split_frames(spec: TensorSpec, shape: tuple[int, ...], *, whole: bool) -> tuple[tuple[int, ...], bool]:
    """Shape of one frame of an array of `shape` for input `spec`, and whether its leading axis counts frames.

    A rank that fits neither way is left to `TensorSpec.check` to name.
    """
    if spec.shape is None:
        return (shape[1:], True) if shape and not whole else (shape, False)
    if len(shape) == len(spec.shape) + 1:
        return shape[1:], True
    batched = bool(spec.shape) and (spec.shape[0] == 1 or isinstance(spec.shape[0], str))
    if len(shape) == len(spec.shape) and batched and not whole:
        return (1, *shape[1:]), True
    return shape, False


def _dtype_of(path: Path, spec: TensorSpec, dtype: Any) -> DType:
    if dtype.kind in "US":
        return DType.STRING
    if dtype.kind == "u" and dtype.itemsize == 2 and spec.dtype is DType.BFLOAT16:
        return DType.BFLOAT16  # the raw bits, as `mesh.arrays` shows them
    label = dtype.newbyteorder("=").name
    if label.upper() in DType.__members__ and dtype.kind in "fiub":
        return DType.from_label(label)
    raise TensorMismatch(f"{path}: tensor {spec.name!r}: element type {dtype} has no place in a model")


def encode_array(array: Array, spec: TensorSpec) -> Tensor:
    """A numpy array as a tensor of the spec's dtype: little-endian, row-major, without a copy where it is that already.

    Raises `TensorMismatch` where a value does not survive (integers that are out of range or no whole numbers).
    """
    import numpy

    from mesh.arrays import from_array

    if (array.dtype.kind in "US") != (spec.dtype is DType.STRING):
        raise TensorMismatch(f"tensor {spec.name!r}: {array.dtype} cannot be cast to {spec.dtype.label}")
    if spec.dtype is DType.STRING or (spec.dtype is DType.BFLOAT16 and array.dtype.kind == "u"):
        return from_array(array.astype(array.dtype.newbyteorder("<"), copy=False), spec.name, dtype=spec.dtype)
    if spec.dtype is DType.BFLOAT16:
        packed = pack_values(array.reshape(-1).tolist(), spec.dtype)
        return Tensor.from_bytes(spec.dtype, array.shape, packed, spec.name)
    target = numpy.dtype(spec.dtype.label).newbyteorder("<")
    with numpy.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(target, copy=False)
    narrowed = array.dtype.newbyteorder("<") != target and not spec.dtype.is_float and spec.dtype is not DType.BOOL
    if narrowed and not numpy.array_equal(converted, array):
        raise TensorMismatch(f"tensor {spec.name!r}: values do not fit into {spec.dtype.label}")
    return from_array(converted, spec.name, dtype=spec.dtype)
