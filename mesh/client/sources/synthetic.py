"""`synthetic:imu|vibration|random`: seeded signals shaped to the model, for trying a mesh without a sensor.

Options: `seed` (0), `count` (endless unless given). `imu` and `vibration` feed one float input: `rate_hz` is the
sensor's sample rate, `channels` which of the last two axes are channels (the smaller one unless given; an input of one
long axis is one channel, or interleaved ones), `anomaly_every=N` puts an anomaly into every N-th frame and says so in
its origin. `random` feeds any inputs: random bytes spread evenly over `low..high` in 256 steps, like an 8-bit sensor.
Equal options give equal bytes on every platform.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass

from mesh.client.resource_url import ResourceUrl
from mesh.client.sources.contract import (
    IteratorSource,
    Source,
    SourceFrame,
    SourceRequest,
    nominal_shape,
    single_input,
)
from mesh.client.sources.signals import Signal, imu_signal, noise_of, vibration_signal
from mesh.client.values import ByteLookup, pack_values
from mesh.core.tensor import MAX_TENSOR_BYTES, DType, Tensor, TensorSpec, pack_strings
from mesh.errors import TensorMismatch, UsageError

OPTIONS = ("seed", "count", "rate_hz", "channels", "anomaly_every", "low", "high")
HELP = (
    "synthetic:imu|vibration[?seed=N&count=N&rate_hz=R&channels=N&anomaly_every=N]\n    made-up sensor windows\n"
    "synthetic:random[?seed=N&count=N&low=A&high=B]\n    random tensors for any model"
)

MAX_CHANNELS = 4096
"""More sensors than one input has in practice; bounds the table of waves."""

RATE_LIMITS_HZ = (1e-3, 1e9)
"""From a reading every quarter of an hour to beyond any sensor; keeps times finite."""

_SIGNALS: dict[str, tuple[Callable[[int, int], Signal], float]] = {
    "imu": (imu_signal, 100.0),
    "vibration": (vibration_signal, 10_000.0),
}
"""Kind to its signal and the sample rate in Hz that such sensors usually have."""

_SIGNAL_OPTIONS = ("seed", "count", "rate_hz", "channels", "anomaly_every")
_RANDOM_OPTIONS = ("seed", "count", "low", "high")
_LEVELS = 256


def open_synthetic(request: SourceRequest) -> Source:
    """A source of made-up frames; raises `UsageError` or `TensorMismatch`."""
    url = request.url
    if url.path == "random":
        url.check_options(_RANDOM_OPTIONS)
        return _open_random(request)
    if url.path not in _SIGNALS:
        raise UsageError(
            f"{url.text!r}: unknown signal {url.path!r}", hint="known: " + ", ".join((*_SIGNALS, "random"))
        )
    url.check_options(_SIGNAL_OPTIONS)
    return _open_signal(request)


def _numbering(count: int | None) -> itertools.count[int] | range:
    return itertools.count() if count is None else range(count)


@dataclass(frozen=True, slots=True)
class WindowLayout:
    """How an input's elements are made of windows of `steps` samples of `channels`, one after the other."""

    windows: int
    steps: int
    channels: int
    channels_first: bool


