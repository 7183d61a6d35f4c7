"""Equality of parts and whole, proven by running both on the same inputs.

The rule: floats agree if `max|whole - parts| <= 1e-5 * max|whole| + 1e-6` per output, with NaN and
infinities at the same places; everything else agrees exactly. Where a cut carries float16 or bfloat16,
or an output has that type, 1e-5 is less than one step of it: the runtime computes such a model in
float32 and rounds where it must, a cut being one more such place. There the factor is four steps.
Running is handed in, so this file needs no runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mesh.arrays import Array
from mesh.core.graph import Graph
from mesh.core.plan import Segment
from mesh.core.tensor import DType, TensorSpec
from mesh.errors import UsageError, VerificationFailed
from mesh.model.extract import extract
from mesh.model.read import SourceModel

RELATIVE_TOLERANCE = 1e-5
ABSOLUTE_TOLERANCE = 1e-6
"""Rounding of float32 when kernels add in another order; wrong tensors differ by orders of magnitude more."""

HALF_TOLERANCE = {DType.FLOAT16: 4 * 2.0**-10, DType.BFLOAT16: 4 * 2.0**-7}
"""Relative, instead of `RELATIVE_TOLERANCE`: four steps of the narrow type."""

MAX_RANDOM_INTEGER = 2
"""Integers are drawn below this: indices and lengths must be valid for any model."""

Arrays = Mapping[str, Array]

RunFunction = Callable[[bytes, Arrays, Sequence[str]], dict[str, Array]]
"""Runs a serialised model on named inputs and returns the named outputs."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How one output of the parts differs from the whole's."""

    name: str
    max_abs_diff: float
    """Largest absolute difference of finite elements; 0 for equal, infinity where no number says it."""
    allowed: float
    reason: str
    """Why the outputs disagree; empty if they agree."""

    @property
    def agrees(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True)
class Comparison:
    differences: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        """Whether every output agrees within the rule."""
        return all(difference.agrees for difference in self.differences)

    @property
    def max_abs_diff(self) -> Mapping[str, float]:
        return {difference.name: difference.max_abs_diff for difference in self.differences}

    def require(self) -> None:
        """Raise `VerificationFailed`, naming the first output that disagrees and by how much."""
        for difference in self.differences:
            if not difference.agrees:
                raise VerificationFailed(
                    f"parts and whole disagree at output {difference.name!r}: {difference.reason}",
                    hint="run the model whole, or cut elsewhere",
                )


def compare(
    whole: Arrays, parts: Arrays, bfloat16: Collection[str] = (), crossed: Collection[DType] = ()
) -> Comparison:
    """Compare outputs by name. A missing or additional output is a difference.

    `bfloat16` names outputs whose arrays are the raw bits of bfloat16 in uint16 (see `mesh.arrays`).
    `crossed` are the element types that cuts between the parts carry.
    """
    least = max((HALF_TOLERANCE.get(dtype, RELATIVE_TOLERANCE) for dtype in crossed), default=RELATIVE_TOLERANCE)
    names = [*whole, *(name for name in parts if name not in whole)]
    widened = [
        {name: _widen(array) if name in bfloat16 else array for name, array in a.items()} for a in (whole, parts)
    ]
    return Comparison(
        tuple(
            _compare_output(
                name,
                widened[0].get(name),
                widened[1].get(name),
                max(least, HALF_TOLERANCE[DType.BFLOAT16] if name in bfloat16 else 0.0),
            )
            for name in names
        )
    )


def _widen(bits: Array) -> Array:
    """Float32 values of bfloat16 bits; other arrays as they are."""
    if bits.dtype != np.uint16:
        return bits
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _compare_output(name: str, whole: Array | None, parts: Array | None, relative: float) -> Difference:
    infinite = float("inf")
    if whole is None or parts is None:
        return Difference(name, infinite, 0.0, f"only the {'parts' if whole is None else 'whole'} make it")
    if whole.dtype != parts.dtype:
        return Difference(name, infinite, 0.0, f"element type {parts.dtype}, the whole has {whole.dtype}")
    if whole.shape != parts.shape:
        return Difference(name, infinite, 0.0, f"shape {list(parts.shape)}, the whole has {list(whole.shape)}")
    if whole.dtype.kind == "f":
        if whole.dtype == np.float16:
            relative = max(relative, HALF_TOLERANCE[DType.FLOAT16])
        return _compare_floats(name, whole.astype(np.float64), parts.astype(np.float64), relative)
    different = int(np.count_nonzero(np.asarray(whole != parts)))
    if not different:
        return Difference(name, 0.0, 0.0, "")
    largest = infinite
    if whole.dtype.kind in "iub":
        largest = float(np.max(np.abs(whole.astype(np.float64) - parts.astype(np.float64))))
    return Difference(name, largest, 0.0, f"{different} of {whole.size} elements differ ({whole.dtype} must be exact)")


