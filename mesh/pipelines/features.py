"""Log-mel energies and MFCCs of a window of sound, in NumPy. Pure.

As in common keyword models: frames of `frame_s` every `step_s`, a Hann window, a power spectrum of the next power of
two, triangles equally spaced on the mel scale (2595 log10(1 + f / 700)) from 20 Hz to half of the rate, natural
logarithm with a floor of 1e-6; the MFCCs are the first coefficients of an orthonormal DCT-II of those.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mesh.arrays import Array

LOWEST_HZ = 20.0
FLOOR = 1e-6

MAX_FEATURE_VALUES = 1_000_000
"""Of one window; keyword models take some hundreds."""

MAX_WEIGHTS = 1 << 22
"""Of all bands in the bins of a spectrum: 32 MiB, some of which are kept."""

BLOCK_SAMPLES = 1 << 20
"""Of the frames whose spectra are computed at once: frames that overlap have many times the samples of their window."""


def frame_and_step(rate_hz: float, frame_s: float, step_s: float) -> tuple[int, int]:
    """In samples."""
    return round(frame_s * rate_hz), round(step_s * rate_hz)


def find_problem(window: int, rate_hz: float, frame_s: float, step_s: float, bands: int) -> str:
    """Why a window of so many samples cannot have these features; empty where it can."""
    frame, step = frame_and_step(rate_hz, frame_s, step_s)
    if frame < 1 or step < 1:
        return "a frame and a step have at least one sample"
    if frame > window:
        return f"a frame has {frame} samples, and a window {window}"
    if (count := ((window - frame) // step + 1) * bands) > MAX_FEATURE_VALUES:
        return f"a window makes {count} values, at most {MAX_FEATURE_VALUES} are taken: make step_s larger"
    if _bins(frame) * bands > MAX_WEIGHTS:
        return f"{bands} bands of frames of {frame} samples are too many: make frame_s smaller"
    return ""


def _bins(frame: int) -> int:
    return (1 << (frame - 1).bit_length()) // 2 + 1


def log_mel(samples: Array, rate_hz: float, frame_s: float, step_s: float, bands: int) -> Array:
    """`samples`: float32, n. Returns float32, frames x bands; there are (n - frame) // step + 1 frames."""
    frame, step = frame_and_step(rate_hz, frame_s, step_s)
    count = (len(samples) - frame) // step + 1
    if count < 1:
        return np.empty((0, bands), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples, frame)[::step][:count]
    size = 1 << (frame - 1).bit_length()
    window, weights = np.hanning(frame + 1)[:-1], mel_triangles(size, rate_hz, bands)
    found = np.empty((count, bands), np.float32)
    at_once = max(1, BLOCK_SAMPLES // size)
    for first in range(0, count, at_once):
        power = np.abs(np.fft.rfft(frames[first : first + at_once] * window, size)) ** 2
        found[first : first + at_once] = np.log(np.maximum(power @ weights, FLOOR))
    return found


def mfcc(samples: Array, rate_hz: float, frame_s: float, step_s: float, bands: int, coefficients: int) -> Array:
    """As `log_mel`; returns float32, frames x coefficients."""
    return np.asarray(log_mel(samples, rate_hz, frame_s, step_s, bands) @ cosines(bands, coefficients), np.float32)


@lru_cache(maxsize=16)
def mel_triangles(size: int, rate_hz: float, bands: int) -> Array:
    """Weights of each of the `size // 2 + 1` bins of a spectrum in each band: float64, bins x bands."""

    def to_mel(hz: Array) -> Array:
        return np.asarray(2595 * np.log10(1 + hz / 700))

    edges_mel = np.linspace(to_mel(np.array(LOWEST_HZ)), to_mel(np.array(rate_hz / 2)), bands + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)
    bins = np.fft.rfftfreq(size, 1 / rate_hz)[:, None]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.asarray(np.maximum(0, np.minimum(rising, falling)))


@lru_cache(maxsize=16)
def cosines(bands: int, coefficients: int) -> Array:
    """An orthonormal DCT-II: float64, bands x coefficients."""
    angles = np.pi / bands * (np.arange(bands) + 0.5)[:, None] * np.arange(coefficients)
    scale = np.full(coefficients, np.sqrt(2 / bands))
    scale[0] = np.sqrt(1 / bands)
    return np.asarray(np.cos(angles) * scale)
