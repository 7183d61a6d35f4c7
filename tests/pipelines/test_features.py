"""Features of sound against their definitions, written plainly."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from mesh.pipelines import features
from mesh.pipelines.features import FLOOR, cosines, log_mel, mel_triangles, mfcc

RATE_HZ = 8000.0


def test_a_tone_is_in_its_band() -> None:
    time_s = np.arange(800) / RATE_HZ
    previous = -1
    for hertz in (200.0, 600.0, 1500.0, 3000.0):
        energies = log_mel(np.sin(2 * np.pi * hertz * time_s).astype(np.float32), RATE_HZ, 0.03, 0.02, 20)
        band = int(energies.mean(axis=0).argmax())
        assert band > previous
        previous = band


def test_frames_are_those_that_fit() -> None:
    assert log_mel(np.zeros(239, np.float32), RATE_HZ, 0.03, 0.02, 20).shape == (0, 20)
    assert log_mel(np.zeros(240, np.float32), RATE_HZ, 0.03, 0.02, 20).shape == (1, 20)
    assert log_mel(np.zeros(8000, np.float32), RATE_HZ, 0.03, 0.02, 20).shape == (49, 20)
    np.testing.assert_allclose(log_mel(np.zeros(240, np.float32), RATE_HZ, 0.03, 0.02, 20), np.log(FLOOR), rtol=1e-6)


def test_frames_that_are_computed_in_turns_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.random.default_rng(7).standard_normal(4000).astype(np.float32)
    at_once = log_mel(samples, RATE_HZ, 0.03, 0.01, 20)
    monkeypatch.setattr(features, "BLOCK_SAMPLES", 3 * 256)
    np.testing.assert_allclose(log_mel(samples, RATE_HZ, 0.03, 0.01, 20), at_once, rtol=1e-5)


def test_frames_that_overlap_take_little_memory() -> None:
    samples = np.zeros(4 * 16000, np.float32)
    tracemalloc.start()
    assert log_mel(samples, 16000.0, 0.06, 1 / 16000, 4).shape == (63041, 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 << 20, "at once they would be 480 MiB"


def test_a_frame_is_computed_as_it_is_defined() -> None:
    samples = np.random.default_rng(7).standard_normal(240).astype(np.float32)
    window = np.array([0.5 - 0.5 * np.cos(2 * np.pi * n / 240) for n in range(240)])
    padded = np.concatenate([samples * window, np.zeros(256 - 240)])
    bins = np.arange(129)[:, None] * np.arange(256)
    power = np.abs((padded * np.exp(-2j * np.pi * bins / 256)).sum(axis=1)) ** 2
    energies = np.log(np.maximum(power @ mel_triangles(256, RATE_HZ, 20), FLOOR))
    np.testing.assert_allclose(log_mel(samples, RATE_HZ, 0.03, 0.02, 20)[0], energies, rtol=1e-4)
    np.testing.assert_allclose(
        mfcc(samples, RATE_HZ, 0.03, 0.02, 20, 10)[0], energies @ cosines(20, 10), rtol=1e-3, atol=1e-3
    )


def test_the_cosines_are_orthonormal() -> None:
    np.testing.assert_allclose(cosines(20, 20).T @ cosines(20, 20), np.eye(20), atol=1e-12)