def _compare_floats(
    name: str, whole: npt.NDArray[np.float64], parts: npt.NDArray[np.float64], relative: float
) -> Difference:
    finite = np.isfinite(whole)
    same_places = np.array_equal(finite, np.isfinite(parts))
    if not same_places or not np.array_equal(whole[~finite], parts[~finite], equal_nan=True):
        return Difference(name, float("inf"), 0.0, "NaN or infinities are not at the same places")
    if not finite.any():
        return Difference(name, 0.0, ABSOLUTE_TOLERANCE, "")
    largest = float(np.max(np.abs(whole[finite] - parts[finite])))
    allowed = relative * float(np.max(np.abs(whole[finite]))) + ABSOLUTE_TOLERANCE
    reason = "" if largest <= allowed else f"largest difference {largest:.3g}, allowed {allowed:.3g}"
    return Difference(name, largest, allowed, reason)


def generate_inputs(
    inputs: Sequence[TensorSpec], seed: int, batch: int = 1, least_integer: int = 0
) -> dict[str, Array]:
    """Seeded inputs for a model: normal floats, integers from `least_integer` to 1, booleans, short strings.

    Symbolic dimensions are 1; a symbolic first dimension, and others of the same name, are `batch`.
    An input of unknown rank gets shape [1].
    """
    rng = np.random.default_rng(seed)
    leading = {spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], str)} - {"?"}
    feeds: dict[str, Array] = {}
    for spec in inputs:
        shape: list[int] = []
        for axis, dim in enumerate((1,) if spec.shape is None else spec.shape):
            if isinstance(dim, int):
                shape.append(dim)
            else:
                shape.append(batch if dim in leading or axis == 0 else 1)
        feeds[spec.name] = _draw(spec.dtype, tuple(shape), rng, least_integer)
    return feeds


def _draw(dtype: DType, shape: tuple[int, ...], rng: np.random.Generator, least_integer: int) -> Array:
    if dtype is DType.STRING:
        return np.array([f"text {value}" for value in rng.integers(0, 4, shape).flat], dtype=object).reshape(shape)
    if dtype is DType.BOOL:
        return rng.integers(0, 2, shape).astype(np.bool_)
    if dtype is DType.BFLOAT16:
        return (rng.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if dtype.is_float:
        return rng.standard_normal(shape).astype(dtype.label)
    return rng.integers(least_integer, MAX_RANDOM_INTEGER, shape).astype(dtype.label)


def verify(
    run: RunFunction, model: SourceModel, graph: Graph, segments: Sequence[Segment], inputs: Arrays
) -> Comparison:
    """Run `model` whole and as chained `segments` on `inputs`, and compare.

    Raises:
        UsageError: The segments do not follow each other from the inputs to the outputs.
    """
    whole = run(model.data, inputs, [spec.name for spec in graph.outputs])
    halves = {spec.name for spec in graph.outputs if spec.dtype is DType.BFLOAT16}
    crossing = {name for segment in segments[:-1] for name in (*segment.produces, *segment.relays)}
    crossed = {graph.specs[name].dtype for name in crossing}
    return compare(whole, run_chained(run, model, graph, segments, inputs), halves, crossed)


def run_chained(
    run: RunFunction,
    model: SourceModel,
    graph: Graph,
    segments: Sequence[Segment],
    inputs: Arrays,
    cross: Callable[[int, Arrays], dict[str, Array]] | None = None,
) -> dict[str, Array]:
    """The model's outputs when `segments` run one after the other, each on what the one before left.

    `cross` is what happens to the tensors that leave a segment, given by its number, for the next one.
    """
    positions = [segments[0].start if segments else -1, *(segment.end for segment in segments)]
    starts = [segment.start for segment in segments]
    if starts != positions[:-1] or positions[0] != 0 or positions[-1] != len(graph.groups):
        raise UsageError(f"segments at {positions} do not cover the model from 0 to {len(graph.groups)}")
    frame: dict[str, Array] = dict(inputs)
    for index, segment in enumerate(segments):
        feeds = {name: frame[name] for name in segment.consumes}
        made = run(extract(model, graph, segment), feeds, segment.produces)
        frame = {name: frame[name] for name in segment.relays} | {name: made[name] for name in segment.produces}
        if cross is not None and index + 1 < len(segments):
            frame = cross(index, frame)
    return {spec.name: frame[spec.name] for spec in graph.outputs}
