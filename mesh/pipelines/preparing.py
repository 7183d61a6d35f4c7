"""Messages to the tensors that a model takes: one preparer per pipeline and source, in the order of arrival.

A picture is a frame by itself. Samples go through the source's window first; a window, or its features, must have as
many values as the model's input, which gives it its shape. Owned by the runner.
"""

from __future__ import annotations

import io
import math
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from mesh.arrays import Array, from_array
from mesh.client.resource_url import ResourceUrl
from mesh.client.sources.images import PictureEncoder
from mesh.core.tensor import Dimension, Tensor, TensorSpec
from mesh.errors import TensorMismatch, UsageError
from mesh.pipelines.decoding import check_payload, decode_samples
from mesh.pipelines.features import log_mel, mfcc
from mesh.pipelines.pipeline_file import Pipeline
from mesh.pipelines.windows import WindowCounters, Windower, WindowKind, WindowRule

Part = bytes | Array
"""A picture as it came, or a window."""


class Preparer:
    """Raises `UsageError` or `TensorMismatch` when made, where pipeline and model do not fit each other."""

    def __init__(self, pipeline: Pipeline, inputs: Sequence[TensorSpec]) -> None:
        if len(inputs) != 1:
            names = [spec.name for spec in inputs]
            raise TensorMismatch(f"pipeline {pipeline.name!r}: the model has the inputs {names}, a pipeline fills one")
        self._pipeline = pipeline
        self._spec = inputs[0]
        self._encoder: PictureEncoder | None = None
        self._window: WindowRule | None = None
        self._windower: Windower | None = None
        self._unseen: OrderedDict[str, int] = OrderedDict()
        """Messages with samples that no window has had, oldest first, and how many samples each brought."""
        self._unseen_samples = 0
        """Their sum."""
        if pipeline.source.kind == "image":
            options = pipeline.input.options
            url = ResourceUrl(f"pipeline {pipeline.name}, [input]", "images", "", options)
            self._encoder = PictureEncoder(url, self._spec)
        else:
            self._window = window_rule(pipeline, self._spec)
            self._windower = Windower(self._window, self._channels)

    @property
    def counters(self) -> WindowCounters:
        return self._windower.counters if self._windower is not None else WindowCounters()

    @property
    def _channels(self) -> int:
        return 1 if self._pipeline.source.kind == "audio" else self._pipeline.source.channels

    @property
    def window_bytes(self) -> int:
        """That are held for a source at most, between its messages."""
        return 0 if self._window is None else 4 * self._window.size * self._channels

    def holds(self, message_id: str) -> bool:
        """Whether a sample of that message waits for its first window."""
        return message_id in self._unseen

    def push(self, payload: bytes, now_unix_s: float, message_id: str = "") -> Sequence[Part]:
        """What of a message, and of those before it, is a frame each, oldest first. Raises `SourceUnreadable`."""
        if self._windower is None:
            check_payload(payload)
            return [payload]
        samples = decode_samples(self._pipeline.source, payload, now_unix_s)
        try:
            windows = self._windower.push(samples.values, samples.first_time_s)
        finally:
            self._note(message_id, self._windower)
        return windows

    def _note(self, message_id: str, windower: Windower) -> None:
        self._unseen[message_id] = windower.newest
        self._unseen_samples += windower.newest
        while self._unseen:
            oldest, count = next(iter(self._unseen.items()))
            if self._unseen_samples - count < windower.unseen:
                break
            del self._unseen[oldest]
            self._unseen_samples -= count

    def frame(self, part: Part) -> Tensor:
        """The model's input for a picture or a window: one by one, since windows that overlap are large together.

        Raises `SourceUnreadable` or `TensorMismatch`.
        """
        if isinstance(part, np.ndarray):
            return self._tensor(part)
        if self._encoder is None:
            raise UsageError(f"pipeline {self._pipeline.name!r} takes no pictures")
        return self._encoder.encode(io.BytesIO(part), "the picture")

    def check_window(self) -> None:
        """Raise `TensorMismatch` where a window, or its features, are not as many values as the model takes."""
        if self._window is not None:
            self._tensor(np.zeros((self._window.size, self._channels), np.float32))

    def _tensor(self, window: Array) -> Tensor:
        rule, rate_hz = self._pipeline.input, self._pipeline.source.rate_hz or 0.0
        values = window
        if rule.features == "log-mel":
            values = log_mel(window[:, 0], rate_hz, rule.frame_s, rule.step_s, rule.bands)
        elif rule.features == "mfcc":
            values = mfcc(window[:, 0], rate_hz, rule.frame_s, rule.step_s, rule.bands, rule.coefficients)
        shape = fit_shape(self._spec, values.shape, self._pipeline.name)
        if not self._spec.dtype.is_float:
            raise TensorMismatch(f"input {self._spec.name!r} takes {self._spec.dtype.label}, samples are floats")
        array = np.ascontiguousarray(values.reshape(shape)).astype(self._spec.dtype.label)
        return from_array(array, self._spec.name, dtype=self._spec.dtype)


def window_rule(pipeline: Pipeline, spec: TensorSpec) -> WindowRule:
    """The pipeline's window in samples; where it says no size, the model's input does. Raises `UsageError`."""
    window, source, rule = pipeline.window, pipeline.source, pipeline.input
    if window is None:
        raise UsageError(f"pipeline {pipeline.name!r} has no window")
    rate_hz = source.rate_hz
    size = window.size_in_samples(rate_hz)
    if size is None:
        channels = 1 if source.kind == "audio" else source.channels
        values = _fixed_values(spec)
        if values is None or rule.features != "none" or values % channels:
            raise UsageError(
                f"pipeline {pipeline.name!r}, [window]: the model does not say how long a window is ({spec})",
                hint="give size_s or size",
            )
        size = values // channels
    hop = window.hop_in_samples(rate_hz) or size
    if size < 1:
        raise UsageError(f"pipeline {pipeline.name!r}, [window]: less than one sample")
    if window.kind is WindowKind.SLIDING:
        hop = 1
    return WindowRule(window.kind, size, hop, rate_hz, window.gap)


def _fixed_values(spec: TensorSpec) -> int | None:
    """How many values one frame has; None where the model does not say. An open first size is the batch."""
    if spec.shape is None:
        return None
    sizes = spec.shape[1:] if spec.shape and not isinstance(spec.shape[0], int) else spec.shape
    return math.prod(size for size in sizes if isinstance(size, int)) if _all_fixed(sizes) and sizes else None


def _all_fixed(sizes: tuple[Dimension, ...]) -> bool:
    return all(isinstance(size, int) for size in sizes)


def fit_shape(spec: TensorSpec, found: tuple[int, ...], name: str) -> tuple[int, ...]:
    """`found` (rows, columns) in the model's shape: leading ones added, one open size worked out.

    Raises `TensorMismatch` where the number of values is another.
    """
    count = math.prod(found)
    if spec.shape is None:
        return found
    known = math.prod(size for size in spec.shape if isinstance(size, int))
    open_at = [index for index, size in enumerate(spec.shape) if not isinstance(size, int)]
    shape = [size if isinstance(size, int) else 1 for size in spec.shape]
    if open_at and known and count % known == 0:
        batch_first = len(open_at) > 1  # the first of several is the batch, and a frame is one
        shape[open_at[1] if batch_first else open_at[0]] = count // known
    if math.prod(shape) != count:
        raise TensorMismatch(
            f"pipeline {name!r}: a window makes {list(found)} values, the model wants {spec}",
            hint="set [window] size, or the features in [input], to what the model was trained on",
        )
    return tuple(shape)
