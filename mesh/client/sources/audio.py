"""PCM samples to the windows that a model takes: shared by the WAV source and PCM on standard input.

A window is a run of consecutive mono samples; windows begin every `hop` samples (tumbling where hop equals the window).
The model fixes the window's length where its sample axis is fixed, else the user gives it in seconds. Samples are
-1..1 for float models and full scale 16-bit integers for models that take int16. What is left at the end is padded
with silence (`tail=pad`, so that no sound is lost), dropped, or an error. Pure; the sources do the reading.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mesh.client.resource_url import ResourceUrl
from mesh.client.values import pack_values
from mesh.core.tensor import MAX_TENSOR_BYTES, DType, Tensor, TensorSpec
from mesh.errors import TensorMismatch, UsageError

MAX_CHANNELS = 64
"""More than any sound card that people own has; bounds what a damaged header may claim."""

MAX_SAMPLE_RATE_HZ = 1_000_000
"""Above ultrasonic recorders; bounds what a damaged header may claim."""

TAILS = ("pad", "drop", "error")

_FULL_SCALE_16 = 1 << 15
_WIDTHS = {1: "B", 2: "h", 4: "i"}


@dataclass(frozen=True, slots=True)
class PcmFormat:
    """Interleaved little-endian samples. `width` is bytes per sample: 1 (unsigned), 2, 3, 4; `is_float` with 4 only."""

    sample_rate_hz: int
    channels: int
    width: int
    is_float: bool = False

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of all channels."""
        return self.channels * self.width

    def decode_mono(self, data: bytes) -> Sequence[float]:
        """The mean of the channels, one value per sample; integers are scaled to -1..1, floats are left as they are."""
        samples: array[Any]
        if self.is_float:
            samples = array("f")
            samples.frombytes(data)
            offset, full_scale = 0, 1
        elif self.width == 3:
            # Put each sample into the upper three bytes of a 32-bit one, which scales it by 256 exactly.
            widened = bytearray(len(data) // 3 * 4)
            for byte in range(3):
                widened[byte + 1 :: 4] = data[byte::3]
            samples = array("i", bytes(widened))
            offset, full_scale = 0, 1 << 31
        else:
            samples = array(_WIDTHS[self.width])
            samples.frombytes(data)
            offset = 128 if self.width == 1 else 0
            full_scale = 1 << (8 * self.width - 1)
        if sys.byteorder == "big" and samples.itemsize > 1:
            samples.byteswap()
        if self.channels > 1:
            apart = [samples[channel :: self.channels] for channel in range(self.channels)]
            summed = map(sum, zip(*apart, strict=True))
            divisor = full_scale * self.channels
            offset *= self.channels
            return [(value - offset) / divisor for value in summed]
        return [(value - offset) / full_scale for value in samples]


@dataclass(frozen=True, slots=True)
class Windowing:
    """How samples become frames for one model input."""

    spec: TensorSpec
    shape: tuple[int, ...]
    window: int
    """Samples per frame."""
    hop: int
    """Samples between the beginnings of two frames."""
    tail: str

    def encode(self, samples: Sequence[float]) -> Tensor:
        """A frame from `window` mono samples of -1..1."""
        if self.spec.dtype is DType.INT16:
            top = _FULL_SCALE_16 - 1
            scaled = [round(min(top, max(-_FULL_SCALE_16, value * _FULL_SCALE_16))) for value in samples]
            packed = pack_values(scaled, DType.INT16)
        else:
            packed = pack_values(samples, self.spec.dtype)
        return Tensor.from_bytes(self.spec.dtype, self.shape, packed, self.spec.name)

    def count(self, samples: int) -> int:
        """Frames that `samples` samples give; with `tail=error` only the complete ones."""
        complete = 0 if samples < self.window else (samples - self.window) // self.hop + 1
        return complete + (1 if self.tail == "pad" and self._rest(samples, complete) else 0)

    def leaves_rest(self, samples: int) -> bool:
        """Whether samples are left after the last complete frame that are in no frame."""
        return self._rest(samples, 0 if samples < self.window else (samples - self.window) // self.hop + 1)

    def _rest(self, samples: int, complete: int) -> bool:
        covered = 0 if complete == 0 else (complete - 1) * self.hop + self.window
        return samples > max(covered, complete * self.hop)

    def cut(self, read: Callable[[int], Sequence[float]], where: str) -> Iterator[tuple[int, Tensor]]:
        """First sample and tensor of each frame. `read(n)` gives up to `n` further samples, fewer only at the end.

        Raises `TensorMismatch` at the end with `tail=error` where samples are left over.
        """
        start = 0
        held: list[float] = []
        fresh = 0  # samples in `held` that no frame has carried yet
        while True:
            wanted = self.window - len(held)
            got = read(wanted)
            held.extend(got)
            fresh += len(got)
            if len(got) < wanted:
                break
            yield start, self.encode(held)
            start += self.hop
            held = held[self.hop :]
            fresh = 0
            if self.hop > self.window and len(read(self.hop - self.window)) < self.hop - self.window:
                return
        if not fresh or self.tail == "drop":
            return
        if self.tail == "error":
            raise TensorMismatch(
                f"{where}: ends {self.window - len(held)} samples before the end of a window of {self.window}",
                hint="?tail=pad fills up with silence, ?tail=drop leaves the rest out",
            )
        yield start, self.encode(held + [0.0] * (self.window - len(held)))


def plan_windows(url: ResourceUrl, spec: TensorSpec, sample_rate_hz: int) -> Windowing:
    """Fit the options `window`, `hop` (seconds) and `tail` of `url` to the input `spec`.

    Raises `UsageError` or `TensorMismatch` where they do not fit each other.
    """
    if not (spec.dtype.is_float or spec.dtype is DType.INT16):
        raise TensorMismatch(
            f"input {spec.name!r}: the model wants {spec.dtype.label}, audio gives floats of -1..1 or int16",
            hint="prepare the arrays yourself and use an .npz file",
        )
    window_s = url.number("window", want="seconds above 0")
    asked = None if window_s is None else _samples(url, "window", window_s, sample_rate_hz)
    shape, axis = _sample_axis(spec)
    size = shape[axis]
    if isinstance(size, int):
        if asked is not None and asked != size:
            raise TensorMismatch(
                f"input {spec.name!r}: window={window_s} s is {asked} samples at {sample_rate_hz} Hz, "
                f"the model wants {size} ({spec})",
                hint=f"leave ?window= away, or resample the audio to {size / (window_s or 1):g} Hz",
            )
        window = size
    elif asked is None:
        raise UsageError(
            f"{url.text!r}: the model leaves the length of {spec.name!r} open ({spec})",
            hint="say how much audio a frame holds, in seconds: ?window=1.0",
        )
    else:
        window = asked
    if window * spec.dtype.item_bytes > MAX_TENSOR_BYTES:
        raise UsageError(f"{url.text!r}: a window of {window} samples is larger than a tensor may be")
    hop_s = url.number("hop", want="seconds above 0")
    hop = window if hop_s is None else _samples(url, "hop", hop_s, sample_rate_hz)
    concrete = tuple(window if index == axis else 1 for index in range(len(shape)))
    return Windowing(spec, concrete, window, hop, url.choice("tail", TAILS, "pad"))


def _samples(url: ResourceUrl, key: str, seconds: float, sample_rate_hz: int) -> int:
    samples = round(seconds * sample_rate_hz)
    if samples < 1:
        raise url.wrong(key, f"at least one sample long, which is {1 / sample_rate_hz:g} s here")
    return samples


def _sample_axis(spec: TensorSpec) -> tuple[tuple[int | str, ...], int]:
    """Shape and the index of its sample axis: the one that is neither 1 nor a batch; all others must be 1 or open."""
    shape: tuple[int | str, ...] = ("?", "?") if spec.shape is None else spec.shape
    fixed = [axis for axis, dim in enumerate(shape) if isinstance(dim, int) and dim != 1]
    if not shape or len(fixed) > 1 or 0 in shape:
        raise TensorMismatch(
            f"input {spec.name!r}: audio has one axis of samples, the model wants {spec}",
            hint="compute what the model takes (a spectrogram, say) yourself and use an .npz file",
        )
    if fixed:
        return shape, fixed[0]
    # The first dimension is the batch wherever there is another one.
    symbolic = [axis for axis, dim in enumerate(shape) if isinstance(dim, str)]
    if symbolic and (symbolic[-1] > 0 or len(shape) == 1):
        return shape, symbolic[-1]
    return shape, len(shape) - 1
