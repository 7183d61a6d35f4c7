"""The pass that takes channels out, and repairs what read them: no training, a small sample.

Of each span (`channels`) the channels that contribute least go, eight by eight up to half: least energy on the sample,
as its reader weighs it. Where that is too much for the gate, the costliest steps are given back first.
Then the reader's weights are fitted anew, in closed form: the ones that, from the channels that are left, come closest
to what the reader answered in the whole network (least squares, held near the old weights where the sample says
little). Spans are taken in the graph's order, so that each repair also makes good what those before it lost. Without
repair, half of the inner channels cost a network its accuracy; with it, a residual one loses hardly any (measured).

Source: linear least squares with ridge regularisation, as in He et al., "Channel Pruning for Accelerating Very Deep
Neural Networks", ICCV 2017, section 3.1, without its LASSO.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from mesh.arrays import Array
from mesh.optimize.channels import Span, find_spans, making_axis, read_inside, take_out, weight_of
from mesh.optimize.contract import Feeds, Material, PassFailed
from mesh.optimize.operators import FIRST_PER_CHANNEL_OPSET, opset_of, quantised_count
from mesh.optimize.quantiser import first_line
from mesh.optimize.running import open_session
from mesh.optimize.safe_int8 import SafeInt8

SHARE = 0.5
"""Of the channels of each span, at most: what residual networks give without loss."""

MULTIPLE = 8
"""Channels are kept by eights: kernels compute so many at once, and a ninth would cost as much as sixteen."""

MOST_ROWS = 8192
"""Of the system that is solved: a few times the 2304 unknowns of a 3x3 reader of 256 channels."""

FEWEST_SAMPLES = 16
"""Even where few images have places enough, the sample must show more than one kind of image."""

RIDGE = 1e-4
"""Of the mean energy of what is read: how firmly the new weights are held near the old ones."""

SEED = 20261123
"""Of the places that are looked at in large images."""


class Pruned:
    """Implements `contract.Pass`; what may be left alone are the steps by which spans lose channels (`_steps`)."""

    name = "pruned"

    def requires(self, model: onnx.ModelProto) -> str:
        if quantised_count(model):
            return "the model is quantised already"
        if opset_of(model) < FIRST_PER_CHANNEL_OPSET:
            return f"operator set {opset_of(model)} is too old"
        return "" if _worth(find_spans(model)) else "no operator makes channels that one other alone reads"

    def apply(self, model: onnx.ModelProto, material: Material) -> onnx.ModelProto:
        return prune(model, material.samples, material.keep_float)

    def ensures(self, before: onnx.ModelProto, after: onnx.ModelProto) -> str:
        return "" if after.ByteSize() < before.ByteSize() else "it is no smaller"

    def order(self, model: onnx.ModelProto, samples: Sequence[Feeds]) -> list[str]:
        """The steps that cost the largest part of the signal come first: they are given back first."""
        losses: dict[str, float] = {}
        prune(model, samples, frozenset(), losses=losses)
        return sorted(losses, key=lambda step: -losses[step])


class PrunedInt8(Pruned):
    """Both: channels go first, what is left is calibrated and becomes int8 that is the same on every processor."""

    name = "pruned-int8"

    def requires(self, model: onnx.ModelProto) -> str:
        return SafeInt8().requires(model) or super().requires(model)

    def apply(self, model: onnx.ModelProto, material: Material) -> onnx.ModelProto:
        return SafeInt8().apply(super().apply(model, material), material)

    def ensures(self, before: onnx.ModelProto, after: onnx.ModelProto) -> str:
        return SafeInt8().ensures(before, after) or super().ensures(before, after)


def _worth(spans: Sequence[Span]) -> list[Span]:
    return [span for span in spans if _steps(span)]


def _steps(span: Span) -> dict[str, int]:
    """Name of each step by which a span loses channels, and how many it has left then; the least left comes last."""
    least = math.ceil(span.channels * (1 - SHARE) / MULTIPLE) * MULTIPLE
    first = (span.channels - 1) // MULTIPLE * MULTIPLE
    return {f"{span.maker} to {count} channels": count for count in range(first, least - 1, -MULTIPLE)}


def _kept_count(span: Span, left_alone: frozenset[str]) -> int:
    """Only how many steps are left alone counts, not which: channels go in one order."""
    taken = sum(step not in left_alone for step in _steps(span))
    return [span.channels, *_steps(span).values()][taken]


def prune(
    model: onnx.ModelProto,
    samples: Sequence[Feeds],
    left_alone: frozenset[str],
    *,
    repairs: bool = True,
    losses: dict[str, float] | None = None,
) -> onnx.ModelProto:
    """A new model with fewer channels. Raises `PassFailed`.

    Args:
        left_alone: Steps that are not taken (`_steps`).
        repairs: False leaves the readers' weights as they were: what the repair is worth.
        losses: Filled with the part of the signal's energy that each step costs, by its name: what is missing after the
            repair, divided among the steps as the energy of the channels that each takes.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for span in _worth(find_spans(model)):
        count = _kept_count(span, left_alone)
        if count == span.channels:
            continue
        observed = _observe(model, made, span, samples)
        energy = _energy(made, span, observed)
        ranked = np.argsort(-energy, kind="stable")
        kept = sorted(ranked[:count].tolist())
        old = _reader_weights(made, span)
        take_out(made, span, kept)
        if repairs:
            missing = _repair(made, span, observed, kept, old)
            if losses is not None:
                losses.update(_share_out(missing, span, energy[ranked]))
    return onnx.shape_inference.infer_shapes(made)