def plan_layout(spec: TensorSpec, shape: tuple[int, ...], channels: int | None) -> WindowLayout:
    """Find the time and channel axes of `shape`; raises `TensorMismatch` where `channels` fits neither."""
    if math.prod(shape) * spec.dtype.item_bytes > MAX_TENSOR_BYTES or 0 in shape:
        raise TensorMismatch(f"input {spec.name!r}: {spec} is empty or larger than a tensor may be")
    # A leading 1 is a batch, not an axis of the signal.
    inner = shape
    while len(inner) > 1 and inner[0] == 1:
        inner = inner[1:]
    if len(inner) < 2:
        length = inner[0] if inner else 1
        per_step = channels or 1
        if length % per_step:
            raise TensorMismatch(
                f"input {spec.name!r}: {length} elements are no whole number of steps of {per_step} channels ({spec})"
            )
        return WindowLayout(1, length // per_step, per_step, channels_first=False)
    first, last = inner[-2:]
    windows = math.prod(inner[:-2])
    if channels is None:
        channels = min(first, last)
    if channels == last:
        return WindowLayout(windows, first, last, channels_first=False)
    if channels == first:
        return WindowLayout(windows, last, first, channels_first=True)
    raise TensorMismatch(f"input {spec.name!r}: neither of the last two axes has {channels} channels ({spec})")


def _open_signal(request: SourceRequest) -> Source:
    url = request.url
    spec = single_input(request, f"synthetic:{url.path}")
    if not spec.dtype.is_float:
        raise TensorMismatch(
            f"input {spec.name!r}: synthetic:{url.path} makes floats, the model wants {spec.dtype.label}",
            hint="synthetic:random feeds any type",
        )
    make_signal, usual_rate_hz = _SIGNALS[url.path]
    rate_hz = url.number("rate_hz", usual_rate_hz) or usual_rate_hz
    if not RATE_LIMITS_HZ[0] <= rate_hz <= RATE_LIMITS_HZ[1]:
        raise url.wrong("rate_hz", f"between {RATE_LIMITS_HZ[0]:g} and {RATE_LIMITS_HZ[1]:g}")
    seed = url.integer("seed", 0, minimum=None) or 0
    count = url.integer("count", minimum=1)
    anomaly_every = url.integer("anomaly_every", minimum=1)
    shape = nominal_shape(spec, f"synthetic:{url.path}")
    layout = plan_layout(spec, shape, url.integer("channels", minimum=1))
    if layout.channels > MAX_CHANNELS:
        raise TensorMismatch(f"input {spec.name!r}: {layout.channels} channels are above the limit of {MAX_CHANNELS}")
    signal = make_signal(seed, layout.channels)

    def produce() -> Generator[SourceFrame, None, None]:
        for index in _numbering(count):
            anomalous = anomaly_every is not None and (index + 1) % anomaly_every == 0
            generator = random.Random(f"{seed}/{url.path}/{index}")  # noqa: S311 - signals, not secrets
            values = _render(signal, layout, index, rate_hz, generator, anomalous)
            tensor = Tensor.from_bytes(spec.dtype, shape, pack_values(values, spec.dtype), spec.name)
            yield SourceFrame((tensor,), f"{url.path}[{index}]" + (" anomaly" if anomalous else ""))

    frame_s = layout.windows * layout.steps / rate_hz
    return IteratorSource(produce, frame_count=count, natural_rate_hz=1 / frame_s)


def _render(
    signal: Signal, layout: WindowLayout, index: int, rate_hz: float, generator: random.Random, anomalous: bool
) -> list[float]:
    """The values of frame `index` in row-major order; frames follow each other in time without a gap."""
    noise = noise_of(generator)
    values: list[float] = []
    middle = layout.steps / 2
    for window in range(layout.windows):
        start = (index * layout.windows + window) * layout.steps
        rows: list[list[float]] = []
        for step in range(layout.steps):
            # An anomaly swells to the middle of the window and ebbs away.
            strength = 1.0 - abs(step + 0.5 - middle) / middle if anomalous else 0.0
            time_s = (start + step) / rate_hz
            rows.append([signal(channel, time_s, noise, strength) for channel in range(layout.channels)])
        ordered = zip(*rows, strict=True) if layout.channels_first else rows
        values.extend(itertools.chain.from_iterable(ordered))
    return values


def _open_random(request: SourceRequest) -> Source:
    url = request.url
    seed = url.integer("seed", 0, minimum=None) or 0
    count = url.integer("count", minimum=1)
    makers = [(spec, nominal_shape(spec, "synthetic:random"), _levels(url, spec)) for spec in request.inputs]
    for spec, shape, _ in makers:
        if math.prod(shape) * max(1, spec.dtype.item_bytes) > MAX_TENSOR_BYTES:
            raise TensorMismatch(f"input {spec.name!r}: {spec} is larger than a tensor may be")

    def produce() -> Generator[SourceFrame, None, None]:
        for index in _numbering(count):
            generator = random.Random(f"{seed}/random/{index}")  # noqa: S311 - signals, not secrets
            tensors = tuple(
                Tensor.from_bytes(spec.dtype, shape, _random_bytes(generator, math.prod(shape), lookup), spec.name)
                for spec, shape, lookup in makers
            )
            yield SourceFrame(tensors, f"random[{index}]")

    return IteratorSource(produce, frame_count=count)


def _random_bytes(generator: random.Random, count: int, lookup: ByteLookup | None) -> bytes | bytearray:
    levels = generator.randbytes(count)
    if lookup is None:
        return pack_strings([b"word-%d" % level for level in levels])
    return lookup.apply(levels)


def _levels(url: ResourceUrl, spec: TensorSpec) -> ByteLookup | None:
    """The table from a random byte to a value of low..high; None for strings. Raises `UsageError` for a bad range."""
    if spec.dtype is DType.STRING:
        return None
    low, high = _bound(url, "low"), _bound(url, "high")
    if low is None:
        low = 0.0
    if high is None:
        # Integers may be indices into a table, so they stay small unless the user says more.
        high = 1.0 if spec.dtype.is_float or spec.dtype is DType.BOOL else 255.0 if spec.dtype is DType.UINT8 else 9.0
    if low > high:
        raise UsageError(f"{url.text!r}: low={low:g} is above high={high:g}", hint="swap them")
    if spec.dtype.is_float:
        values = [low + (high - low) * level / (_LEVELS - 1) for level in range(_LEVELS)]
    else:
        if low != int(low) or high != int(high):
            raise UsageError(f"{url.text!r}: input {spec.name!r} is {spec.dtype.label}, low and high are whole numbers")
        width = int(high) - int(low) + 1
        # Few values share the levels evenly; of many, the levels pick some, both ends among them.
        steps = (width, _LEVELS) if width <= _LEVELS else (width - 1, _LEVELS - 1)
        values = [float(int(low) + level * steps[0] // steps[1]) for level in range(_LEVELS)]
    try:
        return ByteLookup(values, spec.dtype)
    except TensorMismatch as error:
        raise UsageError(f"{url.text!r}: {error.message}", hint="choose low and high within the type's range") from None


def _bound(url: ResourceUrl, key: str) -> float | None:
    numbers = url.numbers(key)
    if numbers is None:
        return None
    if len(numbers) != 1:
        raise url.wrong(key, "one number")
    return numbers[0]
