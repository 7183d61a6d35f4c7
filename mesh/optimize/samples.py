"""The sample that the user gives: checked against the model's inputs, cut into runs, and divided in two halves.

Arrays are named as the model's inputs. Their first axis counts samples: an axis of its own, or the batch axis of a
model whose batch is open or 1. Even samples calibrate, odd ones judge, so that a sorted file gives both halves every
class. Arrays are never copied as a whole: a run is made when it is asked for. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mesh.arrays import Array
from mesh.core.tensor import DType, TensorSpec
from mesh.errors import CalibrationError, ModelUnsupported, TensorMismatch
from mesh.optimize.contract import Feeds

MIN_SAMPLES = 8
"""Half of them calibrate: below four, ranges are those of single samples and one wrong answer is 25 points or more."""

MAX_CALIBRATION_SAMPLES = 128
"""Evenly chosen. More widen the ranges by outliers and cost time; accuracy stayed within 0.14 points from 8 to 100."""


@dataclass(frozen=True)
class Samples(Sequence[Feeds]):
    """Runs of the model over the user's arrays; `rows` are the positions along their first axis, in order."""

    specs: tuple[TensorSpec, ...]
    arrays: Mapping[str, Array]
    framed: bool
    """Whether the first axis is one more than the model's."""
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return Samples(self.specs, self.arrays, self.framed, self.rows[index])
        row = self.rows[index]
        return {spec.name: self._cut(spec, row) for spec in self.specs}

    def __iter__(self) -> Iterator[Feeds]:
        return (self[index] for index in range(len(self)))

    def _cut(self, spec: TensorSpec, row: int) -> Array:
        array = self.arrays[spec.name]
        cut = array[row] if self.framed else array[row : row + 1]
        converted: Array = np.ascontiguousarray(cut, dtype=np.dtype(spec.dtype.label)).reshape(cut.shape)
        return converted

    def halves(self) -> tuple[Samples, Samples]:
        """The half that calibrates and the half that judges."""
        calibrating = self.rows[0::2]
        if len(calibrating) > MAX_CALIBRATION_SAMPLES:
            chosen = np.linspace(0, len(calibrating) - 1, MAX_CALIBRATION_SAMPLES).round().astype(int)
            calibrating = tuple(calibrating[index] for index in chosen)
        judging = self.rows[1::2]
        return (
            Samples(self.specs, self.arrays, self.framed, calibrating),
            Samples(self.specs, self.arrays, self.framed, judging),
        )

    def are_all_the_same(self) -> bool:
        return all(bool(np.all(self.arrays[spec.name] == self.arrays[spec.name][:1])) for spec in self.specs)


def read_samples(arrays: Mapping[str, Array], specs: Sequence[TensorSpec]) -> Samples:
    """The arrays as runs of a model with inputs `specs`.

    Raises:
        TensorMismatch: A name is missing, or a shape or an element type does not fit.
        CalibrationError: Too few samples, or NaN and infinities in them.
        ModelUnsupported: An input that arrays of numbers cannot feed.
    """
    names = [spec.name for spec in specs]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise TensorMismatch(
            f"the calibration sample has no array named {', '.join(missing)}; it has {', '.join(sorted(arrays))}",
            hint=f"name its arrays as the model's inputs: {', '.join(names)}",
        )
    for spec in specs:
        _check_type(spec, arrays[spec.name])
    framed = _is_framed(specs, arrays)
    for spec in specs:
        _check_shape(spec, arrays[spec.name], framed)
    counts = {name: len(arrays[name]) for name in names}
    count = counts[names[0]] if names else 0
    if len(set(counts.values())) > 1:
        raise TensorMismatch(f"the arrays of the calibration sample hold different numbers of samples: {counts}")
    if count < MIN_SAMPLES:
        raise CalibrationError(
            f"the calibration sample holds {count} sample{'' if count == 1 else 's'}",
            hint=f"give at least {MIN_SAMPLES}: half of them calibrate, half judge",
        )
    samples = Samples(tuple(specs), arrays, framed, tuple(range(count)))
    _check_finite(samples)
    return samples


def _check_type(spec: TensorSpec, array: Array) -> None:
    if spec.dtype in (DType.STRING, DType.BFLOAT16):
        raise ModelUnsupported(f"input {spec.name!r} is {spec.dtype.label}, which a calibration sample cannot feed")
    if array.dtype.kind not in "biuf" or not np.can_cast(array.dtype, np.dtype(spec.dtype.label), "same_kind"):
        raise TensorMismatch(
            f"array {spec.name!r} of the calibration sample is {array.dtype}, the model wants {spec.dtype.label}",
            hint="convert it before saving it",
        )


def _is_framed(specs: Sequence[TensorSpec], arrays: Mapping[str, Array]) -> bool:
    return any(spec.shape is not None and arrays[spec.name].ndim == len(spec.shape) + 1 for spec in specs)


def _check_shape(spec: TensorSpec, array: Array, framed: bool) -> None:
    if spec.shape is None:
        fits = array.ndim > 0
    else:
        got = array.shape[1:] if framed else array.shape
        wanted = spec.shape
        if not framed and wanted and not (isinstance(wanted[0], int) and wanted[0] != 1):
            wanted = ("samples", *wanted[1:])
        elif not framed:
            wanted = ("?", *spec.shape)  # of a fixed batch: only an axis of its own can count samples
        fits = len(got) == len(wanted) and all(
            have == want if isinstance(want, int) else have > 0 or want == "samples"
            for have, want in zip(got, wanted, strict=True)
        )
    if not fits:
        raise TensorMismatch(
            f"array {spec.name!r} of the calibration sample has shape {list(array.shape)}, the model wants {spec}",
            hint="its first axis counts samples; the others are those of the model's input",
        )


def _check_finite(samples: Samples) -> None:
    floats = [spec for spec in samples.specs if spec.dtype.is_float]
    for row, feeds in zip(samples.rows, samples, strict=True):
        for spec in floats:
            if not np.isfinite(feeds[spec.name]).all():
                raise CalibrationError(
                    f"array {spec.name!r} of the calibration sample holds NaN or infinity, first in sample {row}",
                    hint="leave such samples out: ranges cannot be measured with them",
                )


def read_labels(arrays: Mapping[str, Array], answers: int) -> Array:
    """One class number per answer, int64, from the only array of a file (or the one named label, labels or y).

    Raises `CalibrationError` for several arrays, another length, and what are no class numbers.
    """
    named = [name for name in ("label", "labels", "y") if name in arrays]
    if len(arrays) != 1 and len(named) != 1:
        raise CalibrationError(
            f"the labels are to be one array, the file has {', '.join(sorted(arrays)) or 'none'}",
            hint="save them alone, or name them 'labels'",
        )
    labels = arrays[named[0]] if named else next(iter(arrays.values()))
    if labels.size != answers or labels.dtype.kind not in "iu":
        raise CalibrationError(
            f"the labels are {labels.dtype}{list(labels.shape)}, the sample has {answers} samples",
            hint="give one integer class number per sample, in the same order",
        )
    flat: Array = labels.reshape(-1).astype(np.int64)
    return flat
