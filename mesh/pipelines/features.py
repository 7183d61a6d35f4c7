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


def log_mel(samples: Array, rate_hz: float, frame_s: float, step_s: float, bands: int) -> Array:
    """`samples`: float32, n. Returns float32, frames x bands; there are (n - frame) // step + 1 frames."""
    frame, step = max(1, round(frame_s * rate_hz)), max(1, round(step_s * rate_hz))
    count = (len(samples) - frame) // step + 1
    if count < 1:
        return np.empty((0, bands), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(samples, frame)[::step][:count]
    size = 1 << (frame - 1).bit_length()
    power = np.abs(np.fft.rfft(frames * np.hanning(frame + 1)[:-1], size)) ** 2
    energies = power @ mel_triangles(size, rate_hz, bands)
    return np.asarray(np.log(np.maximum(energies, FLOOR)), np.float32)


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
