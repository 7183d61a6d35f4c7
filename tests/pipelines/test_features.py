"""Features of sound against their definitions, written plainly."""

from __future__ import annotations

import numpy as np

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