# Watching -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Observed:
    read: Array
    """(rows, channels, places): what the reader read, a row per place of its output; places of its kernel, or of a
    flattened image."""
    wanted: Array
    """(rows, made): what it answered in the whole network."""


def _observe(whole: onnx.ModelProto, made: onnx.ModelProto, span: Span, samples: Sequence[Feeds]) -> _Observed:
    [reader] = [node for node in whole.graph.node if node.name == span.reader]
    [kernel] = [list(each.dims[2:]) for each in whole.graph.initializer if each.name == reader.input[1]]
    looks = _Look(whole, reader.output[0]), _Look(made, span.entry)
    random = np.random.default_rng(SEED)
    read, wanted, rows = [], [], 0
    for number, feeds in enumerate(samples):
        if rows >= MOST_ROWS and number >= FEWEST_SAMPLES:
            break
        answer, entry = (look(feeds) for look in looks)
        patches = _patches(reader, entry, span, kernel)
        answers = np.moveaxis(answer, 1, -1).reshape(-1, answer.shape[1]) if answer.ndim == 4 else answer
        answers = answers.reshape(len(patches), -1)
        most = max(1, MOST_ROWS // min(len(samples), FEWEST_SAMPLES))
        if len(patches) > most:
            places = np.sort(random.choice(len(patches), most, replace=False))
            patches, answers = patches[places], answers[places]
        read.append(patches)
        wanted.append(answers)
        rows += len(patches)
    return _Observed(np.concatenate(read), np.concatenate(wanted))


class _Look:
    """One tensor of a model, computed by the nodes that it needs."""

    def __init__(self, model: onnx.ModelProto, tensor: str) -> None:
        shown = onnx.ModelProto()
        shown.CopyFrom(model)
        needed, kept = {tensor}, []
        for node in reversed(model.graph.node):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update({*node.input, *read_inside(node)})
        del shown.graph.node[:]
        shown.graph.node.extend(reversed(kept))
        weights = [each for each in model.graph.initializer if each.name in needed]
        del shown.graph.initializer[:]
        shown.graph.initializer.extend(weights)
        del shown.graph.value_info[:]
        del shown.graph.output[:]
        shown.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
        self._inputs = {each.name for each in model.graph.input}
        try:
            self._session = open_session(shown.SerializeToString(), optimised=True)
        except Exception as error:  # the runtime's own classes share no base but this
            raise PassFailed(f"ONNX Runtime refuses a part of it: {first_line(error)}") from error

    def __call__(self, feeds: Feeds) -> Array:
        try:
            [answer] = self._session.run(None, {name: feeds[name] for name in self._inputs})
        except Exception as error:
            raise PassFailed(f"a part of it does not run: {first_line(error)}") from error
        return np.asarray(answer)


def _patches(reader: onnx.NodeProto, entry: Array, span: Span, kernel: Sequence[int]) -> Array:
    """(rows, channels, places) of what the reader multiplies with its weights."""
    if reader.op_type != "Conv":
        return entry.reshape(-1, entry.shape[-1] // span.per_channel, span.per_channel)
    sides, strides, dilations, pads = _geometry(reader, kernel, entry.shape)
    padded = np.pad(entry, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    reach = [(size - 1) * step + 1 for size, step in zip(sides, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    turned = np.moveaxis(windows, 1, 3)
    return np.ascontiguousarray(turned).reshape(-1, entry.shape[1], sides[0] * sides[1])


def _geometry(
    node: onnx.NodeProto, kernel: Sequence[int], shape: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Kernel, strides, dilations and pads (top, left, bottom, right) of a convolution."""
    given = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    kernel = list(given.get("kernel_shape", kernel))
    strides, dilations = list(given.get("strides", [1, 1])), list(given.get("dilations", [1, 1]))
    automatic = given.get("auto_pad", b"NOTSET")
    if automatic in (b"NOTSET", b"VALID"):
        return kernel, strides, dilations, list(given.get("pads", [0, 0, 0, 0])) if automatic == b"NOTSET" else [0] * 4
    first, last = [], []
    for size, step, spread, length in zip(kernel, strides, dilations, shape[2:], strict=True):
        missing = max(0, (math.ceil(length / step) - 1) * step + (size - 1) * spread + 1 - length)
        less = missing // 2
        first.append(less if automatic == b"SAME_UPPER" else missing - less)
        last.append(missing - first[-1])
    return kernel, strides, dilations, [*first, *last]


# Choosing and repairing ---------------------------------------------------------------------------


def _reader_weights(model: onnx.ModelProto, span: Span) -> Array:
    """(made, channels, places)."""
    [reader] = [node for node in model.graph.node if node.name == span.reader]
    weight = weight_of(model, reader, {each.name: each for each in model.graph.initializer})
    return weight.reshape(weight.shape[0], span.channels, -1)


def _energy(model: onnx.ModelProto, span: Span, observed: _Observed) -> Array:
    """Of each channel, as the reader weighs it."""
    energy = np.mean(np.square(observed.read, dtype=np.float64), axis=0)  # (channels, places)
    weighed: Array = np.sum(energy * np.sum(np.square(_reader_weights(model, span), dtype=np.float64), axis=0), axis=1)
    return weighed


def _share_out(missing: float, span: Span, falling: Array) -> dict[str, float]:
    """`missing` divided among the steps; `falling`: energy of the channels, the largest first."""
    before, parts = span.channels, {}
    for step, count in _steps(span).items():
        parts[step] = float(falling[count:before].sum())
        before = count
    whole = sum(parts.values())
    return {step: missing * (part / whole if whole else 1 / len(parts)) for step, part in parts.items()}


def _repair(model: onnx.ModelProto, span: Span, observed: _Observed, kept: Sequence[int], old: Array) -> float:
    """Fit the reader's weights; the part of the signal's energy that stays missing."""
    [reader] = [node for node in model.graph.node if node.name == span.reader]
    weights = {each.name: each for each in model.graph.initializer}
    before = old[:, list(kept), :].reshape(len(old), -1).astype(np.float64)  # (made, unknowns)
    read = observed.read[:, list(kept), :].reshape(len(observed.read), -1).astype(np.float64)
    bias = weights[reader.input[2]] if len(reader.input) > 2 and reader.input[2] else None
    shift = numpy_helper.to_array(bias).astype(np.float64) if bias is not None else np.zeros(len(old))
    missing = observed.wanted - read @ before.T - shift
    # A constant column fits the bias; without one, only the weights can make good what is missing.
    middle = read.mean(axis=0) if bias is not None else np.zeros(read.shape[1])
    mean = missing.mean(axis=0) if bias is not None else np.zeros(len(old))
    centred = read - middle
    gram = centred.T @ centred
    gram[np.diag_indices_from(gram)] += RIDGE * max(float(np.trace(gram)) / len(gram), 1e-12)
    change = np.linalg.solve(gram, centred.T @ (missing - mean))  # (unknowns, made)
    after = before + change.T
    if not np.isfinite(after).all():
        raise PassFailed(f"the weights of {span.reader!r} could not be fitted to the sample")
    target = weights[reader.input[1]]
    shaped = after.reshape(len(old), *numpy_helper.to_array(target).shape[1:]) if making_axis(reader) == 0 else after.T
    target.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(shaped, dtype=np.float32), target.name))
    if bias is not None:
        moved = shift + mean - change.T @ middle
        bias.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), bias.name))
    rest = missing - mean - centred @ change
    signal = observed.wanted - observed.wanted.mean(axis=0)
    return float(np.sum(rest * rest) / max(float(np.sum(np.square(signal, dtype=np.float64))), 1e-30))
