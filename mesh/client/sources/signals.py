"""Synthetic sensor signals, the same to the last bit wherever they are computed.

Only + - * / on doubles and the standard library's seeded generator are used: libm's sine differs between platforms in
the last place, so a polynomial of our own stands in, and `sum` rounds differently between Python versions, so it is not
used. A sample depends on the seed, the channel and its time alone (noise: on the frame), so any frame can be computed
by itself. Pure.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

Noise = Callable[[], float]
"""The next sample of noise: mean 0, standard deviation 1, never beyond 3."""

Signal = Callable[[int, float, Noise, float], float]
"""(channel, time in s, noise, strength of the anomaly at this sample: 0 none .. 1 full) to a value."""

_TAU = 6.283185307179586


def sine(turns: float) -> float:
    """sin(2 pi turns) to 1e-7, by a polynomial, so that it is the same on every platform."""
    phase = turns - math.floor(turns)
    sign = 1.0
    if phase >= 0.5:
        phase -= 0.5
        sign = -1.0
    if phase > 0.25:
        phase = 0.5 - phase
    x = phase * _TAU
    x2 = x * x
    series = 1 - x2 / 6 * (1 - x2 / 20 * (1 - x2 / 42 * (1 - x2 / 72 * (1 - x2 / 110))))
    return sign * x * series


def noise_of(generator: random.Random) -> Noise:
    """Nearly normal noise: the sum of three uniform draws, which needs no logarithm."""
    draw = generator.random
    return lambda: 2.0 * (draw() + draw() + draw() - 1.5)


@dataclass(frozen=True, slots=True)
class _Wave:
    amplitude: float
    frequency_hz: float
    phase_turns: float

    def at(self, time_s: float) -> float:
        return self.amplitude * sine(self.frequency_hz * time_s + self.phase_turns)


def _total(waves: tuple[_Wave, ...], time_s: float) -> float:
    total = 0.0
    for wave in waves:
        total += wave.at(time_s)
    return total


def imu_signal(seed: int, channels: int) -> Signal:
    """A person walking: channels 0-2 acceleration in m/s2 (gravity on the third), 3-5 turn rate in rad/s, and again.

    An anomaly is a fall-like jolt on every channel.
    """
    step_hz = 1.6 + 0.6 * _draw(seed, "step")
    waves: list[tuple[_Wave, ...]] = []
    for channel in range(channels):
        size = 1.5 if channel % 6 < 3 else 0.6
        waves.append(
            tuple(
                _Wave(
                    size * (0.6 + 0.8 * _draw(seed, f"imu/{channel}/{harmonic}/size")) / harmonic,
                    step_hz * harmonic,
                    _draw(seed, f"imu/{channel}/{harmonic}/phase"),
                )
                for harmonic in (1, 2)
            )
        )

    def value(channel: int, time_s: float, noise: Noise, anomaly: float) -> float:
        kind = channel % 6
        rest = 9.81 if kind == 2 else 0.0
        jolt = anomaly * (25.0 if kind < 3 else 6.0) * (1.0 if channel % 2 == 0 else -1.0)
        return rest + _total(waves[channel], time_s) + (0.05 if kind < 3 else 0.01) * noise() + jolt

    return value


def vibration_signal(seed: int, channels: int) -> Signal:
    """The casing of a rotating machine, in g: shaft speed of 24-26 Hz, its harmonics, noise.

    An anomaly is a bearing defect: bursts of ringing at 4.7 times the shaft speed.
    """
    shaft_hz = 24.0 + 2.0 * _draw(seed, "shaft")
    defect_hz = 4.7 * shaft_hz
    waves = [
        tuple(
            _Wave(size * (0.8 + 0.4 * _draw(seed, f"vibration/{channel}/{order}/size")), shaft_hz * order, phase)
            for order, size in ((1, 0.3), (2, 0.12), (3, 0.05))
            for phase in (_draw(seed, f"vibration/{channel}/{order}/phase"),)
        )
        for channel in range(channels)
    ]

    def value(channel: int, time_s: float, noise: Noise, anomaly: float) -> float:
        healthy = _total(waves[channel], time_s) + 0.02 * noise()
        if anomaly == 0.0:
            return healthy
        since = time_s * defect_hz
        decay = 1.0 - (since - math.floor(since))
        return healthy + anomaly * 1.5 * decay * decay * decay * decay * sine(time_s * defect_hz * 8.0)

    return value


def _draw(seed: int, what: str) -> float:
    """A fixed number of [0, 1) for `seed` and `what`."""
    return random.Random(f"{seed}/{what}").random()  # noqa: S311 - signals, not secrets
