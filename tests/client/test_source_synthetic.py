from __future__ import annotations

import hashlib
import math
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.client.sources import SourceFrame, open_source
from mesh.client.sources.signals import sine
from mesh.core.tensor import DType, TensorSpec
from mesh.errors import MeshError, TensorMismatch, UsageError

IMU = TensorSpec("window", DType.FLOAT32, (1, 128, 6))
VIBRATION = TensorSpec("window", DType.FLOAT32, ("batch", 1, 1024))


def read(url: str, *specs: TensorSpec, limit: int = 50) -> list[SourceFrame]:
    return list(islice(open_source(url, specs).frames(), limit))


def array_of(frame: SourceFrame, index: int = 0) -> Any:
    tensor = frame.tensors[index]
    return np.frombuffer(tensor.data, np.dtype(tensor.dtype.label)).reshape(tensor.shape)


def digest(frames: list[SourceFrame]) -> str:
    return hashlib.sha256(b"".join(bytes(t.data) for frame in frames for t in frame.tensors)).hexdigest()[:16]


@given(turns=st.floats(-1000, 1000))
def test_the_sine_is_one(turns: float) -> None:
    assert sine(turns) == pytest.approx(math.sin(2 * math.pi * turns), abs=1e-6)


# These are promises to every platform: whoever changes a signal changes them knowingly.
@pytest.mark.parametrize(
    ("url", "spec", "want"),
    [
        ("synthetic:imu?seed=1&count=3&anomaly_every=2", IMU, "6e595904ecd59a55"),
        ("synthetic:vibration?seed=1&count=3&anomaly_every=2", VIBRATION, "56c7cb5224c14a0b"),
        ("synthetic:random?seed=1&count=3", IMU, "840842712b84bf3d"),
    ],
)
def test_the_bytes_are_the_same_everywhere(url: str, spec: TensorSpec, want: str) -> None:
    assert digest(read(url, spec)) == want


@pytest.mark.parametrize("kind", ["imu", "vibration", "random"])
def test_seeds_differ_and_equal_seeds_do_not(kind: str) -> None:
    one, again, other = (digest(read(f"synthetic:{kind}?count=2&seed={seed}", IMU)) for seed in (1, 1, -2))
    assert one == again != other
    frames = read(f"synthetic:{kind}?count=2", IMU)
    assert bytes(frames[0].tensors[0].data) != bytes(frames[1].tensors[0].data)


def test_without_count_it_never_ends() -> None:
    source = open_source("synthetic:imu", [IMU])
    assert source.frame_count is None
    assert len(list(islice(source.frames(), 30))) == 30
    assert len(read("synthetic:imu?count=7", IMU)) == 7


def test_an_imu_feels_gravity_on_its_third_channel() -> None:
    values = np.concatenate([array_of(frame)[0] for frame in read("synthetic:imu?count=10", IMU)])
    means = values.mean(axis=0)
    assert means[2] == pytest.approx(9.81, abs=0.5)
    assert np.abs(np.delete(means, 2)).max() < 0.5
    assert 0.1 < values.std(axis=0).min() < values.std(axis=0).max() < 4


def test_frames_follow_each_other_without_a_gap() -> None:
    long = array_of(read("synthetic:vibration?count=1", TensorSpec("w", DType.FLOAT64, (1, 512)))[0])[0]
    short = [array_of(f)[0] for f in read("synthetic:vibration?count=2", TensorSpec("w", DType.FLOAT64, (1, 256)))]
    assert np.abs(np.concatenate(short) - long).max() < 6 * 0.02 * 2  # the noise is drawn anew per frame


@pytest.mark.parametrize(("kind", "spec"), [("imu", IMU), ("vibration", VIBRATION)])
def test_anomalies_come_when_said_and_stand_out(kind: str, spec: TensorSpec) -> None:
    frames = read(f"synthetic:{kind}?count=6&anomaly_every=3", spec)
    marked = [frame.origin.endswith("anomaly") for frame in frames]
    assert marked == [False, False, True, False, False, True]
    peaks = [
        np.abs(array_of(frame) - np.median(array_of(frame), axis=-2 if kind == "imu" else -1)).max() for frame in frames
    ]
    quiet = max(peak for peak, odd in zip(peaks, marked, strict=True) if not odd)
    assert all(peak > 1.5 * quiet for peak, odd in zip(peaks, marked, strict=True) if odd)
    clean = read(f"synthetic:{kind}?count=6", spec)
    assert [bytes(a.tensors[0].data) == bytes(b.tensors[0].data) for a, b in zip(frames, clean, strict=True)] == [
        not odd for odd in marked
    ]


def test_channels_may_stand_first_last_or_flat() -> None:
    last = array_of(read("synthetic:imu?count=1", IMU)[0])[0]
    first = array_of(read("synthetic:imu?count=1", TensorSpec("w", DType.FLOAT32, (1, 6, 128)))[0])[0]
    flat = array_of(read("synthetic:imu?count=1&channels=6", TensorSpec("w", DType.FLOAT32, (1, 768)))[0])[0]
    assert np.array_equal(first.T, last)
    assert np.array_equal(flat.reshape(128, 6), last)
    pair = array_of(read("synthetic:imu?count=1", TensorSpec("w", DType.FLOAT32, (2, 64, 6)))[0])
    assert np.abs(pair.reshape(128, 6) - last).max() < 1e-6


def test_random_feeds_every_type_within_bounds() -> None:
    specs = [TensorSpec(dtype.label, dtype, ("n", 300)) for dtype in DType]
    (frame,) = read("synthetic:random?count=1", *specs)
    for spec, tensor in zip(specs, frame.tensors, strict=True):
        assert tensor.shape == (1, 300)
        tensor.check_bytes()
        if spec.dtype in (DType.STRING, DType.BFLOAT16):
            continue
        values = np.frombuffer(tensor.data, np.dtype(spec.dtype.label)).astype(np.float64)
        top = 255 if spec.dtype is DType.UINT8 else 1 if spec.dtype.is_float or spec.dtype is DType.BOOL else 9
        assert 0 <= values.min() < values.max() <= top
    (bounded,) = read("synthetic:random?count=1&low=-3&high=3", TensorSpec("x", DType.INT8, (999,)))
    assert set(array_of(bounded).tolist()) == set(range(-3, 4))


@pytest.mark.parametrize(
    ("url", "spec", "error", "said"),
    [
        ("synthetic:", IMU, UsageError, "known: imu, vibration, random"),
        ("synthetic:thunder", IMU, UsageError, "unknown signal 'thunder'"),
        ("synthetic:imu?low=1", IMU, UsageError, "unknown option 'low'"),
        ("synthetic:random?rate_hz=1", IMU, UsageError, "unknown option 'rate_hz'"),
        ("synthetic:imu?rate_hz=nan", IMU, UsageError, "rate_hz="),
        ("synthetic:imu?rate_hz=1e-300", IMU, UsageError, "between 0.001"),
        ("synthetic:imu?count=0", IMU, UsageError, "count="),
        ("synthetic:imu?anomaly_every=0", IMU, UsageError, "anomaly_every="),
        ("synthetic:imu?channels=5", IMU, TensorMismatch, "neither of the last two axes has 5"),
        ("synthetic:imu?channels=5", TensorSpec("x", DType.FLOAT32, (1, 128)), TensorMismatch, "no whole number"),
        ("synthetic:imu", TensorSpec("x", DType.INT32, (1, 128, 6)), TensorMismatch, "synthetic:random feeds any"),
        ("synthetic:imu", TensorSpec("x", DType.FLOAT32, None), TensorMismatch, "does not say its shape"),
        ("synthetic:imu", TensorSpec("x", DType.FLOAT32, (1, 0)), TensorMismatch, "empty"),
        ("synthetic:imu", TensorSpec("x", DType.FLOAT32, (9999, 9999)), TensorMismatch, "limit of 4096"),
        ("synthetic:random", TensorSpec("x", DType.FLOAT32, (1 << 20, 1 << 20)), TensorMismatch, "larger than"),
        ("synthetic:random?low=2&high=1", IMU, UsageError, "low=2 is above high=1"),
        ("synthetic:random?low=0.5", TensorSpec("x", DType.INT32, (2,)), UsageError, "whole numbers"),
        ("synthetic:random?high=256", TensorSpec("x", DType.UINT8, (2,)), UsageError, "range of uint8"),
        ("synthetic:random?low=1,2", IMU, UsageError, "one number"),
    ],
)
def test_what_makes_no_sense_is_refused_at_opening(
    url: str, spec: TensorSpec, error: type[MeshError], said: str
) -> None:
    with pytest.raises(error, match=said):
        open_source(url, [spec])
